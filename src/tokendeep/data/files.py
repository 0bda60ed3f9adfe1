"""Local files as records: JSON lines, JSON, text, and by `tables`, `arrow` and `folders` all others; packed with gzip or not.

Syntax is checked here, columns are not. A row is named by its 1-based line (tables: the line it starts on; lists and Arrow:
its place).
"""

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from tokendeep.data.row import Origin, Row, type_name
from tokendeep.errors import InputError, nearest
from tokendeep.runs.files import user_file

MAX_ROW = 1_000_000  # bytes; a longer row is a broken file (or a book), and would only fail later in a tokenizer
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
WAY_OUT = {  # other people's suffixes, and how to come to one of ours
    ".xlsx": "in Excel choose Save as, CSV UTF-8", ".xls": "in Excel choose Save as, CSV UTF-8",
    ".zip": "unpack it", ".bz2": "unpack it", ".xz": "unpack it", ".zst": "unpack it",
    ".feather": "call it .arrow if it is Arrow", ".pkl": "it can run code; write its rows as JSON lines",
}  # fmt: skip
MARKS = ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))  # how UTF-16 begins


def suffix_of(path: Path) -> str:
    """The suffix that says how a file is read, without .gz."""
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return inner.suffix.lower()


def origin_of(path: Path) -> Origin:
    return Origin(str(path), part=path.name)


def open_file(path: Path) -> BinaryIO:
    """A file's bytes, unpacked. Raises InputError: no such file, or one that cannot be read, also not twice."""
    path = user_file(path)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        stems = {Path(name).stem: name for name in names}  # a common ending is no likeness
        near = nearest(path.stem, stems)
        advice = f"did you mean {path.parent / stems[near]}" if near else "check the path"
        raise InputError(f"There is no file {path}; {advice}.") from None
    except PermissionError:
        raise InputError(f"{path} may not be read by this user; change its permissions or give another file.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); give another file.") from error
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if path.suffix.lower() == ".gz" else file


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(1-based number, text with its newline) of each line; a line over MAX_ROW is refused before it is read whole.

    Raises:
        InputError: bytes that are no UTF-8 (nor UTF-16 with its mark), or no gzip.
    """
    with open_file(path) as file, _whole_gzip(path):
        encoding = _encoding(file.read(2))
        file.seek(0 if encoding == "utf-8" else 2)
        number = 0
        while raw := _line(file, encoding):
            number += 1
            if len(raw) > MAX_ROW:
                raise too_long(path, number)
            yield number, _decoded(raw, encoding, f"{path}, row {number}", first=number == 1)


def _line(file: BinaryIO, encoding: str) -> bytes:
    """The bytes of the next line; a newline of UTF-16 has two, which may not be halves of other signs."""
    raw = file.readline(MAX_ROW + 1)
    if encoding == "utf-8":
        return raw
    end = "\n".encode(encoding)
    while raw and len(raw) <= MAX_ROW and not (raw.endswith(end) and len(raw) % 2 == 0):
        more = file.read(1) if len(raw) % 2 else file.readline(MAX_ROW + 1)
        if not more:
            break
        raw += more
    return raw


def _decoded(raw: bytes, encoding: str, where: str, *, first: bool = False) -> str:
    try:
        return raw.decode("utf-8-sig" if first and encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: byte {error.start + 1} {NO_UTF8}.") from None


NO_UTF8 = "is not valid UTF-8; save the file as UTF-8 (in Excel: Save as, CSV UTF-8; a Windows file: iconv -f cp1252 -t utf-8)"


def too_long(path: Path | str, number: int) -> InputError:
    return InputError(
        f"{path}, row {number}: is longer than {MAX_ROW:,} bytes; shorten it, or check that each row ends its line."
    )


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Objects, one a line."""
    origin = origin_of(path)
    for number, line in lines(path):
        if line.strip():
            where = f"{path}, row {number}"
            yield Row(number, where, _object(_json_value(line, where), where), origin)


def _object(value: Any, where: str) -> dict[str, Any]:
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


def json_rows(path: Path) -> Iterator[Row]:
    """A JSON list of objects, or objects one a line."""
    with open_file(path) as file:
        start = _read(file, path, 4096)
    if not start.decode(_encoding(start), errors="ignore").lstrip("\ufeff \t\r\n").startswith("["):
        yield from jsonl_rows(path)
        return
    origin = origin_of(path)
    for number, value in enumerate(_json_value(whole(path), str(path)), 1):
        where = f"{path}, row {number}"
        row = Row(number, where, _object(value, where), origin)
        if len(json.dumps(value)) > MAX_ROW:
            raise too_long(path, number)
        yield row


def whole(path: Path) -> str:
    """A file's text, whose lines may be as long as they like."""
    with open_file(path) as file:
        raw = _read(file, path)
    try:
        return raw.decode(_encoding(raw)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: a byte {NO_UTF8}.") from None


def _encoding(start: bytes) -> str:
    """How a text is encoded, by its first bytes."""
    return next((name for mark, name in MARKS if start.startswith(mark)), "utf-8")


def _read(file: BinaryIO, path: Path, size: int = -1) -> bytes:
    with _whole_gzip(path):
        return file.read(size)


@contextlib.contextmanager
def _whole_gzip(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError(f"{path} is not whole gzip; pack it again, or take .gz from its name.") from None


def txt_rows(path: Path) -> Iterator[Row]:
    """One instruction a line."""
    origin = origin_of(path)
    for number, line in lines(path):
        if line.strip():
            yield Row(number, f"{path}, row {number}", {"instruction": line.rstrip("\r\n")}, origin)


def no_format(path: Path) -> InputError:
    """The error for a file that is none of ours."""
    advice = WAY_OUT.get(path.suffix.lower(), "convert it to one of them")
    return InputError(f"{path} is none of {', '.join(SUFFIXES)} (or one of them with .gz); {advice}.")
