"""Where records come from: a local file, a data set on the hub, or what a program holds in memory.

Records are given one at a time as they are; their columns are `fields`' business.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tokendeep import runs
from tokendeep.data.folders import local_rows
from tokendeep.data.hub import NAMES, hub_rows
from tokendeep.data.row import FIELDS, Origin, Row, says_nothing, shown, type_name, without_index
from tokendeep.data.write import TYPED, as_row
from tokendeep.errors import InputError, did_you_mean

Role = Literal["harmful", "harmless"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """A source with what the user says of it.

    Args:
        source: any other source.
        columns: our name -> its column.
        role: rows that say themselves that they are the other are left out.
    """

    source: str | Path | Iterable[Any]
    columns: Mapping[str, str] = field(default_factory=dict)
    role: Role | None = None


# a path, a hub name, or rows: dicts, a datasets.Dataset or pandas frame, typed values
Source = str | Path | Iterable[Any] | Chosen


def choose(source: Source, columns: str | Sequence[str] = (), role: Role | None = None) -> Source:
    """A source with its columns named, each as "ours=theirs", and only the rows of a role; as it is without them.

    Raises:
        InputError: a name that is none of ours, or a column that is not named.
    """
    named_columns = {}
    for pair in columns.split(",") if isinstance(columns, str) else columns:
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not equals or not theirs:
            raise InputError(f"--columns has {pair!r}; write OURS=THEIRS, such as instruction=Goal,response=Target.")
        if ours not in FIELDS:
            raise InputError(
                f"--columns names {shown(ours)}, which is no column of ours; {did_you_mean(ours, FIELDS)}."
            )
        named_columns[ours] = theirs
    if isinstance(source, Chosen):
        return replace(source, columns=named_columns or source.columns, role=role or source.role)
    return Chosen(source, named_columns, role) if named_columns or role else source


def choose_beside(source: Source, columns: Sequence[str], role: Role | None = None) -> Source:
    """As `choose`, of rows that stand beside those whose columns are named: where the first of them has them all.

    Raises:
        InputError: as `choose`; the source cannot be read.
    """
    chosen = choose(source, columns, role)
    if not isinstance(chosen, Chosen) or not columns:
        return chosen
    first = next(read_rows(source)).values
    return chosen if set(chosen.columns.values()) <= first.keys() else choose(source, (), role)


def read_rows(source: Source) -> Iterator[Row]:
    """The records of a source as they are, one at a time: syntax is checked, columns are not.

    Raises:
        InputError: no such file, unreadable, empty, not UTF-8, a row that is no record, or one over MAX_ROW bytes.
    """
    number = 0
    for number, row in enumerate(_rows(source), 1):  # noqa: B007
        yield row
    if number == 0:
        raise InputError(f"{named(source)} is empty; give at least one row.")


def role_of(asked: str | None) -> Role | None:
    """Which rows are meant by what is asked: harmful ones, or harmless twins and unseen ones."""
    return None if asked is None else "harmful" if asked == "harmful" else "harmless"


def named(source: Source) -> str:
    """What error sentences call a source."""
    source = plain(source)
    return str(source) if isinstance(source, str | Path) else "The list of rows"


def plain(source: Source) -> str | Path | Iterable[Any]:
    """A source without what the user says of it."""
    return source.source if isinstance(source, Chosen) else source


def identity(source: Source) -> str | Path:
    """What to hash to know the data again: the path of a local source, the SHA-256 of any other source's rows."""
    source = plain(source)
    if isinstance(source, str | Path) and not _is_hub(source):
        return runs.user_path(source)
    return runs.sha256(content(row).encode() for row in read_rows(source))


def content(row: Row) -> str:
    """A record as one text, the same for the same columns and values."""
    return json.dumps(row.values, sort_keys=True, default=str)


def _rows(source: Source) -> Iterator[Row]:
    columns = source.columns if isinstance(source, Chosen) else {}
    told = not columns
    for row in _read(plain(source), columns):
        others = [name for name in row.values if name not in columns.values()]
        unread = [shown(name) for name in others if name not in FIELDS or says_nothing(name, row.values)]
        if unread and not told:
            log.warning("%s: columns that are not used: %s", named(source), ", ".join(unread))
        told = True
        yield replace(row, origin=replace(row.origin, columns=columns)) if columns else row


def _read(source: str | Path | Iterable[Any], columns: Mapping[str, str]) -> Iterator[Row]:
    if not isinstance(source, str | Path):
        return _given_rows(source)
    if _is_hub(source):
        return hub_rows(str(source))
    path = runs.user_path(source)
    if str(source).lower() in NAMES and not os.path.exists(path):
        raise InputError(f"There is no file {path}; the public set of that name is hf:{str(source).lower()}.")
    return local_rows(path, columns)


def _is_hub(source: str | Path) -> bool:
    return str(source).startswith("hf:")


def _given_rows(values: Iterable[Any]) -> Iterator[Row]:
    """Records from memory, each named by its place; a pandas frame is its lines, without empty cells."""
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise InputError(f"The rows are {type_name(values)}, not a list of dicts; put them into one.")
    if to_json := hasattr(values, "iterrows") and getattr(values, "to_json", None):
        values = json.loads(to_json(orient="records"))
    origin = Origin("the list of rows", table=hasattr(values, "features"))
    for number, value in enumerate(values, 1):
        where = f"Row {number}"
        if not isinstance(value, (Mapping, *TYPED)):
            raise InputError(f'{where}: is {type_name(value)}, not a dict; write {{"instruction": ...}}.')
        yield Row(number, where, without_index(as_row(value)), origin)
