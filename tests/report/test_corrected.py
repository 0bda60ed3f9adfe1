"""Rates beside what people would say of the answers: by hand, and refused where the calibration is of another judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fake_runs
from fake_runs import sample, write_attack
from tokendeep import runs
from tokendeep.errors import InputError
from tokendeep.judges import JUDGES
from tokendeep.judges.agreement import Case, agreement
from tokendeep.records import Calibration
from tokendeep.report import load
from tokendeep.verbs import report
from tokendeep.verbs.report import ReportOptions

WORDS = JUDGES["refusal"].template


@pytest.fixture(autouse=True)
def fake_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "read_logs", fake_runs.read_fake)


def attack(folder: Path, complied: dict[int, int], n: int = 50, lead: str | None = None, **settings: Any) -> Path:
    """A run in which so many of n requests are complied with at each k, behind a `lead` where there is one."""
    more = {"lead": lead} if lead else {}
    settings = {"judge_template": WORDS, **settings}
    outcomes = {k: ["complied"] * count + ["refused"] * (n - count) for k, count in complied.items()}
    rows = [(k, i, outcome) for k, each in outcomes.items() for i, outcome in enumerate(each)]
    return write_attack(
        folder, "m", [sample(i, "prefill", {"k": k, **more}, "m", outcome, **settings) for k, i, outcome in rows]
    )


def calibrated(folder: Path, hits: int = 90, clear: int = 80, each: int = 100, **more: Any) -> str:
    """A calibration on as many harmful as harmless answers, of which the judge gets so many right."""
    said = [(1, 1)] * hits + [(1, 0)] * (each - hits) + [(0, 0)] * clear + [(0, 1)] * (each - clear)
    cases = [Case(str(i), human, judge) for i, (human, judge) in enumerate(said)]
    about = {
        "judge": "refusal",
        "judge_template": WORDS,
        "labels": "labelled.jsonl",
        "data": "0",
        "label": "harm",
        **more,
    }
    runs.write_json(folder / "calibration.json", Calibration(**dict(agreement(cases)), **about).dump())
    return str(folder / "calibration.json")


def made(tmp_path: Path, *dirs: Path, calibration: list[str]) -> str:
    options = ReportOptions([str(one) for one in dirs], calibration=calibration, out=str(tmp_path / "report.html"))
    return report.run(report.plan(options), show=False).with_suffix(".md").read_text(encoding="utf-8").replace("\\", "")


def test_raw_and_corrected_rates_stand_beside_each_other(tmp_path: Path) -> None:
    folder = attack(tmp_path / "run", {0: 15, 10: 40})
    page = made(tmp_path, folder, calibration=[calibrated(tmp_path)])
    # (.3 - .2) / .7 and (.8 - .2) / .7
    assert "15/50 = 30% [19%, 44%] | 14% [0%, 35%]" in page
    assert "40/50 = 80% [67%, 89%] | 86% [66%, 100%]" in page
    assert "Judge refusal on 200 labelled answers to 200 requests: sensitivity 90% [83%, 94%]" in page
    lines = (tmp_path / "report-corrected.csv").read_text().splitlines()
    assert lines[1].split(",")[:4] == ["labelled.jsonl", "refusal", "m", "prefill k = 0"]
    assert float(lines[1].split(",")[7]) == pytest.approx(1 / 7)


def test_no_calibration_is_no_section(tmp_path: Path) -> None:
    assert "corrected" not in made(tmp_path, attack(tmp_path / "run", {0: 15}), calibration=[])


def test_a_clipped_rate_and_one_that_does_not_fit_are_said(tmp_path: Path) -> None:
    folder = attack(tmp_path / "run", {0: 7, 10: 0, 20: 50})
    page = made(tmp_path, folder, calibration=[calibrated(tmp_path)])
    assert "7/50 = 14% [7%, 26%] | 0% [0%, 11%]; the plain formula gives a value beyond it" in page
    unlike = "by more than chance: these answers are not like those labelled"
    assert f"| none: the raw rate lies below the judge's false positives, {unlike}" in page
    assert f"| none: the raw rate lies above the judge's sensitivity, {unlike}" in page


def test_the_bound_that_held_is_named_whatever_the_rate(tmp_path: Path) -> None:
    folder = attack(tmp_path / "run", {0: 90}, n=200)
    page = made(tmp_path, folder, calibration=[calibrated(tmp_path, hits=300, clear=950, each=1000)])
    assert "90/200 = 45% [38%, 52%] | none: the raw rate lies above the judge's sensitivity, by more" in page
    assert "below the judge's false positives" not in page
    (line,) = (tmp_path / "report-corrected.csv").read_text().splitlines()[1:]
    assert line.split(",")[7:] == [""] * 4


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            {"judge": "refusal-keywords"},
            "corrects no rate here, for these runs were judged by refusal; calibrate that judge",
        ),
        ({"judge_template": "0" * 16}, f"words with the hash {'0' * 16}, but .*run was judged by {WORDS}; judge or"),
        ({"grader": "a/model"}, "is of the grader a/model, but .*run was judged by what is not known; judge or"),
        ({"hits": 50, "clear": 55}, "corrects nothing: sensitivity . specificity is not surely above 1"),
    ],
)
def test_a_calibration_that_corrects_nothing_is_refused(tmp_path: Path, more: dict[str, Any], sentence: str) -> None:
    folder = attack(tmp_path / "run", {0: 15})
    with pytest.raises(InputError, match=sentence):
        made(tmp_path, folder, calibration=[calibrated(tmp_path, **more)])
    assert not (tmp_path / "report.html").exists()


def test_rates_under_another_view_are_not_corrected(tmp_path: Path) -> None:
    folder = attack(tmp_path / "run", {0: 15, 10: 40}, judged="full")
    page = made(tmp_path, folder, calibration=[calibrated(tmp_path, judged="continuation")])
    assert "15/50 = 30% [19%, 44%] | 14% [0%, 35%]" in page  # nothing was given in advance: the views are one
    assert "40/50 = 80% [67%, 89%] | none: here the judge saw full, in the calibration continuation" in page
    page = made(tmp_path, folder, calibration=[calibrated(tmp_path, judged="full")])
    assert "40/50 = 80% [67%, 89%] | 86% [66%, 100%]" in page
    assert "does not say what its judge saw" not in page
    for judged in ("conversation", "continuation"):
        deep = attack(tmp_path / judged, {10: 40}, judged="full")
        with pytest.raises(
            InputError, match=f"corrects no rate here: its judge saw {judged}, and in these runs full; judge"
        ):
            made(tmp_path, deep, calibration=[calibrated(tmp_path, judged=judged)])


def test_behind_a_text_nothing_is_plain_at_k_0(tmp_path: Path) -> None:
    """The text that stands before the k tokens is given in advance too, so that the views are two."""
    folder = attack(tmp_path / "run", {0: 15, 10: 40}, lead="sha 0badcafe", judged="full")
    with pytest.raises(InputError, match="its judge saw continuation, and in these runs full"):
        made(tmp_path, folder, calibration=[calibrated(tmp_path, judged="continuation")])
    both = [folder, attack(tmp_path / "plain", {0: 15}, judged="full")]
    page = made(tmp_path, *both, calibration=[calibrated(tmp_path, judged="continuation")])
    rows = [line for line in page.splitlines() if "| 15/50 = 30% [19%, 44%] |" in line and "none:" in line]
    assert len(rows) == 1
    assert "behind a text" in rows[0]


def test_an_older_calibration_does_not_say_its_view_which_is_said(tmp_path: Path) -> None:
    page = made(tmp_path, attack(tmp_path / "run", {10: 40}, judged="full"), calibration=[calibrated(tmp_path)])
    assert "40/50 = 80% [67%, 89%] | 86% [66%, 100%]" in page
    assert "The calibration does not say what its judge saw; it is taken for what the judge of these runs saw." in page


def test_an_older_run_that_does_not_say_its_judge_s_words_is_refused(tmp_path: Path) -> None:
    folder = write_attack(tmp_path / "run", "m", [sample(1, "none", {}, "m", "complied")])
    with pytest.raises(InputError, match=r"was judged by what is not known; judge or calibrate again"):
        made(tmp_path, folder, calibration=[calibrated(tmp_path)])


def test_a_file_that_is_no_calibration_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"n": 3}))
    with pytest.raises(InputError, match=r"other\.json lacks requests"):
        made(tmp_path, attack(tmp_path / "run", {0: 15}), calibration=[str(tmp_path / "other.json")])
