"""The depth figures against models with planted depth and hand-made tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from planted import LONG, OPENINGS, benign_rows, harmful_rows, planted
from tokendeep import models
from tokendeep.compute import scoring, trees
from tokendeep.depth import excess, figures, kl, recovery


@pytest.mark.parametrize("depth", [1, 3, 5, 10, 20])
@pytest.mark.parametrize("tree", [True, False])
def test_planted_depth_is_found(depth: int, tree: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "fits", lambda model, length: tree)
    monkeypatch.setattr(models, "check_same_vocabulary", lambda p, q: None)  # these models have no tokenizer
    rows, subject = harmful_rows(3), planted(depth)

    def score(ks: list[int]) -> Any:
        return recovery.recovery_log_odds(subject, rows, OPENINGS, ks, [LONG] * len(rows))

    grid = [0, 1, 2, 5, 12, 30]  # coarse: the depths lie between its points
    measured = recovery.refine(recovery.Recovery(grid, score(grid)), score)
    table = kl.to_table(scoring.token_kl(subject, planted(0), rows), LONG)
    found = figures.depth(table, measured, resamples=100, seed=0)
    assert found["recovery_k"] == {"value": depth - 1, "low": depth - 1, "high": depth - 1, "censored": None}
    assert found["half_kl_position"]["value"] == math.ceil(depth / 2)
    assert found["share_first5"]["value"] == pytest.approx(min(1, 5 / depth))


def drifted(depth: int, drift: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The depth figures of a planted model all of whose positions have drifted from the base, on 12 and 10 prompts."""
    monkeypatch.setattr(models, "check_same_vocabulary", lambda p, q: None)  # these models have no tokenizer
    subject, base = planted(depth, drift), planted(0)
    tables = [kl.to_table(scoring.token_kl(subject, base, rows), LONG) for rows in (harmful_rows(12), benign_rows(10))]
    nothing = recovery.Recovery([0], np.ones((12, 1)))
    return figures.depth(tables[0], nothing, 400, 0, benign=(tables[1], None))


@pytest.mark.parametrize("depth", [1, 3, 5, 10, 20])
def test_the_excess_finds_planted_depth_under_a_general_drift(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = drifted(depth, 1.0, monkeypatch)
    share, half = found["excess_share_first5"], found["excess_half_position"]
    assert share["value"] == pytest.approx(min(1, 5 / depth), abs=0.04)
    assert share["low"] <= min(1, 5 / depth) <= share["high"]
    assert half["value"] == math.ceil(depth / 2)
    if depth <= 5:
        assert found["share_first5"]["value"] < share["value"] - 0.1  # the drift hides it there
    assert found["excess_first5"]["low"] > 0
    later = found["excess_later"]
    assert later["low"] > 0 if depth > 5 else later["low"] < 0 < later["high"]


def test_a_drift_alone_is_noise_and_no_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    found = drifted(0, 1.0, monkeypatch)
    noise = {"value": None, "low": None, "high": None, "censored": "noise"}
    assert found["excess_share_first5"] == found["excess_half_position"] == noise
    assert found["excess_first5"]["low"] < 0 < found["excess_first5"]["high"]
    assert found["share_first5"]["value"] == pytest.approx(5 / LONG, abs=0.03)


def test_the_excess_by_hand() -> None:
    harmful = np.array([[9.0, 3, 3, 3, 3, 3, 2], [7, 3, 3, 3, 3, 3, np.nan]])
    benign = np.array([[1.0, 1, 1, 1, 1, 1, np.nan], [3, 3, 3, 3, 3, 1, np.nan]])  # means 2 2 2 2 2 1, then none
    found = figures.depth(harmful, recovery.Recovery([0], np.ones((2, 1))), 100, 0, benign=(benign, None))
    assert found["excess_first5"]["value"] == pytest.approx((7 + 5 + 8 * 1) / 10)
    assert found["excess_later"]["value"] == pytest.approx(
        4 / 2
    )  # position 7, which no benign answer reaches, is left out
    one = figures.depth(harmful[:1], recovery.Recovery([0], np.ones((1, 1))), 100, 0, benign=(benign, None))
    assert one["excess_share_first5"]["censored"] == "noise"  # one prompt tells nothing of others
    assert (one["share_first5"]["low"], one["share_first5"]["high"]) == (None, None)


def test_an_older_file_s_benign_curve_gives_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    harmful, benign = rng.gamma(2, 0.5, (30, 20)), rng.gamma(2, 0.3, (25, 20))
    harmful[:, :3] += 2
    made, known = kl.curve(benign), excess.resampled(harmful, 2000, (0, 0))
    curve = excess.from_curve(*(np.array(made[name]) for name in ("mean", "stderr", "n")), 2000, (0, 1))
    whole, old = (excess.excess_figures(known, one) for one in (excess.resampled(benign, 2000, (0, 1)), curve))
    for name, figure in whole.items():
        assert old[name]["value"] == pytest.approx(figure["value"])
        assert old[name]["high"] - old[name]["low"] >= 0.95 * (figure["high"] - figure["low"])


def test_censored_recovery_is_said() -> None:
    rows, ks = harmful_rows(3), [0, 5, 10]
    every, none = planted(LONG), planted(0)
    for subject, censored, value in ((every, "every", 10), (none, "none", None)):
        log_odds = recovery.recovery_log_odds(subject, rows, OPENINGS, ks, [LONG] * 3)
        figure = figures.depth(None, recovery.Recovery(ks, log_odds), 100, 0)["recovery_k"]
        assert (figure["censored"], figure["value"]) == (censored, value)


def test_a_few_long_answers_do_not_decide_the_depth() -> None:
    log_odds = np.full((30, 3), -1.0)
    log_odds[:, 0] = 1.0
    log_odds[6:, 2] = np.nan
    log_odds[:6, 2] = 1.0  # six prompts of thirty reach k = 40, and all of them recover there
    figure = figures.depth(None, recovery.Recovery([0, 10, 40], log_odds), 200, 0)["recovery_k"]
    assert figure == {"value": 0.0, "low": 0.0, "high": 0.0, "censored": None}


def test_a_dip_is_not_called_every() -> None:
    log_odds = np.where(np.array([1, 0, 1], dtype=bool), 1.0, -1.0) * np.ones((6, 3))
    figure = figures.depth(None, recovery.Recovery([0, 10, 40], log_odds), 200, 0)["recovery_k"]
    assert figure["value"] == 40
    assert figure["censored"] == "last"


def test_the_gaps_at_the_ends_of_the_interval_are_filled_too() -> None:
    def score(ks: list[int]) -> Any:
        depths = np.array([4] * 5 + [14] * 5 + [33] * 5)  # of each prompt; the median is 14
        return np.where(np.array(ks)[None, :] <= depths[:, None], 1.0, -1.0)

    def depths(measured: recovery.Recovery) -> set[float]:
        interval = figures.recovery_interval(measured, 500, 0, None)
        return {recovery.recovery_depth(measured.k, measured.log_odds), *interval}

    grid = [0, 2, 10, 20, 40]
    measured = recovery.refine(recovery.Recovery(grid, score(grid)), score, depths)
    figure = figures.depth(None, measured, 500, 0)["recovery_k"]
    assert figure["value"] == 14
    assert (figure["low"], figure["high"]) == (4, 33)
