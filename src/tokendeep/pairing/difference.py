"""How much a share or a score has changed on the same prompts: interval, p, what could be seen, what would decide.

Where prompts change by 1 or not at all, the interval is that of the score test of a paired difference (Tango,
Statistics in Medicine 17:891, 1998). One-sided it keeps its level better than Newcombe's, which `stats.mcnemar` gives.
Scores between 0 and 1, and means over several answers, change by less than that test takes for granted: theirs is the
paired t, which goes by how much the changes do spread. Where few prompts changed, that is not known, and the score test
stays, which is too wide then. Either is on as many prompts as the data are worth: their number divided by the design
effect of near-duplicate prompts and of several runs. Pure numbers, from -1 to 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, variance

from tokendeep import stats

POWER = 0.8
MOST = 10_000_000  # prompts that nobody has
ALIKE = (
    3  # groups of near-duplicates taken to be all alike beside those seen: by simulation few changes tell too little
)
MOVED = (
    15  # prompts, near-duplicates as one, from which on the paired t keeps its level if most others stay as they were
)
STEPS = 60  # halvings of an interval: to the last digit


@dataclass(frozen=True)
class Difference:
    """Share, or mean score, after minus before on n prompts.

    Args:
        lost, gained: by how much the values of the prompts fell, and rose, in all; of single answers, how many did.
        effect: the design effect: n / effect prompts without near-duplicates, asked once, tell as much.
        between: the part of it that more prompts do not take away: how much runs of one side differ.
        freedom: degrees of freedom of the effect.
        whole: every prompt fell, rose or stayed, by 1 or not at all.
        spread: the variance of the changes, where the paired t goes by it; 0: the tests of values of 0 and 1 do.
        parts: degrees of freedom of what near-duplicates, and what runs, bring to the effect; of the paired t.
    """

    n: float
    lost: float
    gained: float
    effect: float = 1.0
    between: float = 0.0
    freedom: float = math.inf
    whole: bool = True
    spread: float = 0.0
    parts: tuple[float, float] = (math.inf, math.inf)

    @property
    def mean(self) -> float:
        return (self.gained - self.lost) / self.n

    @property
    def exact(self) -> bool:
        """Whether every prompt stands for itself and has one answer, so that the exact test holds."""
        return self.whole and self.effect == 1 and self.freedom == math.inf

    @property
    def test(self) -> str:
        """The name of the test."""
        return "paired t" if self.spread else "exact McNemar" if self.exact else "score"

    def interval(self, level: float = stats.LEVEL) -> tuple[float, float]:
        """The interval of a confidence `level`; its upper end at 0.9 is the one-sided bound of 95 %."""
        z = self._quantile(0.5 + level / 2)
        if self.spread:
            return max(-1.0, self.mean - z * self._error), min(1.0, self.mean + z * self._error)
        high = _edge(lambda d: self._score(d) > -z, self.mean, 1.0)
        low = -_edge(lambda d: self._score(-d) < z, -self.mean, 1.0)
        return low, high

    def p(self) -> float:
        """Two-sided, of `test`."""
        if self.spread:
            return 2 * self._tail(abs(self.mean) / self._error)
        if self.exact:
            return stats.mcnemar_p(round(self.lost), round(self.gained))
        return 2 * self._tail(abs(self._score(0.0))) if self.lost + self.gained else 1.0

    def detectable(self) -> float | None:
        """The smallest true difference that the two-sided test finds in about 80 of 100 such comparisons; None: not even 1.

        With as many prompts and as much change in either direction as was seen (Connor, Biometrics 43:207, 1987); of
        the paired t, with as much spread.
        """
        if self.spread:
            found = (self._quantile(0.975) + self._quantile(POWER)) * self._error
            return found if found <= 1 else None
        alpha, beta, seen = self._quantile(0.975), NormalDist().inv_cdf(POWER), (self.lost + self.gained) / self.n

        def missed(d: float) -> bool:
            changed = max(seen, d)
            need = alpha * math.sqrt(changed) + beta * math.sqrt(max(0.0, changed - d * d))
            return d * math.sqrt(self.n / self.effect) < need

        return None if missed(1.0) else _edge(missed, 0.0, 1.0)

    def deciding(self, limit: float) -> int | None:
        """Prompts from which the one-sided bound is on one side of `limit`, were shares to stay; None: no number does."""
        return next((n for n in _numbers(math.ceil(self.n)) if self._at(n).verdict(limit) != "undecided"), None)

    def verdict(self, limit: float) -> str:
        """pass: the one-sided upper 95 % bound is within the limit; fail: the lower one is beyond it; else undecided."""
        low, high = self.interval(2 * stats.LEVEL - 1)
        return "pass" if high <= limit else "fail" if low > limit else "undecided"

    def _at(self, n: int) -> Difference:
        more = n / self.n
        own, between = self.effect - self.between, self.between * more
        prompts, runs = (self.parts[0] + 1) * more - 1, self.parts[1]
        freedom = _together([(own, prompts), (between, runs)]) if self.spread else self.freedom
        return replace(
            self, n=n, lost=self.lost * more, gained=self.gained * more, effect=max(1.0, own + between),
            between=between, freedom=freedom, parts=(prompts, runs),
        )  # fmt: skip

    @property
    def _error(self) -> float:
        """The standard error of the mean, of the paired t."""
        return math.sqrt(self.spread * self.effect / self.n)

    def _score(self, d: float) -> float:
        """The score statistic of a true difference d."""
        n, lost, gained = (value / self.effect for value in (self.n, self.lost, self.gained))
        b = (2 * n + lost - gained) * d - lost - gained
        share = (math.sqrt(max(0.0, b * b + 8 * n * lost * d * (1 - d))) - b) / (4 * n)  # that fall, were d true
        spread = n * (2 * share + d * (1 - d))
        surplus = gained - lost - n * d
        return surplus / math.sqrt(spread) if spread > 1e-12 else math.copysign(math.inf, surplus) if surplus else 0.0

    def _quantile(self, share: float) -> float:
        return NormalDist().inv_cdf(share) if self.freedom == math.inf else stats.student(self.freedom, share)

    def _tail(self, score: float) -> float:
        from scipy.special import stdtr

        return NormalDist().cdf(-score) if self.freedom == math.inf else float(stdtr(self.freedom, -score))


def difference(
    changes: Sequence[float], clusters: Sequence[int] | None = None, runs: Sequence[Sequence[float]] = ()
) -> Difference:
    """The mean of `changes`, the value of each prompt after minus before.

    Args:
        clusters: of each prompt; near-duplicates share one.
        runs: for each side with several runs, by how much the mean of each lies off that of all. How much runs differ is
            then part of the interval, which is of more such runs.

    Raises:
        ValueError: no changes, or clusters of another length.
    """
    if not changes:
        raise ValueError("no prompts")
    n, gained, lost = len(changes), sum(x for x in changes if x > 0), -sum(x for x in changes if x < 0)
    plain = Difference(n, lost, gained, whole=all(x in (-1, 0, 1) for x in changes))
    groups = stats.group_count(n, clusters)
    spread = _spread(plain, changes, clusters, groups)
    # the variance of the mean, did every prompt stand for itself
    alone = spread / n if spread else ((lost + gained) / n - plain.mean**2) / max(1, n - 1)
    clustered = _clustered(changes, clusters)
    if clusters is not None and groups < n:
        changed = len({cluster for cluster, change in zip(clusters, changes, strict=True) if change})
        clustered = max(clustered, (changed * clustered + ALIKE * alone * n / groups) / (changed + ALIKE))
    own = (clustered, groups - 1 if groups < n or spread else math.inf)
    rest = [(variance(one) / len(one), len(one) - 1) for one in runs]
    total = clustered + sum(value for value, _ in rest)
    if alone < 1e-15 or groups == 1:  # nothing tells how alike the prompts of a cluster are
        return replace(plain, effect=max(n / groups, 1.0))
    return replace(
        plain,
        effect=max(1.0, total / alone) if groups < n or runs else 1.0,
        between=(total - clustered) / alone,
        freedom=_together([own, *rest]),
        spread=spread,
        parts=(own[1], _together(rest)),
    )


def _together(parts: Sequence[tuple[float, float]]) -> float:
    """The degrees of freedom of a sum of variances, each with its own (Satterthwaite, Biometrics 2:110, 1946)."""
    squares = sum(value**2 / max(freedom, 1.0) for value, freedom in parts)
    return sum(value for value, _ in parts) ** 2 / squares if squares else math.inf


def _spread(plain: Difference, changes: Sequence[float], clusters: Sequence[int] | None, groups: float) -> float:
    """The variance of the changes by which the paired t goes; 0 where they are whole, or tell it too badly."""
    if plain.whole or groups <= 1 or _moved(changes, clusters) < min(MOVED, groups / 3):
        return 0.0
    found = variance(changes)
    return found if found > 1e-12 else 0.0


def _moved(changes: Sequence[float], clusters: Sequence[int] | None) -> float:
    """How many prompts have changed, near-duplicates as one, and those that changed little for less (Kish)."""
    sizes: dict[int, float] = defaultdict(float)
    for cluster, change in zip(range(len(changes)) if clusters is None else clusters, changes, strict=True):
        sizes[cluster] += abs(change)
    squares = sum(size**2 for size in sizes.values())
    return sum(sizes.values()) ** 2 / squares if squares else 0.0


def _clustered(changes: Sequence[float], clusters: Sequence[int] | None) -> float:
    """The variance of the mean, with whole clusters drawn."""
    sums: dict[int, float] = defaultdict(float)
    mean = fmean(changes)
    for cluster, change in zip(range(len(changes)) if clusters is None else clusters, changes, strict=True):
        sums[cluster] += change - mean
    return sum(x * x for x in sums.values()) * len(sums) / max(1, len(sums) - 1) / len(changes) ** 2


def _edge(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Up to where something holds that holds at `low`, and from some place on does not."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high


def _numbers(n: int) -> list[int]:
    """Numbers of prompts worth trying, in steps of 1 %."""
    tried = [n + 1]
    while tried[-1] < MOST:
        tried.append(max(tried[-1] + 1, round(tried[-1] * 1.01)))
    return tried
