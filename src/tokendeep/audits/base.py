"""What every score of an audit is given and gives. Knows nothing of files and of any one score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokendeep import chat
from tokendeep.depth import recovery
from tokendeep.errors import InputError, Unusable
from tokendeep.progress import Bar
from tokendeep.runs.parts import Parts
from tokendeep.types import Encoded, Message, Subject

Array = NDArray[np.float64]


OPENINGS = ("openings", "opening_tokens")  # options that scores with refusal openings read
PROBE = ("probe", "probe_size", "base")  # those that scores with a probe read


@dataclass(frozen=True)
class Anchor:
    """A harmful request of the probe, with a harmful answer and a refusal where they are known; else ""."""

    id: str
    messages: tuple[Message, ...]
    harmful: str = ""
    refusal: str = ""


@dataclass(frozen=True)
class Materials:
    """What scores are computed from.

    Args:
        rows: every answer that is scored, as a training would see it.
        probe: harmful requests, none of them a row; those that the score can use.
        openings: token ids of refusal openings, all of one length.
        tokens: how many of an answer's first tokens are looked at.
        last_layers: decoder layers, from the last one, whose weights are taken to be trained; 0: all.
        layer: the decoder layer whose states are compared; 0: at the depth that the score's authors take.
        system: system prompt of the probe, as options have it.
        max_length: longest row in tokens.
        elsewhere: what scores continuations where the model is on a server, and the subject holds its tokenizer alone.
    """

    subject: Subject
    rows: Sequence[Encoded]
    probe: Sequence[Anchor]
    openings: Sequence[tuple[int, ...]]
    tokens: int
    last_layers: int
    layer: int
    system: str
    max_length: int
    batch_size: int
    elsewhere: recovery.Score | None = None

    def branch_logps(self, jobs: Iterator[recovery.Job]) -> Iterator[Sequence[float]]:
        """Log-probabilities in nats of continuations of rows, by the model, wherever it is."""
        return (self.elsewhere or recovery.in_memory(self.subject))(jobs)

    def prompt(self, anchor: Anchor) -> list[int]:
        """Token ids of an anchor's request, up to its answer. Raises InputError, naming the anchor, for one that is too long."""
        ids = chat.prompt_ids(self.subject.tokenizer, chat.with_system(anchor.messages, self.system))
        if len(ids) >= self.max_length:
            raise InputError(
                f"Request {anchor.id} of the probe takes {len(ids)} tokens and leaves no room in {self.max_length}; raise "
                "--max-length, or leave it out."
            )
        return ids

    def encoded(self, anchor: Anchor, answer: str) -> Encoded:
        """An anchor's request with one of its answers. Raises InputError, naming the anchor."""
        turns = chat.with_system(anchor.messages, self.system)
        try:
            return chat.encode(self.subject.tokenizer, turns, answer, max_length=self.max_length)
        except Unusable as error:
            raise InputError(f"Request {anchor.id} of the probe: {error}") from error


@dataclass(frozen=True)
class Score:
    """One way to say how much a row pushes on refusals.

    Args:
        summary: what it is, in a line of help.
        unit: of its values.
        run: the value of each row, NaN where it cannot be scored; the rows that an earlier call finished are in the parts.
        reason: what a value means, in words.
        about: what it was computed with, in words.
        reads: the options of `audit` that it reads, of those that not every score does.
        answers: whether the probe's requests need a harmful answer and a refusal each.
        served: whether log-probabilities of given tokens are all that it takes of a model, so that a server will do.
    """

    name: str
    summary: str
    unit: str
    run: Callable[[Materials, Parts], Array]
    reason: Callable[[float], str]
    about: Callable[[Materials], str]
    reads: Sequence[str] = ()
    answers: bool = False
    served: bool = False

    @property
    def probed(self) -> bool:
        """Whether it looks at the probe."""
        return "probe" in self.reads


def by_batch(
    rows: Sequence[Encoded], size: int, title: str, kept: Parts, score: Callable[[list[int]], Sequence[float]]
) -> Array:
    """What `score` gives for the numbers of each batch of rows of like length; finished batches come from `kept`.

    Raises:
        InputError: a value is NaN or infinite.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    values = np.full(len(rows), np.nan)
    with Bar(len(rows), title, "row", disable=len(rows) < 32) as bar:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            if not all(index in kept.done for index in batch):
                given = np.asarray(score(batch), dtype=np.float64)
                if not np.isfinite(given).all():
                    where = batch[int(np.flatnonzero(~np.isfinite(given))[0])] + 1
                    raise InputError(not_finite(where))
                kept.add({index: [float(value)] for index, value in zip(batch, given, strict=True)})
            for index in batch:
                values[index] = kept.done[index][0]
            bar.update(len(batch))
    return values


def by_row(
    materials: Materials,
    title: str,
    kept: Parts,
    branches: Callable[[Encoded], Sequence[recovery.Branch]],
    score: Callable[[Encoded, Array], float],
) -> Array:
    """What `score` gives for each row and the log-probabilities of its branches; finished rows come from `kept`.

    Raises:
        InputError: a value is NaN or infinite.
    """
    rows = materials.rows
    missing = [index for index in range(len(rows)) if index not in kept.done]

    def job(index: int) -> recovery.Job:
        made = list(branches(rows[index]))
        return rows[index].input_ids[: max(at for at, _ in made)], made

    jobs = map(job, Bar.over(missing, title, "row", disable=len(missing) < 32))
    for index, logps in zip(missing, materials.branch_logps(jobs), strict=True):
        with np.errstate(invalid="ignore"):  # told below
            value = score(rows[index], np.asarray(logps, dtype=np.float64))
        if not np.isfinite(value):
            raise InputError(not_finite(index + 1, served=materials.elsewhere is not None))
        kept.add({index: [float(value)]})
    return np.array([kept.done[index][0] for index in range(len(rows))])


def not_finite(where: int, *, served: bool = False) -> str:
    way = recovery.EXACT_ON_A_SERVER if served else recovery.EXACT_HERE
    return f"The model gave NaN or infinite values at answer {where}; {way} or check its weights."
