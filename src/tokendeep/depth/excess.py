"""The excess KL: what a model moved on harmful answers beyond what it moved on benign ones, position by position.

Any training moves every position a little, on any answer; that hides where safety lies. The excess takes it off. Tables of
KL in, figures out; knows nothing of models and files. Differences may be negative; they are not cut at 0, which would
turn noise into depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendeep import stats
from tokendeep.depth.kl import FIRST

Array = NDArray[np.float64]
NOISE = "noise"  # how a figure is censored whose excess cannot be told from none


@dataclass(frozen=True)
class Sums:
    """KL by position, summed over the prompts of each resample, and how many prompts these were; (resamples, positions).

    The first row is of the prompts as they are. `groups` says how many independent ones they amount to.
    """

    total: Array
    n: Array
    groups: float


def resampled(table: Array, resamples: int, seed: Sequence[int], clusters: Sequence[int] | None = None) -> Sums:
    """The sums of a table (prompts, positions) with NaN behind the end of each answer; two tables need two seeds."""
    drawn = stats.draws(len(table), resamples, np.random.default_rng(seed), clusters)
    weights = np.vstack([np.ones(len(table)), drawn])
    groups = stats.group_count(len(table), clusters)
    return Sums(weights @ np.nan_to_num(table), weights @ np.isfinite(table).astype(float), groups)


def from_curve(mean: Array, error: Array, n: Array, resamples: int, seed: Sequence[int]) -> Sums:
    """The sums of a table of which only the curve is known: its errors at all positions are taken to have one cause,
    which is the most that they can add up to."""
    shift = np.random.default_rng(seed).standard_normal((resamples + 1, 1))
    shift[0] = 0
    return Sums((mean + shift * error) * n, np.broadcast_to(n, (resamples + 1, len(n))), float(max(n)))


def excess_figures(harmful: Sums, benign: Sums) -> dict[str, dict[str, Any]]:
    """The figures of the excess, each with its interval over harmful and benign prompts.

    `excess_first5` and `excess_later` are nats a token; `excess_share_first5` and `excess_half_position` are as the
    figures of the same names of the KL itself, and censored (`noise`, no value) where the whole excess is not above 0
    beyond its interval.
    """
    groups = min(harmful.groups, benign.groups)
    excess, n = _excess(harmful, benign)
    whole = excess.sum(1)
    means = {
        "excess_first5": _mean(excess[:, :FIRST], n[:, :FIRST], groups),
        "excess_later": _mean(excess[:, FIRST:], n[:, FIRST:], groups),
    }
    low, _ = stats.interval(whole[1:], groups)
    if not (whole[0] > 0 and low > 0):
        noise = figure(None, None, NOISE)
        return {**means, "excess_share_first5": noise, "excess_half_position": noise}
    told = excess[whole > 0]  # the few resamples without any excess have no share
    share = np.clip(told[:, :FIRST].sum(1) / told.sum(1), 0.0, 1.0)
    half = np.argmax(np.cumsum(told, 1) >= told.sum(1, keepdims=True) / 2 * (1 - 1e-9), 1) + 1.0
    return {**means, "excess_share_first5": _figure(share, groups), "excess_half_position": _figure(half, groups)}


def _excess(harmful: Sums, benign: Sums) -> tuple[Array, Array]:
    """Summed over harmful tokens by position, and how many these are; 0 at positions that no benign answer reaches."""
    width = min(harmful.total.shape[1], benign.total.shape[1])
    n = np.where(benign.n[:, :width] > 0, harmful.n[:, :width], 0.0)
    mean = benign.total[:, :width] / np.maximum(benign.n[:, :width], 1.0)
    return np.where(n > 0, harmful.total[:, :width] - n * mean, 0.0), n


def _mean(excess: Array, n: Array, groups: float) -> dict[str, Any]:
    tokens = n.sum(1)
    return _figure(excess.sum(1) / tokens, groups) if tokens.all() else figure(None, None)


def _figure(samples: Array, groups: float) -> dict[str, Any]:
    """The value, which stands first, and the interval of the others."""
    return figure(float(samples[0]), stats.interval(samples[1:], groups))


def figure(
    value: float | None, interval: tuple[float | None, float | None] | None, censored: str | None = None
) -> dict[str, Any]:
    """A figure as profile.json has it; an end of its interval that is not known (NaN) is None."""
    low, high = (None if end is None or np.isnan(end) else end for end in interval or (None, None))
    return {"value": value, "low": low, "high": high, "censored": censored}
