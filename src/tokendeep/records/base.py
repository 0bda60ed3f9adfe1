"""What every record on disk shares: strict types, a schema version, one loader, and errors that name file and row.

A record keeps keys that it does not know, so a file of a newer minor version is read, and `dump` gives back what was
read. Knows nothing of what a record means.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from tokendeep.errors import InputError

SCHEMA = 2  # what is written now; a file without the key is of the first version
AGAIN = "run the verb that wrote it again."
Object = dict[str, JsonValue]


def _known(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = int | float
Known = Annotated[int | float | None, BeforeValidator(_known)]  # a number, or None where nothing is known (also NaN)


class _Short(Repr):
    """Values as a notebook shows them: long lists and texts cut, four digits of a number."""

    maxstring = maxother = 60

    def repr_float(self, value: float, level: int) -> str:
        return f"{value:.4g}"


class _Words(str):
    """A text that is shown without quotes."""

    __repr__ = str.__str__


class Record(BaseModel):
    """A JSON object of ours, or a part of one."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, use_attribute_docstrings=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What was set, long lists cut, so that a notebook shows a record in a few lines."""
        for name, value in super().__repr_args__():
            if name in self.model_fields_set:
                yield name, value if isinstance(value, Record) else _Words(_Short().repr(value))

    def given(self) -> Object:
        """The object as it lies on disk: what was set, with keys that this version does not know."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Row(Record):
    """A record with its version: a whole file, or a row of one."""

    version: int = Field(default=1, alias="schema")
    """Version of the format; 1 where the key is absent."""

    def dump(self) -> Object:
        """The object as it is written today."""
        return {"schema": SCHEMA, **{name: value for name, value in self.given().items() if name != "schema"}}

    @classmethod
    def parse(cls, value: object, where: str) -> Self:
        """The record in a JSON value. Raises InputError, which begins with `where`, for a damaged or a newer one."""
        return parse(cls, value, where)


class File(Row):
    """A record that is a file of its own."""

    FILE: ClassVar[str]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the file, or the one of its name in a folder.

        Raises:
            InputError: it is missing, no JSON, damaged or written by a newer version; the message names file and place.
        """
        path = place(path, cls.FILE)
        return cls.parse(read_json(path), str(path))


R = TypeVar("R", bound=Row)


def place(path: str | Path, name: str) -> Path:
    """The file itself, or the one called `name` in a folder."""
    path = Path(os.path.expanduser(path))  # unlike Path.expanduser it leaves an unknown user's ~name alone
    return path / name if path.is_dir() else path


def parse(kind: type[R], value: object, where: str) -> R:
    """See `Row.parse`."""
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise InputError(
            f"{where} was written by a newer tokendeep (schema {schema}, this one reads up to {SCHEMA}); update tokendeep."
        )
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise InputError(f"{_damage(error, where)}; {AGAIN}") from error


def load_rows(kind: type[R], path: Path, word: str) -> list[R]:
    """The records of a file that is a list; `word` is what one of them is called in an error."""
    values = read_json(path)
    if not isinstance(values, list):
        raise InputError(f"{path} holds no list; {AGAIN}")
    return [parse(kind, value, f"{path}, {word} {number}") for number, value in enumerate(values, 1)]


def read_json(path: Path) -> object:
    """Any JSON file. Raises InputError where it is missing or no JSON."""
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); {AGAIN}") from error
    return value


def _damage(error: ValidationError, where: str) -> str:
    """The first thing that is wrong, with its place."""
    first, *_ = errors = error.errors(include_url=False)
    kind, loc = first["type"], first["loc"]
    if kind == "missing":
        names = [str(one["loc"][-1]) for one in errors if one["type"] == kind and one["loc"][:-1] == loc[:-1]]
        return f"{_spot(where, loc[:-1])} lacks {', '.join(names)}"
    said = {"model_type": "holds no object", "dict_type": "holds no object", "list_type": "holds no list"}
    words = first["msg"].removeprefix("Value error, ") if kind == "value_error" else f"is damaged ({first['msg']})"
    return f"{_spot(where, loc)} {said.get(kind, words)}"


def _spot(where: str, loc: tuple[int | str, ...]) -> str:
    return ", ".join([where, *(str(part) for part in loc if part not in ("int", "float"))])
