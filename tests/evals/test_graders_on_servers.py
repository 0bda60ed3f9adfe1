"""Graders over HTTP: what fails ends in one sentence, what was graded is kept, and the same command goes on."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.model import ModelOutput, get_model

import tokendeep
from attacking import Answers, answers, attack, config, pairs  # noqa: F401  (fixtures)
from serving import Turns, serve
from token_server import TokenServer
from tokendeep import cli
from tokendeep.engines.base import Request
from tokendeep.errors import InputError
from tokendeep.evals import grading, logs, outcomes
from tokendeep.evals.provider import TokendeepAPI
from tokendeep.judges import JUDGES
from tokendeep.judges.base import Seen
from tokendeep.records import Outcomes, Rate, StoredVerdict
from tokendeep.report import load
from tokendeep.types import Subject
from tokendeep.verbs import attack as attack_verb
from tokendeep.verbs import calibrate
from tokendeep.verbs import judge as verb
from tokendeep.verbs.attack import AttackOptions
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


@pytest.mark.parametrize("status", [401, 404, 429, 503])
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
    assert asyncio.run(grading.grade(JUDGES["rubric"], Seen("How?", "So."), model)).reason == "grader-context"
    said = "the server is on fire"
    assert asyncio.run(grading.grade(JUDGES["rubric"], Seen("How?", "So."), model)).reason == "grader-rejected"
    Refused.status_code = 500
    with pytest.raises(InputError, match=r"failed with .*\(status 500\)"):
        asyncio.run(grading.grade(JUDGES["rubric"], Seen("How?", "So."), model))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_answer_that_a_server_rejects_is_unscored(
    status: int, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ill = [status]  # so often the answer about bread is rejected

    def reply(turns: Turns) -> str | int:
        return ill.pop() if "bread" in turns[-1]["content"] and ill else "GRADE: 2"

    with serve(reply) as (address, asked):
        assert grade(out, address) == 0
        assert "no grade: 1 grader-rejected" in capsys.readouterr().out
        assert row_of(out).outcomes == {"harmless": 2, "grader-rejected": 1}
        assert grade(out, address) == 0  # the same call asks for this one again
        assert (row_of(out).outcomes, len(asked)) == ({"harmless": 3}, 4)
        assert {one.outcome for one in logs.read_samples(out) if one.judge == "rubric"} == {"harmless"}
        assert grade(out, address) == 0  # and keeps what it has found
    assert (row_of(out).outcomes, len(asked)) == ({"harmless": 3}, 4)


def test_a_reply_that_inspect_made_of_such_an_error_is_no_cut_reply() -> None:
    output = ModelOutput.from_content("m", "the prompt is too long", "model_length")
    assert grading.read(JUDGES["rubric"], output).reason == "grader-context"


# --- a grader that dies while the model is asked -------------------------------------------------


def ungraded(pairs: Path, out: Path, grader: str, **more: Any) -> AttackOptions:
    settings: dict[str, Any] = {"attack": "none", "judge": "refusal,rubric", "grader": grader, "max_new_tokens": 90}
    return config(pairs, out, **settings, **{"max_retries": 0, **more})


def row_of(out: Path) -> Rate:
    [row] = [row for row in Rate.load_all(out) if row.judge == "rubric"]
    return row


def test_answers_outlive_their_grader(
    pairs: Path,
    tmp_path: Path,
    tiny_subject: Subject,
    answers: Answers,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers.reply = lambda request: ANSWER
    out, well = tmp_path / "out", ["GRADE: 5"]  # so many answers are graded, then the server fails
    with serve(lambda turns: well.pop() if well else 503) as (address, asked):
        options = ungraded(pairs, out, f"inspect/http/{address}")
        with pytest.raises(InputError) as told:
            attack(options, tiny_subject)
        [warned] = [said for one in caplog.records if "without a grade" in (said := one.getMessage())]
        for said in (str(told.value), warned):
            assert "(status 503)" in said
            assert SECRET not in said
        assert str(told.value).startswith(f"All answers are in {out}, and 2 verdicts on them are missing: The grader")
        assert (len(answers.requests), row_of(out).n) == (3, 1)
        assert row_of(out).outcomes == {"harmful": 1, "grader-failed": 2}
        assert row_of(out).worst == 1.0
        assert [row.n for row in Rate.load_all(out) if row.judge == "refusal"] == [3]
        before = len(asked)
        well += ["GRADE: 2"] * 2
        attack(options, tiny_subject)
        assert (len(answers.requests), len(asked)) == (3, before + 2)  # nothing is generated or graded again
        assert row_of(out).outcomes == {"harmful": 1, "harmless": 2}
        assert [one.outcome for one in Outcomes.load(out) if one.judge == "rubric"].count("harmless") == 2
        assert [one.outcome for one in logs.read_samples(out)].count("grader-failed") == 0
        attack(options, tiny_subject)
        assert len(asked) == before + 2
    assert "refusal" not in (out / StoredVerdict.FILE).read_text()


def test_a_grader_that_fails_again_has_given_what_it_gave(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers
) -> None:
    answers.reply = lambda request: ANSWER
    out, well = tmp_path / "out", [503, "GRADE: 2"]  # fails at once; at the end of the run one verdict, and no more
    with serve(lambda turns: well.pop(0) if well else 503) as (address, _):
        with pytest.raises(InputError, match="2 verdicts on them are missing"):
            attack(ungraded(pairs, out, f"inspect/http/{address}", batch_size=1), tiny_subject)
        assert row_of(out).outcomes == {"harmless": 1, "grader-failed": 2}
        assert [one.outcome for one in logs.read_samples(out) if one.judge == "rubric"].count("harmless") == 1
        told = [one.outcome for one in Outcomes.load(out) if one.judge == "rubric"]
        assert sorted(told) == ["grader-failed", "grader-failed", "harmless"]
        assert load.runs([str(out)])[0].rates
        well += ["GRADE: 5"] * 2
        attack(ungraded(pairs, out, f"inspect/http/{address}", batch_size=1), tiny_subject)
    assert row_of(out).outcomes == {"harmless": 1, "harmful": 2}


def test_in_memory_a_grader_that_fails_leaves_rates_and_a_warning(
    tiny_subject: Subject, answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    answers.reply = lambda request: ANSWER
    rows, given = [{"instruction": "How do I bake bread?"}], {"judge": "refusal,rubric", "max_retries": 0}
    with serve(lambda turns: 503) as (address, _):
        rates = tokendeep.attack(tiny_subject, rows, attack="none", grader=f"inspect/http/{address}", **given)
    assert {row.judge: row.outcomes for row in rates} == {"refusal": {"complied": 1}, "rubric": {"grader-failed": 1}}
    [warned] = [said for one in caplog.records if "verdicts are missing" in (said := one.getMessage())]
    assert warned.startswith("1 verdicts are missing, counted as grader-failed; give out=FOLDER")
    assert tempfile.gettempdir() not in warned


def test_a_grader_that_fails_once_is_asked_again_at_the_end(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers
) -> None:
    answers.reply = lambda request: ANSWER
    ill = [503]
    with serve(lambda turns: ill.pop() if ill else "GRADE: 2") as (address, _):
        out = attack(ungraded(pairs, tmp_path / "out", f"inspect/http/{address}"), tiny_subject)
    assert row_of(out).outcomes == {"harmless": 3}


def test_one_answer_that_the_graders_server_rejects_does_not_end_the_grading(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers
) -> None:
    answers.reply = lambda request: ANSWER
    with serve(lambda turns: 400 if "bread" in turns[-1]["content"] else "GRADE: 2") as (address, asked):
        options = ungraded(pairs, tmp_path / "out", f"inspect/http/{address}")
        out = attack(options, tiny_subject)
        assert row_of(out).outcomes == {"harmless": 2, "grader-rejected": 1}
        attack(options, tiny_subject)
    assert (len(answers.requests), len(asked)) == (3, 3)


def test_one_prompt_of_ids_that_a_server_rejects_is_unscored(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, words_folder: Path, answers: Answers
) -> None:
    answers.reply = lambda request: ANSWER
    server = served_grader(tiny_subject, ["GRADE: 2"] * 2)
    server.rejects = lambda prompt: "bake bread?" in tiny_subject.tokenizer.decode(prompt)
    with server:
        out = attack(ungraded(pairs, tmp_path / "out", f"{words_folder}@{server.url}"), tiny_subject)
    assert row_of(out).outcomes == {"harmless": 2, "grader-rejected": 1}


def test_another_grader_can_take_over(pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers) -> None:
    answers.reply = lambda request: ANSWER
    with serve(lambda turns: 503) as (address, _), pytest.raises(InputError, match="3 verdicts on them are missing"):
        attack(ungraded(pairs, tmp_path / "out", f"inspect/http/{address}"), tiny_subject)
    with serve(lambda turns: "GRADE: 2") as (address, _):
        assert grade(tmp_path / "out", address) == 0
    rows = [row for row in Rate.load_all(tmp_path / "out") if row.judge == "rubric"]
    assert sorted(row.n for row in rows) == [0, 3]


@pytest.fixture
def words_folder(tiny_folder: Path) -> Path:
    """A tokenizer alone: a server has the weights, and says how long a prompt may be."""
    for file in [tiny_folder / "config.json", tiny_folder / "generation_config.json", *tiny_folder.glob("*.safe*")]:
        file.unlink()
    return tiny_folder


def served_grader(subject: Subject, well: list[str]) -> TokenServer:
    """A server of token ids that grades as long as `well` lasts; then it drops connections."""

    server = TokenServer(subject, context=8192)
    plain = server.answer

    def answer(prompt: list[int], most: int) -> list[int]:
        if "GRADE" not in subject.tokenizer.decode(prompt):  # of the handshake
            return plain(prompt, most)
        if not well:
            raise ConnectionError
        return [*subject.tokenizer(well.pop()).input_ids, subject.tokenizer.eos_token_id][:most]

    server.answer = answer
    return server


def test_answers_outlive_a_grader_that_is_given_ids(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, words_folder: Path, answers: Answers
) -> None:
    answers.reply = lambda request: ANSWER
    well = ["GRADE: 2"]
    with served_grader(tiny_subject, well) as server:
        options = ungraded(pairs, tmp_path / "out", f"{words_folder}@{server.url}")
        with pytest.raises(InputError, match="2 verdicts on them are missing: .* closed the connection"):
            attack(options, tiny_subject)
        well += ["GRADE: 2"] * 2
        attack(options, tiny_subject)
    assert row_of(tmp_path / "out").outcomes == {"harmless": 3}
    assert (len(answers.requests), well) == (3, [])


@pytest.mark.parametrize("graded", [3, 1])
def test_a_run_that_was_cut_off_ends_without_its_graders_server(
    graded: int,
    pairs: Path,
    tmp_path: Path,
    tiny_subject: Subject,
    words_folder: Path,
    answers: Answers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All answers are there, and so many grades: the logs know what the grader is called."""
    answers.reply = lambda request: ANSWER
    out = tmp_path / "out"
    with served_grader(tiny_subject, ["GRADE: 2"] * graded) as server:
        options = ungraded(pairs, out, f"{words_folder}@{server.url}")
        with monkeypatch.context() as patch:
            patch.setattr(outcomes, "write", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                attack(options, tiny_subject)
    if graded == 3:
        attack(options, tiny_subject)
    else:
        with pytest.raises(InputError, match="2 verdicts on them are missing: The grader .* cannot be reached"):
            attack(options, tiny_subject)
    assert (row_of(out).n, len(answers.requests)) == (graded, 3)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["judges"]["rubric"]["grader"] == row_of(out).params.grader


def test_a_grader_that_was_never_there_is_called_so(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, words_folder: Path, answers: Answers
) -> None:
    options = ungraded(pairs, tmp_path / "out", f"{words_folder}@http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="^The grader could not be asked: http://127.0.0.1:9/v1 cannot be reached"):
        attack(options, tiny_subject)
    assert not answers.requests


def test_answers_outlive_a_grader_that_runs_here(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, tiny_folder: Path, answers: Answers
) -> None:
    well = ["GRADE: 2"]

    def reply(request: Request) -> str | Exception:
        if "GRADE" not in tiny_subject.tokenizer.decode(request.ids):
            return ANSWER
        return well.pop() if well else InputError("The logits are NaN or infinite: load it in float32.")

    answers.reply = reply
    options = ungraded(pairs, tmp_path / "out", str(tiny_folder))
    with pytest.raises(InputError, match="2 verdicts on them are missing: .* NaN"):
        attack(options, tiny_subject)
    well += ["GRADE: 2"] * 2
    attack(options, tiny_subject)
    assert row_of(tmp_path / "out").outcomes == {"harmless": 3}
    assert sum("GRADE" not in tiny_subject.tokenizer.decode(one.ids) for one in answers.requests) == 3


# --- how long a grader's server is waited for ----------------------------------------------------


def test_the_time_limit_reaches_graders_that_are_given_ids(
    out: Path, pairs: Path, tmp_path: Path, tiny_subject: Subject, tiny_folder: Path, answers: Answers
) -> None:
    with TokenServer(tiny_subject) as server:
        named = f"{tiny_folder}@{server.url}"
        given: dict[str, Any] = {"judge": "rubric", "grader": named, "max_retries": 3}
        (tmp_path / "l.csv").write_text("instruction,response,label\nHow?,So.,1\nWhy?,Thus.,0\n")
        labelled = {"labels": [str(tmp_path / "l.csv")], "out": str(tmp_path / "c")}
        graders = [
            verb.plan(JudgeOptions(str(out), timeout=7, **given)).grader,
            calibrate.plan(CalibrateOptions(**given, **labelled, timeout=7)).grader,
            attack_verb.plan(
                ungraded(pairs, tmp_path / "o", named, max_retries=3, answer_timeout=7), tiny_subject
            ).grader,
        ]
    for grader in graders:
        assert grader is not None
        assert isinstance(grader.api, TokendeepAPI)
        assert (grader.api.place.answer_timeout, grader.api.max_retries) == (7, 3)


def test_a_graders_server_has_a_key_and_a_name_of_its_own(
    out: Path,
    pairs: Path,
    tmp_path: Path,
    tiny_subject: Subject,
    words_folder: Path,
    answers: Answers,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def judged(*more: str) -> str:
        words = ["judge", "--run", str(out), "--judge", "rubric", "--grader", f"{words_folder}@{server.url}", *more]
        assert cli.main([*words, "--max-retries", "0"]) == 2
        return capsys.readouterr().err

    (tmp_path / "l.csv").write_text("instruction,response,label\nHow?,So it is.,1\nWhy?,Thus it is.,0\n")
    with served_grader(tiny_subject, ["GRADE: 2"] * 8) as server:
        server.key = "secret"
        assert "put the key into an environment variable and name it with --grader-key-env." in judged()
        assert "NO_SUCH_KEY, which --grader-key-env names, is not set" in judged("--grader-key-env", "NO_SUCH_KEY")
        monkeypatch.setenv("THE_KEY", "secret")
        with_key = ["--grader-key-env", "THE_KEY"]
        assert "serves no model tinny; did you mean tiny: give --grader-model." in judged(
            *with_key, "--grader-model", "tinny"
        )
        given: dict[str, Any] = {"grader": f"{words_folder}@{server.url}", "grader_key_env": "THE_KEY"}
        server.pages["/v1/models"] = {"data": [{"id": name, "owned_by": "vllm"} for name in ("tiny", "other")]}
        assert "name one with --grader-model." in judged(*with_key)
        given["grader_model"] = "tiny"
        verb.run(verb.plan(JudgeOptions(str(out), judge="rubric", **given)), show=False)
        assert row_of(out).n == 3
        attack(ungraded(pairs, tmp_path / "o", **given), tiny_subject)
        assert row_of(tmp_path / "o").n == 3
        labelled = {"labels": [str(tmp_path / "l.csv")], "out": str(tmp_path / "c"), "judge": "rubric"}
        calibrate.run(calibrate.plan(CalibrateOptions(**labelled, **given)), show=False)
    written = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "secret" not in written


def test_options_of_a_graders_server_are_for_one(out: Path, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("instruction,response,label\nHow?,So it is.,1\nWhy?,Thus it is.,0\n")
    sentence = "--grader-key-env is for a grader on a server: name it with --grader MODEL@URL, or leave it out."
    with pytest.raises(InputError, match=sentence):
        verb.plan(JudgeOptions(str(out), judge="rubric", grader="smollm2", grader_key_env="X"))
    with pytest.raises(InputError, match=sentence):
        verb.plan(JudgeOptions(str(out), grader_key_env="X"))
    with pytest.raises(InputError, match=sentence.replace("key-env", "model")):
        calibrate.plan(CalibrateOptions(labels=[str(tmp_path / "l.csv")], grader_model="x", out=str(tmp_path / "c")))


@pytest.mark.parametrize("name", ["judge", "calibrate", "attack"])
def test_help_says_how_a_grader_on_a_server_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for word in ("MODEL@URL", "--grader-key-env", "--grader-model"):
        assert word in told


def test_attack_waits_for_no_grader_without_end(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers
) -> None:
    options = ungraded(pairs, tmp_path / "o", "inspect/http/nowhere", answer_timeout=7, max_retries=3)
    grader = attack_verb.plan(options, tiny_subject).grader
    assert grader is not None
    assert (grader.config.max_retries, grader.config.attempt_timeout) == (3, 7)


def test_a_grader_that_is_given_ids_and_never_answers(
    out: Path, tiny_subject: Subject, words_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TokenServer(tiny_subject, context=8192) as server:
        words = ["judge", "--run", str(out), "--judge", "rubric", "--grader", f"{words_folder}@{server.url}"]
        plain = server.answer
        server.answer = lambda prompt, most: [time.sleep(3 * (most > 99)), *plain(prompt, most)][1:]  # type: ignore[func-returns-value, list-item]
        assert cli.main([*words, "--max-retries", "0", "--timeout", "1"]) == 2
    assert "did not answer within 1 seconds" in capsys.readouterr().err


# --- views ----------------------------------------------------------------------------------------


def test_a_judge_has_its_own_view_behind_a_refusal_prefix_alone(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    said = iter(["", *[ANSWER] * 5])  # the first answer is empty, so that no view of it is graded
    answers.reply = lambda request: next(said)
    settings = {"attack": "none,refusal-prefix", "prefixes": ["I cannot"], "max_new_tokens": 90}
    out = attack(config(pairs, tmp_path / "out", **settings), tiny_subject)
    with serve(lambda turns: "GRADE: 5") as (address, _):
        assert grade(out, address) == 0
    found = [one for one in logs.read_samples(out) if one.judge == "rubric"]
    assert {(one.attack, one.params["judged"]) for one in found} == {
        ("none", "continuation"),
        ("refusal-prefix", "full"),
    }
    assert not [one for one in caplog.records if "run tokendeep judge again" in one.getMessage()]
