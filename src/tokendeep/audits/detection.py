"""How well scores tell rows that are labelled 1 from those that are labelled 0. Knows nothing of models and rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tokendeep import stats

Array = NDArray[np.float64]
FALSE_ALARMS = 0.01
RESAMPLES = 1000


def auroc(scores: Array, labels: NDArray[np.bool_]) -> float:
    """The chance that a row of label 1 scores above one of label 0; ties count one half (Mann-Whitney)."""
    from scipy.stats import rankdata

    positives, negatives = int(labels.sum()), int((~labels).sum())
    return float((rankdata(scores)[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auprc(scores: Array, labels: NDArray[np.bool_]) -> float:
    """Average precision: the precision at each threshold, weighted by the recall it adds; tied rows are one threshold."""
    hits, alarms = _steps(scores, labels)
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / (hits + alarms)).sum() / labels.sum())


def recall(scores: Array, labels: NDArray[np.bool_], false_alarms: float = FALSE_ALARMS) -> float:
    """The largest share of label 1 above a threshold that at most a share `false_alarms` of label 0 is above."""
    hits, alarms = _steps(scores, labels)
    allowed = alarms <= false_alarms * (~labels).sum() + 1e-9
    return float(hits[allowed].max(initial=0) / labels.sum())


def _steps(scores: Array, labels: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Rows of label 1, and of label 0, at or above each distinct score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    hits = np.cumsum(labels[order])[ends].astype(float)
    return hits, ends + 1 - hits


FIGURES: Mapping[str, Callable[[Array, NDArray[np.bool_]], float]] = {
    "auroc": auroc, "auprc": auprc, "recall": recall,
}  # fmt: skip


def figures(scores: Sequence[float], labels: Sequence[int], seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Each figure with its 95 % interval: a bootstrap in which either label keeps its number of rows.

    Raises:
        ValueError: a label has no row, or a score is NaN.
    """
    values, truth = np.asarray(scores, dtype=float), np.asarray(labels, dtype=bool)
    if not truth.any() or truth.all() or np.isnan(values).any():
        raise ValueError("both labels and a score for every row are needed")
    ones, zeros = np.flatnonzero(truth), np.flatnonzero(~truth)
    rng = np.random.default_rng(seed)
    draws = [np.concatenate([rng.choice(ones, len(ones)), rng.choice(zeros, len(zeros))]) for _ in range(RESAMPLES)]
    fewer = min(len(ones), len(zeros))
    return {
        name: (
            figure(values, truth),
            *stats.interval(np.array([figure(values[draw], truth[draw]) for draw in draws]), fewer),
        )
        for name, figure in FIGURES.items()
    }
