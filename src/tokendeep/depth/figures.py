"""The figures that say how deep safety goes, with bootstrap intervals over prompts.

Tables of KL and log-odds in, numbers out. Knows nothing of models, tokens or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokendeep import stats
from tokendeep.depth.recovery import Recovery, recovery_depth, scored_by_half, share_recovered
from tokendeep.types import Pair

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]


FIRST = 5  # response positions that `share_first5` calls the first


def clusters_of(pairs: Sequence[Pair]) -> list[int]:
    """Cluster of each row: near-duplicate instructions are resampled together."""
    return stats.near_duplicates([str(pair.messages[-1]["content"]) for pair in pairs])


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


def recovery_interval(recovery: Recovery, resamples: int, seed: int, clusters: list[int] | None) -> tuple[float, float]:
    return stats.bootstrap(
        recovery.log_odds,
        lambda table: recovery_depth(recovery.k, table),
        n_resamples=resamples,
        seed=seed,
        clusters=clusters,
    )


def _figure(
    value: float | None, interval: tuple[float | None, float | None] | None, censored: str | None = None
) -> dict[str, Any]:
    low, high = (None if bound is None or np.isnan(bound) else bound for bound in interval or (None, None))
    return {"value": value, "low": low, "high": high, "censored": censored}


def depth(
    kl: Array | None, recovery: Recovery, resamples: int, seed: int, clusters: list[int] | None = None
) -> dict[str, dict[str, Any]]:
    """The three depth figures with 95 % bootstrap intervals over prompts, or over `clusters` of them.

    Censored recovery: `every` (half of the prompts recover at every k measured; the value is the largest), `last` (at
    the largest, though not at every smaller one) or `none` (no value). The first two are lower bounds. An end of the
    interval is null where it stands for "at no k".
    """

    def interval(table: Array, statistic: Callable[[Array], float]) -> tuple[float, float]:
        return stats.bootstrap(table, statistic, n_resamples=resamples, seed=seed, clusters=clusters)

    nothing = {"value": None, "low": None, "high": None, "censored": None}
    figures = {"share_first5": nothing, "half_kl_position": nothing}
    if kl is not None and np.nansum(kl) > 0:
        figures["share_first5"] = _figure(share_first(kl), interval(kl, share_first))
        figures["half_kl_position"] = _figure(half_position(kl), interval(kl, half_position))
    value = recovery_depth(recovery.k, recovery.log_odds)
    low, high = recovery_interval(recovery, resamples, seed, clusters)
    known = scored_by_half(recovery.log_odds)
    every = bool((share_recovered(recovery.log_odds[:, known]) >= 0.5).all())
    largest = max((k for k, n in zip(recovery.k, known, strict=True) if n), default=-1)
    ends = {largest: "every" if every else "last", -1: "none"}
    bounds = (None if low < 0 else low, None if high < 0 else high)
    figures["recovery_k"] = _figure(None if value < 0 else value, bounds, ends.get(int(value)))
    return figures
