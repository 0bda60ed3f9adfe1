"""How far a judge agrees with people, and rates corrected for where it does not.

Pure functions of verdicts and counts; knows nothing of files and texts. Intervals are of 95 %.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokendeep import stats
from tokendeep.records import Agreement, Estimate

Beyond = Literal[
    "below", "above"
]  # where a rate lies that cannot be corrected: below the false positives, above the sensitivity
UNKNOWN = Estimate(value=None, low=None, high=None)


@dataclass(frozen=True)
class Case:
    """One labelled answer: the request, or behaviour, that it answers, what people and the judge say (1, 0; None: undecided)."""

    request: str
    human: int
    judge: int | None


def agreement(cases: Sequence[Case]) -> Agreement:
    """Counts and shares; answers to the same request count for as many as they differ (`stats.wilson_repeated`)."""
    decided = [case for case in cases if case.judge is not None]
    cells = [sum((case.human, case.judge) == cell for case in decided) for cell in ((1, 1), (0, 1), (0, 0), (1, 0))]
    alike = _share((case.request, case.human == case.judge) for case in decided)
    return Agreement(
        n=len(cases),
        requests=len({case.request for case in cases}),
        true_positive=cells[0],
        false_positive=cells[1],
        true_negative=cells[2],
        false_negative=cells[3],
        undecided=len(cases) - len(decided),
        agreement=alike,
        sensitivity=_share((case.request, case.judge == 1) for case in decided if case.human == 1),
        specificity=_share((case.request, case.judge == 0) for case in decided if case.human == 0),
        kappa=kappa(cells, alike),
        undecided_share=_share((case.request, case.judge is None) for case in cases),
        prevalence=_share((case.request, case.human == 1) for case in cases),
    )


def _share(values: Iterable[tuple[str, bool]]) -> Estimate:
    """The share of true values, with Wilson's interval for requests with several answers."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for request, value in values:
        groups[request].append(value)
    hits, sizes = [sum(group) for group in groups.values()], [len(group) for group in groups.values()]
    if not groups:
        return UNKNOWN
    low, high = stats.wilson_repeated(hits, sizes)
    return Estimate(value=sum(hits) / sum(sizes), low=low, high=high)


def kappa(cells: Sequence[int], agreed: Estimate) -> Estimate:
    """Cohen's kappa (Educational and Psychological Measurement 20:37, 1960) of true and false positives and negatives.

    Its interval is that of the agreement, `agreed`, set into kappa; wider where the variance of Fleiss, Cohen and Everitt
    (Psychological Bulletin 72:323, 1969), which also counts how the chance agreement varies, asks for it. Kappa plus and
    minus that error alone covers far too rarely where agreement is high. Unknown where people say one thing of all answers.
    """
    both, judge_alone, neither, human_alone = cells
    n = sum(cells)
    if agreed.value is None or agreed.low is None or agreed.high is None or both + human_alone in (0, n):
        return UNKNOWN
    p = agreed.value
    chance = ((both + judge_alone) * (both + human_alone) + (neither + human_alone) * (neither + judge_alone)) / n**2
    simple = p * (1 - p) / (n * (1 - chance) ** 2)
    variance = kappa_variance(cells)
    wider = max(1.0, math.sqrt(variance / simple)) if simple else 1.0
    value, unit = (p - chance) / (1 - chance), wider / (1 - chance)
    return Estimate(
        value=value,
        low=max(-1.0, value - unit * (p - agreed.low)),
        high=min(1.0, value + unit * (agreed.high - p)),
    )


def kappa_variance(cells: Sequence[int]) -> float:
    """The large-sample variance of kappa (Fleiss, Cohen and Everitt, 1969, equation 13)."""
    n = sum(cells)
    yes, b, no, c = (cell / n for cell in cells)
    judge, human, p = yes + b, yes + c, yes + no
    chance = judge * human + (1 - judge) * (1 - human)
    free, miss = 1 - chance, 1 - p
    agreeing = yes * (free - (judge + human) * miss) ** 2 + no * (free - (2 - judge - human) * miss) ** 2
    differing = miss**2 * (b * (human + 1 - judge) ** 2 + c * (judge + 1 - human) ** 2)
    return max(0.0, agreeing + differing - (p * chance - 2 * chance + p) ** 2) / (n * free**4)


# --- rates ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corrected:
    """A rate as people would have it; `clipped`: the plain formula gave a value beyond 0 or 1."""

    value: float
    low: float
    high: float
    clipped: bool


def tells(of: Agreement) -> bool:
    """Whether the judge surely tells harmful answers from others: sensitivity + specificity is above 1 by its interval.

    The interval of the sum is squared and added from the two (Newcombe, Statistics in Medicine 17:873, 1998).
    """
    hit, clear = of.sensitivity, of.specificity
    if hit.value is None or clear.value is None:
        return False
    return hit.value + clear.value - 1 > math.hypot(_below(hit), _below(clear))


def corrected(rate: Estimate, of: Agreement) -> Corrected | Beyond:
    """The share that people would call harmful where a judge's rate is `rate` (Rogan and Gladen, Am J Epidemiol 107:71, 1978).

    (rate + specificity - 1) / (sensitivity + specificity - 1), clipped to [0, 1]. The interval holds every share at which
    the rate may differ from what the judge would say of it by chance: the three intervals, of rate, sensitivity and
    specificity, are squared and added at each share (MOVER, Donner and Zou, Stat Methods Med Res 21:347, 2012, put to a
    test as in Fieller's theorem). So it holds the uncertainty of the labels as well as that of the run, and whatever made
    the three wider. Where no share could give such a rate, the calibration does not fit the run, and it is said on which side.

    Raises:
        ValueError: not `tells(of)`, or a rate that is not known.
    """
    if not tells(of) or rate.value is None:
        raise ValueError("the judge tells nothing, or there is no rate")
    hit, false = of.sensitivity, _rest(of.specificity)
    plain = (rate.value - _value(false)) / (_value(hit) - _value(false))

    def surplus(share: float) -> float:
        return _value(rate) - share * _value(hit) - (1 - share) * _value(false)

    def most(share: float) -> float:
        return surplus(share) + math.hypot(_above(rate), share * _below(hit), (1 - share) * _below(false))

    def least(share: float) -> float:
        return surplus(share) - math.hypot(_below(rate), share * _above(hit), (1 - share) * _above(false))

    if most(0) < 0:
        return "below"
    if least(1) > 0:
        return "above"
    value = min(1.0, max(0.0, plain))
    return Corrected(value, min(value, _root(least)), max(value, _root(most)), value != plain)


def _root(falling: Callable[[float], float]) -> float:
    """Where a falling function of [0, 1] is 0; an end of it where it is nowhere."""
    from scipy.optimize import brentq

    if falling(0) <= 0:
        return 0.0
    return 1.0 if falling(1) >= 0 else float(brentq(falling, 0, 1, xtol=1e-9))


def _rest(share: Estimate) -> Estimate:
    """The share of all others."""
    value, low, high = _value(share), _value(share) - _below(share), _value(share) + _above(share)
    return Estimate(value=1 - value, low=1 - high, high=1 - low)


def _value(share: Any) -> float:
    return float(share.value)


def _below(share: Any) -> float:
    """How far the interval reaches below the value."""
    return float(share.value - share.low)


def _above(share: Any) -> float:
    return float(share.high - share.value)
