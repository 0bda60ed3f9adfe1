"""The figures that say how deep safety goes, with bootstrap intervals over prompts.

Tables of KL and log-odds in, numbers out. Knows nothing of models, tokens or files.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendeep import stats
from tokendeep.depth.excess import excess_figures, figure, resampled
from tokendeep.depth.kl import half_position, share_first
from tokendeep.depth.recovery import Recovery, recovery_depth, scored_by_half, share_recovered
from tokendeep.types import Pair

Array = NDArray[np.float64]


def clusters_of(pairs: Sequence[Pair]) -> list[int]:
    """Cluster of each row: near-duplicate instructions are resampled together."""
    return stats.near_duplicates([str(pair.messages[-1]["content"]) for pair in pairs])


def recovery_interval(recovery: Recovery, resamples: int, seed: int, clusters: list[int] | None) -> tuple[float, float]:
    return stats.bootstrap(
        recovery.log_odds,
        lambda table: recovery_depth(recovery.k, table),
        n_resamples=resamples,
        seed=seed,
        clusters=clusters,
    )


def depth(
    kl: Array | None,
    recovery: Recovery,
    resamples: int,
    seed: int,
    clusters: list[int] | None = None,
    benign: tuple[Array, list[int] | None] | None = None,
) -> dict[str, dict[str, Any]]:
    """The depth figures with 95 % bootstrap intervals over prompts, or over `clusters` of them.

    `benign` is the KL on benign answers with the clusters of its prompts; with it the figures of the excess are there too.

    Censored recovery: `every` (half of the prompts recover at every k measured; the value is the largest), `last` (at
    the largest, though not at every smaller one) or `none` (no value). The first two are lower bounds. An end of the
    interval is null where it stands for "at no k".
    """

    def interval(table: Array, statistic: Callable[[Array], float]) -> tuple[float, float]:
        return stats.bootstrap(table, statistic, n_resamples=resamples, seed=seed, clusters=clusters)

    figures = dict.fromkeys(("share_first5", "half_kl_position"), figure(None, None))
    if kl is not None and np.nansum(kl) > 0:
        figures["share_first5"] = figure(share_first(kl), interval(kl, share_first))
        figures["half_kl_position"] = figure(half_position(kl), interval(kl, half_position))
        if benign is not None:
            harmful = resampled(kl, resamples, (seed, 0), clusters)
            figures |= excess_figures(harmful, resampled(benign[0], resamples, (seed, 1), benign[1]))
    value = recovery_depth(recovery.k, recovery.log_odds)
    low, high = recovery_interval(recovery, resamples, seed, clusters)
    known = scored_by_half(recovery.log_odds)
    every = bool((share_recovered(recovery.log_odds[:, known]) >= 0.5).all())
    largest = max((k for k, n in zip(recovery.k, known, strict=True) if n), default=-1)
    ends = {largest: "every" if every else "last", -1: "none"}
    bounds = (None if low < 0 else low, None if high < 0 else high)
    figures["recovery_k"] = figure(None if value < 0 else value, bounds, ends.get(int(value)))
    return figures
