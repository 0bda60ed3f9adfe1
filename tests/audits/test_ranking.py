"""From scores to an order and a cut."""

from __future__ import annotations

import math

import pytest

from tokendeep.audits import ranking
from tokendeep.errors import InputError


@pytest.mark.parametrize(
    ("cut", "count"),
    [("20", 20), ("0", 0), ("0.05", 10), ("5%", 10), ("2.5%", 5), (".001", 1), ("0.0", 0), ("0%", 0), ("199", 199)],
)
def test_a_cut_is_a_share_or_a_count(cut: str, count: int) -> None:
    assert ranking.cut_count(cut, 200) == count


@pytest.mark.parametrize("cut", ["many", "-1", "1e-2", "", "5 %%", "0.0.5"])
def test_what_is_neither_is_refused(cut: str) -> None:
    with pytest.raises(InputError, match="must be a share such as 0.05 or 5%, or a count"):
        ranking.cut_count(cut, 200)


@pytest.mark.parametrize("cut", ["200", "1.0", "100%", "150%"])
def test_a_cut_that_leaves_nothing_is_refused(cut: str) -> None:
    with pytest.raises(InputError, match="flags all of the 200 rows"):
        ranking.cut_count(cut, 200)


def test_the_highest_first_equal_ones_in_their_order_and_none_last() -> None:
    assert ranking.order([1.0, math.nan, 3.0, 1.0, -2.0]) == [2, 0, 3, 4, 1]


def test_ties_at_the_cut_are_counted() -> None:
    values = [3.0, 1.0, 1.0, math.nan, 1.0, 0.0]
    assert [ranking.tied(values, count) for count in (0, 1, 2, 3, 4, 5)] == [0, 0, 2, 1, 0, 0]
