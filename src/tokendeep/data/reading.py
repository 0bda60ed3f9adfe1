"""Rows of people's data as typed values: Prompt, Pair, Triple, Chat.

Every mistake is one InputError that names the file, the row and the fix, and never shows the row's text. Knows nothing of
tokenizers and models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeVar

from tokendeep import runs
from tokendeep.data.fields import Fields, Kind, interpret, needed
from tokendeep.data.row import Row
from tokendeep.data.sources import Source, content, named, read_rows
from tokendeep.errors import InputError
from tokendeep.types import Chat, Message, Pair, Prompt, Triple

T = TypeVar("T")


def read_prompts(source: Source, limit: int | None = None) -> list[Prompt]:
    """Requests alone; answers in the source are left out and a final assistant message is dropped.

    `meta` holds prompt_id and, where known, category and the set's own notes.

    Args:
        source: .jsonl, .json, .csv or .txt file, folder of HEx-PHI files, or hf:owner/name[@revision][:config][:split];
            a single part after the name that is train, test or validation is the split, and one that ends in a file
            suffix is a file of that repository. Or rows in memory: a list of dicts with the same columns, a
            datasets.Dataset, or typed values; values of the wanted type are given back as they are.
        limit: read the first so many rows only (the rest is not looked at).

    Raises:
        InputError: anything wrong with the source, naming file, row and fix.
    """
    if (given := _given(source, Prompt, limit)) is not None:
        return given
    rows = _checked(source, limit)
    return [Prompt(row.id, row.messages, meta={**row.meta, "prompt_id": row.id}) for row in rows]


def read_pairs(source: Source, limit: int | None = None) -> list[Pair]:
    """Instruction and answer; of triples the harmful answer, of chats the last assistant message. See `read_prompts`.

    Raises:
        InputError: as `read_prompts`; also a row without an answer.
    """
    if (given := _given(source, Pair, limit)) is not None:
        return given
    pairs = []
    for row in _checked(source, limit):
        answer = row.response if row.response is not None else row.harmful
        pairs.append(Pair(row.id, row.messages, needed(answer, "response", row.where), meta=row.meta))
    return pairs


def read_triples(source: Source, limit: int | None = None) -> list[Triple]:
    """Instruction, harmful answer and refusal. See `read_prompts`.

    Raises:
        InputError: as `read_prompts`; also a row without a harmful answer or without a refusal.
    """
    if (given := _given(source, Triple, limit)) is not None:
        return given
    return [
        Triple(
            row.id,
            row.messages,
            harmful=needed(row.harmful, "harmful", row.where),
            refusal=needed(row.refusal, "refusal", row.where),
        )
        for row in _checked(source, limit)
    ]


def read_chats(source: Source, limit: int | None = None) -> list[Chat]:
    """Conversations that end with the assistant; prompt and completion make one of two messages. See `read_prompts`.

    `"meta": {"truncated": true}` says that the answer was cut off, so that its end is not learnt.

    Raises:
        InputError: as `read_prompts`; also a row whose last message is not the assistant's.
    """
    if (given := _given(source, Chat, limit)) is not None:
        return given
    chats = []
    for row in _checked(source, limit):
        if row.response is None:
            raise InputError(
                f"{row.where}: the last message must be from the assistant; add the answer as a last message"
                ' {"role": "assistant", ...} or as "completion".'
            )
        answer = Message(role="assistant", content=row.response)
        chats.append(Chat(row.id, (*row.messages, answer), truncated=row.meta.get("truncated") is True))
    return chats


def kind(source: Source) -> Kind:
    """What the first row is: triples (has a refusal), chats (messages ending with the assistant, or a completion),
    pairs (has a response or a harmful answer) or prompts.

    Raises:
        InputError: the source cannot be read or its first row is wrong.
    """
    return interpret(next(read_rows(source))).kind


def has_field(source: Source, name: Literal["response", "harmful", "refusal", "category"]) -> bool:
    """Whether the first row has that field, under whatever name the source gives it.

    Raises:
        InputError: the source cannot be read or its first row is wrong.
    """
    fields = interpret(next(read_rows(source)))
    return "category" in fields.meta if name == "category" else getattr(fields, name) is not None


def _given(source: Source, wanted: type[T], limit: int | None) -> list[T] | None:
    """The values of a list that are already what is wanted; None for any other source."""
    if not isinstance(source, list | tuple) or not source or not all(isinstance(one, wanted) for one in source):
        return None
    return list(source[:limit])


def _checked(source: Source, limit: int | None) -> list[Fields]:
    """Checked rows with unique ids. Rows without an id are named by their content; a repeated one gets "-2"."""
    if limit is not None and limit < 1:
        raise InputError(f"The limit of rows to read from {named(source)} is {limit}; give 1 or more, or leave it out.")
    seen: dict[str, int] = {}
    fields = []
    for row in read_rows(source):
        item = interpret(row)
        if item.id and item.id in seen:
            raise InputError(f"{row.where}: its id is also that of row {seen[item.id]}; give each row its own id.")
        item_id = item.id or _content_id(row, seen)
        seen[item_id] = row.number
        fields.append(replace(item, id=item_id))
        if len(fields) == limit:
            break
    return fields


def _content_id(row: Row, seen: Mapping[str, int]) -> str:
    base = runs.sha256_text(content(row))[:12]
    candidates = (base if n == 1 else f"{base}-{n}" for n in range(1, len(seen) + 2))
    return next(name for name in candidates if name not in seen)
