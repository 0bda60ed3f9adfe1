"""The attacks as Inspect tasks: their arguments, what reaches the model, and Inspect's own command."""

from __future__ import annotations

import inspect
import os
import stat
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from attacking import ROWS, Answers, answers, evaluate, judge, pairs, prompt_of  # noqa: F401  (fixtures)
from tokendeep import chat, models
from tokendeep.attacks import ATTACKS
from tokendeep.errors import InputError
from tokendeep.evals import logs, privacy, provider, rates, running
from tokendeep.evals.options import EvalOptions
from tokendeep.evals.provider import live_model
from tokendeep.evals.served import BEGINNING
from tokendeep.evals.session import Session, use
from tokendeep.evals.tasks import LATER, SERVED, TASKS, arguments
from tokendeep.models.options import ModelOptions
from tokendeep.types import Subject


def test_prefill_by_text_where_the_provider_continues(
    tmp_path: Path, pairs: Path, tiny_folder: Path, judge: list[str]
) -> None:
    given: list[list[Any]] = []

    def reply(input: list[Any], *_: Any) -> ModelOutput:
        given.append(input)
        output = ModelOutput.from_content("mockllm/model", "] twelve" if input[-1].text == BEGINNING else " and more")
        output.usage = ModelUsage(
            input_tokens=1, output_tokens=1, total_tokens=2
        )  # else it counts, with files it fetches
        return output

    model = get_model("mockllm/model", memoize=False, custom_outputs=reply)
    args = {"data": str(pairs), "k": 9, "tokenizer": str(tiny_folder)}
    log = evaluate(TASKS["prefill"], model, tmp_path, **args)
    assert log.status == "success"
    assert log.eval.metadata["skipped"] == {"9": 1}
    for sample in log.samples:
        row = next(row for row in ROWS if row["id"] == sample.metadata["prompt_id"])
        last = next(messages[-1] for messages in given if messages[0].text == row["instruction"])
        assert last.role == "assistant"
        assert row["response"].startswith(last.text)
        assert last.text


def test_rows_of_a_role_and_named_columns_are_chosen_with_arguments(
    tmp_path: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("Goal;Says\nOne?;safe\nTwo?;unsafe\n")
    args: dict[str, Any] = {"data": str(path), "columns": "instruction=Goal,label=Says"}
    with use(Session(live_model(tiny_subject))), pytest.raises(InputError, match="1 of 2 rows .* are harmless; choose"):
        TASKS["none"](**args)
    log = evaluate(TASKS["none"], live_model(tiny_subject), tmp_path, role="twins", **args)
    (sample,) = logs.read_samples(tmp_path / "logs")
    assert (sample.instruction, sample.role, log.eval.metadata["role"]) == ("One?", "twins", "twins")


def test_inspects_own_summary_has_a_rate_for_each_k(
    tmp_path: Path, pairs: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    answers.reply = lambda request: "complied" if request.ids not in plain else "refused"
    plain = {tuple(prompt_of(answers.tokenizer, row)) for row in ROWS}
    log = evaluate(TASKS["prefill"], live_model(tiny_subject), tmp_path, data=str(pairs), k=[0, 3])
    assert {name: metric.value for name, metric in log.results.scores[0].metrics.items()} == {"0": 0.0, "3": 1.0}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"k": "0,x"}, "k = 0,x is no list"),
        ({"k": 2.5}, "no list of whole numbers"),
        ({"k": -3}, "k = -3 is below 0"),
        ({"k": 900}, "k = 900 is beyond every answer"),
        ({"judge": "refusals"}, "Unknown judge 'refusals'; did you mean refusal"),
        ({"judged": "all"}, "Unknown value of judged 'all'; the known ones are continuation, full"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"samples": 0}, "samples"),
        ({"tokenizer": "x"}, "only for models that run elsewhere"),
    ],
)
def test_wrong_task_arguments(
    args: dict[str, Any], message: str, pairs: Path, tiny_subject: Subject, answers: Answers
) -> None:
    with use(Session(live_model(tiny_subject))), pytest.raises(InputError, match=message):
        TASKS["prefill"](**{"data": str(pairs), "k": 3, **args})
    assert not answers.requests


def test_a_prefill_is_not_lost_when_the_model_is_another(
    tmp_path: Path, pairs: Path, tiny_subject: Subject, answers: Answers
) -> None:
    with use(Session(live_model(tiny_subject))):
        todo = TASKS["prefill"](str(pairs), k=5, limit=1)
    usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    hello = ModelOutput.from_content("mockllm/model", "Hello!").model_copy(update={"usage": usage})
    other = get_model("mockllm/model", memoize=False, custom_outputs=lambda *_: hello)
    [log] = inspect_eval(todo, model=other, log_dir=str(tmp_path / "logs"), display="none", log_realtime=False)
    assert log.status == "error"
    assert "prefill would be lost" in log.error.message


@pytest.mark.parametrize("name", ["refusal-prefix", "refusal_prefix"])
def test_both_spellings_of_a_name_are_the_same_task(
    name: str, tmp_path: Path, pairs: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    arguments = {"data": str(pairs), "limit": 1}
    [log] = inspect_eval(
        f"tokendeep/{name}", model=live_model(tiny_subject), task_args=arguments, log_dir=str(tmp_path / "logs"),
        display="none", log_realtime=False,
    )  # fmt: skip
    assert log.status == "success"
    assert {one.attack for one in logs.read_samples(tmp_path / "logs")} == {"refusal-prefix"}


def test_a_log_says_which_weights_answered(
    tmp_path: Path, pairs: Path, tiny_folder: Path, answers: Answers, judge: list[str]
) -> None:
    before = os.umask(0o022)
    model = get_model(f"tokendeep/{tiny_folder}", memoize=False, dtype="bfloat16", date="2025-01-02")
    arguments = {"data": str(pairs), "k": 5}
    [log] = inspect_eval(
        "tokendeep/prefill", model=model, task_args=arguments, log_dir=str(tmp_path / "new" / "logs"), display="none",
        log_realtime=False,
    )  # fmt: skip
    assert os.umask(before) == 0o022, "what the process writes later is not for its owner alone"
    about, loaded = log.eval.metadata["model"], models.load(str(tiny_folder), dtype="bfloat16")
    assert about == {
        "revision": loaded.revision, "adapter": None, "dtype": "bfloat16", "date": "2025-01-02",
        "template": chat.template_hash(loaded.tokenizer),
    }  # fmt: skip
    assert about["revision"].startswith("weights:")
    [path] = (tmp_path / "new" / "logs").glob("*.eval")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_folder_of_logs_that_holds_other_things_is_left_as_it_is(tmp_path: Path) -> None:
    for name in ("shared", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
        for file in ("one.eval", ".eval-set-id", "eval-set.json"):
            (tmp_path / name / file).touch()
    (tmp_path / "shared" / "older.eval").touch()
    privacy.close({tmp_path / "shared" / "one.eval", tmp_path / "own" / "one.eval", Path("s3://bucket/two.eval")})
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"shared": 0o755, "own": 0o700}


def test_an_unknown_argument_of_a_task_is_refused(pairs: Path, tiny_subject: Subject) -> None:
    for name, attack in TASKS.items():
        with (
            use(Session(live_model(tiny_subject))),
            pytest.raises(InputError, match="Unknown argument 'sample'; did you"),
        ):
            attack(data=str(pairs), sample=2)
        assert name in ATTACKS


def inspect_command(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("inspect")), "eval", "--display", "plain", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_inspects_own_command_runs_the_tasks(tmp_path: Path, tiny_folder: Path, pairs: Path) -> None:
    common = ["--log-dir", str(tmp_path / "logs"), "--model", f"tokendeep/{tiny_folder}", "-T", f"data={pairs}"]
    good = inspect_command("tokendeep/prefill", *common, "-T", "k=0,5", "-T", "max_new_tokens=8")
    assert good.returncode == 0, good.stderr
    [path] = (tmp_path / "logs").glob("*.eval")
    log = read_eval_log(str(path))
    assert (log.status, log.eval.task_registry_name, len(log.samples)) == ("success", "tokendeep/prefill", 5)
    assert log.eval.task_args == {
        "data": str(pairs),
        **arguments(ATTACKS["prefill"]),
        "k": ["0", "5"],
        "max_new_tokens": 8,
    }
    rows = rates.asr(logs.read_samples(tmp_path / "logs"), logs.read_skipped(tmp_path / "logs"))
    assert [(row.params.k, row.params.max_new_tokens, row.skipped) for row in rows] == [(0, 8, 0), (5, 8, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("k=-1", "k = -1 is below 0"),
        ("max_new_token=8", "Unknown argument 'max_new_token'; did you mean max_new_tokens."),
        ("prefixes=No", "Unknown argument 'prefixes'"),
    ],
)
def test_inspects_own_command_ends_with_one_sentence(
    word: str, message: str, tmp_path: Path, tiny_folder: Path, pairs: Path
) -> None:
    common = ["--log-dir", str(tmp_path / "logs"), "--model", f"tokendeep/{tiny_folder}", "-T", f"data={pairs}"]
    bad = inspect_command("tokendeep/prefill", *common, "-T", word)
    shown = " ".join((bad.stdout + bad.stderr).split())
    assert bad.returncode != 0
    assert message in shown
    assert "Traceback" not in shown


def test_the_arguments_of_a_task_are_the_options_of_its_attack() -> None:
    shared = {field.name for field in fields(EvalOptions)}
    assert set(TASKS) == set(ATTACKS)
    for name, attack in ATTACKS.items():
        taken = set(inspect.signature(TASKS[name]).parameters)
        assert {"data", "system", *(field.name for field in fields(attack.options))} <= taken
        assert shared - taken == set(attack.sets)


def test_arguments_stand_in_the_order_by_which_inspect_knows_older_evaluations() -> None:
    shared = ["temperature", "top_p", "top_k", "max_new_tokens", "samples", "seed", "limit"]
    prefill = [name for name in arguments(ATTACKS["prefill"]) if name not in SERVED]
    assert prefill == ["k", "lead", "thinking", "judge", "judged", "system", *shared, *LATER]
    assert list(arguments(ATTACKS["decoding"])) == ["grid", "judge", "judged", "system", *shared[3:], *LATER]
    assert list(arguments(ATTACKS["suffix"])) == ["suffixes", "judge", "judged", "system", *shared, *LATER]
    assert provider.OPTIONS[:4] == ("dtype", "device", "device_map", "revision")
    assert provider.OPTIONS[4:] == ("chat_template", "trust_remote_code", "allow_pickle", "date")
    handle = running.open_model("me/model", ModelOptions(), 1)
    assert list(handle.model_args) == ["dtype", "revision", "chat_template", "trust_remote_code", "allow_pickle"]
    assert {*provider.OPTIONS, "system"} == {field.name for field in fields(ModelOptions)}


def test_making_a_task_leaves_the_files_of_the_process_as_they_are(
    pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INSPECT_EVAL_MODEL", "mockllm/model")
    before = os.umask(0o022)
    TASKS["none"](data=str(pairs))
    assert os.umask(before) == 0o022
