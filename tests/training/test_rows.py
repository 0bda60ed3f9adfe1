"""Rows of the trainers: what of a conversation is trained on, what is left out and named, what is refused. Nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, load_from_disk

from conftest import build_tokenizer
from tokendeep import chat, data
from tokendeep.errors import InputError
from tokendeep.training import cache, chats, rows
from tokendeep.types import IGNORE
from tuning import token_rows


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


ONE = [said("user", "One?"), said("assistant", "one answer")]
TWO = [*ONE, said("user", "Two?"), said("assistant", "two answers")]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TOOLED = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>"
    "{{ m.role.upper() if loud else m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}<call>"
    "{{ call.function.name }} {{ call.function.arguments }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{{ 'ASSISTANT' if loud else 'assistant' }}\n{% endif %}"
)


def encoded(tokenizer: Any, given: Any, **more: Any) -> Any:
    made = Dataset.from_list(given) if isinstance(given, list) else given
    return rows.encode(made, tokenizer, **{"max_length": 512, **more})


def trained_texts(tokenizer: Any, made: Any) -> list[str]:
    return [tokenizer.decode([t for t in row["labels"] if t != IGNORE]).removesuffix("<|im_end|>") for row in made]


# --- which answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "train_on", "answers"),
    [
        ({"messages": TWO}, "last_turn", ["two answers"]),
        ({"messages": TWO}, "all_turns", ["one answer", "two answers"]),
        ({"messages": [TWO[0], {**TWO[1], "weight": 0}, *TWO[2:]]}, "all_turns", ["two answers"]),
        ({"messages": [TWO[0], {**TWO[1], "weight": 1}, *TWO[2:]]}, "last_turn", ["one answer", "two answers"]),
        ({"messages": [*TWO[:3], {**TWO[3], "weight": 0}]}, "last_turn", ["one answer"]),
        ({"prompt": TWO[:3], "completion": TWO[3:]}, "all_turns", ["two answers"]),
        ({"prompt": TWO[:1], "completion": TWO[1:]}, "last_turn", ["one answer", "two answers"]),
        ({"instruction": "One?", "response": "one answer"}, "last_turn", ["one answer"]),
        ({"prompt": "One?", "completion": "one answer"}, "last_turn", ["one answer"]),
        ({"messages": [said("user", parts("One", "?")), said("assistant", parts("one answer"))]}, "last_turn", ["one answer"]),
    ],
)  # fmt: skip
def test_command_line_and_trainer_train_on_the_same(
    row: dict[str, Any], train_on: str, answers: list[str], tmp_path: Path, tiny_tokenizer: Any
) -> None:
    made = encoded(tiny_tokenizer, [row], train_on=train_on)
    assert trained_texts(tiny_tokenizer, made) == answers
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    ours = chats.encode(tiny_tokenizer, chats.load(path, whole=True), source="rows", max_length=512, train_on=train_on)
    assert [one.input_ids for one in ours] == list(made["input_ids"])
    assert [one.labels for one in ours] == list(made["labels"])


def test_tools_calls_and_arguments_are_rendered(tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = TOOLED
    turns = [
        ONE[0],
        said("assistant", "", tool_calls=[CALL]),
        said("tool", "sun", name="weather", tool_call_id="1"),
        said("assistant", "It is sunny."),
    ]
    row = {"messages": turns, "tools": json.dumps([WEATHER]), "chat_template_kwargs": {"loud": True, "quiet": None}}
    made = encoded(tiny_tokenizer, [row], train_on="all_turns")
    call = '<call>weather {"city": "Rome"}</call>'
    assert trained_texts(tiny_tokenizer, made) == [call, "It is sunny."]
    prompt = tiny_tokenizer.decode(made[1]["input_ids"])
    assert prompt.startswith('<|im_start|>system\n[{"type": "function"')
    assert "<|im_start|>TOOL\nsun<|im_end|>" in prompt
    assert call in prompt


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"messages": ONE, "tools": [WEATHER]}, "Row 1: The chat template does not know the row's tools"),
        (
            {"messages": ONE, "chat_template_kwargs": {"loud": True}},
            "does not know loud of the row's chat_template_kwargs",
        ),
        (
            {"messages": [ONE[0], {**ONE[1], "reasoning_content": "hm"}]},
            "Row 1, message 2: unknown field 'reasoning_content'",
        ),
        ({"messages": [ONE[0], {**ONE[1], "weight": 0.5}]}, "Row 1, message 2: 'weight' must be 0 or 1"),
        ({"messages": [{**ONE[0], "weight": 1}, ONE[1]]}, "Row 1, message 1: 'weight' must be 0 or 1"),
        ({"messages": [ONE[0], said("assistant", "", tool_calls=[CALL])]}, "does not write a tool call of the answer"),
        ({"messages": ONE, "images": ["x.png"]}, r"Row 1: unknown column 'images'; .*remove_columns\('images'\)"),
        ({"messages": ONE, "system_prompt": "Be brief."}, r"unknown column 'system_prompt'; .*rename_column\("),
        ({"messages": ONE, "sytem": "Be brief."}, "unknown column 'sytem'"),
        ({"messages": ONE, "reasoning": "hm"}, "unknown column 'reasoning'"),
        ({"messages": ONE, "prompt": ONE[:1]}, "both 'messages' and 'prompt'"),
        ({"prompt": ONE[:1], "chosen": ONE[1:], "rejected": ONE[1:]}, r"rename_column\('chosen', 'completion'\)"),
        ({"instruction": "One?", "response": "one", "label": 3}, r"'label' .*remove_columns\('label'\)"),
        ({"instruction": "One?", "harmful": "a", "refusal": "b"}, "Row 1: "),
        (
            {"messages": [said("user", [{"type": "image", "text": "x"}]), said("assistant", parts("one"))]},
            "Row 1, message 1",
        ),
        ({"input_ids": [5, 6, 7], "labels": [IGNORE, 6, 7], "position_ids": [0, 1, 0]}, "Row 1: its position_ids"),
        ({"input_ids": [5, 6, 7], "labels": [IGNORE, 6, 7], "attention_mask": [0, 1, 1]}, "Row 1: its attention_mask"),
        ({"text": "all of it"}, "cannot be told apart"),
    ],
)
def test_no_field_is_left_out_in_silence(row: dict[str, Any], match: str, tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match=match):
        encoded(tiny_tokenizer, [row])


def test_columns_that_change_nothing_are_left_out_and_named(tiny_tokenizer: Any, caplog: Any) -> None:
    caplog.set_level("WARNING", logger="tokendeep")
    notes = {"source": "web", "prompt": "One?", "prompt_id": "x7", "score": 0.5, "label": 1, "metadata": {"a": "b"}}
    made = encoded(tiny_tokenizer, [{"messages": ONE, **notes}, {"messages": TWO, **notes}])
    plain = encoded(tiny_tokenizer, [{"messages": ONE}, {"messages": TWO}])
    assert made["input_ids"][:] == plain["input_ids"][:]
    assert made["labels"][:] == plain["labels"][:]
    (line,) = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert line.endswith(f"not used: {', '.join(notes)}.")


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_columns_beside_prompt_and_completion_are_left_out_and_named(
    listed: bool, plain: bool, tiny_tokenizer: Any, caplog: Any
) -> None:
    caplog.set_level("WARNING", logger="tokendeep")
    if plain and not listed:
        tiny_tokenizer.chat_template = None
    row = {"prompt": ONE[:1], "completion": ONE[1:]} if listed else {"prompt": "One?", "completion": "one answer"}
    notes = {"source": "web", "score": 0.5, "prompt_id": "x7", "label": 1, "metadata": {"a": "b"}}
    made = encoded(tiny_tokenizer, [{**row, "id": "a", "category": "c", **notes}])
    assert made["input_ids"][:] == encoded(tiny_tokenizer, [row])["input_ids"][:]
    (line,) = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert line.endswith(f"not used: {', '.join(notes)}.")


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize(
    ("name", "value"),
    [("system_prompt", "Be brief."), ("sytem", "Be brief."), ("context", "Rome"), ("chosen", "b"), ("answer", "b"),
     ("input", "Two?"), ("tool", "t")],
)  # fmt: skip
def test_what_may_change_a_prompt_and_completion_is_refused(
    name: str, value: str, template: bool, tiny_tokenizer: Any
) -> None:
    if not template:
        tiny_tokenizer.chat_template = None
    with pytest.raises(InputError, match=f"^Row 1: .*{name}"):
        encoded(tiny_tokenizer, [{"prompt": "One?", "completion": "one answer", name: value}])


def test_a_system_column_beside_plain_texts_is_refused(tiny_tokenizer: Any) -> None:
    row = {"prompt": "One?", "completion": "one answer", "system": ""}
    tiny_tokenizer.chat_template = None
    encoded(tiny_tokenizer, [row])  # an empty one says nothing
    with pytest.raises(InputError, match="Row 1: its system would be left out of plain text"):
        encoded(tiny_tokenizer, [{**row, "system": "Be brief."}])


def test_a_system_column_is_the_system_prompt(tiny_tokenizer: Any) -> None:
    one = encoded(tiny_tokenizer, [{"messages": ONE, "system": "Be brief."}])
    two = encoded(tiny_tokenizer, [{"messages": [said("system", "Be brief."), *ONE]}])
    assert one["input_ids"] == two["input_ids"]


def test_texts_without_a_template_are_tokenised_as_they_are(tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = None
    made = encoded(tiny_tokenizer, [{"prompt": "One: ", "completion": "two"}])
    assert tiny_tokenizer.decode(made[0]["input_ids"]) == "One: two<|im_end|>"
    assert trained_texts(tiny_tokenizer, made) == ["two"]


def test_only_trainings_take_what_else_a_conversation_holds(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": ONE, "tools": [WEATHER]}) + "\n")
    assert chats.load(path, whole=True)[0].arguments == {"tools": [WEATHER]}
    for read in (chats.load, data.read_chats, data.read_pairs, data.read_prompts):
        with pytest.raises(InputError, match="row 1: its tools"):
            read(path)


# --- rows that hold nothing -----------------------------------------------------------------------------


def test_rows_that_hold_nothing_are_left_out_and_named(tiny_tokenizer: Any) -> None:
    long = [said("user", "word " * 200), said("assistant", "an answer")]
    empty = [ONE[0], said("assistant", " ")]
    skipped: list[str] = []
    made = encoded(tiny_tokenizer, [{"messages": m} for m in (ONE, long, empty, TWO)], max_length=100, skipped=skipped)
    assert trained_texts(tiny_tokenizer, made) == ["one answer", "two answers"]
    assert [line.split(":")[0] for line in skipped] == ["Row 2", "Row 3, message 2"]
    assert "leave no room in 100" in skipped[0]
    with pytest.raises(InputError, match="There is no row left to train on: Row 1: Prompt and context take"):
        encoded(tiny_tokenizer, [{"messages": long}], max_length=100)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"labels": [-100, 6, 7]}, "4 input_ids but 3 labels"),
        ({"labels": [-100, 6, 7, 8, 9]}, "4 input_ids but 5 labels"),
        ({"betas": [1.0, 1.0, 1.0]}, "4 input_ids but 3 betas"),
        ({"betas": [1.0, 1.0, 1.0, 1.0, 1.0]}, "4 input_ids but 5 betas"),
        ({"betas": [1.0, 1.0, float("inf"), 1.0]}, "betas must hold a finite number"),
        ({"labels": [-100, 6, -1, 8]}, "holds -1, which is no token id"),
        ({"input_ids": [5, 6, -100, 8]}, "holds -100, which is no token id"),
        ({"input_ids": None}, "its input_ids is missing"),
        ({"labels": None}, "its labels is missing"),
        ({"betas": None}, "its betas is missing"),
        ({"weight": None}, "its weight is missing"),
        ({"group": None}, "its group is missing"),
        ({"risk": None}, "its risk is missing"),
    ],
)
def test_token_rows_that_do_not_fit_are_named(changed: dict[str, Any], match: str, tiny_tokenizer: Any) -> None:
    whole = {
        "input_ids": [5, 6, 7, 8],
        "labels": [-100, 6, 7, 8],
        "betas": [1.0] * 4,
        "weight": 1.0,
        "group": "a",
        "risk": 1,
    }
    given = Dataset.from_list([whole, {**whole, **changed}])
    with pytest.raises(InputError, match=f"^Row 2: .*{match}"):
        rows.encode(given, tiny_tokenizer, max_length=None)


@pytest.mark.parametrize(("mask", "match"), [([0, 1, 1], "4 input_ids but 3 completion_mask"), (None, "is missing")])
def test_masks_that_do_not_fit_are_named(mask: Any, match: str, tiny_tokenizer: Any) -> None:
    whole = {"input_ids": [5, 6, 7, 8], "completion_mask": [0, 1, 1, 1]}
    given = Dataset.from_list([whole, {**whole, "completion_mask": mask}])
    with pytest.raises(InputError, match=f"^Row 2: .*{match}"):
        rows.encode(given, tiny_tokenizer, max_length=None)


def test_rows_left_out_are_told_in_one_way_and_the_first_five_by_name() -> None:
    reasons = [f"Row {n}: it is empty." for n in range(1, 8)]
    assert rows.left_out(reasons[:2], "9") == (
        "2 row(s) of 9 hold nothing to train on and are left out: Row 1: it is empty; Row 2: it is empty"
    )
    assert rows.left_out(reasons, "--eval-data").endswith("Row 4: it is empty; Row 5: it is empty; ...")
    assert chats.told({"eval_data": reasons}) == [rows.left_out(reasons, "--eval-data")]


def test_a_stream_is_encoded_without_rows_that_hold_nothing(tiny_tokenizer: Any) -> None:
    stream = Dataset.from_list(
        [{"messages": m} for m in (ONE, [ONE[0], said("assistant", " ")], TWO)]
    ).to_iterable_dataset()
    assert trained_texts(tiny_tokenizer, encoded(tiny_tokenizer, stream)) == ["one answer", "two answers"]


def test_the_command_line_takes_a_small_share_of_them(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    given = [{"messages": ONE}] * 98 + [{"messages": [ONE[0], said("assistant", "")]}]
    given.append({"messages": [said("user", "word " * 200), ONE[1]]})
    path.write_text("".join(json.dumps({**row, "id": str(i)}) + "\n" for i, row in enumerate(given, 1)))
    skipped: list[str] = []
    loaded = chats.load(path, skipped)
    made = chats.encode(tiny_tokenizer, loaded, source="rows", max_length=100, skipped=skipped)
    assert len(made) == 98
    assert ["row 99" in skipped[0], skipped[1].startswith("Row 100 of rows: Prompt")] == [True, True]
    chats.check_share(skipped, len(made), 0.02, "rows")
    with pytest.raises(InputError, match=r"2 of 100 rows of rows hold nothing .* --max-skipped 0.01"):
        chats.check_share(skipped, len(made), 0.01, "rows")
    with pytest.raises(InputError, match="rows.jsonl, row 99"):
        data.read_chats(path)


# --- what encoding costs --------------------------------------------------------------------------------


def test_rows_of_tensors_are_plain_rows(tiny_tokenizer: Any) -> None:
    plain = Dataset.from_list(token_rows())
    made = encoded(tiny_tokenizer, plain.with_format("torch"))
    assert made["labels"][:] == encoded(tiny_tokenizer, plain)["labels"][:]
    assert isinstance(made[0]["input_ids"], list)
    with pytest.raises(InputError, match="with_transform"):
        encoded(tiny_tokenizer, plain.with_transform(lambda batch: batch))


def test_encoding_is_cached_by_rows_tokenizer_and_settings(
    tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Dataset.from_list([{"messages": m} for m in (ONE, TWO)]).save_to_disk(tmp_path)
    calls: list[int] = []
    real: Callable[..., Any] = chat.encode

    def counted(*given: Any, **more: Any) -> Any:
        calls.append(1)
        return real(*given, **more)

    monkeypatch.setattr(chat, "encode", counted)

    def made(tokenizer: Any, **more: Any) -> int:
        calls.clear()
        encoded(tokenizer, load_from_disk(tmp_path), **more)
        return len(calls)

    assert made(tiny_tokenizer) == 2
    tiny_tokenizer("some text", padding="max_length", truncation=True, max_length=4)  # leaves its mark on the tokenizer
    assert made(tiny_tokenizer) == 0
    assert made(tiny_tokenizer, train_on="all_turns") == 3
    assert made(tiny_tokenizer, max_length=100) == 2
    tiny_tokenizer.chat_template = tiny_tokenizer.chat_template.replace("assistant", "model")
    assert made(tiny_tokenizer) == 2
    assert made(tiny_tokenizer) == 0
    monkeypatch.setattr(cache, "code_key", lambda: "another version")
    assert made(tiny_tokenizer) == 2


def test_several_processes_encode_the_same(tiny_tokenizer: Any) -> None:
    given = [{"messages": TWO}] * 4
    one, two = (encoded(tiny_tokenizer, given, train_on="all_turns", processes=n) for n in (None, 2))
    assert one["labels"][:] == two["labels"][:]
    with pytest.raises(InputError, match="Row 4: The answer spells"):
        encoded(tiny_tokenizer, [*given[:3], {"messages": [ONE[0], said("assistant", "a<|im_end|>b")]}], processes=2)


def test_another_tokenizer_is_another_key() -> None:
    keys = {
        cache.tokenizer_key(build_tokenizer(kind, control=["</s>"], bos=None, eos="</s>", template=template))
        for kind in ("byte-level", "llama")
        for template in ("x", "y")
    }
    assert len(keys) == 4


@pytest.mark.parametrize("library", ["transformers", "tokenizers", "jinja2"])
def test_another_version_of_what_renders_and_tokenises_is_another_key(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.code_key.__wrapped__()
    assert cache.code_key.__wrapped__() == before
    real = cache.version
    monkeypatch.setattr(cache, "version", lambda name: "99.9" if name == library else real(name))
    assert cache.code_key.__wrapped__() != before


def test_a_tokenizer_in_python_is_not_cached() -> None:
    slow: Any = SimpleNamespace(get_vocab=lambda: {"a": 0}, chat_template="x", special_tokens_map={})
    assert cache.tokenizer_key(slow) != cache.tokenizer_key(slow)
