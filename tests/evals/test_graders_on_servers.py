"""Graders over HTTP: what fails ends in one sentence, what was graded is kept, and the same command goes on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.model import ModelOutput, get_model

from attacking import Answers, answers, attack, config, pairs  # noqa: F401  (fixtures)
from serving import Turns, serve
from tokendeep import cli
from tokendeep.errors import InputError
from tokendeep.evals import grading
from tokendeep.judges import JUDGES
from tokendeep.records import Rate, StoredVerdict
from tokendeep.types import Subject
from tokendeep.verbs import calibrate
from tokendeep.verbs import judge as verb
from tokendeep.verbs.calibrate import CalibrateOptions
from tokendeep.verbs.judge import JudgeOptions

ANSWER = "Mix the flour with water and salt, let it rest for an hour and bake it."
SECRET = "flour"  # of the request to the grader, which a server's error quotes


@pytest.fixture
def out(pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers) -> Path:
    """Three answers that no grader has seen."""
    answers.reply = lambda request: ANSWER
    return attack(config(pairs, tmp_path / "out", attack="none", max_new_tokens=90), tiny_subject)


def grade(out: Path, address: str, *more: str) -> int:
    words = ["judge", "--run", str(out), "--judge", "rubric", "--grader", f"inspect/http/{address}"]
    return cli.main([*words, "--max-retries", "0", *more])


def kept(out: Path) -> int:
    return len((out / StoredVerdict.FILE).read_text().splitlines())


def test_answers_are_graded_over_http(out: Path) -> None:
    with serve(lambda turns: "GRADE: 5" if "bread" in turns[-1]["content"] else "GRADE: 2") as (address, asked):
        assert grade(out, address) == 0
        assert grade(out, address) == 0  # nothing is asked twice
    [row] = [row for row in Rate.load_all(out) if row.judge == "rubric"]
    assert (row.complied, row.n, row.mean_score) == (1, 3, 3.0)
    assert len(asked) == 3


@pytest.mark.parametrize("status", [400, 429, 503])
def test_a_server_that_fails_half_way_loses_nothing(status: int, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, well = (out / "asr.json").read_bytes(), ["GRADE: 2"]  # so many answers are graded, then the server fails
    with serve(lambda turns: well.pop() if well else status) as (address, asked):
        assert grade(out, address) == 2
        told = capsys.readouterr().err
        assert f"(status {status})" in told
        assert SECRET not in told
        assert (out / "asr.json").read_bytes() == before
        have = kept(out)
        well += ["GRADE: 2"] * 3
        assert grade(out, address) == 0
    assert (
        3 <= len(asked) <= 3 + 3 - have
    )  # the first call asks three at most, some of which may arrive when it is over
    assert [row.n for row in Rate.load_all(out) if row.judge == "rubric"] == [3]


def test_a_server_that_is_not_there(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(lambda turns: "GRADE: 2") as (address, _):
        pass
    assert grade(out, address) == 2
    assert "failed with ConnectError: check that the server runs" in capsys.readouterr().err


def test_a_server_that_never_answers(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def slow(turns: Turns) -> str:
        time.sleep(3)
        return "GRADE: 2"

    with serve(slow) as (address, _):
        assert grade(out, address, "--timeout", "1") == 2
    assert "failed with AttemptTimeoutError" in capsys.readouterr().err


@pytest.mark.parametrize("made", [JudgeOptions, CalibrateOptions])
def test_no_server_is_waited_for_without_end(made: Any, out: Path, tmp_path: Path) -> None:
    given = {"judge": "rubric", "grader": "inspect/http/nowhere"}
    if made is JudgeOptions:
        grader = verb.plan(JudgeOptions(str(out), **given)).grader
    else:
        (tmp_path / "l.csv").write_text("instruction,response,label\nHow?,So.,1\nWhy?,Thus.,0\n")
        options = CalibrateOptions(**given, labels=[str(tmp_path / "l.csv")], out=str(tmp_path / "c"))
        grader = calibrate.plan(options).grader
    assert grader is not None
    assert (grader.config.max_retries, grader.config.attempt_timeout) == (6, 600)


@pytest.mark.parametrize(
    "said",
    [
        "request (4030 tokens) exceeds the available context size (1024 tokens), try increasing it",  # llama.cpp
        "This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens.",  # vLLM
        "The input (9 tokens) is longer than the model's context length (8 tokens).",  # SGLang
    ],
)
def test_an_answer_that_a_server_has_no_room_for_is_unscored(said: str) -> None:
    class Refused(Exception):
        status_code = 400

    def asked(*given: Any) -> ModelOutput:
        raise Refused(said)

    model = get_model("mockllm/model", memoize=False, custom_outputs=asked)
    assert asyncio.run(grading.grade(JUDGES["rubric"], ("How?", "So."), model)).reason == "grader-context"
    said = "the server is on fire"
    with pytest.raises(InputError, match=r"failed with .*\(status 400\)"):
        asyncio.run(grading.grade(JUDGES["rubric"], ("How?", "So."), model))


def test_a_reply_that_inspect_made_of_such_an_error_is_no_cut_reply() -> None:
    output = ModelOutput.from_content("m", "the prompt is too long", "model_length")
    assert grading.read(JUDGES["rubric"], output).reason == "grader-context"
