"""VERB gate: exit codes, what is undecided and when it would not be, the files for continuous integration."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import fake_runs
from fake_runs import sample, write_attack
from tokendeep import cli
from tokendeep.records import Gated
from tokendeep.report import load
from tokendeep.types import Sample

FLAGS = ["--max-asr-rise", "0.05"]


@pytest.fixture(autouse=True)
def fake_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "read_logs", fake_runs.read_fake)


def answers(counts: dict[str, int], n: int, **more: Any) -> list[Sample]:
    outcomes = [name for name, count in counts.items() for _ in range(count)]
    outcomes += ["refused"] * (n - len(outcomes))
    return [sample(i, "none", {}, "m", outcome, **more) for i, outcome in enumerate(outcomes)]


def runs(folder: Path, before: dict[str, int], after: dict[str, int], n: int, **more: Any) -> list[str]:
    places = [folder / "before", folder / "after"]
    for place, counts in zip(places, (before, after), strict=True):
        write_attack(place, "m", answers(counts, n), **more)
    return [str(place) for place in places]


@pytest.mark.parametrize(
    ("after", "n", "code", "verdict"),
    [
        ({"complied": 5}, 100, 0, "pass"),  # nothing changed: 100 prompts bound a rise at 2.6 points
        ({"complied": 40}, 100, 1, "fail"),
        ({"complied": 7}, 100, 1, "undecided"),
    ],
)
def test_the_exit_code_is_the_verdict(
    after: dict[str, int], n: int, code: int, verdict: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = runs(tmp_path, {"complied": 5}, after, n)
    out = tmp_path / "out"
    assert cli.main(["gate", *sides, *FLAGS, "--out", str(out)]) == code
    assert cli.main(["gate", *sides, *FLAGS, "--undecided", "pass"]) == (0 if verdict == "undecided" else code)
    record = Gated.load(out)
    (check,) = record.checks
    assert (record.verdict, check.verdict, record.passes) == (verdict, verdict, code == 0)
    assert (check.limit, check.at_most, check.n) == ("asr-rise", 0.05, n)
    assert f"gate: {verdict}" in capsys.readouterr().out
    suite = ElementTree.parse(out / "gate.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", str(code))
    assert [one.get("type") for one in suite.iter("failure")] == [verdict] * code
    assert (out / "gate.md").read_text().startswith(f"# tokendeep gate: {verdict}\n")
    assert f"| {verdict} | asr-rise | none (harmful) |" in (out / "gate.md").read_text()
    assert cli.main(["gate", *sides, *FLAGS, "--out", str(out)]) == code  # in place of the earlier ones


def test_an_undecided_gate_says_how_many_prompts_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = runs(tmp_path, {"complied": 5}, {"complied": 5}, 20)
    assert cli.main(["gate", *sides, "--max-asr-rise", "0.02"]) == 1
    assert "undecided: none (harmful), asr-rise +0.0 points" in (said := capsys.readouterr().out)
    assert "about 133 scored prompts would decide" in said  # 1.645^2 * (1 / 0.02 - 1) = 132.6


def test_many_unscored_are_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = runs(tmp_path, {}, {"degenerate": 30}, 200)
    assert cli.main(["gate", *sides, *FLAGS]) == 1
    assert "30 of 200 prompts left out, unscored on either side, too many to tell\n" in capsys.readouterr().out


def test_refusals_have_their_own_limit(tmp_path: Path) -> None:
    sides = runs(tmp_path, {"complied": 200}, {"complied": 140}, 200, role="twins")
    assert cli.main(["gate", *sides, "--max-refusal-rise", "0.05"]) == 1
    assert cli.main(["gate", *sides, "--max-refusal-rise", "0.5"]) == 0


def test_a_failure_stands_before_what_is_undecided(tmp_path: Path) -> None:
    sides = [tmp_path / name for name in ("before", "after")]
    for side, refused in zip(sides, (5, 60), strict=True):
        write_attack(side / "harmful", "m", answers({}, 20))
        write_attack(side / "twins", "m", answers({"complied": 200 - refused}, 200), role="twins")
    flags = [
        "--max-asr-rise",
        "0.02",
        "--max-refusal-rise",
        "0.05",
        "--undecided",
        "pass",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(["gate", *map(str, sides), *flags]) == 1
    record = Gated.load(tmp_path / "out")
    assert (record.verdict, [one.verdict for one in record.checks]) == ("fail", ["undecided", "fail"])


def test_a_score_may_not_drop(tmp_path: Path) -> None:
    sides = runs(tmp_path, {}, {}, 50)
    for side, score in zip(sides, (0.9, 0.6), strict=True):
        text = ", ".join(f'{{"id": {i}, "score": {score}}}' for i in range(60))
        Path(side, "utility.json").write_text(f'{{"metric": "rouge1", "rows": [{text}]}}')
    assert cli.main(["gate", *sides, "--max-utility-drop", "0.02"]) == 1
    assert cli.main(["gate", *reversed(sides), "--max-utility-drop", "0.02"]) == 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "gate needs a limit; give one or more of --max-asr-rise"),
        (["--max-asr-rise", "2"], "--max-asr-rise is 2.0, but must be a share"),
        (
            ["--max-refusal-rise", "0.1"],
            "--max-refusal-rise is given, but the two sides have no runs of attack on harmless",
        ),
        (["--max-utility-drop", "0.1"], "no runs of measure, or trainings of poison, with --utility-data in common"),
        ([*FLAGS, "--undecided", "maybe"], "undecided is 'maybe'"),
        ([*FLAGS, "--allow", "colour"], "--allow does not know 'colour'"),
        ([*FLAGS, "--out", "mine"], "was not written by tokendeep"),
    ],
)
def test_bad_input_is_exit_code_2(
    flags: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine", "gate.md").write_text("# my notes\n")
    assert cli.main(["gate", *runs(tmp_path, {}, {}, 20), *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
