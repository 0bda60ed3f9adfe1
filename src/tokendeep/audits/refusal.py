"""Score refusal: would the model refuse the row's request, which the row answers?

With P the model's probability of a refusal opening behind the request, a row that answers has the score P, and a row that
refuses P - 1: the derivative of the row's cross-entropy by the logit of "refuse", of which a step of training subtracts.
The row's answer matters by that alone; whether it is unlikely in itself, as in another language or format, does not.
One forward pass per row; no probe, and no harmful answer but those in rows.
"""

from __future__ import annotations

import numpy as np

from tokendeep import judges
from tokendeep.audits.base import OPENINGS, Array, Materials, Score, by_row
from tokendeep.runs.parts import Parts
from tokendeep.types import Encoded


def run(materials: Materials, kept: Parts) -> Array:
    """From -1 to 1, one a row."""

    def branches(row: Encoded) -> list[tuple[int, tuple[int, ...]]]:
        return [(row.start, tokens) for tokens in materials.openings]

    def score(row: Encoded, logps: Array) -> float:
        answer = str(materials.subject.tokenizer.decode(row.input_ids[row.start :], skip_special_tokens=True))
        refuses = judges.judge_refusal(answer).outcome == "refused"
        return float(np.exp(np.logaddexp.reduce(logps))) - refuses

    return by_row(materials, "refusals", kept, branches, score)


def reason(value: float) -> str:
    if value < 0:
        return f"the row refuses, as the model would with probability {1 + value:.3f}: it pulls towards refusals"
    return f"the row answers a request that the model would refuse with probability {value:.3f}"


def about(materials: Materials) -> str:
    return (
        f"{len(materials.openings)} refusal openings of {len(materials.openings[0])} tokens behind the rows' requests"
    )


SCORE = Score(
    "refusal", "the model would refuse the request that the row answers", "pull on the probability of a refusal",
    run, reason, about, reads=OPENINGS, served=True,
)  # fmt: skip
