"""Score likelihood: how unlikely the model finds the first tokens of the row's answer, in nats a token."""

from __future__ import annotations

import numpy as np

from tokendeep.audits.base import Array, Materials, Score, by_row
from tokendeep.runs.parts import Parts
from tokendeep.types import IGNORE, Encoded


def run(materials: Materials, kept: Parts) -> Array:
    """Minus the mean log-probability of the first answer tokens, one a row."""
    from tokendeep.compute import directions, scoring

    if materials.elsewhere:

        def branches(row: Encoded) -> list[tuple[int, tuple[int, ...]]]:
            labels = directions.opening(row, materials.tokens).labels
            return [(place, (label,)) for place, label in enumerate(labels) if label != IGNORE]

        return by_row(materials, "answers", kept, branches, lambda _, logps: -float(logps.mean()))
    rows = [directions.opening(row, materials.tokens) for row in materials.rows]
    logps = scoring.token_logps(materials.subject, rows, materials.batch_size, kept)
    return np.array([-float(values.double().mean()) for values in logps])


def reason(value: float) -> str:
    return f"the model finds how its answer begins unlikely ({value:.2f} nats a token)"


def about(materials: Materials) -> str:
    return f"the first {materials.tokens} tokens of each answer"


SCORE = Score(
    "likelihood",
    "the model finds the row's first answer tokens unlikely",
    "nats a token",
    run,
    reason,
    about,
    reads=("tokens",),
    served=True,
)
