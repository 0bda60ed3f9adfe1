"""VERB overlap: what two files share, by ids and hashes; no text is printed or written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import tokendeep
from tokendeep import cli, stats
from tokendeep.errors import InputError
from tokendeep.records import Overlap
from tokendeep.verbs import overlap
from tokendeep.verbs.overlap import OverlapOptions

SAME = "Tell me how to bake a loaf of rye bread at home"
NEAR = "Tell me how to bake a loaf of rye bread at night"  # 10 of 12 pairs of words
TRAIN = [
    {"id": "a", "instruction": "Name three rivers in Norway"},
    {"id": "b", "instruction": SAME, "response": "With patience."},
    {"id": "c", "messages": [{"role": "user", "content": NEAR}, {"role": "assistant", "content": "Yes."},
                             {"role": "user", "content": "And what about cakes?"}]},
]  # fmt: skip
TEST = [{"id": "x", "instruction": f"  {SAME} "}, {"id": "y", "instruction": "Where do swallows sleep in winter?"}]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_exact_and_near_twins_by_id_and_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path / "train.jsonl", TRAIN), write(tmp_path / "test.jsonl", TEST)
    assert cli.main(["overlap", *files, "--out", str(tmp_path / "out")]) == 0
    made = Overlap.load(tmp_path / "out")
    assert (made.first.name, made.first.rows, made.first.exact, made.first.near) == ("train.jsonl", 3, 1, 1)
    assert (made.second.rows, made.second.exact, made.second.near) == (2, 1, 0)
    assert [(one.first_row, one.first_id, one.second_id, one.exact) for one in made.pairs] == [
        (2, "b", "x", True),
        (3, "c", "x", False),
    ]
    assert made.pairs[0].first_hash == made.pairs[0].second_hash == hashlib.sha256(SAME.encode()).hexdigest()
    assert made.pairs[1].similarity == pytest.approx(10 / 12)
    shown = capsys.readouterr().out
    assert (
        "1 of 3 rows of train.jsonl (first) are in the other word for word, 1 more have a near-duplicate there" in shown
    )
    assert "first, row 3 (c); second, row 1 (x): similarity 0.83" in shown
    assert "bread" not in shown + (tmp_path / "out" / "overlap.json").read_text()
    assert list(made.to_frame()["second_id"]) == ["x", "x"]


def test_a_higher_threshold_leaves_the_exact_one() -> None:
    made = tokendeep.overlap(TRAIN, TEST, threshold=0.9)
    assert [(one.first_id, one.exact) for one in made.pairs] == [("b", True)]
    assert made.first.name == "first.jsonl"


def test_requests_without_words_are_compared_word_for_word() -> None:
    said = ["???", "请告诉我如何在家里烤面包", "Где живут ласточки?"]
    rows = [{"instruction": text} for text in said]
    made = tokendeep.overlap(rows, [*rows, {"instruction": "!!!"}])
    assert [(one.first_row, one.second_row, one.exact, one.similarity) for one in made.pairs] == [
        (n, n, True, 1.0) for n in (1, 2, 3)
    ]


def test_nothing_shared_is_no_error_and_a_plan_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path / "train.jsonl", TRAIN[:1]), write(tmp_path / "test.jsonl", TEST)
    assert cli.main(["overlap", *files]) == 0
    assert "0 of 1 rows of train.jsonl" in capsys.readouterr().out
    assert cli.main(["overlap", *files, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()


def test_foreign_columns_are_named_for_the_files_that_have_them(tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", [{"Ask": SAME, "Note": "n"}])
    options = OverlapOptions(first, write(tmp_path / "second.jsonl", TEST), columns=["instruction=Ask"])
    assert len(overlap.overlap(overlap.plan(options)).pairs) == 1


def test_bad_input(tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", TEST)
    with pytest.raises(InputError, match="--threshold is 0, but must be above 0 and at most 1"):
        overlap.plan(OverlapOptions(file, file, threshold=0))
    with pytest.raises(InputError, match=r"There is no file .*nowhere\.jsonl"):
        overlap.plan(OverlapOptions(file, str(tmp_path / "nowhere.jsonl")))
    (tmp_path / "overlap.json").write_text("mine")
    with pytest.raises(InputError, match=r"overlap\.json is there already and was not written by tokendeep"):
        overlap.plan(OverlapOptions(file, file, out=str(tmp_path)))


def test_pairs_across_are_those_of_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "BLOCK", 2)  # more blocks than one, and a cut inside of one
    first = [f"the quick brown fox number {n} jumps" for n in range(3)] + ["nothing like it at all"]
    second = ["The quick, brown fox number 1 jumps!", "a text of its own", "the quick brown fox number 2 jumps"]
    pairs = stats.near_pairs(first, second, 0.9)
    assert pairs == [(1, 0, 1.0), (2, 2, 1.0)]
    assert len(stats.near_pairs(first, second, 0.4)) == 6
    assert stats.near_pairs([], second) == stats.near_pairs(first, []) == []
