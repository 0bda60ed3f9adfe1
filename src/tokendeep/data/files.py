"""Local files as records: JSON lines, JSON, CSV, text, and a folder of HEx-PHI's files.

Syntax is checked here, columns are not. A row is named by its 1-based line (CSV: the line it starts on; JSON lists: its
place in the list).
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tokendeep.data.known import ADVBENCH, HEADERLESS, HEX_PHI, HEX_PHI_CATEGORIES, KNOWN
from tokendeep.data.row import FIELDS, SAYS_THE_SAME, Origin, Row, nearest_field, type_name
from tokendeep.errors import InputError, nearest

MAX_ROW = 1_000_000  # bytes; a longer row is a broken file (or a book), and would only fail later in a tokenizer
SUFFIXES = (".jsonl", ".json", ".csv", ".txt")


def local_rows(path: Path) -> Iterator[Row]:
    if os.path.isdir(path):  # unlike Path.is_dir it is False, and no error, for a name too long
        return hex_phi_rows(path)
    _open(path).close()
    match path.suffix.lower():
        case ".jsonl":
            return _jsonl_rows(path)
        case ".json":
            return _json_rows(path)
        case ".csv":
            return _csv_rows(path)
        case ".txt":
            return _txt_rows(path)
    raise InputError(f"{path} is none of {', '.join(SUFFIXES)}; convert it to one of them.")


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, names)
        advice = f"did you mean {path.parent / near}" if near else "check the path"
        raise InputError(f"There is no file {path}; {advice}.") from None
    except PermissionError:
        raise InputError(f"{path} may not be read by this user; change its permissions or give another file.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); give another file.") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(1-based number, text with its newline) of each line; a line over MAX_ROW is refused before it is read whole."""
    with _open(path) as file:
        number = 0
        while raw := file.readline(MAX_ROW + 1):
            number += 1
            if len(raw) > MAX_ROW:
                raise _too_long(path, number)
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, row {number}: byte {error.start + 1} is not valid UTF-8; save the file as UTF-8."
                ) from None


def _too_long(path: Path | str, number: int) -> InputError:
    return InputError(
        f"{path}, row {number}: is longer than {MAX_ROW:,} bytes; shorten it, or check that each row ends its line."
    )


def _jsonl_rows(path: Path) -> Iterator[Row]:
    origin = Origin(str(path))
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, row {number}"
            yield Row(number, where, _json_object(line, where), origin)


def _json_object(text: str, where: str) -> dict[str, Any]:
    value = _json_value(text, where)
    if not isinstance(value, dict):
        raise InputError(f'{where}: is {type_name(value)}, not a JSON object; write {{"instruction": ...}}.')
    return value


def _json_value(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise InputError(
            f"{where}: is not JSON ({error.msg} at {place}); write one JSON object a line, or a list of them."
        ) from None
    except (ValueError, RecursionError) as error:  # a number of over 4,300 digits; brackets nested thousands deep
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise InputError(f"{where}: is not usable JSON ({reason}); write one plain JSON object a line.") from None


def _json_rows(path: Path) -> Iterator[Row]:
    """A JSON list of objects, or objects one a line."""
    with _open(path) as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not start.startswith(b"["):
            yield from _jsonl_rows(path)
            return
        file.seek(0)
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: holds a byte that is not valid UTF-8; save the file as UTF-8."
        ) from None
    origin = Origin(str(path))
    for number, value in enumerate(_json_value(text, str(path)), 1):
        where = f"{path}, row {number}"
        if not isinstance(value, dict):
            raise InputError(f'{where}: is {type_name(value)}, not a JSON object; write {{"instruction": ...}}.')
        if len(json.dumps(value)) > MAX_ROW:
            raise _too_long(path, number)
        yield Row(number, where, value, origin)


def _txt_rows(path: Path) -> Iterator[Row]:
    """One instruction a line."""
    origin = Origin(str(path))
    for number, line in _lines(path):
        if line.strip():
            yield Row(number, f"{path}, row {number}", {"instruction": line.rstrip("\r\n")}, origin)


def _csv_rows(path: Path) -> Iterator[Row]:
    records = _csv_records(path)
    first = next(records, None)
    if first is None:
        return
    number, header = first
    if (match := HEADERLESS.fullmatch(path.name)) and len(header) == 1 and header[0] not in FIELDS:
        yield from _headerless_rows(path, match, [first, *records])
        return
    if len(set(header)) < len(header) or not all(name.strip() for name in header):
        raise InputError(f"{path}, row {number}: a column name is empty or repeated; give each column its own name.")
    if not _may_be_header(header):
        raise InputError(
            f"{path}, row {number}: names no known column; start the file with a line of column names "
            f"such as instruction,response (known are {', '.join(FIELDS)})."
        )
    origin = Origin(str(path))
    for number, cells in records:
        where = f"{path}, row {number}"
        if len(cells) != len(header):
            raise InputError(
                f"{where}: has {len(cells)} columns and the first line {len(header)}; quote texts that hold commas."
            )
        yield Row(number, where, dict(zip(header, cells, strict=True)), origin)


def _may_be_header(names: list[str]) -> bool:
    """Whether a CSV's first line names columns, so that its words may be shown in an error message."""
    known = {*FIELDS, *SAYS_THE_SAME}.union(*(known.columns for known in KNOWN))
    return any(name in known or nearest_field(name) for name in names)


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line the record starts on, its cells); blank lines are skipped."""
    csv.field_size_limit(MAX_ROW)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):
                raise _too_long(path, start) from None
            raise InputError(f"{path}, row {start}: is not CSV ({error}); check its quotes.") from None
        if sum(map(len, cells)) > MAX_ROW:
            raise _too_long(path, start)
        if cells:
            yield start, cells


def _headerless_rows(path: Path, match: re.Match[str], records: list[tuple[int, list[str]]]) -> Iterator[Row]:
    """Prompts alone, one a line, in a file known by its name; HEx-PHI's file name holds the category."""
    digits = match["category"]
    category = {} if digits is None else {"category": HEX_PHI_CATEGORIES.get(int(digits), f"category {int(digits)}")}
    origin = Origin(str(path), ADVBENCH if digits is None else HEX_PHI)
    for number, cells in records:
        where = f"{path}, row {number}"
        if len(cells) != 1:
            raise InputError(f"{where}: has {len(cells)} columns instead of one; quote texts that hold commas.")
        yield Row(number, where, {"prompt": cells[0], **category}, origin)


def hex_phi_rows(folder: Path) -> Iterator[Row]:
    files = [path for path in folder.iterdir() if (match := HEADERLESS.fullmatch(path.name)) and match["category"]]
    if not files:
        raise InputError(f"{folder} is a folder without HEx-PHI's category_N.csv files; give a data file.")
    for path in sorted(files, key=lambda path: int(path.stem.split("_")[1])):
        yield from _csv_rows(path)
