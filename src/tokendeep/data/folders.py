"""A file or a folder of files -> records, by its name. Knows HEx-PHI's folder, those that `datasets` saves, and shards."""

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from tokendeep.data.arrow import arrow_rows
from tokendeep.data.files import SUFFIXES, json_rows, jsonl_rows, no_format, open_file, suffix_of, txt_rows
from tokendeep.data.known import HEADERLESS
from tokendeep.data.row import Row
from tokendeep.data.tables import table_rows
from tokendeep.errors import InputError

ABOUT = ("dataset_info.json", "dataset_infos.json")  # what `datasets` writes beside the data
SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}\..+")


def local_rows(path: Path, columns: Mapping[str, str] | None = None) -> Iterator[Row]:
    """The records of a file or a folder; `columns` are those that the user has named.

    Raises:
        InputError: it is not there, may not be read, or is of none of the kinds that are known.
    """
    if os.path.isdir(path):  # unlike Path.is_dir it is False, and no error, for a name too long
        return _folder_rows(path, columns or {})
    open_file(path).close()
    match suffix_of(path):
        case ".jsonl" | ".ndjson":
            return jsonl_rows(path)
        case ".json":
            return json_rows(path)
        case ".csv" | ".tsv":
            return table_rows(path, columns or {})
        case ".parquet" | ".arrow":
            return arrow_rows(path)
        case ".txt":
            return txt_rows(path)
    raise no_format(path)


def _folder_rows(folder: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return _folder_rows(folder / _only(splits, folder, "splits"), columns)
    if (folder / "state.json").is_file():
        files = json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]
        return _shards([folder / one["filename"] for one in files], columns)
    if any((match := HEADERLESS.fullmatch(path.name)) and match["category"] for path in folder.iterdir()):
        return hex_phi_rows(folder)
    files = sorted(p for p in folder.iterdir() if suffix_of(p) in SUFFIXES and p.is_file() and p.name not in ABOUT)
    if not files:
        raise InputError(
            f"{folder} is a folder without data files, one saved by datasets or HEx-PHI's category_N.csv; give a data file."
        )
    splits = sorted({match["split"] if (match := SHARD.fullmatch(path.name)) else path.name for path in files})
    _only(splits, folder, "files")
    return _shards(files, columns)


def _only(names: list[str], folder: Path, what: str) -> str:
    """The one name of a list. Raises InputError where there are more, of which the user must choose."""
    if len(names) != 1:
        raise InputError(
            f"{folder} holds the {what} {', '.join(names)}; give one of them, such as {folder / names[0]}."
        )
    return names[0]


def _shards(files: list[Path], columns: Mapping[str, str]) -> Iterator[Row]:
    if len(files) == 1:
        return local_rows(files[0], columns)
    return _numbered_through(local_rows(path, columns) for path in files)


def _numbered_through(files: Iterable[Iterator[Row]]) -> Iterator[Row]:
    """The rows of several files, each with its place among all of them; `where` still says its own file and row."""
    for number, row in enumerate(itertools.chain.from_iterable(files), 1):
        yield replace(row, number=number)


def hex_phi_rows(folder: Path) -> Iterator[Row]:
    """The rows of HEx-PHI's category_N.csv, in the order of their numbers."""
    files = [path for path in folder.iterdir() if (match := HEADERLESS.fullmatch(path.name)) and match["category"]]
    files.sort(key=lambda path: int(path.stem.split("_")[1]))
    return _numbered_through(table_rows(path, {}) for path in files)
