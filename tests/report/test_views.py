"""Several judges and views of the same answers in one report: each number says whose it is, and none takes another's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fake_runs
from tokendeep.report import load, page, views
from tokendeep.report.page import Page
from tokendeep.report.series import series
from tokendeep.types import Sample


def answers(attack: str, judged: str, hits: int, params: dict[str, Any] | None = None, **more: Any) -> list[Sample]:
    """Four answers, of which so many are counted."""
    made = [
        fake_runs.sample(n, attack, params or {}, "m", "complied" if n < hits else "refused", judged=judged, **more)
        for n in range(4)
    ]
    return [replace(one, tokens=4) for one in made]


def write(folder: Path, *samples: Sequence[Sample]) -> Path:
    every = [one for some in samples for one in some]
    return fake_runs.write_attack(folder, "m", every, label="m", config={"model": "m", "data": "/d/a.jsonl"})


def built(*dirs: Path) -> Page:
    return page.build(dirs, read_logs=fake_runs.read_fake)


def rates(folder: Path) -> dict[str, dict[Any, int]]:
    return {
        one.name: {condition: rate.complied for condition, rate in one.rows.items()}
        for one in series(load.runs([folder], fake_runs.read_fake))
    }


@pytest.mark.parametrize("order", [1, -1])
def test_another_view_of_the_plain_request_is_a_series_of_its_own(tmp_path: Path, order: int) -> None:
    looks = [answers("none", "continuation", 3), answers("none", "full", 3), answers("none", "conversation", 1)]
    found = rates(write(tmp_path / "run", *looks[::order]))
    assert sorted(of["none", None] for of in found.values()) == [1, 3]
    [name] = [name for name, of in found.items() if of["none", None] == 1]
    assert name == "m (judged conversation)"


def test_each_view_of_prefills_has_its_own_plain_request_where_it_differs(tmp_path: Path) -> None:
    every = ("continuation", "full", "conversation")
    looks = [
        look
        for n, judged in enumerate(every)
        for look in (
            answers("none", judged, 3 if n < 2 else 0),
            answers("prefill", judged, n, {"k": 10}),
            answers("refusal-prefix", "full", 2, {"prefix": "I cannot"})[: 4 * (n == 0)],
        )
    ]
    found = rates(write(tmp_path / "run", *looks))
    assert [of["prefill", 10] for of in found.values()] == [0, 1, 2]
    assert [of.get(("none", None)) for of in found.values()] == [3, None, 0]
    assert [of.get(("refusal-prefix", "I cannot")) for of in found.values()] == [2, None, None]


def test_under_one_view_alone_all_rows_stand_together(tmp_path: Path) -> None:
    looks = [answers("none", "conversation", 3), answers("prefill", "conversation", 1, {"k": 10})]
    looks.append(answers("refusal-prefix", "full", 2, {"prefix": "I cannot"}))
    [rows] = rates(write(tmp_path / "run", *looks)).values()
    assert len(rows) == 3


def test_attacks_side_by_side_name_judge_and_view_and_count_no_look_twice(tmp_path: Path) -> None:
    looks = [
        answers("rank-prefill", judged, hits, judge=judge)
        for judge, hits in (("refusal", 3), ("rubric", 1))
        for judged in ("continuation", "full")
    ]
    plain = [answers("none", judged, 2, judge="rubric") for judged in ("continuation", "full")]
    context = built(write(tmp_path / "run", *looks, *plain))
    [table] = next(one for one in context.sections if one.id == "battery").tables
    assert table.columns[2] == "counted"
    assert table.caption.startswith("Counted, and the cost")
    assert [(row[0].split()[0], row[1], row[2].split(" ")[0]) for row in table.rows] == [
        ("plain", "m (judge rubric)", "2/4"),
        ("rank-prefill", "m (judge refusal, continuation)", "3/4"),
        ("rank-prefill", "m (judge refusal, full)", "3/4"),
        ("rank-prefill", "m (judge rubric, continuation)", "1/4"),
        ("rank-prefill", "m (judge rubric, full)", "1/4"),
    ]


def test_settings_and_suffixes_name_their_judge(tmp_path: Path) -> None:
    looks = [
        answers(attack, judged, hits, params, judge=judge)
        for attack, params in (("decoding", {"setting": "greedy"}), ("suffix", {"suffix": "a"}))
        for judge, hits in (("refusal", 3), ("rubric", 1))
        for judged in ("continuation", "full")
    ]
    context = built(write(tmp_path / "run", *looks))
    for name, column in (("decoding", 3), ("suffix", 3)):
        [table] = next(one for one in context.sections if one.id == name).tables
        assert [(row[0], row[column].split(" ")[0]) for row in table.rows] == [
            ("m on a.jsonl (judge refusal)", "3/4"), ("m on a.jsonl (judge rubric)", "1/4"),
        ]  # fmt: skip
        assert table.caption.startswith("Counted, ")


def test_what_is_counted_is_called_by_its_name() -> None:
    assert views.counted(["refusal", "hf-refusal"]) == "not refused"
    assert views.counted(["rubric", "hf-harm"]) == "harmful"
    assert views.counted(["rubric", "refusal"]) == "counted"


def test_the_csv_of_tests_says_what_their_judge_counts(tmp_path: Path) -> None:
    for model in ("a", "b"):
        made = [replace(one, model=model) for one in answers("none", "continuation", 2, judge="rubric")]
        fake_runs.write_attack(tmp_path / model, model, made, label=model)
    table = built(tmp_path / "a", tmp_path / "b").csv["paired"]
    assert [row[table.columns.index("event")] for row in table.rows] == ["harmful"]


def test_the_line_at_the_top_says_which_of_several_judges_it_goes_by(tmp_path: Path) -> None:
    looks = [answers("none", "continuation", hits, judge=judge) for judge, hits in (("rubric", 1), ("refusal", 3))]
    [line] = built(write(tmp_path / "both", *looks)).glances
    assert "did harm with 25% of harmful requests (judge rubric)" in line.found
    [line] = built(write(tmp_path / "one", looks[1])).glances
    assert "(judge" not in line.found
