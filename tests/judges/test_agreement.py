"""Agreement of a judge with people: hand-computed counts and kappa; corrected rates, whose intervals cover."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest

from tokendeep import stats
from tokendeep.judges import agreement
from tokendeep.judges.agreement import Case, Corrected
from tokendeep.records import Agreement, Estimate


def of(sensitivity: Estimate, specificity: Estimate) -> Agreement:
    """An agreement of which only two shares matter."""
    one = agreement.agreement([])
    return one.model_copy(update={"sensitivity": sensitivity, "specificity": specificity})


@cache
def share(hits: int, n: int) -> Estimate:
    low, high = stats.wilson(hits, n)
    return Estimate(value=hits / n, low=low, high=high)


def exact(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value)


def corrected(rate: Estimate, judge: Agreement) -> Corrected:
    made = agreement.corrected(rate, judge)
    assert isinstance(made, Corrected)
    return made


def test_counts_and_shares_leave_the_undecided_out() -> None:
    said = [(1, 1)] * 6 + [(1, 0)] * 2 + [(0, 0)] * 9 + [(0, 1)] + [(1, None)] * 2
    made = agreement.agreement([Case(str(i), human, judge) for i, (human, judge) in enumerate(said)])
    cells = (made.true_positive, made.false_positive, made.true_negative, made.false_negative, made.undecided)
    assert (made.n, made.requests, *cells) == (20, 20, 6, 1, 9, 2, 2)
    assert made.sensitivity == share(6, 8)
    assert made.specificity == share(9, 10)
    assert made.agreement == share(15, 18)
    assert made.undecided_share == share(2, 20)
    assert made.prevalence == share(10, 20)


def test_answers_to_one_request_are_not_independent() -> None:
    alone = [Case(str(i), 1, int(i % 4 > 0)) for i in range(40)]
    alike = [Case(str(i % 8), 1, int(i % 4 > 0)) for i in range(40)]
    one, other = agreement.agreement(alone).sensitivity, agreement.agreement(alike).sensitivity
    assert one.value == other.value == 0.75
    assert other.low < one.low - 0.1  # type: ignore[operator]


def test_what_cannot_be_counted_is_not_known() -> None:
    made = agreement.agreement([Case("a", 1, 1), Case("b", 1, None)])
    assert made.specificity == made.kappa == agreement.UNKNOWN
    assert not agreement.tells(made)


def test_kappa_by_hand() -> None:
    # 20 both yes, 15 both no, 5 and 10 apart, of 50: agreement .7, by chance .5; kappa .4
    # variance (.02743 + .02547 - .0025) / (50 * .5 ** 4)
    assert agreement.kappa_variance([20, 5, 15, 10]) == pytest.approx(0.0504 / 3.125)
    made = agreement.kappa([20, 5, 15, 10], share(35, 50))
    assert made.value == pytest.approx(0.4)
    low, high = stats.wilson(35, 50)
    assert (made.low, made.high) == pytest.approx((0.4 - (0.7 - low) / 0.5, 0.4 + (high - 0.7) / 0.5))


def test_kappa_below_chance_varies_more_than_the_agreement() -> None:
    cells = [2, 25, 1, 5]  # the judge calls harmful what people call harmless
    p, chance = 3 / 33, (27 * 7 + 6 * 26) / 33**2
    wider = math.sqrt(agreement.kappa_variance(cells) / (p * (1 - p) / (33 * (1 - chance) ** 2)))
    made = agreement.kappa(cells, share(3, 33))
    assert wider > 1.5
    assert made.high == pytest.approx(made.value + wider * (stats.wilson(3, 33)[1] - p) / (1 - chance))  # type: ignore[operator]


def test_perfect_agreement_of_few_is_not_certain() -> None:
    made = agreement.kappa([10, 0, 10, 0], share(20, 20))
    assert made.value == made.high == 1
    assert made.low == pytest.approx(1 - 2 * (1 - stats.wilson(20, 20)[0]))


def test_a_corrected_rate_by_hand() -> None:
    made = corrected(exact(0.5), of(exact(0.9), exact(0.8)))
    assert (made.value, made.low, made.high) == pytest.approx((3 / 7, 3 / 7, 3 / 7))
    assert not made.clipped


def test_a_perfect_judge_leaves_the_interval_as_it_is() -> None:
    made = corrected(share(7, 40), of(exact(1), exact(1)))
    assert (made.low, made.high) == pytest.approx(stats.wilson(7, 40))


def test_few_labels_make_the_interval_wide() -> None:
    few = corrected(share(70, 100), of(share(27, 30), share(24, 30)))
    many = corrected(share(70, 100), of(share(2700, 3000), share(2400, 3000)))
    assert few.value == pytest.approx(many.value)
    assert few.high - few.low > 1.3 * (many.high - many.low)
    assert many.high - many.low > stats.wilson(70, 100)[1] - stats.wilson(70, 100)[0]


def test_a_rate_below_the_false_positives_is_clipped_and_one_far_below_refused() -> None:
    judge = of(share(45, 50), share(80, 100))
    made = corrected(share(5, 30), judge)
    assert (made.value, made.low, made.clipped) == (0, 0, True)
    assert made.high > 0.05
    assert agreement.corrected(share(0, 300), judge) == "below"
    assert agreement.corrected(share(300, 300), judge) == "above"
    above = of(share(300, 1000), share(950, 1000))
    assert agreement.corrected(share(90, 200), above) == "above"  # .45, which is below one half
    assert agreement.corrected(share(110, 200), of(share(950, 1000), share(300, 1000))) == "below"


def test_a_judge_that_tells_nothing_corrects_nothing() -> None:
    weak = of(share(18, 30), share(14, 30))
    assert not agreement.tells(weak)
    with pytest.raises(ValueError, match="tells nothing"):
        agreement.corrected(share(5, 30), weak)
    assert agreement.tells(of(share(28, 30), share(14, 30)))


JUDGES = ((0.8, 0.8), (0.95, 0.95), (0.8, 0.99), (0.99, 0.7))


@cache
def bounds(x: int, n: int, hits: int, harmful: int, clear: int, harmless: int) -> tuple[float, float] | None:
    judge = of(share(hits, harmful), share(clear, harmless))
    if not agreement.tells(judge):
        return None
    made = agreement.corrected(share(x, n), judge)
    return (made.low, made.high) if isinstance(made, Corrected) else None


@pytest.mark.slow
def test_intervals_of_corrected_rates_cover() -> None:
    """Runs of 10 to 300 answers, prevalence 0 to 1, 60 to 300 labels; ten answers under a judge that is nearly never wrong
    where Wilson's interval itself covers .90 are the worst."""
    rng, draws, coverage, given = np.random.default_rng(0), 4000, {}, {}
    settings = itertools.product((10, 20, 50, 300), (60, 300), (0.2, 0.5), JUDGES, (0, 0.05, 0.3, 0.8, 1))
    for n, labels, share_harmful, (hit, clear), truth in settings:
        harmful = round(labels * share_harmful)
        drawn = zip(
            rng.binomial(n, truth * hit + (1 - truth) * (1 - clear), draws).tolist(),
            rng.binomial(harmful, hit, draws).tolist(),
            rng.binomial(labels - harmful, clear, draws).tolist(),
            strict=True,
        )
        made = [bounds(x, n, a, harmful, b, labels - harmful) for x, a, b in drawn]
        inside = [low - 1e-9 <= truth <= high + 1e-9 for low, high in filter(None, made)]
        key = (n, labels, share_harmful, hit, clear, truth)
        coverage[key], given[key] = np.mean(inside), len(inside) / draws
    assert min(coverage.values()) >= 0.92, min(coverage, key=lambda key: float(coverage[key]))
    assert min(each for (n, *_), each in coverage.items() if n >= 20) >= 0.93
    assert 0.95 <= np.mean(list(coverage.values())) <= 0.975
    assert min(given.values()) > 0.9


@pytest.mark.slow
def test_intervals_of_kappa_cover() -> None:
    rng, draws, coverage = np.random.default_rng(0), 2000, {}
    for n, prevalence, (hit, clear) in itertools.product((60, 300), (0.1, 0.3, 0.5), (*JUDGES, (0.99, 0.99))):
        cells = np.array(
            [prevalence * hit, (1 - prevalence) * (1 - clear), (1 - prevalence) * clear, prevalence * (1 - hit)]
        )
        one = [int(cell) for cell in np.round(cells * 1e9)]
        truth = agreement.kappa(one, share(one[0] + one[2], sum(one))).value
        made = [
            agreement.kappa(each, share(each[0] + each[2], n)) for each in rng.multinomial(n, cells, draws).tolist()
        ]
        known = [(one.low, one.high) for one in made if one.value is not None and not math.isnan(one.value)]
        coverage[n, prevalence, hit, clear] = np.mean([low <= truth <= high for low, high in known])  # type: ignore[operator]
    assert min(coverage.values()) >= 0.92, min(coverage, key=lambda key: float(coverage[key]))
