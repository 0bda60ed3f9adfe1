"""CSV and TSV files as records, as spreadsheets, pandas and people write them.

Knows what stands between cells (commas, semicolons or tabs, by the line of column names), Excel's `sep=` line, empty
columns at the end, the index of pandas, and the public files without column names. Cells are texts.
"""

import csv
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tokendeep.data.files import MAX_ROW, lines, origin_of, suffix_of, too_long
from tokendeep.data.known import ADVBENCH, HEADERLESS, HEX_PHI, HEX_PHI_CATEGORIES, KNOWN
from tokendeep.data.row import FIELDS, INDEX, SAYS_THE_SAME, Origin, Row, nearest_field
from tokendeep.errors import InputError

BETWEEN = (",", ";", "\t", "|")
Records = Iterator[tuple[int, list[str]]]


def table_rows(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    """The rows of a file; `columns` are those that the user has named, which may be all that are known.

    Raises:
        InputError: no line of column names, a row with too many or too few cells, or broken quotes.
    """
    chosen = columns.values()
    records = _records(path, _between(path, chosen))
    first = next(records, None)
    if first is None:
        return
    number, header = first
    if (match := HEADERLESS.fullmatch(path.name)) and len(header) == 1 and header[0] not in FIELDS:
        yield from _headerless_rows(path, match, itertools.chain([first], records))
        return
    names = _names(header, f"{path}, row {number}", chosen)
    origin = origin_of(path)
    for line, cells in records:
        where = f"{path}, row {line}"
        yield Row(line, where, _values(names, cells, where), origin)


def _names(header: list[str], where: str, chosen: Sequence[str] | object) -> list[str]:
    """The names of the columns, without empty ones at the end."""
    names = [name.strip() for name in header]
    while len(names) > 1 and not names[-1]:
        names.pop()
    if len(set(names)) < len(names) or not all(name for name in names[1:]):
        raise InputError(f"{where}: a column name is empty or repeated; give each column its own name.")
    if not (_known(names, chosen) or any(map(nearest_field, names))):  # its words may be those of a row
        raise InputError(
            f"{where}: names no known column; start the file with a line of column names such as instruction,response "
            f"(known are {', '.join(FIELDS)}), or say with --columns which are meant, such as instruction=NAME."
        )
    return names


def _values(names: list[str], cells: list[str], where: str) -> dict[str, str]:
    """The cells by their columns' names. An index of pandas is none of them."""
    rest = cells[len(names) :]
    if len(cells) < len(names) or any(cell.strip() for cell in rest):
        raise InputError(
            f"{where}: has {len(cells)} columns and the first line {len(names)}; quote texts that hold commas."
        )
    values = dict(zip(names, cells, strict=False))
    for name in [name for name in names if INDEX.fullmatch(name)]:
        if not re.fullmatch(r"\d*", values.pop(name)):
            raise InputError(f"{where}: a cell stands under no column name; give each column its own name.")
    return values


def _known(names: Sequence[str], chosen: Sequence[str] | object) -> set[str]:
    known = {*FIELDS, *SAYS_THE_SAME}.union(*(known.columns for known in KNOWN), chosen)  # type: ignore[arg-type]
    return known & {name.strip() for name in names}


# --- cells -----------------------------------------------------------------------------------------


def _between(path: Path, chosen: object) -> str | None:
    """What stands between cells: what a first line `sep=;` says, else what parts the first line into most known names.

    None where the first line says it.
    """
    first = next((line for _, line in lines(path)), "")
    if re.fullmatch(r'"?sep=.\W*', first):
        return None
    usual = "\t" if suffix_of(path) == ".tsv" else ","
    signs = sorted(BETWEEN, key=lambda sign: sign != usual)
    return max(signs, key=lambda sign: len(_known(_split(first, sign), chosen)))


def _split(line: str, sign: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=sign), [])
    except csv.Error:
        return []


def _records(path: Path, sign: str | None) -> Records:
    """(line the record starts on, its cells); blank lines are skipped."""
    csv.field_size_limit(MAX_ROW)
    text = (line for _, line in lines(path))
    skipped = 0
    if sign is None:
        sign, skipped = next(text).partition("=")[2][0], 1
    reader = csv.reader(text, delimiter=sign, strict=True)
    while True:
        start = reader.line_num + 1 + skipped
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):
                raise too_long(path, start) from None
            if "new-line character" in str(error):
                raise InputError(f"{path}: its lines end as on old Macs; save it as CSV UTF-8.") from None
            raise InputError(f"{path}, row {start}: is not CSV ({error}); check its quotes.") from None
        if sum(map(len, cells)) > MAX_ROW:
            raise too_long(path, start)
        if any(cells):
            yield start, cells


# --- files without column names --------------------------------------------------------------------


def _headerless_rows(
    path: Path, match: re.Match[str], records: Records | itertools.chain[tuple[int, list[str]]]
) -> Iterator[Row]:
    """Prompts alone, one a line, in a file known by its name; HEx-PHI's file name holds the category."""
    digits = match["category"]
    category = {} if digits is None else {"category": HEX_PHI_CATEGORIES.get(int(digits), f"category {int(digits)}")}
    origin = Origin(str(path), ADVBENCH if digits is None else HEX_PHI, part=path.name)
    for number, cells in records:
        where = f"{path}, row {number}"
        if len(cells) != 1:
            raise InputError(f"{where}: has {len(cells)} columns instead of one; quote texts that hold commas.")
        yield Row(number, where, {"prompt": cells[0], **category}, origin)
