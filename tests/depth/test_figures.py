"""The depth figures against models with planted depth and hand-made tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from planted import LONG, OPENINGS, harmful_rows, planted
from tokendeep import models
from tokendeep.compute import scoring, trees
from tokendeep.depth import figures, kl, recovery


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


def test_censored_recovery_is_said() -> None:
    rows, ks = harmful_rows(3), [0, 5, 10]
    every, none = planted(LONG), planted(0)
    for subject, censored, value in ((every, "every", 10), (none, "none", None)):
        log_odds = recovery.recovery_log_odds(subject, rows, OPENINGS, ks, [LONG] * 3)
        figure = figures.depth(None, recovery.Recovery(ks, log_odds), 100, 0)["recovery_k"]
        assert (figure["censored"], figure["value"]) == (censored, value)


def test_a_few_long_answers_do_not_decide_the_depth() -> None:
    log_odds = np.full((10, 3), -1.0)
    log_odds[:, 0] = 1.0
    log_odds[2:, 2] = np.nan
    log_odds[:2, 2] = 1.0  # two prompts of ten reach k = 40, and both recover there
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
