"""Where records come from: a local file, a data set on the hub, or what a program holds in memory.

Records are given one at a time as they are; their columns are `fields`' business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokendeep import runs
from tokendeep.data.files import local_rows
from tokendeep.data.hub import hub_rows
from tokendeep.data.row import Origin, Row, type_name
from tokendeep.data.write import TYPED, as_row
from tokendeep.errors import InputError

Source = (
    str | Path | Iterable[Any]
)  # a path, a hub name, or rows: dicts, a datasets.Dataset or pandas frame, typed values


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


def named(source: Source) -> str:
    """What error sentences call a source."""
    return str(source) if isinstance(source, str | Path) else "The list of rows"


def identity(source: Source) -> str | Path:
    """What to hash to know the data again: the path of a local source, the SHA-256 of any other source's rows."""
    if isinstance(source, str | Path) and not _is_hub(source):
        return runs.user_path(source)
    return runs.sha256(content(row).encode() for row in read_rows(source))


def content(row: Row) -> str:
    """A record as one text, the same for the same columns and values."""
    return json.dumps(row.values, sort_keys=True, default=str)


def _rows(source: Source) -> Iterator[Row]:
    if not isinstance(source, str | Path):
        return _given_rows(source)
    return hub_rows(str(source)) if _is_hub(source) else local_rows(runs.user_path(source))


def _is_hub(source: str | Path) -> bool:
    return str(source).startswith("hf:")


def _given_rows(values: Iterable[Any]) -> Iterator[Row]:
    """Records from memory, each named by its place; a pandas frame is its lines, without empty cells."""
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise InputError(f"The rows are {type_name(values)}, not a list of dicts; put them into one.")
    if to_json := hasattr(values, "iterrows") and getattr(values, "to_json", None):
        values = json.loads(to_json(orient="records"))
    origin = Origin("the list of rows")
    for number, value in enumerate(values, 1):
        where = f"Row {number}"
        if not isinstance(value, (Mapping, *TYPED)):
            raise InputError(f'{where}: is {type_name(value)}, not a dict; write {{"instruction": ...}}.')
        yield Row(number, where, as_row(value), origin)
