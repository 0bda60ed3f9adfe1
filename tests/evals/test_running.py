"""A run through Inspect: what stops it is told, what is on disk stays, and the same call goes on."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inspect_ai.log import EvalError, read_eval_log, write_eval_log
from inspect_ai.log._recorders import eval as recorder
from inspect_ai.model import GenerateConfig, ModelOutput, get_model

from attacking import ANSWER, ROWS, Answers, answers, attack, config, judge, pairs, prompt_of, write  # noqa: F401  (fixtures)
from tokendeep import models
from tokendeep.engines import local
from tokendeep.errors import InputError
from tokendeep.evals import logs, outcomes, provider, running
from tokendeep.evals.provider import live_model
from tokendeep.models import ModelOptions
from tokendeep.types import Subject


def test_a_row_that_fails_is_named_and_the_rest_is_kept(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    bad = tuple(prompt_of(answers.tokenizer, ROWS[2]))
    answers.reply = lambda request: InputError("logits are NaN") if request.ids == bad else ANSWER
    settings = config(pairs, tmp_path / "out", attack="none", batch_size=1)
    with pytest.raises(InputError, match="Row rome: logits are NaN"):
        attack(settings, tiny_subject)
    kept = logs.finished_samples(tmp_path / "out")
    answers.reply = lambda request: ANSWER
    answers.requests.clear()
    attack(settings, tiny_subject)
    assert len(answers.requests) == 3 - kept
    assert len(logs.read_samples(tmp_path / "out")) == 3
    names = {path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".eval"}
    assert names == {"asr.json", "attacked.jsonl", "manifest.json", "outcomes.jsonl", "README.txt"}


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EFBIG, "too large .* \\(ulimit -f\\)"), (errno.ENOSPC, "is full")]
)
@pytest.mark.parametrize("written", [0, 1])
def test_a_log_that_cannot_be_written_is_told_in_one_sentence(
    number: int, words: str, written: int, pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers,
    judge: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Any,
) -> None:  # fmt: skip
    calls, real = [], recorder._copy_temp_to_local

    def limited(*arguments: Any, **more: Any) -> None:
        calls.append(1)
        if len(calls) > written:
            raise OSError(number, os.strerror(number))
        real(*arguments, **more)

    monkeypatch.setattr(recorder, "_copy_temp_to_local", limited)
    settings = config(pairs, tmp_path / "out", attack="none", batch_size=1)
    with pytest.raises(InputError, match=words):
        attack(settings, tiny_subject)
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(local, "LocalEngine", answers)
    attack(settings, tiny_subject)
    assert len(logs.read_samples(tmp_path / "out")) == 3


def test_a_full_disk_is_told_also_where_another_log_failed_first_for_it() -> None:
    closed = EvalError(message="ValueError('closed')", traceback="ValueError: closed", traceback_ansi="")
    said = "OSError: [Errno 27] File too large\n\nDuring handling of it:\n\nValueError: closed"
    logged = [SimpleNamespace(status="error", error=one, location="x/a.eval") for one in
              (closed, closed.model_copy(update={"traceback": said}))]  # fmt: skip
    session = SimpleNamespace(failures=[], model=SimpleNamespace(api=None))
    with pytest.raises(InputError, match="^A file of out grew too large"):
        running._raise_failure(session, logged, Path("out"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"the same command: the reason is in out/a\.eval\.$"):
        running._raise_failure(session, logged[:1], Path("out"))  # type: ignore[arg-type]


def test_inspect_s_trace_grows_no_file_during_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INSPECT_TRACE_LEVEL", raising=False)
    with running._private():
        assert os.environ["INSPECT_TRACE_LEVEL"] == "CRITICAL"
    assert "INSPECT_TRACE_LEVEL" not in os.environ
    monkeypatch.setenv("INSPECT_TRACE_LEVEL", "trace")
    with running._private():
        assert os.environ["INSPECT_TRACE_LEVEL"] == "trace"


@pytest.mark.parametrize("kind", [LookupError, RuntimeError])
def test_a_server_s_failure_is_told_without_its_message(
    kind: type[Exception], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(input: list[Any], *_: Any) -> ModelOutput:
        raise kind(f"404, no such model; the request was: {input[-1].text}")

    model = get_model("mockllm/model", memoize=False, custom_outputs=reply)
    settings = config(pairs, tmp_path / "out", model="inspect/mockllm/model", attack="none", limit=1)
    monkeypatch.setattr(running, "get_model", lambda *_, **__: model)
    with pytest.raises(InputError) as caught:
        attack(settings)
    assert str(caught.value).startswith(f"Row bread: mockllm/model failed with {kind.__name__}: check that the server")
    assert "404" not in str(caught.value)
    assert ROWS[0]["instruction"] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_unfinished_run_goes_on_with_smaller_batches(
    pairs: Path, tmp_path: Path, tiny_folder: Path, answers: Answers, judge: list[str]
) -> None:
    last = tuple(prompt_of(answers.tokenizer, ROWS[2]))
    answers.reply = lambda request: InputError("out of memory") if request.ids == last else ANSWER
    out = tmp_path / "out"
    settings = config(pairs, out, model=str(tiny_folder), attack="none", batch_size=8)
    with pytest.raises(InputError, match="out of memory"):
        attack(settings)
    [log] = [read_eval_log(str(path), header_only=True) for path in out.glob(".logs.part/*.eval")]
    assert not {"batch_size", "device", "device_map"} & log.eval.model_args.keys()
    assert "dtype" in log.eval.model_args
    live = live_model(models.load(str(tiny_folder)), batch_size=2)
    assert "batch_size" not in live.model_args
    kept = logs.finished_samples(out)
    answers.reply, manifest = lambda request: ANSWER, out / "manifest.json"
    answers.requests.clear()
    manifest.write_text(manifest.read_text().replace('"batch_size": 8', '"batch_size": 2'))
    attack(replace(settings, batch_size=2))
    assert (answers.batch_sizes, len(answers.requests)) == ([8, 2], 3 - kept)
    assert len(logs.read_samples(out)) == 3


def test_a_run_that_only_had_to_be_counted_knows_its_model(
    pairs: Path, tmp_path: Path, tiny_folder: Path, answers: Answers, judge: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when every answer was there, and gone on with: no weights are loaded, and the manifest names them."""
    answers.reply = lambda request: ANSWER
    settings = config(pairs, tmp_path / "out", model=str(tiny_folder), attack="none")
    with monkeypatch.context() as patch:
        patch.setattr(outcomes, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            attack(settings)
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("the weights are loaded"))
    attack(settings)
    told = json.loads((tmp_path / "out" / "manifest.json").read_text())["model"]
    known = models.facts(str(tiny_folder), ModelOptions())
    assert told == {"name": str(tiny_folder), "revision": known["revision"], "adapter": None, "dtype": "float32"}


def test_a_failure_in_one_attack_ends_the_others(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    answers.reply = lambda request: InputError("logits are NaN") if request.ids == first else None
    first = tuple(prompt_of(answers.tokenizer, ROWS[0]))
    late = threading.Timer(20, answers.close)  # lets the test fail, rather than hang, where nothing ends them
    late.start()
    with pytest.raises(InputError, match="Row bread: logits are NaN"):
        attack(config(pairs, tmp_path / "out", k=[5]), tiny_subject)
    assert late.is_alive()
    late.cancel()


@pytest.mark.parametrize("name", ["of-others", "logs", ".hidden/deep"])
def test_logs_in_folders_below_are_neither_counted_nor_read_nor_removed(
    name: str, pairs: Path, tmp_path: Path, tiny_folder: Path, answers: Answers, judge: list[str]
) -> None:
    """The same evaluation lies finished below the output folder, and a log of it beside our own."""
    out, common = tmp_path / "out", {"model": str(tiny_folder), "attack": "none"}
    other = attack(config(pairs, out / name, **common))
    [foreign] = other.glob("*.eval")
    before = foreign.read_bytes()
    (out / "copy.eval").write_bytes(before)
    answers.requests.clear()
    last = tuple(prompt_of(answers.tokenizer, ROWS[2]))
    answers.reply = lambda request: InputError("out of memory") if request.ids == last else "of the run itself"
    with pytest.raises(InputError, match="out of memory"):
        attack(config(pairs, out, **common, batch_size=1))
    kept = logs.finished_samples(out)
    assert kept <= 2
    answers.reply = lambda request: "of the run itself"
    answers.requests.clear()
    attack(config(pairs, out, **common))
    assert len(answers.requests) == 3 - kept
    assert [one.completion for one in logs.read_samples(out)] == ["of the run itself"] * 3
    assert foreign.read_bytes() == before
    assert (out / "copy.eval").read_bytes() == before
    manifest = json.loads((out / "manifest.json").read_text())
    assert len([file for file in manifest["files"] if file.endswith(".eval")]) == 1
    assert "copy.eval" not in manifest["files"]
    assert sorted(path.suffix for path in out.iterdir() if path.is_file()) == [
        ".eval",
        ".eval",
        ".json",
        ".json",
        ".jsonl",
        ".jsonl",
        ".txt",
    ]


@pytest.mark.parametrize("name", ["run#1", "run%201", "run 1?", "ein Lauf, ü"])
def test_output_folders_of_any_name(
    name: str, pairs: Path, tmp_path: Path, tiny_folder: Path, answers: Answers, judge: list[str]
) -> None:
    out, last = tmp_path / name, tuple(prompt_of(answers.tokenizer, ROWS[2]))
    settings = config(pairs, out, model=str(tiny_folder), attack="none", batch_size=1)
    answers.reply = lambda request: InputError("out of memory") if request.ids == last else ANSWER
    with pytest.raises(InputError, match="out of memory"):
        attack(settings)
    kept = logs.finished_samples(out)
    answers.reply = lambda request: ANSWER
    answers.requests.clear()
    attack(settings)
    assert len(answers.requests) == 3 - kept
    assert len(logs.read_samples(out)) == 3
    assert [path.name for path in tmp_path.iterdir() if "run" in path.name or "Lauf" in path.name] == [name]


def test_the_unfinished_run_of_an_older_version_goes_on(
    pairs: Path, tmp_path: Path, tiny_folder: Path, answers: Answers, judge: list[str]
) -> None:
    """It kept its logs in the output folder itself, and its manifest names them by a pattern."""
    out, last = tmp_path / "out", tuple(prompt_of(answers.tokenizer, ROWS[2]))
    settings = config(pairs, out, model=str(tiny_folder), attack="none", batch_size=1)
    answers.reply = lambda request: InputError("out of memory") if request.ids == last else ANSWER
    with pytest.raises(InputError, match="out of memory"):
        attack(settings)
    for path in (out / ".logs.part").iterdir():
        path.rename(out / path.name)
    (out / ".logs.part").rmdir()
    manifest = json.loads((out / "manifest.json").read_text())
    files = ["*.eval", ".eval-set-id", "eval-set.json", "logs.json", *manifest["files"]]
    (out / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    other = attack(config(pairs, tmp_path / "other", model=str(tiny_folder), attack="none", limit=2))
    [foreign] = other.glob("*.eval")
    foreign.rename(out / "foreign.eval")
    kept = logs.finished_samples(out)
    answers.reply = lambda request: ANSWER
    answers.requests.clear()
    attack(settings)
    assert len(answers.requests) <= 3 - (kept - 2)
    assert len(logs.read_samples(out)) == 3
    assert (out / "foreign.eval").exists()


def test_a_run_that_has_finished_no_row_gives_way(
    pairs: Path,
    tmp_path: Path,
    tiny_folder: Path,
    answers: Answers,
    judge: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    answers.reply = lambda request: InputError("out of memory")
    with pytest.raises(InputError, match="out of memory"):
        attack(config(pairs, out, model=str(tiny_folder)))
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    (broken / "model.safetensors").write_bytes(b"none")
    capsys.readouterr()
    with pytest.raises(InputError, match=r"^\S*broken cannot be loaded"):  # the model is named, and no row
        attack(config(pairs, out, model=str(broken)))
    assert "answer" not in capsys.readouterr().err  # no bar was shown
    answers.reply = lambda request: ANSWER
    attack(config(pairs, out, model=str(tiny_folder), k=[3]))
    assert {one.params.get("k") for one in logs.read_samples(out)} == {None, 3}
    with pytest.raises(InputError, match="differs in k"):
        attack(config(pairs, out, model=str(tiny_folder), k=[5]))


def test_a_home_that_may_not_be_written(
    pairs: Path, tmp_path: Path, tiny_folder: Path, judge: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "TOKENDEEP_CACHE"):
        monkeypatch.delenv(name, raising=False)
    attack(config(pairs, tmp_path / "out", model=str(tiny_folder), attack="none", max_new_tokens=2))
    assert "XDG_DATA_HOME" not in os.environ
    with pytest.raises(InputError, match=r"/proc/nowhere/.cache/tokendeep.*TOKENDEEP_CACHE"):
        attack(config(pairs, tmp_path / "two", model="smollm2", attack="none"))


SLOW_RUN = """
import os, signal, sys, threading, time, types
from concurrent.futures import Future
from tokendeep.engines.base import Completion

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background, which ignores it
stub = types.ModuleType("tokendeep.engines.local")  # no torch: the engine is a stub that takes its time

class Engine:
    def __init__(self, subject, batch_size):
        self.turn = threading.Lock()
    def submit(self, request):
        future = Future()
        threading.Thread(target=self.work, args=(request, future), daemon=True).start()
        return future
    def work(self, request, future):
        with self.turn:
            time.sleep(0.03)
            future.set_result(Completion((65,), "A", False, 0.0))
    def close(self):
        pass

stub.LocalEngine = Engine
sys.modules["tokendeep.engines.local"] = stub
from dataclasses import replace
from tokendeep import cli, judges, models, types as values
from tokendeep.evals import provider
models.load = lambda spec, **more: values.Subject(None, models.load_tokenizer(spec), spec)
plain, judged = judges.judge_refusal, []
def judge(text, **more):
    open(sys.argv[1], "a").write("x")
    judged.append(text)
    if len(judged) == int(sys.argv[2]):  # Ctrl-C in the middle, however fast or slow the machine
        os.kill(os.getpid(), signal.SIGINT)
    return plain(text, **more)
judges.JUDGES["refusal"] = replace(judges.JUDGES["refusal"], rule=judge)
sys.exit(cli.main(sys.argv[3:]))
"""


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a slow run in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(finished: int, out: Path, process: subprocess.Popen[str]) -> int:
    """Wait until so many samples are on disk."""
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if (count := logs.finished_samples(out) if out.is_dir() else 0) >= finished:
            return count
        time.sleep(0.1)
    raise AssertionError(f"the run ended or stood still: {process.communicate(timeout=10)[0]}")


def test_a_log_that_inspect_does_not_know_again_is_asked_anew(
    pairs: Path, tmp_path: Path, tiny_folder: Path, answers: Answers, judge: list[str]
) -> None:
    out = tmp_path / "out"
    settings = config(pairs, out, model=str(tiny_folder), attack="none,prefill")
    attack(settings)
    for path in out.glob("*none*.eval"):  # as version 0.1.0 wrote those of rank-prefill
        log = read_eval_log(str(path))
        log.eval.task, log.eval.task_args_passed, log.status = "task", {}, "cancelled"
        write_eval_log(log, str(path))
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    (out / "asr.json").unlink()
    answers.requests.clear()
    attack(settings)
    assert len(answers.requests) == len(ROWS)
    assert len(list(out.glob("*.eval"))) == 2
    assert len(logs.read_samples(out)) == len({(s.attack, s.id) for s in logs.read_samples(out)})


def test_ctrl_c_within_an_event_loop_ends_a_run_on_a_server_at_once(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def reply(*_: Any, **__: Any) -> ModelOutput:
        nonlocal asked
        asked += 1
        if asked == 1:
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.3)
        return ModelOutput.from_content("mockllm/model", ANSWER)

    model = get_model("mockllm/model", memoize=False, config=GenerateConfig(max_connections=2))
    monkeypatch.setattr(model.api, "generate", reply)
    monkeypatch.setattr(running, "get_model", lambda *_, **__: model)
    settings = config(pairs, tmp_path / "out", model="inspect/mockllm/model", attack="none", samples=40)

    async def cell() -> None:
        attack(settings)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    loop = asyncio.new_event_loop()  # as a notebook has it: Ctrl-C comes to what is called in a cell
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(cell())
    loop.close()
    signal.signal(signal.SIGINT, before)
    assert asked < 40


@pytest.mark.slow
def test_a_killed_run_goes_on_with_nothing_lost_or_judged_twice(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [
        {"id": f"r{i}", "instruction": f"Question {i}?", "response": "Mix the flour with water."} for i in range(30)
    ]
    data, out, count, script = tmp_path / "pairs.jsonl", tmp_path / "out", tmp_path / "judged", tmp_path / "slow.py"
    write(data, rows)
    count.touch()
    script.write_text(SLOW_RUN, encoding="utf-8")
    begin = [sys.executable, str(script), str(count)]
    command = ["attack", "--model", str(tiny_folder), "--data", str(data)]
    command += ["--out", str(out), "--k", "3,5", "--samples", "4", "--temperature", "0.5", "--max_new_tokens", "8"]
    command += ["--batch_size", "2"]
    total = 30 * 4 + 30 * 2 * 4  # many: the run must still be going when it is interrupted
    under_way = (
        2 * provider.QUEUED * 2
    )  # two tasks, so many batches of two in each: what a kill may cost, however slow the disk

    killed = start([*begin, "0", *command])
    before = wait_for(20, out, killed)
    killed.kill()
    killed.wait()
    assert before <= logs.finished_samples(out) < total
    lost = [count.stat().st_size - logs.finished_samples(out)]

    stopped = start([*begin, "40", *command])
    said, _ = stopped.communicate(timeout=300)
    assert stopped.returncode == 130, said
    kept = logs.finished_samples(out)
    assert before < kept < total
    lost.append(count.stat().st_size - kept - lost[0])

    last = start([*begin, "0", *command])
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0, said
    samples = logs.read_samples(out)
    assert len(samples) == len({(s.attack, s.id, s.seed) for s in samples}) == total
    assert count.stat().st_size - sum(lost) == total  # each judged once, but for those cut off before they were written
    assert max(lost) <= under_way
    assert len(list(out.glob("*.eval"))) == 2
    assert "Question" not in said
