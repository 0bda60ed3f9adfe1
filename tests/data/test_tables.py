"""Tables as spreadsheets, pandas and people write them become the rows that are meant, or one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from rowfiles import SECRET, refused, write
from tokendeep import data


def asked(source: Path) -> list[str]:
    return [prompt.messages[0]["content"] for prompt in data.read_prompts(source)]


ROWS = 'instruction,response,category\nHöw?,First; then,a\n"B, c",D,b\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("excel.csv", "instruction;response;category\r\nHöw?;\"First; then\";a\r\nB, c;D;b\r\n"),
        ("sep.csv", "sep=;\r\ninstruction;response;category\r\nHöw?;\"First; then\";a\r\nB, c;D;b\r\n"),
        ("sep.csv", "\"sep=,\"\n" + ROWS),
        ("tabs.csv", "instruction\tresponse\tcategory\nHöw?\tFirst; then\ta\nB, c\tD\tb\n"),
        ("rows.tsv", "instruction\tresponse\tcategory\nHöw?\tFirst; then\ta\n\"B, c\"\tD\tb\n"),
        ("bar.csv", "instruction|response|category\nHöw?|First; then|a\nB, c|D|b\n"),
        ("trailing.csv", "instruction,response,category,,\nHöw?,First; then,a,,\n\"B, c\",D,b\n,,,,\n"),
        ("index.csv", ",instruction,response,category\n0,Höw?,First; then,a\n1,\"B, c\",D,b\n"),
        ("again.csv", "Unnamed: 0.1,Unnamed: 0,instruction,response,category\n0,0,Höw?,First; then,a\n1,1,\"B, c\",D,b\n"),
        ("spaces.csv", "instruction, response, category\nHöw?,First; then,a\n\"B, c\",D,b\n"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_every_way_to_write_a_table_is_the_same_rows(tmp_path: Path, name: str, content: str, encoding: str) -> None:
    plain = data.read_pairs(write(tmp_path, "plain.csv", ROWS))
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    pairs = data.read_pairs(write(tmp_path, name, (mark + content).encode(encoding)))
    assert pairs == plain
    assert [pair.response for pair in pairs] == ["First; then", "D"]
    assert [pair.meta["category"] for pair in pairs] == ["a", "b"]


def test_a_line_break_of_utf_16_is_not_half_of_another_sign(tmp_path: Path) -> None:
    texts = ["\u0a0a\u0a41", "\u4e0a \u0a00", "\u4100\u0a41", "plain"]  # bytes 0a at every place
    for encoding in ("utf-16-le", "utf-16-be"):
        content = "\ufeff" + "\n".join(["instruction", *texts])
        assert asked(write(tmp_path, "p.csv", content.encode(encoding))) == texts


def test_a_windows_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", "instruction\ncafé\n".encode("cp1252"))
    refused(data.read_prompts, path, "p.csv, row 2", "byte 4", "CSV UTF-8", "iconv -f cp1252")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (f"instruction,response,\nA,B,{SECRET}\n", ["row 2", "3 columns and the first line 2"]),
        (f",instruction\n{SECRET},A\n", ["row 2", "under no column name"]),
        ("instruction,,response\nA,B,C\n", ["row 1", "empty or repeated"]),
        ("instruction,response\rA,B\r", ["old Macs", "CSV UTF-8"]),
        (f"{SECRET};x\n", ["row 1", "no known column", "--columns"]),
    ],
)
def test_a_cell_is_never_dropped(tmp_path: Path, content: str, parts: list[str]) -> None:
    refused(data.read_prompts, write(tmp_path, "p.csv", content), "p.csv", *parts)


def test_the_row_is_the_line_it_starts_on_also_behind_sep(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", 'sep=;\ninstruction;response\n"A\nB";x\nC;\n')
    refused(data.read_pairs, path, "p.csv, row 5", "'response' is empty")


def test_columns_are_named_by_the_user(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "p.csv", "Goal;Target;Owner;prompt\nA?;Sure;me;other\n")
    chosen = data.choose(path, ["instruction=Goal", "response=Target"])
    (pair,) = data.read_pairs(chosen)
    assert (pair.messages[0]["content"], pair.response) == ("A?", "Sure")
    assert "p.csv: columns that are not used: 'Owner'" in caplog.text
    assert data.kind(chosen) == "pairs"
    assert data.identity(chosen) == path
    headless = write(tmp_path, "q.csv", "Xyz;Abc\nA?;B\n")  # no column is known but by the user
    assert data.read_prompts(data.choose(headless, ["instruction=Xyz"]))[0].messages[0]["content"] == "A?"


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (["Goal"], "write OURS=THEIRS"),
        (["instruction="], "write OURS=THEIRS"),
        (["instrction=Goal"], "'instrction', which is no column of ours; did you mean instruction"),
        (["instruction=Gaol"], "row 2: has no column 'Gaol'"),
    ],
)
def test_columns_that_cannot_be_named_so(tmp_path: Path, columns: list[str], match: str) -> None:
    path = write(tmp_path, "p.csv", "Goal,instruction\nA?,B\n")
    refused(lambda source: data.read_prompts(data.choose(source, columns)), path, match)
