"""Paired differences: against hand-made numbers and published ones; the bounds by simulation."""

from __future__ import annotations

import math
from statistics import NormalDist, stdev

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from tokendeep import stats
from tokendeep.pairing.difference import Difference, difference


def changes(lost: int, gained: int, n: int) -> list[float]:
    return [-1.0] * lost + [1.0] * gained + [0.0] * (n - lost - gained)


def test_the_interval_is_that_of_the_score_test() -> None:
    """At its ends the statistic is the normal quantile; 0 of 100 changed: z^2 / (n + z^2)."""
    one = difference(changes(0, 1, 44))
    low, high = one.interval()
    for end, sign in ((low, 1), (high, -1)):  # where the statistic is the quantile
        assert one._score(end) == pytest.approx(sign * 1.959964, abs=1e-4)
    assert (low, high) == pytest.approx((-0.0600, 0.1184), abs=2e-3)
    assert difference(changes(0, 0, 100)).interval()[1] == pytest.approx(3.8415 / 103.8415, abs=1e-4)


def test_the_other_way_round_is_its_mirror() -> None:
    one, other = difference(changes(3, 11, 90)), difference(changes(11, 3, 90))
    assert one.interval() == pytest.approx([-end for end in reversed(other.interval())])
    assert one.p() == other.p() == stats.mcnemar([True] * 3 + [False] * 87, [False] * 3 + [True] * 11 + [False] * 76).p


def test_copies_of_a_prompt_tell_nothing_new() -> None:
    once = difference(changes(2, 8, 40))
    copied = difference([x for x in changes(2, 8, 40) for _ in range(5)], [i for i in range(40) for _ in range(5)])
    assert copied.effect == pytest.approx(5, rel=0.05)
    assert copied.mean == once.mean
    assert copied.interval() == pytest.approx(once.interval(), abs=0.02)
    assert copied.p() > difference([x for x in changes(2, 8, 40) for _ in range(5)]).p() * 100
    nothing = difference([0.0] * 200, [i for i in range(40) for _ in range(5)])
    assert nothing.interval() == pytest.approx(difference([0.0] * 40).interval())
    assert difference(changes(2, 8, 40), [0] * 40).effect == 40  # all of one kind: as one prompt


def test_the_interval_is_near_that_of_a_bootstrap_of_clusters() -> None:
    rng = np.random.default_rng(3)
    clusters = [int(i) for i in rng.integers(0, 120, size=400)]
    kinds = rng.choice([-1.0, 1.0, 0.0], p=[0.1, 0.2, 0.7], size=120)
    values = [float(kinds[i] if rng.random() < 0.6 else rng.choice([-1, 1, 0], p=[0.1, 0.2, 0.7])) for i in clusters]
    assert difference(values, clusters).interval() == pytest.approx(
        stats.bootstrap(values, clusters=clusters), abs=0.012
    )
    assert difference(values).interval()[1] < difference(values, clusters).interval()[1] - 0.01


def test_runs_that_differ_widen_the_interval() -> None:
    plain, wide = difference(changes(2, 8, 40)), difference(changes(2, 8, 40), runs=[[-0.1, 0.0, 0.1]])
    assert wide.effect > 1
    assert wide.freedom < 40
    assert wide.interval()[0] < plain.interval()[0]
    assert wide.interval()[1] > plain.interval()[1]
    far = difference(changes(2, 8, 40), runs=[[-0.2, 0.0, 0.2]])
    assert far.verdict(0.2) == "undecided"
    assert far.deciding(0.2) is None  # it takes other runs, not more prompts
    assert difference(changes(2, 8, 40)).deciding(0.2) is not None
    assert difference(changes(2, 8, 40), runs=[[0.0, 0.0]]).interval() == pytest.approx(plain.interval(), abs=1e-6)


def test_scores_between_0_and_1_are_taken_as_they_are() -> None:
    small = difference([0.1, -0.1] * 20)
    assert small.mean == pytest.approx(0)
    halves = difference([0.5, 0.5, 0.0])  # whose sum is a whole number
    assert not halves.exact
    assert small.interval()[1] < difference([1.0, -1.0] * 20).interval()[1] / 5


def by_hand(values: list[float]) -> tuple[float, float, float]:
    """The paired t: mean and ends of its 95 % interval."""
    found = ttest_1samp(values, 0.0)
    low, high = found.confidence_interval(0.95)
    return float(found.pvalue), float(low), float(high)


def test_changes_by_parts_of_1_are_tested_by_how_much_they_spread() -> None:
    """200 rows, a drop of .02 with a spread of .05: an interval of .014, which the test of 0 and 1 makes .067."""
    values = [-0.02 + 0.05 * NormalDist().inv_cdf((i + 0.5) / 200) for i in range(200)]
    one = difference(values)
    assert (one.p(), *one.interval()) == pytest.approx(by_hand(values))
    low, high = one.interval()
    assert 0.013 < high - low < 0.015
    assert one.test == "paired t"
    assert (one.effect, one.freedom) == (1, 199)
    assert [one.verdict(limit) for limit in (-0.03, -0.02, 0.0)] == ["fail", "undecided", "pass"]
    assert one.detectable() == pytest.approx((1.9720 + 0.8434) * 0.05 / math.sqrt(200), rel=0.01)  # t of 199: .975, .8
    few = [0.1, -0.2, 0.3, 0.25, 0.15]
    assert (difference(few).p(), *difference(few).interval()) == pytest.approx(by_hand(few))
    assert difference([0.0, 0.0, *few]).p() == pytest.approx(by_hand([0.0, 0.0, *few])[0])


def test_the_paired_t_says_how_many_rows_would_decide() -> None:
    """A drop of .01 with a spread of .05 against a limit of .015: z^2 (.05 / .005)^2 = 271 rows, some more by the t."""
    quantiles = [NormalDist().inv_cdf((i + 0.5) / 40) for i in range(40)]
    spread = 0.05 / stdev(quantiles)
    one = difference([0.01 + spread * x for x in quantiles])
    needed = one.deciding(0.015)
    assert one.verdict(0.015) == "undecided"
    assert needed is not None
    assert 271 < needed < 280
    more = [NormalDist().inv_cdf((i + 0.5) / needed) for i in range(needed)]
    assert difference([0.01 + 0.05 / stdev(more) * x for x in more]).verdict(0.015) == "pass"
    assert difference([0.1, 0.3]).detectable() is None  # one degree of freedom


def test_copies_of_a_row_tell_nothing_new_of_its_score() -> None:
    values = [0.03 + 0.1 * NormalDist().inv_cdf((i + 0.5) / 30) for i in range(30)]
    once, copied = (
        difference(values),
        difference([x for x in values for _ in range(4)], [i for i in range(30) for _ in range(4)]),
    )
    assert copied.test == once.test == "paired t"
    assert copied.freedom == once.freedom == 29
    assert copied.effect == pytest.approx(4, rel=0.05)
    assert copied.interval() == pytest.approx(once.interval(), abs=0.002)
    assert copied.p() == pytest.approx(once.p(), rel=0.1)
    assert (difference(values, [0] * 30).test, difference(values, [0] * 30).effect) == ("score", 30)  # all of one kind


def test_runs_that_differ_widen_the_paired_t() -> None:
    values = [0.03 + 0.1 * NormalDist().inv_cdf((i + 0.5) / 60) for i in range(60)]
    plain, wide = difference(values), difference(values, runs=[[-0.02, 0.0, 0.02]])
    error = math.sqrt(plain.spread / 60 + 0.02**2 / 3)
    assert wide._error == pytest.approx(error)
    assert 2 < wide.freedom < 12
    assert wide.interval()[1] - wide.mean == pytest.approx(stats.student(wide.freedom) * error)
    assert wide.deciding(0.04) is None  # it takes other runs, not more prompts


@pytest.mark.parametrize(
    "values", [[0.3], [0.3, 0.3], [-0.3] * 60, [0.0, 0.0], [0.0] * 199 + [1 / 3], [0.5] * 14 + [0.0] * 86]
)
def test_where_the_spread_is_not_known_the_test_of_0_and_1_stays(values: list[float]) -> None:
    """One prompt, the same change of all, or few of many that changed: no interval without width, none too narrow."""
    one = difference(values)
    assert one.test == "score" or not any(values)
    low, high = one.interval()
    assert -1 <= low < one.mean < high <= 1
    assert high - low > 0.015
    if len(set(values)) > 1:
        assert high > by_hand(values)[2]


def test_two_prompts_tell_little() -> None:
    low, high = difference([0.1, 0.3]).interval()
    assert (low, high) == (-1, 1)  # .2 -+ 12.7 * .1, as far as there are such differences


def test_what_could_have_been_found() -> None:
    """Connor's formula: 10 % change, a true difference of 9 points, two-sided 5 %, power 80 % needs 94 pairs."""
    seen = Difference(94, 5, 4.4)
    assert seen.detectable() == pytest.approx(0.09, abs=0.003)
    few = difference([0.0] * 20).detectable()  # nothing changed: 6 of 20 must change for the exact test
    assert few is not None
    assert 0.3 < few < 0.45
    assert difference([0.0] * 3).detectable() is None


@pytest.mark.parametrize(
    ("lost", "gained", "n", "limit", "verdict"),
    [
        (0, 0, 133, 0.02, "pass"),
        (0, 0, 132, 0.02, "undecided"),
        (0, 30, 100, 0.02, "fail"),
        (5, 5, 100, 0.02, "undecided"),
    ],
)
def test_verdicts(lost: int, gained: int, n: int, limit: float, verdict: str) -> None:
    """Where nothing changed the upper bound is z^2 / (n + z^2) with z = 1.645: 133 prompts for 2 points."""
    one = difference(changes(lost, gained, n))
    assert one.verdict(limit) == verdict
    if verdict == "undecided":
        needed = one.deciding(limit)
        assert needed is not None
        assert (
            difference(changes(round(lost * needed / n), round(gained * needed / n), needed)).verdict(limit) != verdict
        )
    assert difference(changes(2, 4, 100)).deciding(0.02) is None  # right at the limit: no number tells


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0.02, 0.05])
@pytest.mark.parametrize("n", [100, 300, 1000])
@pytest.mark.parametrize("lost", [0.0, 0.02, 0.1])
def test_at_the_limit_few_pass(limit: float, n: int, lost: float) -> None:
    """A true rise of just the limit: `pass` is wrong, and comes up in about 5 of 100."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(n, [lost, lost + limit, 1 - 2 * lost - limit], size=20_000)
    pairs, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    passed = [Difference(n, int(b), int(c)).verdict(limit) == "pass" for b, c in pairs]
    assert np.average(passed, weights=counts) < 0.065


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "n", "lost"), [(0.02, 133, 0.0), (0.04, 65, 0.0), (0.05, 52, 0.0), (0.03, 104, 0.005), (0.05, 250, 0.03)]
)
def test_the_published_levels_hold(limit: float, n: int, lost: float) -> None:
    """Exact sums at a true rise of just the limit, at the worst of those numbers of prompts (docs/howto/compare.md)."""
    said = {"pass": 0.0, "fail": 0.0, "undecided": 0.0}
    for b in range(int(binom.ppf(1 - 1e-9, n, lost)) + 1):
        chances = binom.pmf(b, n, lost) * binom.pmf(np.arange(n - b + 1), n - b, (lost + limit) / (1 - lost))
        for c, chance in enumerate(chances):
            if chance > 1e-12:
                said[Difference(n, b, c).verdict(limit)] += chance
    assert sum(said.values()) == pytest.approx(1, abs=1e-6)
    assert said["pass"] <= 0.071
    assert said["fail"] <= 0.099


@pytest.mark.slow
@pytest.mark.parametrize(("same", "lost"), [(0.0, 0.05), (0.5, 0.0), (0.5, 0.02), (1.0, 0.05)])
def test_at_the_limit_few_pass_with_near_duplicates(same: float, lost: float) -> None:
    """60 clusters of 1 to 8 prompts; a `same` share of clusters whose prompts all do the same."""
    rng, limit, passed = np.random.default_rng(1), 0.05, 0
    sizes = rng.integers(1, 9, size=60)
    clusters = [i for i, size in enumerate(sizes) for _ in range(size)]
    trials = 3000
    for _ in range(trials):
        alike = rng.random(60) < same
        values: list[float] = []
        for size, one in zip(sizes, alike, strict=True):
            drawn = rng.choice([-1.0, 1.0, 0.0], p=[lost, lost + limit, 1 - 2 * lost - limit], size=1 if one else size)
            values += list(np.broadcast_to(drawn, size))
        passed += difference(values, clusters).verdict(limit) == "pass"
    assert passed / trials < 0.065


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_at_the_limit_few_pass_with_several_runs(seeds: int) -> None:
    """Every run's own rate lies 4 points (sd) off; the true rise is the limit."""
    rng, limit, prompts, passed, trials = np.random.default_rng(2), 0.05, 100, 0, 2000
    for _ in range(trials):
        before = rng.random(prompts) < 0.3
        rates = 0.35 + rng.normal(0, 0.04, size=seeds)
        after = np.array([np.where(before, 0.7 + rate - 0.35, 0.2 + rate - 0.35) for rate in rates])
        answers = rng.random((seeds, prompts)) < after
        moved = answers.mean(0) - before
        off = answers.mean(1) - answers.mean()
        passed += difference(list(moved), runs=[list(off)]).verdict(limit) == "pass"
    assert passed / trials < 0.06


@pytest.mark.slow
@pytest.mark.parametrize(("n", "moving", "answers"), [(20, 1.0, 3), (100, 0.1, 3), (100, 0.3, 3), (300, 0.06, 10)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_at_the_limit_few_pass_with_several_answers(n: int, moving: float, answers: int, sign: int) -> None:
    """A `moving` share of prompts goes from never to .34 of its answers, or the other way: `pass` is rarely wrong."""
    rng, limit, passed, trials = np.random.default_rng(4), sign * 0.34 * moving, 0, 1500
    for _ in range(trials):
        moved = np.where(rng.random(n) < moving, sign * rng.binomial(answers, 0.34, size=n) / answers, 0.0)
        passed += difference(moved.tolist()).verdict(limit) == "pass"
    assert passed / trials < 0.075


@pytest.mark.slow
@pytest.mark.parametrize("alike", [0.0, 0.1])
@pytest.mark.parametrize("groups", [6, 15, 40])
def test_scores_of_near_duplicates_keep_their_coverage(groups: int, alike: float) -> None:
    """Clusters of 1 to 8 rows, whose changes have so much in common: the 95 % interval holds the truth."""
    rng, held, trials = np.random.default_rng(5), 0, 800
    for _ in range(trials):
        clusters = np.repeat(np.arange(groups), rng.integers(1, 9, size=groups))
        moved = 0.03 + rng.normal(0, alike or 1e-9, groups)[clusters] + rng.normal(0, 0.05, len(clusters))
        low, high = difference(moved.tolist(), clusters.tolist()).interval()
        held += low <= 0.03 <= high
    assert held / trials > 0.925
