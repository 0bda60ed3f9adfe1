"""Tables of the KL divergence at each response position: one row a prompt, nats, NaN behind the end of an answer.

Knows nothing of models: the divergences come from `compute.scoring`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]

FIRST = 5  # response positions that `share_first5` calls the first


def to_table(values: Sequence[Tensor], positions: int) -> Array:
    """Rows of different length as one (rows, positions) table, NaN behind their end."""
    table = np.full((len(values), positions), np.nan)
    for row, value in zip(table, values, strict=True):
        row[: len(value)] = value[:positions].double().numpy()
    return table


def curve(table: Array) -> dict[str, list[float]]:
    """Mean, standard error and n per column of a table with NaN holes, up to the last column that has a value."""
    n = np.isfinite(table).sum(0)
    width = int((n > 0).sum())
    table, n = table[:, :width], n[:width]
    deviation = np.array([np.std(c[np.isfinite(c)], ddof=1) if np.isfinite(c).sum() > 1 else np.nan for c in table.T])
    return {
        "mean": np.nanmean(table, axis=0).tolist() if width else [],
        "stderr": [None if np.isnan(x) else float(x) for x in deviation / np.sqrt(n)],
        "n": n.tolist(),
    }


def share_first(kl: Array, first: int = FIRST) -> float:
    """Share of the KL of all positions that falls on the first ones: a ratio of sums over prompts."""
    total = np.nansum(kl)
    return float(np.nansum(kl[:, :first]) / total) if total > 0 else np.nan


def half_position(kl: Array) -> float:
    """First position (1-based) by which half of the summed KL is reached."""
    per_position = np.nansum(kl, axis=0)
    total = per_position.sum()
    if not total > 0:
        return np.nan
    return float(np.argmax(np.cumsum(per_position) >= total / 2 * (1 - 1e-9)) + 1)
