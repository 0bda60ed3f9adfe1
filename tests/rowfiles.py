"""Files of rows, what refusing one must look like, and a conversation in everybody's form: shared by tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokendeep import data
from tokendeep.errors import InputError

SECRET = "boil an egg without water"  # row text, which no error message may show


def write(folder: Path, name: str, content: str | bytes | list[Any]) -> Path:
    """A file with text, bytes, or one JSON value a line."""
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(load: Callable[[Any], object], source: Any, *parts: str) -> str:
    """Load, expect an InputError of one sentence that holds all parts and no row text; return the message."""
    with pytest.raises(InputError) as caught:
        load(source)
    message = str(caught.value)
    for part in parts:
        assert part in message, (part, message)
    assert "\n" not in message
    assert message.endswith(".")
    assert SECRET not in message
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, OSError | RuntimeError | ValueError)
    return message


def reads_as(path: Path, text: str, response: str | None, meta: dict[str, Any]) -> None:
    """A file of one row of a known set: its request, its answer where it has one, and what is known about it."""
    (prompt,) = data.read_prompts(path)
    assert prompt.messages == ({"role": "user", "content": text},)
    assert prompt.meta == {**meta, "prompt_id": prompt.id}
    if response is None:
        refused(data.read_pairs, path, "no field 'response'")
    else:
        assert data.read_pairs(path)[0].response == response


# --- one conversation in everybody's form --------------------------------------------------------------

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
