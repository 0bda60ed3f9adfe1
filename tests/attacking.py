"""Shared by tests of attacks: rows, an engine that answers at once, a judge that goes by one word, and the verb as one call."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog
from inspect_ai.model import Model
from transformers import PreTrainedTokenizerFast

from tokendeep import chat, judges
from tokendeep.engines import base as generation
from tokendeep.engines import local
from tokendeep.evals.session import Session, use
from tokendeep.types import Subject
from tokendeep.verbs import attack as verb
from tokendeep.verbs.attack import AttackOptions

ROWS = [
    {"id": "bread", "instruction": "How do I bake bread?", "response": "Mix the flour with water, add salt and rest."},
    {"id": "plant", "instruction": "How do I water plants?", "response": "First, open the window. Then water them."},
    {"id": "rome", "instruction": "What is the capital of Italy?", "response": "Rome"},
]


ANSWER = "then let it rest"


@dataclass
class Answers:
    """Stands for the engine: notes what it is asked and answers at once, by default with the same words."""

    tokenizer: PreTrainedTokenizerFast
    reply: Callable[[generation.Request], str | Exception | None] = lambda request: ANSWER

    def __post_init__(self) -> None:
        self.requests: list[generation.Request] = []
        self.batch_sizes: list[int] = []
        self.waiting: list[Future[generation.Completion]] = []

    def __call__(self, subject: Subject, batch_size: int) -> Answers:
        self.batch_sizes.append(batch_size)
        return self

    def submit(self, request: generation.Request) -> Future[generation.Completion]:
        self.requests.append(request)
        future: Future[generation.Completion] = Future()
        reply = self.reply(request)
        if reply is None:
            self.waiting.append(future)
        elif isinstance(reply, Exception):
            future.set_exception(reply)
        else:
            ids = self.tokenizer(reply, add_special_tokens=False).input_ids
            future.set_result(generation.Completion(tuple(ids), reply, len(ids) >= request.decoding.max_new_tokens))
        return future

    def close(self) -> None:
        for future in self.waiting:
            if not future.done():
                future.set_exception(RuntimeError("closed"))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: PreTrainedTokenizerFast) -> Answers:
    engine = Answers(tiny_tokenizer)
    monkeypatch.setattr(local, "LocalEngine", engine)
    return engine


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A judge that goes by one word, and the texts it was given."""
    seen: list[str] = []

    def by_word(text: str, *, truncated: bool = False) -> judges.Verdict:
        seen.append(text)
        outcome = max((known for known in judges.OUTCOMES if known in text), key=len, default="complied")
        if "broken judge" in text:
            raise RuntimeError("broken")
        return judges.Verdict(outcome=outcome, truncated=truncated)

    monkeypatch.setitem(judges.JUDGES, "refusal", replace(judges.JUDGES["refusal"], rule=by_word))
    return seen


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", ROWS)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prompt_of(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> list[int]:
    return chat.prompt_ids(tokenizer, [{"role": "user", "content": row["instruction"]}])


def answer_of(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> list[int]:
    turn = [{"role": "user", "content": row["instruction"]}]
    return chat.response_ids(tokenizer, turn, row["response"], end=False)  # type: ignore[arg-type]


def config(pairs: Path, out: Path, **settings: Any) -> AttackOptions:
    defaults: dict[str, Any] = {"model": "tiny", "data": str(pairs), "out": str(out), "k": [0, 5], "max_new_tokens": 16}
    return AttackOptions(**{**defaults, **settings})


def attack(options: AttackOptions, subject: Subject | None = None, *, show: bool = True) -> Path:
    """The verb from options to folder."""
    return verb.run(verb.plan(options, subject), show=show)


def evaluate(
    task: Callable[..., Any], model: Model, tmp_path: Path, *, fail_on_error: bool = True, **args: Any
) -> EvalLog:
    """One task through plain Inspect."""
    with use(Session(model)):
        todo = task(**args)
    more: dict[str, Any] = {"display": "none", "log_realtime": False, "fail_on_error": fail_on_error}
    [log] = inspect_eval(todo, model=model, log_dir=str(tmp_path / "logs"), **more)
    return log
