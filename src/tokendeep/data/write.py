"""Typed values -> rows that the readers read back."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokendeep import runs
from tokendeep.types import Chat, Pair, Prompt, Triple

Typed = Prompt | Pair | Triple | Chat
TYPED = (Prompt, Pair, Triple, Chat)
# what a prompt knows of its row; all else in its `meta` is of an attack
OF_THE_ROW = ("category", "harmless", "target", "context")


def write_rows(path: Path, values: Iterable[Typed | Mapping[str, Any]]) -> Path:
    """Write values as JSON lines, for the owner alone; `read_prompts`, `read_pairs` ... read them back.

    Raises:
        InputError: the disk is full or the place may not be written.
    """
    return runs.write_jsonl(path, map(as_row, values), private=True)


def as_row(value: Typed | Mapping[str, Any]) -> dict[str, Any]:
    """One value as a row; a row stays as it is. Of a prompt the request alone, without what an attack added to it."""
    if isinstance(value, Mapping):
        return dict(value)
    row: dict[str, Any] = {"id": value.id, "messages": list(value.messages)}
    if isinstance(value, Pair):
        return {**row, "response": value.response, **({"meta": dict(value.meta)} if value.meta else {})}
    if isinstance(value, Triple):
        return {**row, "harmful": value.harmful, "refusal": value.refusal}
    if isinstance(value, Chat):
        return {**row, "meta": {"truncated": value.truncated}, **_given(value.arguments)}
    meta = {name: value.meta[name] for name in OF_THE_ROW if name in value.meta}
    return {**row, **({"meta": meta} if meta else {})}


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a row gave to the chat template, in its two columns."""
    more = {name: value for name, value in arguments.items() if name != "tools"}
    tools = {"tools": arguments["tools"]} if "tools" in arguments else {}
    return {**tools, **({"chat_template_kwargs": more} if more else {})}


def asked(row: Typed) -> str:
    """The text of the last request of a row."""
    return next(message["content"] for message in reversed(row.messages) if message["role"] == "user")


def pair_of(chat: Chat) -> Pair:
    """A conversation as a request and its last answer."""
    return Pair(chat.id, chat.messages[:-1], chat.messages[-1]["content"])
