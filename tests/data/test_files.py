"""Files that are packed or binary, and folders of them, are read as the plain file is."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rowfiles import refused, write
from tokendeep import data, runs

ROWS: list[dict[str, Any]] = [
    {"id": "a", "messages": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]},
    {"id": "b", "messages": [{"role": "user", "content": "C?"}, {"role": "assistant", "content": "D."}]},
]


def plain(folder: Path) -> list[Any]:
    return data.read_chats(write(folder, "plain.jsonl", ROWS))


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.json.gz", "p.ndjson"])
def test_packed_files(tmp_path: Path, name: str) -> None:
    text = json.dumps(ROWS) if name[2:] == "json.gz" else "".join(json.dumps(row) + "\n" for row in ROWS)
    content = gzip.compress(text.encode()) if name.endswith("gz") else text.encode()
    assert data.read_chats(write(tmp_path, name, content)) == plain(tmp_path)


def test_packed_tables_and_texts(tmp_path: Path) -> None:
    table = write(tmp_path, "p.csv.gz", gzip.compress(b"instruction;response\nA?;B\n"))
    assert data.read_pairs(table)[0].response == "B"
    assert len(data.read_prompts(write(tmp_path, "p.txt.gz", gzip.compress(b"A?\nB?\n")))) == 2


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.json.gz", "p.csv.gz"])
def test_broken_gzip(tmp_path: Path, name: str) -> None:
    text = "instruction\n" + "A?\n" * 99 if "csv" in name else '{"instruction": "A?"}\n' * 99
    for content in (b"no gzip at all", gzip.compress(text.encode())[:-12]):
        refused(data.read_prompts, write(tmp_path, name, content), name, "gzip")


def test_other_people_s_suffixes_have_a_way_out(tmp_path: Path) -> None:
    refused(data.read_prompts, write(tmp_path, "p.xlsx", b"PK"), "p.xlsx", "CSV UTF-8")
    refused(data.read_prompts, write(tmp_path, "p.zip", b"PK"), "p.zip", "unpack it")


def table(folder: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets.Dataset.from_list(ROWS)


def test_parquet_and_arrow(tmp_path: Path) -> None:
    rows = table(tmp_path)
    rows.to_parquet(tmp_path / "p.parquet")
    assert data.read_chats(tmp_path / "p.parquet") == plain(tmp_path)
    rows.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    assert data.read_chats(arrow) == plain(tmp_path)
    refused(data.read_chats, write(tmp_path, "x.parquet", b"PAR1"), "x.parquet", "no whole Parquet file")
    refused(data.read_chats, write(tmp_path, "x.arrow", b"PAR1"), "x.arrow", "no whole Arrow file")


def test_an_index_of_pandas_in_parquet_is_no_column(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"instruction": ["A?", "B?"]}, index=[5, 7])
    frame.to_parquet(tmp_path / "p.parquet")
    assert [p.messages[0]["content"] for p in data.read_prompts(tmp_path / "p.parquet")] == ["A?", "B?"]
    frame.to_csv(tmp_path / "p.csv")
    again = pandas.read_csv(tmp_path / "p.csv")  # with a column "Unnamed: 0"
    assert data.read_prompts(again) == data.read_prompts(tmp_path / "p.csv") == data.read_prompts(frame)
    row = {"Unnamed: 0": 3, "prompt": "A?", "completion": "B."}
    assert [m["content"] for m in data.chat(row, "Row 1").messages] == ["A?", "B."]


def test_folders_saved_by_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = table(tmp_path)
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    assert data.read_chats(tmp_path / "one") == plain(tmp_path)
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "dict")
    assert data.read_chats(tmp_path / "dict") == plain(tmp_path)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "two")
    refused(data.read_chats, tmp_path / "two", "holds the splits train, test", "two/train")
    assert data.read_chats(tmp_path / "two" / "test") == plain(tmp_path)


def test_a_folder_is_known_by_the_content_of_its_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    hashes = []
    for text in ("A?", "B?"):
        folder = tmp_path / text
        datasets.DatasetDict({"train": datasets.Dataset.from_list([{"instruction": text}])}).save_to_disk(folder)
        hashes.append(runs.hash_input("data", folder))
    assert hashes[0] != hashes[1]


def test_shards_of_one_split_are_read_in_their_order(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        write(tmp_path, f"train-{number:05}-of-00002.jsonl", [row])
    assert data.read_chats(tmp_path) == [*data.read_chats([ROWS[0]]), *data.read_chats([ROWS[1]])]
    write(tmp_path, "test-00000-of-00001.jsonl", [ROWS[0]])
    refused(data.read_chats, tmp_path, "holds the files test, train", "give one of them")


def both(folder: Path, how: str) -> Path:
    """Three rows in two shards, as people or `datasets` write them."""
    rows = [{"instruction": f"Say {n}", "response": f"It is {n}."} for n in range(3)]
    if how == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(rows).save_to_disk(folder, num_shards=2)
        return folder
    for number, part in enumerate((rows[:2], rows[2:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        if how == "csv":
            text = "instruction,response\n" + "".join(f"{row['instruction']},{row['response']}\n" for row in part)
        write(folder, f"train-{number:05}-of-00002.{how}", text)
    return folder


@pytest.mark.parametrize("how", ["jsonl", "csv", "saved"])
def test_rows_of_shards_are_numbered_through_and_named_by_their_file(tmp_path: Path, how: str) -> None:
    rows = list(data.read_rows(both(tmp_path, how)))
    assert [row.values["instruction"] for row in rows] == ["Say 0", "Say 1", "Say 2"]
    assert [row.number for row in rows] == [1, 2, 3]
    last = 2 if how == "csv" else 1  # below the line of column names
    assert re.search(rf"/(train|data)-00001-of-00002\.\w+, row {last}$", rows[2].where)


def test_hex_phi_s_files_are_numbered_through(tmp_path: Path) -> None:
    for category in (1, 2, 10):
        write(tmp_path, f"category_{category}.csv", f"Say {category}\nSay it again\n")
    assert [row.number for row in data.read_rows(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_an_id_that_two_shards_give_is_named_with_both_places(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path, f"train-{number:05}-of-00002.jsonl", ROWS[:1])
    first, second = (str(tmp_path / f"train-0000{number}-of-00002.jsonl") for number in range(2))
    refused(data.read_chats, tmp_path, f"{second}, row 1: its id is also that of {first}, row 1;")
    refused(data.read_chats, write(tmp_path, "one.jsonl", ROWS[:1] * 2), "row 2: its id is also that of row 1;")
    refused(data.read_chats, ROWS[:1] * 2, "Row 2: its id is also that of row 1;")


SHARDS = {  # names of files -> what is said of them
    "lacks the shards 00001 and 00003 of 4": ("train-00000-of-00004.jsonl", "train-00002-of-00004.jsonl"),
    "lacks the shard 00000 of 2": ("train-00001-of-00002.jsonl",),
    "lacks the shards 00001, 00002, 00003, 00004, 00005 and 4 others of 10": ("train-00000-of-00010.jsonl",),
    "lacks the shard 2 of 3": ("a.1-of-3.jsonl", "a.3-of-3.jsonl"),
    "two files for the shard 00000": ("t-00000-of-00002.json", "t-00000-of-00002.jsonl", "t-00001-of-00002.json"),
    "shards of 2 and of 3": ("t-00000-of-00003.jsonl", "t-00001-of-00002.jsonl", "t-00001-of-00003.jsonl"),
    "99999999999999999993 others of 99999999999999999999": ("t-1-of-99999999999999999999.jsonl",),
    "shard 00002 of 2": ("t-00000-of-00002.jsonl", "t-00001-of-00002.jsonl", "t-00002-of-00002.jsonl"),
}


@pytest.mark.parametrize("said", SHARDS)
def test_shards_that_are_not_whole_are_refused(tmp_path: Path, said: str) -> None:
    for number, name in enumerate(SHARDS[said]):
        write(tmp_path, name, [{"instruction": f"Say {number}"}])
    refused(data.read_prompts, tmp_path, str(tmp_path), said)


def test_a_file_that_a_saved_folder_lists_and_lacks_is_named(tmp_path: Path) -> None:
    both(tmp_path, "saved")
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    refused(data.read_pairs, tmp_path, f"{tmp_path} lacks data-00001-of-00002.arrow", "state.json")


def test_shards_are_numbered_from_0_or_1_and_read_by_their_numbers(tmp_path: Path) -> None:
    for first, folder in enumerate((tmp_path / "from 0", tmp_path / "from 1")):
        folder.mkdir()
        for number in range(11):
            write(folder, f"a-{number + first}-of-11.jsonl", [{"instruction": f"Say {number}"}])
        read = [row.messages[0]["content"] for row in data.read_prompts(folder)]
        assert read == [f"Say {number}" for number in range(11)]
    one = write(tmp_path, "train-00001-of-00007.jsonl", [{"instruction": "Say 1"}])
    assert len(data.read_prompts(one)) == 1  # a file that is named itself is meant alone
