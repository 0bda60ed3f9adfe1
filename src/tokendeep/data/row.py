"""One record as read, and the names that its columns may have.

Knows our own column names and what other people call them; nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokendeep import errors
from tokendeep.data.known import Known

FIELDS = (
    *("messages", "conversations", "instruction", "prompt", "response", "completion"),
    *("harmful", "refusal", "id", "category", "meta"),
)
SAYS_THE_SAME = {  # other people's names that no spelling distance would bring to ours
    "conversation": "messages", "turns": "messages", "chat": "messages",
    "question": "instruction", "query": "instruction", "goal": "instruction", "behavior": "instruction",
    "request": "instruction", "user": "instruction", "text": "instruction", "input": "instruction",
    "answer": "response", "output": "response", "assistant": "response", "reply": "response", "target": "response",
    "rejected": "harmful", "chosen": "refusal", "label": "category", "metadata": "meta",
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Where rows come from. Hub sets may have columns we do not use (nobody can edit them); others may not."""

    name: str
    known: Known | None = None
    hub: bool = False


@dataclass(frozen=True)
class Row:
    """One record as read: `values` by the source's own column names; `where` says "FILE, row N"."""

    number: int
    where: str
    values: dict[str, Any]
    origin: Origin


def nearest_field(name: str) -> str | None:
    """The field of ours that a foreign or misspelt name most likely means."""
    name = name.strip().lower()
    if name in SAYS_THE_SAME:
        return SAYS_THE_SAME[name]
    near = errors.nearest(name, [*FIELDS, *SAYS_THE_SAME])
    return SAYS_THE_SAME.get(near, near) if near else None


def shown(name: str) -> str:
    """A column name for an error message; a long one may be a row's text (a file without its header line)."""
    return f"'{name}'" if len(name) <= 32 else f"(a name of {len(name)} characters)"


def type_name(value: Any) -> str:
    names: dict[type, str] = {bool: "true/false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
