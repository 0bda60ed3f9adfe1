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
SHARD = re.compile(r"(?P<split>.+)[-.](?P<number>\d+)-of-(?P<total>\d+)\..+")
NAMED = 5  # missing shards that a sentence lists


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
        listed = [folder / one["filename"] for one in files]
        if missing := [path.name for path in listed if not path.is_file()]:
            raise InputError(
                f"{folder} lacks {_listed(missing, len(missing))}, which its state.json lists; copy the whole folder again."
            )
        return _shards(listed, columns)
    if any((match := HEADERLESS.fullmatch(path.name)) and match["category"] for path in folder.iterdir()):
        return hex_phi_rows(folder)
    files = sorted(p for p in folder.iterdir() if suffix_of(p) in SUFFIXES and p.is_file() and p.name not in ABOUT)
    if not files:
        raise InputError(
            f"{folder} is a folder without data files, one saved by datasets or HEx-PHI's category_N.csv; give a data file."
        )
    splits = sorted({match["split"] if (match := SHARD.fullmatch(path.name)) else path.name for path in files})
    _only(splits, folder, "files")
    return _shards(_whole(files, folder), columns)


def _only(names: list[str], folder: Path, what: str) -> str:
    """The one name of a list. Raises InputError where there are more, of which the user must choose."""
    if len(names) != 1:
        way = f"such as {folder / names[0]}" if (folder / names[0]).exists() else "in a folder of its own"
        raise InputError(f"{folder} holds the {what} {', '.join(names)}; give one of them, {way}.")
    return names[0]


def _whole(files: list[Path], folder: Path) -> list[Path]:
    """The files of one split in the order of their numbers, which count from 0 or from 1; other files as they are.

    Raises:
        InputError: a shard is missing or there twice, or the names do not agree on how many there are.
    """
    matches = {path: match for path in files if (match := SHARD.fullmatch(path.name))}
    if len(matches) < len(files):
        return files
    totals = sorted({int(match["total"]) for match in matches.values()})
    if len(totals) > 1:
        raise InputError(
            f"{folder} holds shards of {totals[0]} and of {totals[1]}, by their names; keep those that were written together."
        )
    written: dict[int, str] = {}
    for match in matches.values():
        if int(match["number"]) in written:
            raise InputError(f"{folder} holds two files for the shard {match['number']}; keep one of them.")
        written[int(match["number"])] = match["number"]
    first = int(0 not in written and totals[0] in written)
    wanted = range(first, first + totals[0])
    if beyond := [name for number, name in written.items() if number not in wanted]:
        raise InputError(f"{folder} holds the shard {beyond[0]} of {totals[0]}, which is one too many; take it out.")
    if lacks := totals[0] - len(written):
        width = min(map(len, written.values()))
        missing = (f"{number:0{width}}" for number in wanted if number not in written)
        raise InputError(
            f"{folder} lacks the shard{'s' if lacks > 1 else ''} {_listed(missing, lacks)} of {totals[0]}; put what is missing "
            "there, or give one of its files."
        )
    return sorted(files, key=lambda path: int(matches[path]["number"]))


def _listed(names: Iterable[str], count: int) -> str:
    """The first of so many names, in words."""
    first = list(itertools.islice(names, NAMED))
    if count > NAMED:
        return f"{', '.join(first)} and {count - NAMED} others"
    return " and ".join(filter(None, (", ".join(first[:-1]), first[-1])))


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
