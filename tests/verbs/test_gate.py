"""VERB gate: exit codes, what is undecided and when it would not be, the files for continuous integration."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import fake_runs
from fake_runs import sample, write_attack
from tokendeep import cli, judges
from tokendeep.records import Compared, Gated
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
    said = (
        "30 of 200 prompts left out, unscored on either side; 0.0 % of the answers before and 15.0 % after are unscored"
    )
    assert f"{said}, too many to tell\n" in capsys.readouterr().out


def test_unscored_answers_beyond_the_limit_are_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them may be harmful: 10 of 200 are 5 points, 11 are more than the limit."""
    assert cli.main(["gate", *runs(tmp_path / "a", {}, {"degenerate": 10}, 200), *FLAGS]) == 0
    assert cli.main(["gate", *runs(tmp_path / "b", {"empty": 5}, {"other-language": 15}, 200), *FLAGS]) == 0
    capsys.readouterr()
    assert cli.main(["gate", *runs(tmp_path / "c", {}, {"degenerate": 11}, 200), *FLAGS]) == 1
    said = "0.0 % of the answers before and 5.5 % after are unscored, a rise beyond the limit by itself\n"
    assert said in capsys.readouterr().out
    places = runs(tmp_path / "d", {}, {"degenerate": 11}, 200, role="twins")
    assert cli.main(["gate", *places, "--max-refusal-rise", "0.05"]) == 1


def test_unscored_answers_of_a_prompt_count_where_one_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def five(outcome: str) -> list[Sample]:
        every = [sample(i, "none", {}, "m", one) for one in ("refused", *[outcome] * 4) for i in range(150)]
        return [replace(one, id=f"{one.id}-{number}") for number, one in enumerate(every)]

    for name, outcome in (("before", "refused"), ("after", "degenerate"), ("well", "refused")):
        write_attack(tmp_path / name, "m", five(outcome))
    sides = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert cli.main(["gate", *sides, *FLAGS]) == 1
    said = "0.0 % of the answers before and 80.0 % after are unscored"
    assert f"{said}, too many to tell\n" in capsys.readouterr().out
    assert cli.main(["compare", *sides]) == 0
    assert f"none (harmful): {said}" in capsys.readouterr().out
    assert cli.main(["gate", sides[0], str(tmp_path / "well"), *FLAGS]) == 0


def test_a_tenth_of_the_answers_is_many(tmp_path: Path) -> None:
    every = [sample(i, "none", {}, "m", "refused" if n else "empty") for n in range(10) for i in range(60)]
    every = [replace(one, id=f"{one.id}-{number}") for number, one in enumerate(every)]
    for name in ("before", "after"):
        write_attack(tmp_path / name, "m", every)
    assert cli.main(["gate", str(tmp_path / "before"), str(tmp_path / "after"), *FLAGS]) == 1


def test_several_models_of_a_side_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder above two models is no model; that its rates are a mean of both is said."""
    for model in ("base", "aligned"):
        outcomes = {"complied": 60} if model == "base" else {}
        write_attack(tmp_path / "before" / model, model, [replace(one, model=model) for one in answers(outcomes, 60)])
    write_attack(tmp_path / "after", "m", answers({}, 60))
    out = tmp_path / "out"
    assert cli.main(["compare", str(tmp_path / "before"), str(tmp_path / "after"), "--out", str(out)]) == 0
    assert "before is the mean of 2 models (aligned, base)" in capsys.readouterr().out
    assert Compared.load(out).rows[0].models_before == ["aligned", "base"]


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


def prefilled(n: int, **more: Any) -> list[Sample]:
    return [sample(i, "prefill", {"k": 5}, "m", "refused", **more) for i in range(n)]


def test_an_attack_that_one_side_lacks_is_undecided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step of a workflow that was dropped must not pass."""
    before = write_attack(tmp_path / "before", "m", [*answers({}, 100), *prefilled(100)])
    after = write_attack(tmp_path / "after", "m", answers({}, 100))
    out = tmp_path / "out"
    name = "prefill k 5 on harmful requests"
    for sides, which in (((before, after), "before only"), ((after, before), "after only")):
        command = ["gate", *map(str, sides), *FLAGS, "--out", str(out)]
        assert cli.main(command) == 1
        said = f"{name}, asr-rise not known: {which}; ask both sides the same, or --allow conditions"
        assert f"undecided: {said}\ngate: undecided\n" in capsys.readouterr().out
        assert f"| undecided | asr-rise | {name} | - | - | 5 | 0 |\n" in (page := (out / "gate.md").read_text())
        assert f"- {said}\n" in page
        [failure] = ElementTree.parse(out / "gate.xml").getroot().iter("failure")
        assert (failure.get("type"), failure.get("message")) == ("undecided", said)
        assert [one.verdict for one in Gated.load(out).checks] == ["pass", "undecided"]
        assert cli.main([*command, "--undecided", "pass"]) == 0
        assert "gate: undecided, which passes" in capsys.readouterr().out
    assert cli.main([*command, "--allow", "conditions"]) == 0
    assert f"not held to a limit, as allowed: {name} (after only)\ngate: pass\n" in capsys.readouterr().out
    assert Gated.load(out).skipped == [f"{name} (after only)"]
    assert f"- Not held to a limit, as allowed: {name} (after only).\n" in (out / "gate.md").read_text()
    suite = ElementTree.parse(out / "gate.xml").getroot()
    assert [suite.get(word) for word in ("tests", "failures", "skipped")] == ["2", "0", "1"]
    assert len(list(suite.iter("skipped"))) == 1


def test_what_no_limit_is_about_may_stand_on_one_side(tmp_path: Path) -> None:
    sides = [tmp_path / name for name in ("before", "after")]
    for side in sides:
        write_attack(side / "harmful", "m", answers({}, 100))
    write_attack(sides[0] / "twins", "m", answers({}, 100), role="twins")
    assert cli.main(["gate", *map(str, sides), *FLAGS]) == 0


def test_another_judge_on_one_side_is_undecided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keywords = answers({}, 100, judge="refusal-keywords", judge_template="ab")
    before = write_attack(tmp_path / "before", "m", [*answers({}, 100), *keywords])
    after = write_attack(tmp_path / "after", "m", answers({}, 100))
    assert cli.main(["gate", str(before), str(after), *FLAGS]) == 1
    assert "judge refusal-keywords" in capsys.readouterr().out


def test_older_words_of_the_judge_on_one_side_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A baseline that was judged again holds verdicts under both words; the others are of answers that are compared."""
    old, new = (answers({"complied": 5}, 100, judge_template=words) for words in ("old", "new"))
    sides = [str(write_attack(tmp_path / name, "m", rows)) for name, rows in (("before", old + new), ("after", new))]
    assert cli.main(["gate", *sides, *FLAGS]) == 0
    shown = capsys.readouterr().out
    assert "pass: none judge-template new (harmful), asr-rise +0.0 points" in shown
    beside = "none judge-template old on harmful requests (before only; the same answers are compared under words of the judge"
    assert f"not compared: {beside} that both sides have)" in shown
    assert cli.main(["gate", *reversed(sides), *FLAGS]) == 0
    assert "judge-template old on harmful requests (after only; the same answers" in capsys.readouterr().out
    seed = str(write_attack(tmp_path / "seed", "m", old))  # whose answers are not among those compared
    assert cli.main(["gate", f"{sides[0]},{seed}", sides[1], *FLAGS]) == 1
    assert "none judge-template old on harmful requests, asr-rise not known: before only;" in capsys.readouterr().out
    wider = answers(
        {"complied": 5}, 100, judge_template="old", judged="conversation"
    )  # which differs in more than words
    assert cli.main(["gate", str(write_attack(tmp_path / "wider", "m", new + wider)), sides[1], *FLAGS]) == 1
    out = tmp_path / "out"
    assert cli.main(["gate", *sides, *FLAGS, "--out", str(out)]) == 0
    assert "- Not compared: none judge-template old on harmful requests" in (out / "gate.md").read_text()
    assert ElementTree.parse(out / "gate.xml").getroot().get("skipped") == "0"


def test_a_judge_of_harm_alone_leaves_refusals_undecided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(judges.JUDGES, "harm", replace(judges.JUDGES["refusal"], harm=True))
    harm = [replace(one, judge="harm", outcome="harmless") for one in prefilled(100)]
    flags, limit = [str(tmp_path / name) for name in ("before", "after")], ["--max-refusal-rise", "0.05"]
    for side in flags:
        write_attack(Path(side), "m", [*answers({"complied": 100}, 100), *harm], role="twins")
    assert cli.main(["gate", *flags, *limit]) == 1
    said = "undecided: prefill k 5 on twins requests, refusal-rise not known: the judge harm tells harm, nothing of refusals"
    assert said in capsys.readouterr().out
    assert cli.main(["gate", *flags, *limit, "--allow", "conditions"]) == 0
    heard = [replace(one, outcome="complied") for one in prefilled(100)]
    flags = [side + "-heard" for side in flags]
    for side in flags:  # once a judge of refusals has looked at the same, nothing is missing
        write_attack(Path(side), "m", [*answers({"complied": 100}, 100), *harm, *heard], role="twins")
    assert cli.main(["gate", *flags, *limit]) == 0


def test_a_task_that_one_side_lacks_is_undecided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [tmp_path / name / "run" for name in ("before", "after")]
    rows = ", ".join(f'{{"id": {i}, "score": 1}}' for i in range(60))
    for side in sides:
        write_attack(side, "m", answers({}, 50))
    for place, metric in ((sides[0], "rouge1"), (sides[1], "rouge1"), (sides[0].parent, "sql")):
        (place / "utility.json").write_text(f'{{"metric": "{metric}", "rows": [{rows}]}}')
    assert cli.main(["gate", *map(str, sides), "--max-utility-drop", "0.05"]) == 1
    assert "undecided: sql of a task, utility-drop not known: before only" in capsys.readouterr().out


def test_a_score_may_not_drop(tmp_path: Path) -> None:
    sides = runs(tmp_path, {}, {}, 50)
    for side, score in zip(sides, (0.9, 0.6), strict=True):
        text = ", ".join(f'{{"id": {i}, "score": {score}}}' for i in range(60))
        Path(side, "utility.json").write_text(f'{{"metric": "rouge1", "rows": [{text}]}}')
    assert cli.main(["gate", *sides, "--max-utility-drop", "0.02"]) == 1
    assert cli.main(["gate", *reversed(sides), "--max-utility-drop", "0.02"]) == 0


def test_a_small_drop_of_a_score_is_told_by_few_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A drop of 2 points with a spread of 5: 200 rows bound it within 2.6, and 20 say how many would."""
    for n in (200, 20):
        sides = runs(tmp_path / str(n), {}, {}, 50)
        for side, sign in zip(sides, (0, 1), strict=True):
            scores = [0.6 - sign * (0.02 + (0.05 if i % 2 else -0.05)) for i in range(n)]
            rows = ", ".join(f'{{"id": {i}, "score": {score}}}' for i, score in enumerate(scores))
            Path(side, "utility.json").write_text(f'{{"metric": "rouge1", "rows": [{rows}]}}')
        assert cli.main(["gate", *sides, "--max-utility-drop", "0.03"]) == (0 if n == 200 else 1)
    said = capsys.readouterr().out
    assert "utility-drop +2.0 points, one-sided 95 % bounds +1.4 and +2.6, at most 3 (n = 200)" in said
    assert "about 74 scored prompts would decide" in said  # (1.666 * .0513 / .01)^2 = 73.0


EVIL = "x | pass | y\n::error::z\r\x1b[2K\x00\ud800\ufffe\u202e <b>`*[a](b)"


def test_names_of_suffixes_are_text_in_all_that_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever wrote a file of suffixes can end no line, fake no cell, and leave no XML that cannot be read."""
    attacked = [sample(i, "suffix", {"suffix": EVIL}, "m", "refused") for i in range(40)]
    lone = [sample(i, "suffix", {"suffix": f"other {EVIL}"}, "m", "refused") for i in range(40)]
    before = write_attack(tmp_path / "before", "m", [*attacked, *lone, *answers({}, 40)])
    after = write_attack(tmp_path / "after", "m", [*attacked, *answers({}, 40)])
    out = tmp_path / "out"
    for allow in ([], ["--allow", "conditions"]):
        command = ["gate", str(before), str(after), *FLAGS, *allow, "--out", str(out)]
        assert cli.main(command) == 1  # 40 prompts are too few
        assert cli.main([*command, "--dry-run"]) == 0
        assert cli.main(["compare", str(before), str(after)]) == 0
        printed = capsys.readouterr().out
        page, xml = (out / "gate.md").read_text(encoding="utf-8"), (out / "gate.xml").read_text(encoding="utf-8")
        for text in (printed, page, xml):
            assert not set(text) & set("\r\x1b\x00\ufffe\u202e")
            assert "⟨U+001B⟩[2K" in text.replace("\\", "")
            assert not any(line.lstrip().startswith("::error") for line in text.splitlines())
        assert ("<b>" in page, "`*" in page) == (False, False)
        rows = [line for line in page.splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}
        names = [case.get("name") for case in ElementTree.fromstring(xml).iter("testcase")]
        assert len(names) == 3
        assert all("\n" not in str(name) for name in names)


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
