"""Every way in which people write a conversation is the same conversation, and what would be lost is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rowfiles import refused, write
from tokendeep import data

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "How do I boil an egg?"}
ANSWER = {"role": "assistant", "content": "Put it into boiling water."}
MORE = {"role": "user", "content": "And two?"}
LAST = {"role": "assistant", "content": "Use the same water."}
CHAT = (SYSTEM, USER, ANSWER, MORE, LAST)
Q, A, Q2, A2 = (message["content"] for message in CHAT[1:])


def parts(message: dict[str, str], kind: str = "text") -> dict[str, Any]:
    half = len(message["content"]) // 2
    texts = [message["content"][:half], message["content"][half:]]
    return {**message, "content": [{"type": kind, "text": text} for text in texts]}


def shared(messages: Any, human: str = "human", gpt: str = "gpt") -> list[dict[str, str]]:
    names = {"user": human, "assistant": gpt}
    return [{"from": names.get(m["role"], m["role"]), "value": m["content"]} for m in messages]


FORMS: dict[str, dict[str, Any]] = {
    "TRL: messages": {"messages": CHAT},
    "TRL: prompt and completion": {"prompt": CHAT[:-1], "completion": [LAST]},
    "TRL: completion as a text": {"prompt": list(CHAT[:-1]), "completion": A2},
    "OpenAI: parts": {"messages": [parts(message) for message in CHAT]},
    "OpenAI: parts of responses": {"messages": [SYSTEM, parts(USER, "input_text"), parts(ANSWER, "output_text"), MORE, LAST]},
    "OpenAI: developer, weight and fields that say nothing": {
        "messages": [{**SYSTEM, "role": "developer"}, USER, ANSWER, MORE,
                     {**LAST, "weight": 1, "tool_calls": [], "name": None, "refusal": None}],
        "tools": [], "parallel_tool_calls": True,
    },
    "OpenAI: an answer that refuses": {"messages": [*CHAT[:-1], {"role": "assistant", "content": None, "refusal": A2}]},
    "ShareGPT": {"conversations": shared(CHAT)},
    "ShareGPT: other names": {"conversations": shared(CHAT, "user", "chatgpt")},
    "ShareGPT: role and content": {"conversations": CHAT},
    "ShareGPT: keys in messages, and a system column": {"messages": shared(CHAT[1:]), "system": SYSTEM["content"], "tools": "[]"},
    "Alpaca": {"instruction": Q2, "input": "", "output": A2, "system": SYSTEM["content"], "history": [[Q, A]]},
    "Alpaca: without input": {"instruction": Q2, "output": A2, "system": SYSTEM["content"], "history": [[Q, A]]},
    "Anthropic: messages beside the system": {"system": SYSTEM["content"], "messages": CHAT[1:]},
    "Anthropic: parts": {
        "system": SYSTEM["content"],
        "messages": [{"role": "user", "content": [{"type": "text", "text": Q, "cache_control": {"type": "ephemeral"}}]},
                     ANSWER, MORE, {"role": "assistant", "content": [{"type": "text", "text": A2, "citations": None}]}],
    },
    "Anthropic: text": {
        "system": SYSTEM["content"],
        "prompt": f"\n\nHuman: {Q}\n\nAssistant: {A}\n\nHuman: {Q2}\n\nAssistant:", "completion": A2,
    },
    "Anthropic: text alone": {
        "system": SYSTEM["content"], "messages": f"\n\nHuman: {Q}\n\nAssistant: {A}\n\nHuman: {Q2}\n\nAssistant: {A2}",
    },
    "a cell of a table": {"messages": json.dumps(CHAT)},
    "a cell of a table that pandas wrote": {"messages": str(list(CHAT))},
}  # fmt: skip


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
    assert (
        data.conversation({**row, "score": 1}, "Row 1") == CHAT if not pair else data.conversation(row, "Row 1") == CHAT
    )


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
    assert [data.conversation(row, "Row 1") for row in table] == [CHAT] * 2


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
