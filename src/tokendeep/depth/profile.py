"""The profile of a model from what was measured: curves, depth figures, margin of refusal, and how they are told.

Knows nothing of models and files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokendeep import records
from tokendeep.depth.figures import clusters_of, depth
from tokendeep.depth.kl import FIRST, curve
from tokendeep.depth.recovery import Recovery, margin, share_recovered
from tokendeep.types import Pair

Array = NDArray[np.float64]


def profile(
    pairs: Sequence[Pair], kl: Array | None, kl_benign: Array | None, recovery: Recovery, meta: records.ProfileMeta,
    bootstrap: tuple[int, int],
) -> records.Profile:  # fmt: skip
    """The profile of what was measured on `pairs`.

    Args:
        kl, kl_benign: (prompts, positions) in nats, NaN beyond an answer's end; None where there was no base.
        bootstrap: how many resamples, and their seed.
    """
    common = np.isfinite(recovery.log_odds).all(1)
    curves = {
        "kl": None if kl is None else curve(kl),
        "kl_benign": None if kl_benign is None else curve(kl_benign),
        "recovery": {
            "k": recovery.k,
            "log_odds": [float(np.mean(column[np.isfinite(column)])) for column in recovery.log_odds.T],
            "recovered": recovery.recovered().tolist(),
            "n": np.isfinite(recovery.log_odds).sum(0).tolist(),
            "recovered_common": share_recovered(recovery.log_odds[common]).tolist() if common.any() else None,
            "n_common": int(common.sum()),
        },
        "depth": depth(kl, recovery, *bootstrap, clusters_of(pairs)),
        "margin": margin(recovery),
        "per_prompt": {
            "ids": [pair.id for pair in pairs],
            "kl": None if kl is None else _holes(kl),
            "recovery_log_odds": _holes(recovery.log_odds),
        },
    }
    return records.Profile.parse({**curves, "meta": meta}, records.PROFILE)


def _holes(table: Array) -> list[list[float | None]]:
    return [[None if np.isnan(x) else float(x) for x in row] for row in table]


def describe(profile: records.Profile, name: str) -> str:
    """The depth figures of the model called `name`, as a few lines for the terminal."""
    share, half = profile.depth.share_first5, profile.depth.half_kl_position
    lines = [f"{name}: {profile.prompts} prompts"]
    if share is None or half is None or share.value is None:
        what = "has no base to compare with" + ("" if profile.kl is None else " that differs")
        lines.append(f"  no KL profile: the model {what}")
    else:
        lines.append(
            f"  {share.value:.0%} of the KL to {profile.meta.base} lies in the first {FIRST} answer tokens "
            f"[{share.low:.0%}, {share.high:.0%}]; half of it by position {half.value:.0f}"
        )
    lines.append(f"  half of the prompts recover to a refusal {_depth_phrase(profile)}")
    if profile.margin and profile.margin.k[:1] == [0]:
        low, median, high = (profile.margin.quantiles[q][0] for q in ("0.05", "0.5", "0.95"))
        lines.append(
            f"  margin of refusal before any harmful token: {median:+.1f} nats (5 % to 95 %: {low:+.1f} to {high:+.1f})"
        )
    return "\n".join(lines)


def _depth_phrase(profile: records.Profile) -> str:
    """How deep recovery goes, with what is known of it."""
    figure = profile.depth.recovery_k
    gaps = [] if figure.value is None else profile.recovery.gaps(figure.value)
    but = f", though not at k = {', '.join(map(str, gaps))}" if gaps else ""
    value, low, high = ("none" if x is None else f"{x:.0f}" for x in (figure.value, figure.low, figure.high))
    return {
        "every": f"at every k measured, up to {value} (censored)",
        "last": f"at the largest k measured, {value} (censored){but}",
        "none": "at no k, not even without a harmful token (censored)",
        None: f"up to k = {value} [{low}, {high}]{but}",
    }[figure.censored]
