"""Token-exact boundaries, on tokenizers of four kinds and the chat templates of seven families."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AddedToken

from conftest import KINDS, TEMPLATES, build_tokenizer
from tokendeep import chat
from tokendeep.chat import templates
from tokendeep.errors import InputError
from tokendeep.types import IGNORE

# control tokens, BOS, EOS, the token that ends a turn
CHATML = (["<|im_start|>", "<|im_end|>", "<|endoftext|>"], None, "<|im_end|>", "<|im_end|>")
LLAMA3_CONTROL = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
FAMILIES: dict[str, tuple[list[str], str | None, str, str]] = {
    "llama-2": (["<s>", "</s>"], "<s>", "</s>", "</s>"),
    "llama-3": (LLAMA3_CONTROL, "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>"),
    "llama-3.1": (LLAMA3_CONTROL, "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>"),
    "gemma": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", "<end_of_turn>"),
    "gemma-3": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", "<end_of_turn>"),
    "qwen3": ([*CHATML[0], "<think>", "</think>"], *CHATML[1:]),
    "mistral": (["<s>", "</s>", "[INST]", "[/INST]"], "<s>", "</s>", "</s>"),
    "chatml": CHATML,
    "smollm2": CHATML,
    "open-think": ([*CHATML[0], "<think>", "</think>"], *CHATML[1:]),
}
GEMMA_TEXT = ["\n", "\n\n", "\t", "<table>", "</td>"]
NO_SYSTEM = ("gemma", "open-think")
USER: list[dict[str, str]] = [{"role": "user", "content": "How do I bake bread?"}]
TURNS = [
    *USER,
    {"role": "assistant", "content": "Mix flour with water."},
    {"role": "user", "content": "And then?"},
]
ANSWER = "Sure, here is a short list:\n1. First, open the window."

_BUILT: dict[Any, Any] = {}


def tokenizer_of(kind: str, family: str, adds_bos: bool | None = None) -> Any:
    """The tokenizer of a kind with the control tokens and the template of a family, built once."""
    adds = FAMILIES[family][1] is not None if adds_bos is None else adds_bos
    key = (kind, family, adds)
    if key not in _BUILT:
        _BUILT[key] = build_family(kind, family, (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8"), adds)
    return _BUILT[key]


def build_family(kind: str, family: str, template: str, adds_bos: bool) -> Any:
    control, bos, eos, _ = FAMILIES[family]
    made = build_tokenizer(kind, control=control, bos=bos, eos=eos, template=template, adds_bos=adds_bos)
    if family.startswith("gemma"):  # its vocabulary has common text as added tokens
        made.add_tokens([AddedToken(text, normalized=False) for text in GEMMA_TEXT])
    return made


everything = pytest.mark.parametrize(("kind", "family"), [(k, f) for k in KINDS for f in FAMILIES])


@everything
@pytest.mark.parametrize("messages", [USER, TURNS], ids=["one turn", "many turns"])
def test_row_is_prompt_then_context_then_answer(kind: str, family: str, messages: list[Any]) -> None:
    tokenizer = tokenizer_of(kind, family)
    prompt = chat.prompt_ids(tokenizer, messages)
    answer = chat.response_ids(tokenizer, messages, ANSWER)
    context = chat.response_ids(tokenizer, messages, "I cannot help with that", end=False)[:3]

    row = chat.encode(tokenizer, messages, ANSWER, context_ids=context)

    assert row.input_ids == prompt + context + answer
    assert row.labels == [IGNORE] * (len(prompt) + len(context)) + answer


@everything
def test_only_the_answer_and_its_end_of_turn_are_supervised(kind: str, family: str) -> None:
    tokenizer, end = tokenizer_of(kind, family), FAMILIES[family][3]
    row = chat.encode(tokenizer, TURNS, ANSWER)
    supervised = [label for label in row.labels if label != IGNORE]

    assert supervised[-1] == tokenizer.convert_tokens_to_ids(end)
    assert supervised.count(supervised[-1]) == 1
    assert chat.response_ids(tokenizer, TURNS, ANSWER, end=False) == supervised[: -len(chat.check(tokenizer).end_ids)]
    spoken = tokenizer.decode(supervised, skip_special_tokens=True)
    assert "".join(spoken.lower().split()) == "".join(ANSWER.lower().split())


@everything
def test_bos_stands_once_where_the_family_has_one(kind: str, family: str) -> None:
    tokenizer = tokenizer_of(kind, family)
    bos = tokenizer.bos_token_id
    ids = chat.prompt_ids(tokenizer, USER)
    if bos is None:
        assert chat.check(tokenizer).bos == "none"
    else:
        assert ids[0] == bos
        assert ids.count(bos) == 1
        assert chat.check(tokenizer).bos == "template"


@everything
def test_prompt_spells_what_the_template_writes(kind: str, family: str) -> None:
    tokenizer = tokenizer_of(kind, family)
    asked = tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True, **templates.ARGUMENTS)
    ids = tokenizer(asked, add_special_tokens=False).input_ids
    assert chat.prompt_ids(tokenizer, USER)[: len(ids)] == ids


@pytest.mark.parametrize("kind", ["byte-level", "llama"])
@pytest.mark.parametrize(
    "family", ["llama-2", "llama-3", "llama-3.1", "gemma", "gemma-3", "qwen3", "chatml", "smollm2"]
)
def test_equals_tokenising_the_conversation_in_one_call(kind: str, family: str) -> None:
    """Where nothing merges at a seam, splicing ids is what everybody's training code does."""
    tokenizer = tokenizer_of(kind, family)
    answered = [*TURNS, {"role": "assistant", "content": ANSWER}]
    text = tokenizer.apply_chat_template(answered, tokenize=False, **templates.ARGUMENTS)
    whole = tokenizer(text, add_special_tokens=False).input_ids
    row = chat.encode(tokenizer, TURNS, ANSWER).input_ids
    assert whole[: len(row)] == row
    assert tokenizer.decode(whole[len(row) :]).strip() == ""
    assert not chat.check(tokenizer).spliced


@pytest.mark.parametrize("kind", KINDS)
def test_position_1_is_the_first_token_behind_an_empty_thought(kind: str) -> None:
    """Qwen3 writes an empty thought before the answer, with and without a generation prompt that asks for it."""
    tokenizer = tokenizer_of(kind, "qwen3")
    close = tokenizer.convert_tokens_to_ids("</think>")
    ids = chat.prompt_ids(tokenizer, USER)
    assert close in ids
    assert tokenizer.decode(ids[ids.index(close) + 1 :]).strip() == ""
    assert close not in chat.response_ids(tokenizer, USER, ANSWER)

    always = tokenizer.chat_template.replace("enable_thinking is false", "enable_thinking is none")
    plain = build_tokenizer(
        kind, control=FAMILIES["qwen3"][0], bos=None, eos="<|im_end|>", template=always
    )  # the generation prompt says nothing of it
    assert "<think>" not in plain.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert chat.prompt_ids(plain, USER) == ids
    assert "<think>" in chat.check(plain).opening


@pytest.mark.parametrize("kind", KINDS)
def test_a_thought_opened_by_the_generation_prompt_is_closed(kind: str) -> None:
    tokenizer = tokenizer_of(kind, "open-think")
    ids = chat.prompt_ids(tokenizer, USER)
    opened, closed = (ids.index(tokenizer.convert_tokens_to_ids(t)) for t in ("<think>", "</think>"))
    assert opened < closed
    assert tokenizer.decode(ids[opened + 1 : closed] + ids[closed + 1 :]).strip() == ""


def test_a_newline_that_opens_every_answer_is_not_supervised() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ 'Q: ' + m.content + '\\nA:' }}"
        "{% else %}{{ '\\n' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = build_tokenizer("byte-level", control=["</s>"], bos=None, eos="</s>", template=template)
    assert tokenizer.decode(chat.prompt_ids(tokenizer, USER)).endswith("A:\n")
    assert tokenizer.decode(chat.response_ids(tokenizer, USER, "Bake it.")) == "Bake it.</s>"
    assert chat.check(tokenizer).opening == "\n"


@pytest.mark.parametrize("kind", ["byte-level", "unigram", "llama"])
def test_seam_that_would_merge_is_spliced(kind: str) -> None:
    """A generation prompt that ends within a word: one call would give tokens that span the seam."""
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = build_tokenizer(kind, control=["</s>"], bos=None, eos="</s>", template=template)
    answered = [*USER, {"role": "assistant", "content": "flour and water"}]
    whole = tokenizer(tokenizer.apply_chat_template(answered, tokenize=False), add_special_tokens=False).input_ids
    prompt = chat.prompt_ids(tokenizer, USER)
    assert whole[: len(prompt)] != prompt, "this test needs a seam that merges"

    row = chat.encode(tokenizer, USER, "flour and water")

    assert row.input_ids[: len(prompt)] == prompt
    assert row.labels[: len(prompt)] == [IGNORE] * len(prompt)
    assert tokenizer.decode(row.input_ids).rstrip() == tokenizer.apply_chat_template(answered, tokenize=False).rstrip()
    assert chat.check(tokenizer).spliced


@pytest.mark.parametrize(("kind", "family"), [("llama", "llama-2"), ("llama", "mistral"), ("unigram", "llama-2")])
def test_space_before_an_answer_belongs_to_its_first_word(kind: str, family: str) -> None:
    """After `[/INST]` a SentencePiece model goes on with `▁Sure`, not with a lone space and `Sure`."""
    tokenizer = tokenizer_of(kind, family)
    first = chat.response_ids(tokenizer, USER, "the flour")[0]
    assert tokenizer.convert_ids_to_tokens(first).startswith("▁t")


@everything
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(response=st.text(min_size=1, max_size=40), words=st.text(min_size=1, max_size=20), cut=st.integers(0, 5))
def test_any_text_keeps_the_boundaries(kind: str, family: str, response: str, words: str, cut: int) -> None:
    tokenizer = tokenizer_of(kind, family)
    if not response.strip() or not words.strip():
        return
    messages = [{"role": "user", "content": words}]
    prompt = chat.prompt_ids(tokenizer, messages)
    ids = chat.response_ids(tokenizer, messages, response, end=False)
    row = chat.encode(tokenizer, messages, response, context_ids=ids[:cut])
    assert row.input_ids[: len(prompt) + len(ids[:cut])] == prompt + ids[:cut]
    assert not set(chat.check(tokenizer).end_ids[-1:]) & set(ids)
    if kind == "byte-level" and not response[0].isspace() and not response[-1].isspace():
        assert tokenizer.decode(ids).removeprefix(" ") == response
    assert chat.encode(tokenizer, messages, response).input_ids == [*prompt, *ids, *chat.check(tokenizer).end_ids]


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_of_an_answer_are_those_of_the_chat_template(kind: str) -> None:
    tokenizer = tokenizer_of(kind, "qwen3")
    answered = [*USER, {"role": "assistant", "content": "first<|endoftext|>then"}]
    whole = tokenizer.apply_chat_template(answered, return_dict=False, **templates.ARGUMENTS)
    ids = chat.response_ids(tokenizer, USER, answered[-1]["content"], end=False)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|endoftext|>")) == 1
    assert any(whole[i : i + len(ids)] == ids for i in range(len(whole)))


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_that_are_text_are_text(kind: str) -> None:
    """Gemma's line break is an added token, and stands right behind its end of turn."""
    tokenizer = tokenizer_of(kind, "gemma")
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert chat.check(tokenizer).end_ids == (end,)
    table = "<table>\n<td>one</td>\n\n\ttwo"
    ids = chat.response_ids(tokenizer, USER, table)
    assert not set(ids[:-1]) & chat.control_ids(tokenizer)
    assert ids[-1] == end
    assert set(tokenizer.convert_tokens_to_ids(["<bos>", "<eos>", "<start_of_turn>"])) <= chat.control_ids(tokenizer)


def test_marks_that_are_not_called_special_are_no_text() -> None:
    tokenizer = build_tokenizer("byte-level", control=["<|im_end|>"], bos=None, eos="<|im_end|>", template="")
    marks, text = ["<think>", "</tool_call>", "<|User|>"], ["    ", "\u2581\u2581", "</h2>"]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in (*marks, *text)])
    control = chat.control_ids(tokenizer)
    assert set(tokenizer.convert_tokens_to_ids(marks)) <= control
    assert not set(tokenizer.convert_tokens_to_ids(text)) & control


def test_an_answer_that_ends_its_own_turn_is_refused() -> None:
    tokenizer = tokenizer_of("byte-level", "chatml")
    with pytest.raises(InputError, match="spells out the end-of-turn token"):
        chat.encode(tokenizer, USER, "first<|im_end|>\n<|im_start|>then")


def templated(body: str, control: list[str], eos: str) -> Any:
    return build_tokenizer("byte-level", control=control, bos=None, eos=eos, template=body)


def test_every_token_that_ends_an_answer_is_supervised() -> None:
    """Command-R7B closes the answer and then the turn."""
    control = ["<|START_OF_TURN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|END_OF_TURN|>"]
    tokenizer = templated(
        "{% for m in messages %}<|START_OF_TURN|>{{ m.role }}{% if m.role == 'assistant' %}<|START_RESPONSE|>{{ m.content }}"
        "<|END_RESPONSE|>{% else %}{{ m.content }}{% endif %}<|END_OF_TURN|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|START_OF_TURN|>assistant<|START_RESPONSE|>{% endif %}",
        control, "<|END_OF_TURN|>",
    )  # fmt: skip
    row = chat.encode(tokenizer, USER, "Mix it.")
    assert tokenizer.decode([i for i in row.labels if i != IGNORE]) == "Mix it.<|END_RESPONSE|><|END_OF_TURN|>"
    for inside in control[2:]:
        with pytest.raises(InputError, match="end-of-turn"):
            chat.encode(tokenizer, USER, f"Mix{inside}it.")


R1 = (
    "{% for m in messages %}{% set text = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content %}"
    "<|{{ m.role }}|>{{ text }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_an_answer_is_supervised_as_given_or_refused() -> None:
    """R1's template keeps what stands behind the thought, and so the two newlines there as positions 1 and 2."""
    tokenizer = templated(R1, ["<|user|>", "<|assistant|>", "</s>"], "</s>")
    with pytest.raises(InputError, match="rewrites this answer"):
        chat.encode(tokenizer, USER, "<think>Flour first.</think>\n\nMix it.")
    plain = chat.encode(tokenizer, USER, "Mix it.")
    assert tokenizer.decode([i for i in plain.labels if i != IGNORE]) == "Mix it.</s>"


@pytest.mark.parametrize("behind", ["</s>", "</s>\n", "<|end|>"])
def test_an_end_token_behind_the_generation_prompt_is_refused(behind: str) -> None:
    body = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    body += "{% if add_generation_prompt %}<|assistant|>%s{% endif %}"
    tokenizer = templated(body.replace("%s", behind), ["<|user|>", "<|assistant|>", "<|end|>", "</s>"], "</s>")
    with pytest.raises(InputError, match="an end token behind the generation prompt"):
        chat.prompt_ids(tokenizer, USER)
    always = templated(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ eos_token }}", ["</s>"], "</s>"
    )
    with pytest.raises(InputError, match="an end token behind the generation prompt"):
        chat.check(always)


def test_a_user_turn_may_end_in_eos() -> None:
    """DialoGPT writes EOS behind every turn and no generation prompt."""
    tokenizer = templated("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", ["</s>"], "</s>")
    assert chat.prompt_ids(tokenizer, USER)[-1] == tokenizer.eos_token_id


# --- what a row gives to the template ------------------------------------------------------------------

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOLED = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>"
    "{{ m.role.upper() if loud else m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}<call>"
    "{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{{ 'ASSISTANT' if loud else 'assistant' }}\n{% endif %}"
)


def test_tools_and_arguments_are_in_the_prompt_as_the_template_writes_them() -> None:
    tokenizer = templated(TOOLED, CHATML[0], "<|im_end|>")
    turns = [*USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "sun 20"}]
    row = chat.encode(tokenizer, turns, "It is sunny.", arguments={"tools": [TOOL], "loud": True})
    expected = tokenizer.apply_chat_template(
        turns, tools=[TOOL], loud=True, tokenize=False, add_generation_prompt=True
    )  # fmt: skip
    assert tokenizer.decode(row.input_ids) == expected + "It is sunny.<|im_end|>"
    assert "ASSISTANT" in expected
    assert "city" in expected


def test_a_call_of_a_tool_is_an_answer() -> None:
    tokenizer = templated(TOOLED, CHATML[0], "<|im_end|>")
    row = chat.encode(
        tokenizer, USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, arguments={"tools": [TOOL]}
    )
    text = tokenizer.decode([i for i in row.labels if i != IGNORE])
    assert text == '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call><|im_end|>'


@pytest.mark.parametrize(
    ("messages", "arguments", "message"),
    [
        (USER, {"tools": [TOOL]}, "does not know the row's tools"),
        (USER, {"loud": True}, "does not know loud"),
        (USER, {"tokenize": True}, "does not know tokenize"),
        (
            [*USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, *USER],
            {},
            "a tool call of the conversation",
        ),
    ],
)
def test_what_a_template_leaves_out_is_refused(messages: list[Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chat.encode(tokenizer_of("byte-level", "chatml"), messages, "Yes.", arguments=arguments)
    with pytest.raises(InputError, match="a tool call of the answer"):
        chat.encode(
            tokenizer_of("byte-level", "chatml"), USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}
        )


def test_context_that_ends_the_turn_is_refused() -> None:
    tokenizer = tokenizer_of("byte-level", "chatml")
    with pytest.raises(InputError, match="end-of-turn"):
        chat.encode(tokenizer, USER, "more", context_ids=chat.response_ids(tokenizer, USER, "done"))


def test_blank_space_behind_a_context_is_the_callers() -> None:
    tokenizer = tokenizer_of("llama", "llama-2")
    context = chat.response_ids(tokenizer, USER, "Mix", end=False)
    prompt = chat.prompt_ids(tokenizer, USER)

    def text(response: str, context_ids: list[int]) -> str:
        ids = chat.encode(tokenizer, USER, response, context_ids=context_ids).input_ids[len(prompt) :]
        return tokenizer.decode([*tokenizer("x", add_special_tokens=False).input_ids, *ids])

    assert text("\n\nsalt", context).startswith("x Mix\n\nsalt")
    assert text(" salt", context).startswith("x Mix salt")
    assert text("\n\nsalt", []).startswith("x salt")  # the template trims the start of an answer


@pytest.mark.parametrize("room", [1, 3, 8])
def test_max_length_cuts_the_answers_tail(room: int) -> None:
    tokenizer = tokenizer_of("byte-level", "chatml")
    full = chat.encode(tokenizer, USER, ANSWER)
    start = len(chat.prompt_ids(tokenizer, USER))
    cut = chat.encode(tokenizer, USER, ANSWER, max_length=start + room)
    assert (cut.input_ids, cut.labels) == (full.input_ids[: start + room], full.labels[: start + room])
    assert chat.encode(tokenizer, USER, ANSWER, max_length=len(full.input_ids)) == full


def test_max_length_without_room_is_an_error() -> None:
    tokenizer = tokenizer_of("byte-level", "chatml")
    start = len(chat.prompt_ids(tokenizer, USER))
    with pytest.raises(InputError, match=f"take {start} tokens and leave no room in {start}"):
        chat.encode(tokenizer, USER, ANSWER, max_length=start)
    with pytest.raises(InputError, match=f"take {start + 2} tokens"):
        chat.encode(tokenizer, USER, ANSWER, context_ids=[5, 6], max_length=start + 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["smollm2", "llama-3.1"])
def test_system_none_takes_the_default_system_prompt_out(kind: str, family: str) -> None:
    tokenizer = tokenizer_of(kind, family)
    default = chat.prompt_ids(tokenizer, USER)
    none = chat.prompt_ids(tokenizer, chat.with_system(USER, "none"))
    said = tokenizer.decode(none).lower()
    assert "system" in tokenizer.decode(default).lower()
    assert "system" not in said
    assert "helpful" not in said
    assert "today" not in said
    plain = {"smollm2": "chatml", "llama-3.1": "llama-3"}[family]
    assert none == chat.prompt_ids(tokenizer_of(kind, plain), USER)  # what a template without a default one gives
    row = chat.encode(tokenizer, chat.with_system(TURNS, "none"), ANSWER)
    assert row.input_ids == chat.encode(tokenizer_of(kind, plain), TURNS, ANSWER).input_ids


def test_bos_stays_when_the_default_system_prompt_is_taken_out() -> None:
    tokenizer = tokenizer_of("byte-level", "llama-3.1", adds_bos=False)  # the template alone writes it
    ids = chat.prompt_ids(tokenizer, chat.with_system(USER, "none"))
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


@everything
def test_system_none_changes_nothing_without_a_default(kind: str, family: str) -> None:
    tokenizer = tokenizer_of(kind, family)
    if chat.check(tokenizer).default_system is None:
        assert chat.prompt_ids(tokenizer, chat.with_system(USER, "none")) == chat.prompt_ids(tokenizer, USER)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in NO_SYSTEM])
def test_a_given_system_prompt_replaces_the_default_one(family: str) -> None:
    tokenizer = tokenizer_of("byte-level", family)
    other = [{"role": "system", "content": "Be rude."}, *USER]
    said = tokenizer.decode(chat.prompt_ids(tokenizer, chat.with_system(other, "Answer briefly.")))
    assert "Answer briefly." in said
    assert "rude" not in said
    assert "SmolLM" not in said
    row = chat.encode(tokenizer, chat.with_system(USER, "Answer briefly."), "flour")
    assert tokenizer.decode([i for i in row.labels if i != IGNORE], skip_special_tokens=True).strip() == "flour"


@pytest.mark.parametrize("family", NO_SYSTEM)
def test_a_template_without_system_role_refuses_a_system_prompt(family: str) -> None:
    tokenizer = tokenizer_of("byte-level", family)
    assert chat.check(tokenizer).system == {"gemma": "refused", "open-think": "ignored"}[family]
    with pytest.raises(InputError, match="no system role"):
        chat.prompt_ids(tokenizer, chat.with_system(USER, "Answer briefly."))


@pytest.mark.parametrize(
    ("family", "system", "default"),
    [
        ("smollm2", "default", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        ("llama-3.1", "default", ""),
        ("chatml", "role", None),
        ("gemma-3", "role", None),
        ("llama-2", "role", None),
    ],
)
def test_facts_about_the_system_prompt(family: str, system: str, default: str | None) -> None:
    facts = chat.check(tokenizer_of("byte-level", family))
    assert (facts.system, facts.default_system) == (system, default)


def test_with_system() -> None:
    said = [{"role": "system", "content": "Be kind."}, *USER]
    assert chat.with_system(said, "default") == said
    assert chat.with_system(said, "none") == [{"role": "system", "content": ""}, *USER]
    assert chat.with_system(said, "Be brief.") == [{"role": "system", "content": "Be brief."}, *USER]


@pytest.mark.parametrize("kind", ["byte-level", "llama"])
def test_bos_comes_from_the_tokenizer_where_the_template_writes_none(kind: str) -> None:
    control = ["<s>", *CHATML[0]]
    template = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")
    tokenizer = build_tokenizer(kind, control=control, bos="<s>", eos="<|im_end|>", template=template, adds_bos=True)
    assert chat.check(tokenizer).bos == "tokenizer"
    assert chat.prompt_ids(tokenizer, USER).count(tokenizer.bos_token_id) == 1
    assert chat.prompt_ids(tokenizer, USER)[0] == tokenizer.bos_token_id
    assert chat.encode(tokenizer, USER, ANSWER).input_ids.count(tokenizer.bos_token_id) == 1


def test_end_of_turn_of_a_template_that_writes_none_is_eos() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer = build_tokenizer("byte-level", control=["</s>"], bos=None, eos="</s>", template=template)
    assert chat.check(tokenizer).end_ids == (tokenizer.eos_token_id,)


def test_control_tokens_the_tokenizer_does_not_know_are_spelled() -> None:
    """ChatML on a tokenizer of another family: the end of turn is text, so EOS has to follow it."""
    tokenizer = build_tokenizer("byte-level", control=["</s>"], bos=None, eos="</s>", template="x")
    chat.use_template(tokenizer, "chatml")
    end = chat.check(tokenizer).end_ids
    assert tokenizer.decode(end) == "<|im_end|></s>"
    assert chat.encode(tokenizer, USER, "Go>", context_ids=[9]).labels[-1] == tokenizer.eos_token_id


# --- shipped templates and files -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "family"), [("llama-2", "llama-2"), ("llama-3", "llama-3"), ("gemma", "gemma"), ("chatml", "chatml")]
)
@pytest.mark.parametrize("messages", [USER, TURNS], ids=["one turn", "many turns"])
def test_shipped_templates_write_what_the_families_do(name: str, family: str, messages: list[Any]) -> None:
    expected = tokenizer_of("byte-level", family)
    shipped = build_family("byte-level", family, "x", FAMILIES[family][1] is not None)
    chat.use_template(shipped, name)
    assert chat.encode(shipped, messages, ANSWER) == chat.encode(expected, messages, ANSWER)
    if family not in NO_SYSTEM:
        told = chat.with_system(messages, "Answer briefly.")
        assert chat.encode(shipped, told, ANSWER) == chat.encode(expected, told, ANSWER)


def test_mistral_shipped() -> None:
    tokenizer = build_tokenizer("llama", control=["<s>", "</s>"], bos="<s>", eos="</s>", template="x", adds_bos=True)
    chat.use_template(tokenizer, "mistral")
    row = chat.encode(tokenizer, TURNS, ANSWER)
    expected = "<s>[INST] How do I bake bread? [/INST] Mix flour with water.</s>[INST] And then? [/INST] " + ANSWER
    assert tokenizer.decode(row.input_ids).replace("<s> ", "<s>").replace("</s> ", "</s>") == expected + "</s>"


@pytest.mark.parametrize("adds_bos", [True, False])
def test_alpaca_header_for_base_models(adds_bos: bool) -> None:
    tokenizer = build_tokenizer(
        "byte-level", control=["<s>", "</s>"], bos="<s>", eos="</s>", template="x", adds_bos=adds_bos
    )
    chat.use_template(tokenizer, "alpaca")
    row = chat.encode(tokenizer, chat.with_system(USER, "Answer briefly."), "Bake it.")
    assert tokenizer.decode(row.input_ids) == (
        ("<s>" if adds_bos else "")
        + "Answer briefly.\n\nBelow is an instruction that describes a task. Write a response "
        "that appropriately completes the request.\n\n### Instruction:\nHow do I bake bread?\n\n"
        "### Response:\nBake it.</s>"
    )
    assert tokenizer.decode([i for i in row.labels if i != IGNORE]) == "Bake it.</s>"
    exported = tokenizer.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert exported.startswith("<s>") is adds_bos  # a server that reads the saved template does the same


def test_template_from_a_file_and_its_hash(tmp_path: Path) -> None:
    tokenizer = build_tokenizer("byte-level", control=["</s>"], bos=None, eos="</s>", template="x")
    before = chat.template_hash(tokenizer)
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    chat.use_template(tokenizer, str(path))
    assert tokenizer.chat_template == path.read_text(encoding="utf-8")
    assert len(chat.template_hash(tokenizer)) == 64
    assert chat.template_hash(tokenizer) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No chat template .*alpaca, chatml, gemma, llama-2, llama-3, mistral"),
        ("{% for m in messages %}", "line 1, is no valid Jinja"),
        (" ", "is empty"),
    ],
)
def test_bad_template_files(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "mine.jinja"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        chat.read_template(str(path))


# --- mistakes ------------------------------------------------------------------------------------


def test_mistakes_are_named() -> None:
    tokenizer = tokenizer_of("byte-level", "llama-2")
    with pytest.raises(InputError, match="no user message"):
        chat.prompt_ids(tokenizer, [])
    with pytest.raises(InputError, match="ends with the assistant's turn"):
        chat.prompt_ids(tokenizer, [*USER, {"role": "assistant", "content": "Hello."}])
    with pytest.raises(InputError, match="roles must alternate"):
        chat.prompt_ids(tokenizer, [*USER, *USER])
    with pytest.raises(InputError, match="answer is empty"):
        chat.encode(tokenizer, USER, " \n")
    with pytest.raises(InputError, match="rewrites this answer"):
        chat.response_ids(tokenizer_of("byte-level", "qwen3"), USER, "<think>\nwell\n</think>\n\nBake it.")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template: give one with --chat-template .*alpaca"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out what the user says"),
        ("{{ messages[0].content }}", "leaves out the assistant's answer"),
        ("{{ messages[0].nothing.at_all }}", "cannot render"),
        ("{% for i in range(10000000000) %}x{% endfor %}", "cannot render"),
        ("{{ 1 / 0 }}", "cannot render"),
        ("{{ raise_exception(3) }}", "cannot render"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "cannot render"),
    ],
)
def test_templates_that_cannot_be_used(template: str | None, message: str) -> None:
    tokenizer = build_tokenizer("byte-level", control=["</s>"], bos=None, eos="</s>", template=template or "x")
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=message):
        chat.check(tokenizer)


def test_another_template_is_not_answered_from_memory() -> None:
    tokenizer = build_tokenizer("byte-level", control=CHATML[0], bos=None, eos="<|im_end|>", template="x")
    chat.use_template(tokenizer, "chatml")
    first = chat.prompt_ids(tokenizer, USER)
    chat.use_template(tokenizer, "alpaca")
    assert chat.prompt_ids(tokenizer, USER) != first
    first.clear()  # what is handed out is the caller's own
    chat.use_template(tokenizer, "chatml")
    assert chat.prompt_ids(tokenizer, USER)


def test_encoding_takes_linear_time() -> None:
    tokenizer = tokenizer_of("byte-level", "chatml")

    def seconds(words: int) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()  # of this process alone, whatever else the machine does
            chat.encode(tokenizer, USER, "flour and water " * words)
            times.append(time.process_time() - start)
        return min(times)

    seconds(10)
    assert seconds(4000) < 40 * seconds(400) + 0.01


# --- dates ---------------------------------------------------------------------------------------

DATED = """
{%- if strftime_now is defined %}{%- set today = strftime_now("%d %B %Y") %}{%- else %}{%- set today = date_string %}{%- endif %}
{{- "<|im_start|>system\nToday: " + today + strftime_now(format=" (%Y-%m-%d, %-d/%m, %A)") + "<|im_end|>\n" }}
{%- macro turn(message) %}{{ (strftime_now("%y") if message.role == "user" else "") + message.content }}{%- endmacro %}
{%- for message in messages %}{{ "<|im_start|>" + message.role + "\n" + turn(message) + "<|im_end|>\n" }}{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\n" }}{%- endif %}
"""


@pytest.mark.parametrize(
    ("day", "written"),
    [
        (None, "Today: 26 July 2024 (2024-07-26, 26/07, Friday)"),
        ("2031-02-03", "Today: 03 February 2031 (2031-02-03, 3/02, Monday)"),
    ],
)
def test_a_template_that_asks_for_the_date_gets_a_fixed_one(day: str | None, written: str) -> None:
    tokenizer = build_tokenizer("byte-level", control=CHATML[0], bos=None, eos="<|im_end|>", template=DATED)
    chat.prompt_ids(tokenizer, USER)  # remembered, with another day
    if day:
        chat.set_date(tokenizer, day)
    text = tokenizer.decode(chat.prompt_ids(tokenizer, USER))
    year = (day or "2024")[2:4]
    system, user = f"<|im_start|>system\n{written}<|im_end|>\n", f"{year}{USER[0]['content']}<|im_end|>\n"
    assert text == f"{system}<|im_start|>user\n{user}<|im_start|>assistant\n"
    assert tokenizer.chat_template == DATED


def test_a_template_of_llama_3_gets_the_date_as_its_text() -> None:
    tokenizer = tokenizer_of("byte-level", "llama-3.1")
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(chat.prompt_ids(tokenizer, USER))
    chat.set_date(tokenizer, "2025-12-01")
    assert "Today Date: 01 Dec 2025" in tokenizer.decode(chat.prompt_ids(tokenizer, USER))


@pytest.mark.parametrize("text", ["", "today", "2025-13-01", "01.02.2025", "20250101"])
def test_what_is_no_day_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--date is .*, but must be a day such as 2024-07-26"):
        chat.read_date(text)


# ------------------------------------------------------------------ conversations for models that judge them

CLOSED = "{% for m in messages %}{{ m.role }}: CONTENT\n{% endfor %}[verdict]"
PARTS = "{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}"
JUDGED: list[Any] = [{"role": "user", "content": "What is rust?"}, {"role": "assistant", "content": "Iron oxide."}]


@pytest.mark.parametrize("template", ["{{ m.content }}", PARTS], ids=["texts", "parts"])
def test_a_closed_conversation_holds_every_message(tiny_tokenizer: Any, template: str) -> None:
    tiny_tokenizer.chat_template = CLOSED.replace("CONTENT", template)
    text = tiny_tokenizer.decode(chat.closed_ids(tiny_tokenizer, JUDGED))
    assert re.fullmatch(r"user: What is rust\?\n?assistant: Iron oxide\.\n?\[verdict\]", text)


def test_a_template_that_leaves_a_message_out_is_refused(tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = "{{ messages[0].content }}[verdict]"
    with pytest.raises(InputError, match="leaves out a message"):
        chat.closed_ids(tiny_tokenizer, JUDGED)
