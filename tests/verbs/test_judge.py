"""The verb judge: other judges on the answers of a finished run, with nothing generated and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

import tokendeep
from attacking import Answers, answers, attack, config, judge, pairs  # noqa: F401  (fixtures)
from tokendeep import cli, judges
from tokendeep.attacks import ATTACKS
from tokendeep.errors import InputError
from tokendeep.evals import logs, rejudging
from tokendeep.judges import JUDGES
from tokendeep.records import Manifest, Rate, StoredVerdict
from tokendeep.report import page, render
from tokendeep.runs import manifest
from tokendeep.types import Subject
from tokendeep.verbs import judge as verb
from tokendeep.verbs.judge import JudgeOptions

ILLEGAL = "Selling it is illegal here, so bake it at home: mix flour, water and salt."


@pytest.fixture
def out(pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers) -> Path:
    """An attack with 0 and 4 tokens given, judged by `refusal` alone."""
    answers.reply = lambda request: ILLEGAL
    return attack(config(pairs, tmp_path / "out", attack="prefill", k=[0, 4], max_new_tokens=90), tiny_subject)


def again(out: Path, judge: str = "refusal-keywords", judged: str = "continuation") -> Path:
    return verb.run(verb.plan(JudgeOptions(str(out), judge=judge, judged=judged)), show=False)


def test_a_new_row_stands_beside_the_old_ones(out: Path, answers: Answers) -> None:
    before, asked = json.loads((out / "asr.json").read_text()), len(answers.requests)
    again(out)
    rows = Rate.load_all(out)
    assert json.loads((out / "asr.json").read_text())[: len(before)] == before
    assert [(row.judge, row.params.k, row.complied, row.n) for row in rows] == [
        ("refusal", 0, 3, 3), ("refusal", 4, 2, 2), ("refusal-keywords", 0, 0, 3), ("refusal-keywords", 4, 0, 2),
    ]  # fmt: skip
    assert len(answers.requests) == asked


def test_the_report_has_the_answers_of_both_judges(out: Path) -> None:
    again(out)
    samples = logs.read_samples(out)
    assert {(one.judge, one.outcome) for one in samples} == {("refusal", "complied"), ("refusal-keywords", "refused")}
    text = render.to_markdown(page.build([out]))
    assert "judge refusal-keywords" in text


def test_the_attack_is_still_the_same_finished_run(out: Path, pairs: Path, tiny_subject: Subject) -> None:
    again(out)
    known = Manifest.load(out)
    assert set(known.judges) == {"refusal", "refusal-keywords"}
    attack(config(pairs, out, attack="prefill", k=[0, 4], max_new_tokens=90), tiny_subject)
    assert Manifest.load(out) == known


def test_no_verdict_is_asked_for_twice(out: Path, judge: list[str]) -> None:
    again(out, "refusal")  # the evaluation has kept these
    assert judge == []
    again(out, "refusal", "full")
    assert len(judge) == 2  # where nothing was given both views are the same text, and that is known
    before = (out / StoredVerdict.FILE).read_bytes()
    again(out, "refusal", "full")
    assert len(judge) == 2
    assert (out / StoredVerdict.FILE).read_bytes() == before


def test_other_words_of_the_judge_are_another_judge(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    newer = replace(JUDGES["refusal"], words=lambda: "other words")
    monkeypatch.setitem(judges.JUDGES, "refusal", newer)
    again(out, "refusal")
    assert len({row.params.judge_template for row in Rate.load_all(out)}) == 2
    assert len(Rate.load_all(out)) == 4


def test_verdicts_hold_no_text(out: Path) -> None:
    again(out, judged="full,conversation")
    text = (out / StoredVerdict.FILE).read_text()
    assert "flour" not in text
    assert "illegal" not in text
    assert len(text.splitlines()) == 10  # two views of five answers


def test_a_cut_line_is_left_out_and_judged_again(out: Path) -> None:
    again(out)
    file = out / StoredVerdict.FILE
    whole = file.read_text()
    file.write_text(whole[:-30])
    again(out)
    assert file.read_text() == whole


def test_a_damaged_line_is_named(out: Path) -> None:
    again(out)
    (out / StoredVerdict.FILE).write_text("{}\nno\n")
    with pytest.raises(InputError, match=r"verdicts.jsonl, line 1 lacks outcome"):
        again(out)


def test_verdicts_that_are_not_all_there_are_not_counted(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(rejudging.logger, "warning", lambda text, *values: said.append(text % values))
    again(out)
    file = out / StoredVerdict.FILE
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    assert {one.judge for one in logs.read_samples(out)} == {"refusal"}
    assert "answers have no verdict of refusal-keywords; run tokendeep judge again" in said[0]


def test_logs_of_plain_inspect_are_judged_too(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plain").mkdir()
    for path in out.glob("*.eval"):
        shutil.copy(path, tmp_path / "plain")
    verb.run(verb.plan(JudgeOptions(str(tmp_path / "plain"), judge="refusal-keywords")))
    assert not (tmp_path / "plain" / "asr.json").exists()  # a report counts such a folder anew
    assert "rates of all judges are counted anew by report" in capsys.readouterr().out
    assert {one.judge for one in logs.read_samples(tmp_path / "plain")} == {"refusal", "refusal-keywords"}


def test_the_function_returns_all_rates(out: Path) -> None:
    rates = tokendeep.judge(out, "refusal,refusal-keywords")
    assert [rate.judge for rate in rates] == ["refusal"] * 2 + ["refusal-keywords"] * 2


def test_behind_a_refusal_prefix_each_judge_decides(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers
) -> None:
    answers.reply = lambda request: ILLEGAL
    settings = {"attack": "none,refusal-prefix", "prefixes": ["I cannot"], "max_new_tokens": 90}
    out = attack(config(pairs, tmp_path / "out", **settings), tiny_subject)
    again(out, "refusal-keywords", "full")
    new = {row.attack: row.params.judged for row in Rate.load_all(out) if row.judge == "refusal-keywords"}
    assert new == {"none": "full", "refusal-prefix": "continuation"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda out: shutil.rmtree(out), "There is no folder"),
        (lambda out: [path.unlink() for path in out.glob("*.eval")], "holds no evaluation log of an attack"),
        (lambda out: (out / "verdicts.jsonl").write_text("mine"), "was not written by this run"),
        (lambda out: _unfinish(out), "has not finished"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    out: Path, change: object, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(out)  # type: ignore[operator]
    assert cli.main(["judge", "--run", str(out), "--judge", "refusal-keywords"]) == 2
    assert sentence in capsys.readouterr().err


def _unfinish(out: Path) -> None:
    value = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**value, "status": "running"}))


def test_a_full_disk_locks_nobody_out(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["judge", "--run", str(out), "--judge", "refusal-keywords"]

    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "save", full)
        assert cli.main(words) == 2
    assert f"The disk of {out} is full" in capsys.readouterr().err
    assert cli.main(words) == 0


def test_an_attack_of_a_newer_version_is_named(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(ATTACKS, "prefill")
    for words in (
        ["judge", "--run", str(out), "--judge", "refusal-keywords"],
        ["report", str(out)],
        ["compare", str(out), str(out)],
    ):
        assert cli.main(words) == 2
        assert "holds the attack prefill, which this tokendeep does not know" in capsys.readouterr().err


def test_the_folder_may_be_given_without_its_name(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["judge", str(out), "--judge", "refusal-keywords"]) == 0
    told = capsys.readouterr().out
    assert "prefill         k=4" in told
    assert "verdicts by hash, no texts" in told
    assert cli.main(["judge", str(out), "--judge", "refusal-keywords", "--dry-run"]) == 0


def test_each_judge_and_view_has_its_own_table(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    verb.run(verb.plan(JudgeOptions(str(out), judge="refusal,refusal-keywords", judged="continuation,full")))
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("judge ")]
    names, views = ("refusal", "refusal-keywords"), ("continuation", "full")
    assert heads == [f"judge {name}, {view}" for name in names for view in views]


def test_a_judge_that_has_scored_nothing_says_so(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its verdicts and its rates, which are none, are there nevertheless."""
    answers.reply = lambda request: ""
    out = attack(config(pairs, tmp_path / "out", attack="none", max_new_tokens=90), tiny_subject)
    said = "refusal has scored none of 3 answers (3 empty), so it has no rate; what it found is kept: look at the run's logs"
    assert f"attack: {said}, or name another judge or grader.\n" in capsys.readouterr().out
    assert cli.main(["judge", "--run", str(out), "--judge", "refusal"]) == 2
    assert "tokendeep: refusal has scored none of 3 answers (3 empty), so it has no rate" in capsys.readouterr().err
    assert '"empty"' in (out / StoredVerdict.FILE).read_text()
    assert Rate.load_all(out)[0].n == 0
