"""Every way in which people write a conversation is the same conversation, and what would be lost is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rowfiles import ANSWER, CHAT, FORMS, SYSTEM, USER, refused, write
from tokendeep import data

Q, A = USER["content"], ANSWER["content"]


def said(chat: Any) -> tuple[dict[str, str], ...]:
    """Its messages without what a trainer is told beside them."""
    return tuple({"role": one["role"], "content": one["content"]} for one in chat.messages)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_chat_in_a_file_in_memory_and_for_the_trainer(tmp_path: Path, form: str) -> None:
    row = json.loads(json.dumps(FORMS[form]))
    pair = "output" in row
    for source in (write(tmp_path, "c.jsonl", [row]), [row]):
        if pair:
            (one,) = data.read_pairs(source)
            assert (*one.messages, {"role": "assistant", "content": one.response}) == CHAT
        else:
            assert data.read_chats(source)[0].messages == CHAT
            assert data.kind(source) == "chats"
    assert said(data.chat(row, "Row 1")) == CHAT


@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_parquet(tmp_path: Path, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    try:
        table = datasets.Dataset.from_list([json.loads(json.dumps(FORMS[form]))] * 2)
    except Exception:  # contents that are texts here and lists there, which no table can hold
        pytest.skip("no table can hold this row")
    table.to_parquet(tmp_path / "c.parquet")
    assert [tuple(chat[:-1]) for chat in map(conversation_of, data.read_pairs(tmp_path / "c.parquet"))] == [
        CHAT[:-1]
    ] * 2
    assert [said(data.chat(row, "Row 1")) for row in table] == [CHAT] * 2


def conversation_of(pair: Any) -> tuple[Any, ...]:
    return (*pair.messages, pair.response)


# ------------------------------------------------------------------------------------------- preferences

HH = {
    "chosen": f"\n\nHuman: {Q}\n\nAssistant: I will not.",
    "rejected": f"\n\nHuman: {Q}\n\nAssistant: {A}",
}
TRL = {"prompt": [USER], "chosen": [{"role": "assistant", "content": "I will not."}], "rejected": [ANSWER]}
IMPLICIT = {"chosen": [USER, {"role": "assistant", "content": "I will not."}], "rejected": [USER, ANSWER]}


@pytest.mark.parametrize("row", [HH, TRL, IMPLICIT, {"prompt": Q, "chosen": "I will not.", "rejected": A}])
def test_preferences_are_triples_when_the_user_says_which_answer_is_what(row: dict[str, Any]) -> None:
    (triple,) = data.read_triples(data.choose([row], ["harmful=rejected", "refusal=chosen"]))
    assert (triple.messages, triple.harmful, triple.refusal) == ((USER,), A, "I will not.")
    (pair,) = data.read_pairs(data.choose([row], ["response=rejected"]))
    assert (pair.messages, pair.response) == ((USER,), A)


def test_preferences_are_not_guessed() -> None:
    refused(data.read_triples, [HH], "Row 1", "--columns harmful=rejected,refusal=chosen")
    refused(data.read_triples, [TRL], "Row 1", "--columns harmful=rejected")
    other = {**HH, "chosen": "\n\nHuman: Another one?\n\nAssistant: No."}
    refused(
        lambda row: data.read_triples(data.choose([row], ["harmful=rejected", "refusal=chosen"])), other,
        "Row 1", "same conversation",
    )  # fmt: skip


def called(arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "id": None, "function": {"name": "f", "arguments": arguments}}
    parameters = {"properties": {"a": {"default": None}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    return {"messages": [USER, turn, {"role": "tool", "content": "x"}, ANSWER], "tools": tools}


def test_null_in_the_arguments_of_a_call_is_a_value(tmp_path: Path) -> None:
    row = called({"a": None, "b": 1})
    for source in (write(tmp_path, "c.jsonl", [row]), [row]):
        (chat,) = data.read_chats(source, whole=True)
        call = {"type": "function", "function": {"name": "f", "arguments": {"a": None, "b": 1}}}
        assert chat.messages[1]["tool_calls"] == [call]  # type: ignore[typeddict-item]
        assert chat.arguments["tools"] == row["tools"]


def test_null_that_arrow_has_written_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(
        [{k: v for k, v in called(a).items() if k != "tools"} for a in ({"a": 1}, {"b": 2})]
    )
    table.to_parquet(tmp_path / "c.parquet")
    for source in (tmp_path / "c.parquet", table):
        caplog.clear()
        read = data.read_chats(source, whole=True)
        calls = [chat.messages[1]["tool_calls"][0]["function"]["arguments"] for chat in read]  # type: ignore[typeddict-item]
        assert calls == [{"a": 1}, {"b": 2}]
        assert caplog.text.count("null inside the arguments") == 1


# ------------------------------------------------------------------------------------------- what is refused


def with_part(role: str, **part: str) -> dict[str, Any]:
    turn = {"role": role, "content": [{"type": "text", **part}]}
    return {"messages": [turn, ANSWER] if role == "user" else [USER, turn]}


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "its weights say that other answers count"),
        ({"messages": [USER, {**ANSWER, "reasoning_content": "So."}]}, "unknown field 'reasoning_content'"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"id": "1"}]}]}, "its tool_calls would be left out"),
        ({"messages": [USER, {"role": "tool", "content": "x"}, ANSWER]}, "its tool message would be left out"),
        (with_part("user", type="image_url", image_url="x"), "a part of the type 'image_url'"),
        (with_part("assistant", type="thinking", thinking="x"), "a part of the type 'thinking'"),
        (with_part("user", text="A?", image="x"), "unknown field 'image'"),
        ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "its tools would be left out"),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "Be long."}, "a column 'system' and a system message"),
        ({"instruction": "A?", "response": "B", "history": [["one"]]}, "turn 1 of 'history'"),
        ({"instruction": "A?", "response": [USER, ANSWER]}, "'response' must be the assistant's message alone"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused(row: dict[str, Any], match: str) -> None:
    refused(data.read_chats, [row], "Row 1", match)


@pytest.mark.parametrize("text", ['{"a": 1}', "[1, 2]", '[{"role": "user"}]', "Human: hi"])
def test_an_answer_that_looks_like_json_stays_a_text(text: str) -> None:
    (pair,) = data.read_pairs([{"instruction": text, "response": text}])
    assert (pair.messages[0]["content"], pair.response) == (text, text)
