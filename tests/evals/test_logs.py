"""Logs read back, of our runs and of plain Inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import score
from inspect_ai.log import write_eval_log
from inspect_ai.scorer import includes

from attacking import (  # noqa: F401  (fixtures)
    ANSWER,
    ROWS,
    Answers,
    answer_of,
    answers,
    attack,
    config,
    evaluate,
    judge,
    pairs,
    prompt_of,
    write,
)
from tokendeep import chat
from tokendeep.errors import InputError
from tokendeep.evals import logs, rates
from tokendeep.evals.provider import live_model
from tokendeep.evals.scorers import SCORERS
from tokendeep.evals.tasks import TASKS
from tokendeep.types import Subject


def test_a_sample_that_failed_is_unscored_and_not_dropped(
    tmp_path: Path, pairs: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    bad = tuple(prompt_of(answers.tokenizer, ROWS[2]))
    answers.reply = lambda request: RuntimeError("broken") if request.ids == bad else ANSWER
    log = evaluate(TASKS["none"], live_model(tiny_subject), tmp_path, fail_on_error=False, data=str(pairs))
    assert log.status == "success"
    samples = logs.read_samples(tmp_path / "logs")
    assert {one.prompt_id: one.outcome for one in samples} == {
        "bread": "complied", "plant": "complied", "rome": "judge-error",
    }  # fmt: skip
    [row] = rates.asr(samples)
    assert (row.n, row.unscored, row.worst) == (2, 1, 1.0)
    answers.reply = lambda request: ANSWER
    evaluate(TASKS["none"], live_model(tiny_subject), tmp_path, data=str(pairs))
    assert [one.outcome for one in logs.read_samples(tmp_path / "logs")] == ["complied"] * 3


def test_logs_that_did_not_come_to_their_end_are_known(
    tmp_path: Path, pairs: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    answers.reply = lambda request: RuntimeError("broken")
    log = evaluate(TASKS["none"], live_model(tiny_subject), tmp_path, data=str(pairs))
    name, damaged = Path(log.location).name, tmp_path / "logs" / "2026-01-01T00-00-00-00-00_none_x.eval"
    damaged.write_text("half written")
    assert log.status == "error"
    assert logs.unfinished(tmp_path / "logs") == sorted([name, damaged.name])
    answers.reply = lambda request: ANSWER
    evaluate(TASKS["none"], live_model(tiny_subject), tmp_path, data=str(pairs), temperature=0.5)
    assert name in logs.unfinished(tmp_path / "logs")
    evaluate(TASKS["none"], live_model(tiny_subject), tmp_path, data=str(pairs))
    assert logs.unfinished(tmp_path / "logs") == [damaged.name]
    assert logs.has_logs(tmp_path / "logs")
    assert not logs.has_logs(tmp_path)


def test_only_the_same_task_run_again_replaces_an_answer(
    tmp_path: Path, pairs: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    other = write(tmp_path / "other.jsonl", [{**row, "instruction": row["instruction"] + " Why?"} for row in ROWS[:2]])
    base: dict[str, Any] = {"data": str(pairs), "k": [5]}
    variants: list[dict[str, Any]] = [
        {}, {"judged": "full"}, {"temperature": 0.9}, {"system": "none"}, {"data": str(other)}, {"seed": 1},
        {"max_new_tokens": 9}, {},
    ]  # fmt: skip
    for number, variant in enumerate(variants):
        answers.reply = lambda request, number=number: f"answer {number}"
        evaluate(TASKS["prefill"], live_model(tiny_subject), tmp_path, **{**base, **variant})
    samples = logs.read_samples(tmp_path / "logs")
    assert sorted(one.completion for one in samples) == sorted([f"answer {n}" for n in range(1, 8)] * 2)
    rows = rates.asr(samples, logs.read_skipped(tmp_path / "logs"))
    assert [row.n for row in rows] == [2] * 7
    skipped = {row.params.data: row.skipped for row in rows}
    assert sorted(skipped.values()) == [0, 1]
    assert len(skipped) == 2


def test_the_later_answer_is_the_one_that_was_given_later_whatever_became_of_the_files(
    tmp_path: Path, pairs: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    answers.reply = lambda request: RuntimeError("broken") if request.ids == bad else "older"
    bad = tuple(prompt_of(answers.tokenizer, ROWS[2]))
    older = evaluate(TASKS["none"], live_model(tiny_subject), tmp_path, data=str(pairs))
    assert older.status == "error"
    answers.reply = lambda request: ANSWER
    evaluate(TASKS["none"], live_model(tiny_subject), tmp_path, data=str(pairs))
    older.eval.created = "2026-01-01T00:00:00+00:00"
    write_eval_log(older, older.location)  # the file is the younger one now, as behind a copy or `inspect score`
    assert {one.completion for one in logs.read_samples(tmp_path / "logs")} == {ANSWER}
    assert logs.unfinished(tmp_path / "logs") == []


def test_logs_judged_again_by_inspect_are_read(
    tmp_path: Path, pairs: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    log = evaluate(TASKS["none"], live_model(tiny_subject), tmp_path, data=str(pairs), limit=1)
    both = score(log, SCORERS["refusal-keywords"](), action="append", display="none")
    write_eval_log(both, log.location)
    samples = logs.read_samples(tmp_path / "logs")
    assert [(one.judge, one.outcome) for one in samples] == [("refusal", "complied"), ("refusal-keywords", "complied")]
    write_eval_log(score(log, includes(), action="overwrite", display="none"), log.location)
    [sample] = logs.read_samples(tmp_path / "logs")
    assert (sample.judge, sample.outcome, sample.params["judged"]) == ("refusal", "judge-error", "continuation")


def test_a_folder_without_logs_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no evaluation log"):
        logs.read_samples(tmp_path)


def test_what_is_too_short_is_counted_behind_a_lead_too(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    out = attack(config(pairs, tmp_path / "out", attack="prefill", lead="I cannot. "), tiny_subject)
    rows = json.loads((out / "asr.json").read_text())
    assert [(row["params"]["k"], row["skipped"], row["n"]) for row in rows] == [(0, 0, 3), (5, 1, 2)]
    lead = chat.lead_ids(answers.tokenizer, [{"role": "user", "content": ROWS[0]["instruction"]}], "I cannot. ")
    body = chat.continuation_ids(answers.tokenizer, ROWS[0]["response"])
    asked = [list(request.ids) for request in answers.requests]
    assert [*prompt_of(answers.tokenizer, ROWS[0]), *lead, *body[:5]] in asked
    assert "I cannot" not in (out / "manifest.json").read_text()


def test_samples_read_back_for_the_report(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    long = write(tmp_path / "long.jsonl", [{**ROWS[0], "category": "baking", "instruction": "Tell me. " * 30}])
    answers.reply = lambda request: "refused " * 40
    out = attack(config(long, tmp_path / "out", attack="prefill", max_new_tokens=300, k=[5]), tiny_subject)
    [sample] = logs.read_samples(out)
    assert (sample.prompt_id, sample.attack, sample.judge, sample.model, sample.seed) == (
        "bread",
        "prefill",
        "refusal",
        "tiny",
        0,
    )
    assert sample.instruction == "Tell me. " * 30
    assert sample.completion == "refused " * 40
    assert sample.prefix == answers.tokenizer.decode(answer_of(answers.tokenizer, ROWS[0])[:5])
    assert (sample.outcome, sample.truncated, sample.category) == ("refused", False, "baking")
    expected = {
        "k": 5,
        "judged": "continuation",
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_new_tokens": 300,
        "seed": 0,
    }
    assert {name: sample.params[name] for name in expected} == expected
