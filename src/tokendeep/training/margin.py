"""The margin of refusal: how many nats lie between a model's refusal and a harmful answer, and what training does to it.

The margin after k harmful tokens is the refusal log-odds of the recovery profile (`measure`), here at k = 0 .. 5. A
schedule of betas slows a token once it has gained so much over the reference that its weight is spent; what it lets the
first tokens of a harmful answer gain can be said before training, and compared with the margin.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokendeep import chat, models
from tokendeep.depth import openings, recovery
from tokendeep.errors import InputError
from tokendeep.types import Encoded, Pair, Subject

if TYPE_CHECKING:
    from tokendeep.training.eq3 import BetaSchedule

Array = NDArray[np.float64]
KS = tuple(range(recovery.MARGIN_K + 1))
TOKENS = 3  # of each opening, and of the harmful answer, as in `measure`


def gain(beta: float) -> float:
    """The nats a token gains over the reference until its weight 2 sigmoid(-beta gain) has fallen to `STOPPED`."""
    from tokendeep.training.eq3 import STOPPED

    return math.log(2 / STOPPED - 1) / beta


def drift(schedule: BetaSchedule, k: int, tokens: int = TOKENS) -> float:
    """The nats that answer tokens k + 1 .. k + `tokens` gain together until all of them have stopped learning.

    A scale, not a bound: a weight never is 0, later tokens move the first ones through shared weights, and refusals may
    lose what the harmful answer does not gain.
    """
    import torch

    betas = schedule(torch.arange(k + 1, k + tokens + 1)[None])[0].tolist()
    return sum(gain(beta) for beta in betas)


class Margins:
    """Margins on a fixed set of harmful pairs, before and after a training.

    Args:
        source: where the pairs come from, for messages.
        schedule: betas of the training; None where nothing holds the first tokens.

    Raises:
        InputError: a pair that cannot be encoded, or answers too short for k = 0.
    """

    def __init__(
        self, subject: Subject, pairs: Sequence[Pair], *, schedule: BetaSchedule | None, source: str = "the probe",
        system: str = "default", max_length: int | None = None,
    ) -> None:  # fmt: skip
        self.subject, self.pairs, self.schedule = subject, pairs, schedule
        tokenizer = subject.tokenizer
        self.openings = openings.opening_ids(tokenizer, openings.load_openings(None), TOKENS)
        self.rows, self.lengths = [], []
        longest = min(max_length or sys.maxsize, models.context_length(subject.model))
        for number, pair in enumerate(pairs, 1):
            messages = chat.with_system(pair.messages, system)
            try:
                row = chat.encode(tokenizer, messages, pair.response, max_length=longest)
                whole = len(chat.response_ids(tokenizer, messages, pair.response, end=False))
                self.rows.append(row)
                self.lengths.append(min(whole, len(row.input_ids) - row.start))  # which may be cut
            except InputError as error:
                raise InputError(f"{source}, row {number}: {error}") from error
        if max(self.lengths, default=0) < TOKENS:
            why = "--max-length" if longest == max_length else "the model's context"
            raise InputError(
                f"{source}: no answer has {TOKENS} tokens within {longest} ({why}), so no margin can be measured."
            )
        self.start = self._log_odds()
        self.end: Array | None = None

    def _log_odds(self) -> Array:
        training = self.subject.model.training
        self.subject.model.eval()
        rows: list[Encoded] = self.rows
        log_odds = recovery.recovery_log_odds(self.subject, rows, self.openings, KS, self.lengths)
        self.subject.model.train(training)
        return log_odds

    def before(self) -> str:
        """What the margin is, how far the schedule lets it drift, and for how many prompts it is larger."""
        first = self.start[:, 0]
        text = f"margin of refusal on {len(self.pairs)} harmful pairs: median {np.nanmedian(first):+.1f} nats at k = 0"
        if self.schedule is None:
            return f"{text}; plain fine-tuning lets it drift without limit"
        far = drift(self.schedule, 0)
        return (
            f"{text}; under this schedule the first {TOKENS} tokens of a harmful answer, which the margin is measured on, stop "
            f"learning after {far:.1f} nats: {_above(first, far):.0%} of the pairs have a larger margin"
        )

    def after(self) -> dict[str, Any]:
        """Measure again; both margins as they stand in manifest.json."""
        self.end = self._log_odds()
        return {
            "k": list(KS),
            "before": recovery.quantiles(self.start),
            "after": recovery.quantiles(self.end),
            "prompts": len(self.pairs),
        }

    def describe(self) -> str:
        """What happened to the margin."""
        assert self.end is not None
        start, end = self.start[:, 0], self.end[:, 0]
        lost = start - end
        return (
            f"margin of refusal at k = 0: median {np.nanmedian(start):+.1f} -> {np.nanmedian(end):+.1f} nats (median change of "
            f"a pair {-np.nanmedian(lost):+.1f}); above 0 for {_above(start, 0):.0%} -> {_above(end, 0):.0%} of the pairs"
        )


def _above(values: Array, bound: float) -> float:
    """The share of the values that are known which lie above a bound."""
    known = values[np.isfinite(values)]
    return float((known > bound).mean())
