"""Rows of people's data as typed values: Prompt, Pair, Triple, Chat.

Every mistake is one InputError that names the file, the row and the fix, and never shows the row's text. Knows nothing of
tokenizers and models.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tokendeep import runs
from tokendeep.data.fields import Fields, Kind, interpret, needed, texts_only
from tokendeep.data.row import Origin, Row, without_index
from tokendeep.data.sources import Chosen, Role, Source, content, named, plain, read_rows
from tokendeep.errors import InputError, Unusable
from tokendeep.types import Chat, Message, Pair, Prompt, Triple

T = TypeVar("T")
log = logging.getLogger(__name__)


def read_prompts(source: Source, limit: int | None = None, *, skipped: list[str] | None = None) -> list[Prompt]:
    """Requests alone; answers in the source are left out and a final assistant message is dropped.

    `meta` holds prompt_id and, where known, category, whether the request is harmless, and the set's own notes.

    Args:
        source: a file (JSON lines, JSON, CSV, TSV, Parquet, Arrow, text, any of them as .gz), a folder that `datasets`
            saved or of HEx-PHI's files, or hf:owner/name[@revision][:config][:split]; a single part after the name that
            is train, test or validation is the split, and one that ends in a file suffix is a file of that repository.
            Or rows in memory: a list of dicts with the same columns, a datasets.Dataset, or typed values; values of the
            wanted type are given back as they are. `choose` names its columns, or takes its rows of one role.
        limit: read the first so many rows only (the rest is not looked at).
        skipped: gets a line for every row that holds nothing, which are otherwise an error.

    Raises:
        InputError: anything wrong with the source, naming file, row and fix.
    """
    if (given := _given(source, Prompt, limit)) is not None:
        return given
    rows = map(texts_only, _checked(source, limit, skipped))
    return [Prompt(row.id, row.messages, meta={**row.meta, "prompt_id": row.id}) for row in rows]


def read_pairs(source: Source, limit: int | None = None, *, skipped: list[str] | None = None) -> list[Pair]:
    """Instruction and answer; of triples the harmful answer, of chats the last assistant message. See `read_prompts`.

    Raises:
        InputError: as `read_prompts`; also a row without an answer.
    """
    if (given := _given(source, Pair, limit)) is not None:
        return given
    pairs = []
    for row in map(texts_only, _checked(source, limit, skipped)):
        answer = row.response if row.response is not None else row.harmful
        pairs.append(Pair(row.id, row.messages, needed(answer, "response", row.where), meta=row.meta))
    return pairs


def read_triples(source: Source, limit: int | None = None, *, skipped: list[str] | None = None) -> list[Triple]:
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
        for row in map(texts_only, _checked(source, limit, skipped))
    ]


def read_chats(
    source: Source, limit: int | None = None, *, whole: bool = False, skipped: list[str] | None = None
) -> list[Chat]:
    """Conversations that end with the assistant; prompt and completion make one, and so do pairs. See `read_prompts`.

    `"meta": {"truncated": true}` says that the answer was cut off, so that its end is not learnt.

    Args:
        whole: keep tools, calls of them, weights and other arguments of the chat template, for those who take them all.
        skipped: gets a line for every row that holds nothing, which are otherwise an error.

    Raises:
        InputError: as `read_prompts`; also a row whose last message is not the assistant's.
    """
    if (given := _given(source, Chat, limit)) is not None:
        return given
    return [_chat(row, whole) for row in _checked(source, limit, skipped)]


def read_whole_chats(
    source: Source, limit: int | None = None, *, beside: Sequence[str] = (), skip: Callable[[Row, str], object]
) -> list[tuple[Row, Chat]]:
    """As `read_chats(whole=True)`, each with its record as it stands in the source.

    Args:
        beside: columns that are not of the conversation and are looked at by the caller alone.
        skip: called with every record that holds nothing, and why.
    """
    return [(row, _chat(fields, whole=True)) for row, fields in _numbered(source, limit, skip, beside)]


def chat(values: Mapping[str, Any], where: str) -> Chat:
    """One record from memory as a conversation, as `read_chats` reads it with all that it holds.

    Args:
        values: the columns of a record in any of the forms that files may have.
        where: the record's place, for error sentences.

    Raises:
        InputError: as `read_chats`.
    """
    origin = Origin("the rows", trainer=True, table=True)
    return _chat(interpret(Row(0, where, without_index(values), origin)), whole=True)


def _chat(row: Fields, whole: bool) -> Chat:
    said = row.harmful if row.response is None else row.response
    if said is None or row.refusal is not None or (row.harmful is not None and row.response is not None):
        raise InputError(
            f"{row.where}: the last message must be from the assistant; add the answer as a last message"
            ' {"role": "assistant", ...} or as "completion".'
        )
    row = row if whole else texts_only(row)
    answer = Message(role="assistant", content=said)
    cut_off = row.meta.get("truncated") is True
    return Chat(row.id, (*row.messages, row.turn if whole and row.turn else answer), cut_off, row.arguments)


def kind(source: Source) -> Kind:
    """What the first row is: triples (has a refusal), chats (messages ending with the assistant, or a completion),
    pairs (has a response or a harmful answer) or prompts.

    Raises:
        InputError: the source cannot be read or its first row is wrong.
    """
    return _first(source).kind


def _first(source: Source) -> Fields:
    """The first row that holds something; where none does, what is wrong with the first."""
    wrong: Unusable | None = None
    for row in read_rows(source):
        try:
            return interpret(row)
        except Unusable as error:
            wrong = wrong or error
    raise wrong or InputError(f"{named(source)} is empty; give at least one row.")


def _given(source: Source, wanted: type[T], limit: int | None) -> list[T] | None:
    """The values of a list that are already what is wanted; None for any other source."""
    values, role = plain(source), source.role if isinstance(source, Chosen) else None
    if not isinstance(values, list | tuple) or not values or not all(isinstance(one, wanted) for one in values):
        return None
    chosen = [one for one in values if not _is_other(getattr(one, "meta", {}), role)]
    if others := len(values) - len(chosen):
        _tell_others(named(source), others, bool(chosen), role)
    return chosen[:limit]


def _is_other(meta: Mapping[str, object], role: Role | None) -> bool:
    """Whether a row says itself that it is not of this role."""
    return role is not None and meta.get("harmless") is (role == "harmful")


def _checked(source: Source, limit: int | None, skipped: list[str] | None = None) -> list[Fields]:
    """Checked rows with unique ids, without those that hold nothing where `skipped` takes their names.

    Rows without an id are named by their content; a repeated one gets "-2".
    """
    skip = None if skipped is None else lambda _, reason: skipped.append(reason)
    return [fields for _, fields in _numbered(source, limit, skip)]


def _numbered(
    source: Source, limit: int | None, skip: Callable[[Row, str], object] | None = None, beside: Sequence[str] = ()
) -> Iterator[tuple[Row, Fields]]:
    """As `_checked`, each with its record, of which columns `beside` the conversation are not looked at."""
    if limit is not None and limit < 1:
        raise InputError(f"The limit of rows to read from {named(source)} is {limit}; give 1 or more, or leave it out.")
    seen: dict[str, str] = {}  # id -> the place of its row
    role, others = source.role if isinstance(source, Chosen) else None, 0
    for whole in read_rows(source):
        row = replace(whole, values={name: value for name, value in whole.values.items() if name not in beside})
        try:
            item = interpret(row)
        except Unusable as error:
            if skip is None:
                raise
            skip(whole, str(error))
            continue
        if _is_other(item.meta, role):
            others += 1
            continue
        if item.id and item.id in seen:
            earlier = seen[item.id].removeprefix(f"{row.origin.name}, ")
            raise InputError(f"{row.where}: its id is also that of {earlier}; give each row its own id.")
        item_id = item.id or _content_id(row, seen)
        seen[item_id] = row.where if ", " in row.where else f"row {row.number}"  # of rows in memory
        yield whole, replace(item, id=item_id)
        if limit is not None and len(seen) == limit:
            break
    if others:
        _tell_others(named(source), others, bool(seen), role)


def _tell_others(name: str, others: int, left: bool, role: Role | None) -> None:
    """Say how many rows are left out; an error where none is left."""
    other = "harmless" if role == "harmful" else "harmful"
    if not left:
        raise InputError(
            f"All {others} rows of {name} say that they are {other}, but {role} ones are wanted; give others."
        )
    log.warning("%s: %d rows that say they are %s are left out", name, others, other)


def _content_id(row: Row, seen: Mapping[str, str]) -> str:
    base = runs.sha256_text(content(row))[:12]
    candidates = (base if n == 1 else f"{base}-{n}" for n in range(1, len(seen) + 2))
    return next(name for name in candidates if name not in seen)
