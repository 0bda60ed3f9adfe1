"""Answers to instructions, harmful ones too: written by an unaligned model, or by the model itself behind openings.

A row is tried again until the offline judge calls its answer a compliance. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tokendeep import judges, models
from tokendeep.models.options import ModelOptions
from tokendeep.training import answers
from tokendeep.types import Decoding, Subject

if TYPE_CHECKING:
    from tokendeep.engines.server.engine import Served


@dataclass(frozen=True)
class Answer:
    """What a model wrote to the instruction of a row at one attempt, and what the judge says of it."""

    row: int
    attempt: int
    text: str
    opening: str
    truncated: bool
    outcome: str

    @property
    def complied(self) -> bool:
        """Whether it is an answer to keep."""
        return self.outcome == "complied"


@dataclass(frozen=True)
class Writing:
    """How answers are written.

    Args:
        tokens: longest answer behind its opening.
        openings: how answers begin, row after row the next one, and another at each attempt; none: as the model likes.
        tries: attempts at each row; after the first, and after all openings, they are sampled (T 0.9, top-p 0.6).
        kind: what they are called while they are written.
    """

    tokens: int
    openings: Sequence[str] = ()
    tries: int = 1
    seed: int = 0
    kind: str = "harmful"

    def opening(self, row: int, attempt: int) -> str:
        """How the answer to a row begins at an attempt; which opening comes first is drawn by the seed."""
        if not self.openings:
            return ""
        order = np.random.default_rng(self.seed).permutation(len(self.openings))
        return self.openings[order[(row + attempt) % len(order)]]

    def decoding(self, attempt: int) -> Decoding:
        """Greedy first."""
        if attempt < max(1, len(self.openings)):
            return Decoding(max_new_tokens=self.tokens)
        return Decoding(temperature=0.9, top_p=0.6, max_new_tokens=self.tokens, seed=self.seed + attempt)


def write(
    subject: Subject | Served,
    messages: Sequence[Sequence[Any]],
    how: Writing,
    *,
    done: Iterable[Answer] = (),
    keep: Callable[[Answer], object] = lambda answer: None,
) -> Mapping[int, Answer]:
    """The answer to each conversation at its last attempt, by the number of the conversation.

    Args:
        done: what an earlier, cut-off call has written; it is not written again.
        keep: called with every answer as it is there.
    """
    latest = {answer.row: answer for answer in sorted(done, key=lambda one: one.attempt)}
    for attempt in range(how.tries):
        settled = {row for row, one in latest.items() if one.complied or one.attempt >= attempt}
        rows = [row for row in range(len(messages)) if row not in settled]
        latest |= _attempt(subject, {row: messages[row] for row in rows}, how, attempt, keep)
    return latest


def _attempt(
    subject: Subject | Served,
    asked: Mapping[int, Sequence[Any]],
    how: Writing,
    attempt: int,
    keep: Callable[[Answer], object],
) -> dict[int, Answer]:
    """One answer to each conversation, by its number."""
    rows = list(asked)
    openings = [how.opening(row, attempt) for row in rows]
    made: dict[int, Answer] = {}

    def done(index: int, text: str, truncated: bool) -> None:
        outcome, row = judges.judge_refusal(text, truncated=truncated).outcome, rows[index]
        made[row] = Answer(row, attempt, text.strip(), openings[index], truncated, outcome)
        keep(made[row])

    answers.write_answers(
        subject, list(asked.values()), how.decoding(attempt), openings if how.openings else "",
        title=f"{how.kind} answers, try {attempt + 1}" if attempt else f"{how.kind} answers",
        on_done=done,
    )  # fmt: skip
    return made


def writer(name: str, options: ModelOptions, model: str, template: Callable[[], str]) -> Subject:
    """An unaligned model that writes; one without a chat template writes under that of `model`, whose are the options."""
    subject = models.load(name, options=loading(options), needs_template=False)
    if not subject.tokenizer.chat_template:
        subject.tokenizer.chat_template = template()
        print(f"{name} has no chat template; it writes under that of {model}")
    return subject


def loading(options: ModelOptions) -> ModelOptions:
    """The options to load an unaligned model with; revision and chat template are those of the model."""
    return replace(options, revision=None, chat_template=None)
