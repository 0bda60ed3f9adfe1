"""Answers of a server are written to the log some at a time: a run that is killed asks no more than these again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from inspect_ai._eval.task import log as inspect_log

from attacking import attack
from token_server import TokenServer
from tokendeep.evals import flushing, logs
from tokendeep.records import Rate
from tokendeep.types import Subject
from tokendeep.verbs.attack import AttackOptions

ROWS, LONGEST = 60, 8  # the second tells requests of the run from those of the handshake


def words(prompt: list[int], most: int) -> list[int]:
    return [40 + (7 * sum(prompt) + 3 * n) % 50 for n in range(most)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": f"{n}", "instruction": f"Say {n}."}) + "\n" for n in range(ROWS)))
    return path


def options(rows: Path, out: Path, folder: Path, server: TokenServer) -> AttackOptions:
    settings = {"attack": "none", "engine": server.url, "in_flight": 1, "max_new_tokens": LONGEST}
    return AttackOptions(model=str(folder), data=str(rows), out=str(out), **settings)  # type: ignore[arg-type]


def test_a_run_that_is_killed_asks_only_what_was_not_written(
    rows: Path, tmp_path: Path, tiny_subject: Subject, tiny_folder: Path
) -> None:
    asked: Counter[tuple[int, ...]] = Counter()
    runs: list[subprocess.Popen[bytes]] = []

    def answer(prompt: list[int], most: int) -> list[int]:
        if most == LONGEST:
            asked[tuple(prompt)] += 1
            if runs and sum(asked.values()) > 40:
                os.kill(runs.pop().pid, signal.SIGKILL)
        return words(prompt, most)

    out = tmp_path / "out"
    with TokenServer(tiny_subject, answer=answer) as server:
        command = ["attack", "--model", tiny_folder, "--engine", server.url, "--in-flight", "1", "--attack", "none"]
        command += ["--data", rows, "--max-new-tokens", str(LONGEST), "--out", out]
        runs.append(run := subprocess.Popen([sys.executable, "-m", "tokendeep", *map(str, command)]))
        assert run.wait(120) == -signal.SIGKILL
        again = sum(asked.values())
        attack(options(rows, out, tiny_folder, server), show=False)
    [row] = Rate.load_all(out)
    assert sum(row.outcomes.values()) == len(asked) == ROWS
    buffer = ROWS // flushing.PARTS
    assert again >= 41
    assert sum(asked.values()) - ROWS <= buffer + 2  # and what was just under way


def test_what_a_slow_server_says_is_written_soon(
    rows: Path, tmp_path: Path, tiny_subject: Subject, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flushing, "PARTS", 1)
    monkeypatch.setattr(flushing, "SECONDS", 0.2)
    out, found, count = tmp_path / "out", [0], [0]

    def answer(prompt: list[int], most: int) -> list[int]:
        count[0] += most == LONGEST
        until = time.monotonic() + 20
        while count[0] == 5 and not found[0] and time.monotonic() < until:
            time.sleep(0.05)
            found[0] = logs.finished_samples(out)
        return words(prompt, most)

    with TokenServer(tiny_subject, answer=answer) as server:
        attack(options(rows, out, tiny_folder, server), show=False)
    assert 3 <= found[0] <= 4


def test_the_more_there_is_to_write_the_less_often_it_is_written() -> None:
    def at_once(largest: int, served: bool) -> int:
        with flushing.rhythm(largest, served) as some:
            return some

    before = inspect_log._STALE_FLUSH_INTERVAL
    assert [at_once(n, True) for n in (1, 60, 1500, 100_000)] == [1, 3, 75, 5000]
    assert [at_once(n, False) for n in (1, 60, 1500, 100_000)] == [1, 1, 1, 50]
    assert [flushing.pause(n) for n in (10, 10_000, 100_000)] == [5, 5, 50]
    assert before == inspect_log._STALE_FLUSH_INTERVAL
