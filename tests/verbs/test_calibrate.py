"""VERB calibrate: a judge against labels, in a record without text; what is undecided is never taken for a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.model import ModelOutput, ModelUsage, get_model

import tokendeep
from tokendeep import cli
from tokendeep.errors import InputError
from tokendeep.evals import running
from tokendeep.judges import JUDGES, agreement
from tokendeep.records import Calibration, Manifest
from tokendeep.verbs import calibrate
from tokendeep.verbs.calibrate import CalibrateOptions

REFUSED, COMPLIED = "I'm sorry, but I can't help with that request.", "Mix the flour with water and let the dough rest."


def rows(*said: tuple[str, int], **columns: list[Any]) -> list[dict[str, Any]]:
    made = [
        {"instruction": f"How do I bake bread {n}?", "response": text, "label": label}
        for n, (text, label) in enumerate(said)
    ]
    return [{**row, **{name: values[n] for name, values in columns.items()}} for n, row in enumerate(made)]


ROWS = rows(
    *[(COMPLIED, 1)] * 6, *[(REFUSED, 0)] * 8, *[(COMPLIED, 0)] * 3, (REFUSED, 1), ("", 1), ("???", 0),
    model=["a"] * 10 + ["b"] * 10, other=[1, 0] * 9 + [None, "no idea"], score=[0.9, 0.1] * 10,
)  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(tmp_path: Path, **options: Any) -> Calibration:
    tmp_path.mkdir(exist_ok=True)
    labels = write(tmp_path / "labels.jsonl", ROWS)
    chosen = CalibrateOptions(labels=[labels], out=str(tmp_path / "out"), **options)
    return Calibration.load(calibrate.run(calibrate.plan(chosen)))


def test_the_rule_against_labels_of_harm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(tmp_path, by="model")
    cells = (made.true_positive, made.false_positive, made.true_negative, made.false_negative, made.undecided)
    assert (made.n, *cells) == (20, 6, 3, 8, 1, 2)
    assert made.reasons == {"empty": 2}
    assert made.judge_template == JUDGES["refusal"].template
    assert (made.judge, made.label, made.labels) == ("refusal", "harm", "labels.jsonl")
    assert {kind: one.n for kind, one in made.kinds.items()} == {"a": 10, "b": 10}
    assert made.kinds["b"].undecided == 2
    text = (tmp_path / "out" / "calibration.json").read_text()
    assert not any(words in text for words in ("bread", "flour", "sorry"))
    shown = capsys.readouterr().out
    assert "calibrate: refusal against 20 labels of labels.jsonl (20 requests)" in shown
    assert "of what people call harmful it misses .14, of what they call harmless it counts .27" in shown
    assert "undecided: 2 empty" in shown
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.verb, manifest.status) == ("calibrate", "finished")


def test_a_judge_that_breaks_and_a_thought_are_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str, *, truncated: bool) -> Any:
        raise RuntimeError

    said = rows((COMPLIED, 1), ("<think>I should", 0), (REFUSED, 0))
    assert tokendeep.calibrate(said).reasons == {"thought": 1}
    monkeypatch.setitem(JUDGES, "refusal", replace(JUDGES["refusal"], rule=broken))
    with pytest.raises(InputError, match=r"has scored none of 3 answers \(2 judge-error, 1 thought\)"):
        tokendeep.calibrate(said)


def test_what_the_judge_sees_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noted(text: str, *, truncated: bool) -> Any:
        seen.append(text)
        return rule(text, truncated=truncated)

    rule = JUDGES["refusal"].rule
    assert rule is not None
    monkeypatch.setitem(JUDGES, "refusal", replace(JUDGES["refusal"], rule=noted))
    for judged, text in (
        ("continuation", COMPLIED),
        ("full", COMPLIED),
        ("conversation", COMPLIED),
    ):
        assert tokendeep.calibrate(ROWS[:1], judged=judged).judged == judged
        assert seen.pop() == text
    assert tokendeep.calibrate(ROWS, judge="column:other").judged is None


def test_a_finished_calibration_is_shown_again_and_another_one_refused(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert run(tmp_path).dump() == first.dump()
    with pytest.raises(InputError, match="differs in judge; give another --out"):
        run(tmp_path, judge="refusal-keywords")


def test_another_judge_in_a_column_needs_no_weights(tmp_path: Path) -> None:
    made = run(tmp_path, judge="column:other")
    assert (made.judge, made.undecided, made.reasons) == ("column:other", 2, {"no verdict": 2})
    assert (made.true_positive, made.false_negative) == (3, 4)
    by_score = tokendeep.calibrate(ROWS, judge="column:score", threshold=0.5)
    assert (by_score.judge, by_score.undecided, by_score.true_positive) == ("column:score>=0.5", 0, 4)


def test_as_a_function_it_gives_a_table() -> None:
    frame = tokendeep.calibrate(ROWS, by="model").to_frame()
    assert list(frame["kind"]) == ["all", "a", "b"]
    assert frame.loc[0, "sensitivity"] == pytest.approx(6 / 7)
    assert frame.loc[0, "sensitivity_low"] < 6 / 7 < frame.loc[0, "sensitivity_high"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"judge": "refusla"}, "Unknown judge 'refusla'; did you mean refusal; column:NAME is a column of verdicts"),
        (
            {"judge": "hf:org/guard"},
            "A classifier is named by --grader: give --judge hf-refusal or hf-harm with --grader org/guard.$",
        ),
        ({"judge": "column:othr"}, "labels.jsonl, row 1: has no column 'othr'; did you mean other"),
        ({"threshold": 0.5}, "--threshold is for a column of scores; leave it out, or give --judge column:NAME"),
        ({"judge": "column:score"}, "row 1: 'score' is a score and no verdict; say with --threshold"),
        ({"by": "modle"}, "row 1: has no column 'modle' for --by; did you mean model"),
        ({"text": "answer"}, "row 1: has no column 'answer'"),
        ({"label": "score"}, "row 1: 'score' must be 0 or 1"),
        ({"judged": "all"}, "--judged is 'all', but must be one of continuation, full, conversation"),
        (
            {"judge": "column:other", "judged": "full"},
            "--judged is for a judge that looks now, and a column holds what",
        ),
        ({"means": "fun"}, "--means is 'fun', but must be one of set, harm, compliance"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_judged(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence.replace("(", r"\(")):
        run(tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_files_of_labels_stand_with_commas_between(tmp_path: Path) -> None:
    names = [write(tmp_path / name, ROWS[: n + 1]) for n, name in enumerate(("a.jsonl", "b.jsonl", "c,d.jsonl"))]
    assert len(calibrate.plan(CalibrateOptions(labels=[",".join(names[:2]), names[2]], out="out")).labels.rows) == 6


def test_a_column_of_texts_tells_no_kinds(tmp_path: Path) -> None:
    long = write(tmp_path / "long.jsonl", [{**row, "note": "x" * 65, "number": n} for n, row in enumerate(ROWS * 3)])
    for by in ("instruction", "response", "note", "number"):
        with pytest.raises(InputError, match=f"--by names '{by}', whose values are no kinds of answers"):
            calibrate.plan(CalibrateOptions(labels=[long], by=by, out="out"))


def test_a_judge_that_tells_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write(tmp_path / "labels.jsonl", rows(*[(COMPLIED, 1), (COMPLIED, 0), (REFUSED, 1), (REFUSED, 0)] * 5))
    assert cli.main(["calibrate", "--labels", labels, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "its rates cannot be corrected with these labels" in shown
    assert "next:" not in shown
    assert not agreement.tells(Calibration.load(tmp_path / "out"))


def test_a_judge_that_has_scored_nothing_makes_no_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write(tmp_path / "labels.jsonl", rows(*[("", 1), ("", 0), ("???", 0)]))
    assert cli.main(["calibrate", "--labels", labels, "--out", str(tmp_path / "out")]) == 2
    sentence = "refusal has scored none of 3 answers (3 empty), so nothing tells how far it agrees with people; look at these, or"
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out" / "calibration.json").exists()
    with pytest.raises(InputError, match="has scored none of 3 answers"):
        tokendeep.calibrate(rows(*[("", 1), ("", 0), ("", 0)]))


def test_labels_of_one_kind_leave_the_other_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word, said in {"harmless": [(COMPLIED, 1), ("", 0)], "harmful": [(COMPLIED, 0)]}.items():
        labels = write(tmp_path / f"{word}.jsonl", rows(*said * 9))
        assert cli.main(["calibrate", "--labels", labels, "--out", str(tmp_path / word)]) == 0
        shown = capsys.readouterr().out
        assert (
            f"  it has scored no answer that people call {word}, so what it says of these cannot be told: its rates"
            in shown
        )
        assert "next:" not in shown  # report would refuse it


def test_the_next_command_stands_where_it_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    assert "next: tokendeep report RUN-FOLDERS --calibration" in capsys.readouterr().out
    run(tmp_path / "column", judge="column:other")
    assert "next:" not in capsys.readouterr().out  # no run is judged by a column


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = write(tmp_path / "labels.jsonl", ROWS)
    assert cli.main(["calibrate", "--labels", labels, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "labels: 20 of labels.jsonl, 8 labelled harm" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def harmbench(tmp_path: Path) -> dict[str, Any]:
    """Labels of HarmBench: two behaviours, each asked for by ten attacks, and one that has no text; and their file."""
    said = {"a": (COMPLIED, 1), "b": (REFUSED, 0), "gone": (REFUSED, 0)}
    made = {
        key: [
            {"test_case": f"attack {n} on {key}", "generation": text, "cls": label}
            | {f"human_{vote}": label for vote in range(3)}
            for n in range(10)
        ]
        for key, (text, label) in said.items()
    }
    (tmp_path / "val.json").write_text(json.dumps(made))
    (tmp_path / "text_all.csv").write_text(
        "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
        "Bake bread.,standard,food,,,a\nBake it.,contextual,food,context,Of rye.,b\n"
    )
    return {"labels": [str(tmp_path / "val.json")], "out": str(tmp_path / "out")}


def test_answers_to_one_behaviour_are_alike(tmp_path: Path) -> None:
    """However it was asked for: thirty answers to three behaviours tell about as much as three."""
    given = harmbench(tmp_path)
    for judge in ("refusal", "column:cls"):
        made = tokendeep.calibrate(given["labels"][0], judge=judge)
        assert (made.n, made.requests, made.sensitivity.value) == (30, 3, 1)
        assert made.specificity.low is not None
        assert made.specificity.low < 0.5


def test_a_judge_of_the_request_needs_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, given = (
        grading_model(monkeypatch, lambda text: "GRADE: 5" if COMPLIED in text else "GRADE: 1"),
        harmbench(tmp_path),
    )
    rubric = {**given, "judge": "rubric", "grader": "grader"}
    with pytest.raises(
        InputError, match=r"rubric judges by the behaviour .*; give HarmBench's harmbench_behav\w+\.csv with --b"
    ):
        calibrate.plan(CalibrateOptions(**rubric))
    chosen = CalibrateOptions(**rubric, behaviours=str(tmp_path / "text_all.csv"))
    made = Calibration.load(calibrate.run(calibrate.plan(chosen)))
    assert (made.n, made.requests, made.true_positive, made.true_negative) == (20, 2, 10, 10)
    assert [any(words in text for text in asked) for words in ("Bake bread.", "Of rye.", "attack")] == [
        True,
        True,
        False,
    ]
    assert "caution: 10 of 30 rows are of behaviours that" in capsys.readouterr().out
    assert "behaviours" in json.loads((tmp_path / "out" / "manifest.json").read_text())["inputs"]


# --- judges that ask a language model -----------------------------------------------------------


def grading_model(monkeypatch: pytest.MonkeyPatch, reply: Callable[[str], str]) -> list[str]:
    """A grader that replies by rule, and what it was asked."""
    asked: list[str] = []

    def answer(messages: list[Any], tools: Any, choice: Any, config: Any) -> ModelOutput:
        asked.append(messages[-1].text)
        output = ModelOutput.from_content("mockllm/model", reply(messages[-1].text))
        output.usage = ModelUsage(output_tokens=1)  # else a tokenizer is downloaded to count them
        return output

    model = get_model("mockllm/model", memoize=False, custom_outputs=answer)
    monkeypatch.setattr(running, "open_model", lambda *given, **more: model)
    return asked


def test_a_rubric_is_calibrated_by_its_grader_and_goes_on_where_it_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(text: str) -> str:
        if fails and "bread 9?" in text:
            raise RuntimeError("gone")
        return "GRADE: 5" if COMPLIED in text else "GRADE: 1" if "bread 17?" not in text else "I would rather not."

    fails = True
    asked = grading_model(monkeypatch, reply)
    with pytest.raises(InputError, match="The grader"):
        run(tmp_path, judge="rubric", grader="grader")
    first, fails = len(asked), False
    made = run(tmp_path, judge="rubric", grader="grader")
    assert len(asked) - first < len(ROWS)  # what was graded is not asked again
    assert (made.judge, made.grader, made.judge_template) == ("rubric", "mockllm/model", JUDGES["rubric"].template)
    assert (made.true_positive, made.false_positive, made.undecided) == (6, 3, 2)
    assert made.reasons == {"empty": 1, "grader-refused": 1}
    assert "bread" not in (tmp_path / "out" / "verdicts.jsonl").read_text()


def test_a_text_that_several_rows_hold_is_asked_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = grading_model(monkeypatch, lambda text: "GRADE: 5" if COMPLIED in text else "GRADE: 1")
    pair = [
        {"instruction": "How?", "response": COMPLIED, "label": 1},
        {"instruction": "How?", "response": REFUSED, "label": 0},
    ]
    labels = write(tmp_path / "twice.jsonl", pair * 5)
    chosen = CalibrateOptions(labels=[labels], out=str(tmp_path / "out"), judge="rubric", grader="grader")
    made = Calibration.load(calibrate.run(calibrate.plan(chosen)))
    assert (made.true_positive, made.true_negative, len(asked)) == (5, 5, 2)


def test_a_grader_is_named_where_one_is_asked_and_nowhere_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="asks a language model to grade; name one with --grader"):
        run(tmp_path, judge="rubric")
    with pytest.raises(InputError, match="--grader names a model, but no judge of --judge asks one"):
        run(tmp_path, grader="somebody")


def test_a_grader_in_memory(make_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    """What a tiny model writes is no grade, which is said with its reasons."""
    grader = (make_model(0, max_position_embeddings=2048), tiny_tokenizer)
    reasons = r"\(([12] (unparsed|grader-cut|grader-empty)(, )?)+\)"
    with pytest.raises(InputError, match=f"rubric has scored none of 2 answers {reasons}, so nothing tells"):
        tokendeep.calibrate(ROWS[:2], judge="rubric", grader=grader)
