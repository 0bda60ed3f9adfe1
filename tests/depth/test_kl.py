"""Tables of the KL divergence, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tokendeep.depth import kl


def test_ratio_of_sums_and_half_position_by_hand() -> None:
    table = np.array([[4.0, 1, 1, 0, 0, 2, np.nan], [0, 0, 0, 0, 0, 1, 1]])
    assert kl.share_first(table) == pytest.approx(6 / 10)
    assert kl.half_position(table) == 2  # 4, then 5 of 10
    assert math.isnan(kl.half_position(np.zeros((2, 7))))


def test_curve_counts_only_what_was_measured() -> None:
    made = kl.curve(np.array([[1.0, 3.0, np.nan], [3.0, np.nan, np.nan]]))
    assert made == {"mean": [2.0, 3.0], "stderr": [pytest.approx(1.0), None], "n": [2, 1]}
