"""One record as read, and the names that its columns may have.

Knows our own column names and what other people call them; nothing of files.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tokendeep import errors
from tokendeep.data.known import Known, harmless
from tokendeep.errors import InputError

FIELDS = (
    *("messages", "conversations", "instruction", "prompt", "response", "completion"),
    *("harmful", "refusal", "system", "history", "id", "category", "label", "meta"),
    *("tools", "chat_template_kwargs"),
)
SAYS_THE_SAME = {  # other people's names that no spelling distance would bring to ours
    "conversation": "messages", "turns": "messages", "chat": "messages",
    "question": "instruction", "query": "instruction", "goal": "instruction", "behavior": "instruction",
    "request": "instruction", "user": "instruction", "text": "instruction", "input": "instruction",
    "answer": "response", "output": "response", "assistant": "response", "reply": "response", "target": "response",
    "rejected": "harmful", "chosen": "refusal", "metadata": "meta", "system_prompt": "system",
}  # fmt: skip
INDEX = re.compile(r"|Unnamed: \d+(\.\d+)*|__index_level_\d+__")  # what pandas calls the number of a row
REQUESTS = ("messages", "conversations", "instruction", "prompt")
ANSWERS = ("response", "completion")
SPEAKS = re.compile(  # words in the name of a column that may change what is said, or what is learnt of it
    r"(system|developer|tools?|functions?|weights?|masks?|reason(ing)?|think(ing)?|thoughts?|images?|videos?|audios?|context|"
    r"documents?|history|template|kwargs|prefix|suffix|chosen|rejected)"
)


@dataclass(frozen=True)
class Origin:
    """Where rows come from.

    Args:
        name: what error sentences call it.
        known: the public set that it is.
        hub: whether it may have columns that are not used (nobody can edit a hub set); others may not.
        part: name of the file, or config/split of a hub set.
        columns: our name -> the column that is meant, where the user says so.
        table: whether they come from Arrow, which puts null where a key is missing.
        trainer: whether a trainer was given them as a dataset, so that no option of the command line can be advised.
    """

    name: str
    known: Known | None = None
    hub: bool = False
    part: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    trainer: bool = False
    table: bool = False


@dataclass(frozen=True)
class Row:
    """One record as read: `values` by the source's own column names; `where` says "FILE, row N".

    `number` is no other row's of the source: the N of its file, or its place among all rows where there are several files.
    """

    number: int
    where: str
    values: dict[str, Any]
    origin: Origin


def without_index(values: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a record without an index of pandas, which is a number under a name of its own."""
    return {n: v for n, v in values.items() if not (INDEX.fullmatch(n) and isinstance(v, int | float | None))}


def renamed(row: Row) -> Row:
    """The record with the columns that the user has named under our names; what these replace, and all others that are
    not ours, are left out.

    Raises:
        InputError: a column that is not there.
    """
    columns = row.origin.columns
    if not columns:
        return row
    for ours, theirs in columns.items():
        if theirs not in row.values:
            have = ", ".join(shown(name) for name in row.values)
            raise InputError(f"{row.where}: has no column {shown(theirs)} for --columns {ours}=...; it has {have}.")
    replaced = {*columns, *columns.values()}
    for alike in (REQUESTS, ANSWERS):
        replaced |= set(alike) if set(alike) & columns.keys() else set()
    own = {name: value for name, value in row.values.items() if name in FIELDS and name not in replaced}
    return replace(row, values={**own, **{ours: row.values[theirs] for ours, theirs in columns.items()}})


def says_nothing(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a column is a label in other words than ours."""
    return name == "label" and values[name] not in (None, "") and harmless(values[name]) is None


def idle_columns(values: Mapping[str, Any]) -> list[str]:
    """The columns beside a conversation that cannot change what is said: notes, and the request as a text once more."""
    given = {name for name in (*REQUESTS, *ANSWERS) if values.get(name) is not None}
    listed = bool(given & {"messages", "conversations"})
    if not listed and not given >= {"prompt", "completion"}:
        return []
    repeated = ["prompt"] if listed and isinstance(values.get("prompt"), str) else []
    return [name for name in values if name in repeated or says_nothing(name, values) or _is_note(name, values[name])]


def _is_note(name: str, value: Any) -> bool:
    """Whether a column is neither ours nor named like one, nor like what changes a prompt."""
    plain = name.strip().lower()
    if name in FIELDS or any(SPEAKS.fullmatch(word) for word in plain.split("_")):
        return False
    if plain.endswith("_id") or isinstance(value, int | float):
        return True
    same = SAYS_THE_SAME.get(plain, "meta") != "meta"
    return not same and not difflib.get_close_matches(plain, FIELDS, n=1, cutoff=0.82)


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


def of_dataset(name: str) -> str:
    """How a column is taken out of a dataset in memory."""
    return f"take it out with dataset.remove_columns({name[:32]!r})"
