"""Intervals, paired tests, the bootstrap over prompts, and clusters of near-duplicate texts.

Pure functions of numbers and texts; importing this file loads neither numpy nor scipy. Wrong arguments are the
caller's mistake (ValueError), not the user's. Intervals are of 95 %.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

LEVEL = 0.95  # confidence of every interval
BLOCK = 1000  # texts that are compared with all others at once
TELLING = 10  # prompts with a rare sample that tell how alike the samples of one prompt are; by simulation
# Thai, Lao, Burmese, Khmer, kana and Han: letters, marks and digits of scripts that are written without blanks between words
UNPARTED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e50-\u0e59\u0e81-\u0edf\u1000-\u1049\u1050-\u109f\u1780-\u17d3\u17d7\u17dc-\u17e9"
    "\u3005-\u3007\u3041-\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
)
_UNPARTED, _PIECES = re.compile(f"[{UNPARTED}]+"), re.compile(f"[{UNPARTED}]+|(?:(?![{UNPARTED}])\\w)+")
FEW = 15  # independent groups below which a bootstrap interval says so


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a confidence `level` for a proportion; (0, 1) for n = 0, where nothing is known.

    Raises:
        ValueError: not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    return _wilson(successes / n, n, level) if n else (0.0, 1.0)


def wilson_repeated(successes: Sequence[int], n: Sequence[int]) -> tuple[float, float]:
    """Wilson's interval for sum(successes) / sum(n), where the samples of one prompt are alike.

    The number of samples is divided by the design effect: the variance of the rate with prompts as clusters, over
    that of as many independent samples (Kish, Survey Sampling, 1965), made larger for few prompts by Student's t
    (Korn and Graubard, Survey Methodology 24:193, 1998), and for uneven numbers by as much as simulation asks for. It
    is at least 1, and at most its value for samples that are all alike within their prompt, which it is taken to be
    where nothing tells: all samples agree, or there is one prompt. Equally many samples a prompt then count as one. Where
    few prompts have any true sample, or any false one, little tells: the effect lies between both, by how many of TELLING
    these are. With one sample a prompt this is `wilson`.

    Args:
        successes, n: (prompts,) how many samples of each prompt are true, and how many there are.

    Raises:
        ValueError: different lengths, or not 0 <= successes <= n for some prompt.
    """
    if len(successes) != len(n) or not all(0 <= x <= size for x, size in zip(successes, n, strict=True)):
        raise ValueError(f"{list(successes)} successes of {list(n)}")
    total, prompts = sum(n), sum(size > 0 for size in n)
    if total == 0:
        return 0.0, 1.0
    p, effect = sum(successes) / total, sum(size * size for size in n) / total
    if effect == 1:
        return _wilson(p, total)
    few = (student(max(1.0, total / effect - 1)) / _z(LEVEL)) ** 2  # squared: an effect is a variance
    uneven = 1 - total / effect / prompts  # 0 where every prompt has as many samples
    effect *= 1 + min(1.0, 2 * uneven) * (few - 1)
    if 0 < p < 1 and prompts > 1:
        spread = sum((x - p * size) ** 2 for x, size in zip(successes, n, strict=True)) * prompts / (prompts - 1)
        seen = min(effect, max(1.0, spread / (p * (1 - p) * total)) * few * (1 + uneven))
        rare = min(sum(x > 0 for x in successes), sum(x < size for x, size in zip(successes, n, strict=True)))
        effect = seen + (effect - seen) * max(0.0, 1 - rare / TELLING)
    return _wilson(p, total / effect)


def _wilson(p: float, n: float, level: float = LEVEL) -> tuple[float, float]:
    """The interval around p of n independent samples; n need not be whole."""
    z = _z(level)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if p == 0 else max(0.0, centre - half)  # exact at the ends, where rounding would leave 1e-17
    high = 1.0 if p == 1 else min(1.0, centre + half)
    return low, high


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"confidence level {level}")
    return NormalDist().inv_cdf(0.5 + level / 2)


@dataclass(frozen=True)
class PairedTest:
    """Before and after on the same n prompts, and how many were true then.

    lost: prompts that were true before and are not after; gained: the other way round; p: two-sided exact McNemar test;
    difference: share true after minus share true before, from `low` to `high`.
    """

    n: int
    before: int
    after: int
    lost: int
    gained: int
    p: float
    difference: float
    low: float
    high: float


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> PairedTest:
    """Exact McNemar test and an interval for the paired difference of two proportions.

    The interval is Newcombe's square-and-add of two Wilson intervals, corrected for the correlation of the pairs
    (Statistics in Medicine 17:2635, 1998, method 10); unlike Wald's it is no single point where no pair changed.
    Both have one value a prompt, in the same order.

    Raises:
        ValueError: different or zero lengths.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} values before and {len(after)} after")
    pairs = [(bool(x), bool(y)) for x, y in zip(before, after, strict=True)]
    n, both, lost, gained = (len(pairs), *map(pairs.count, ((True, True), (True, False), (False, True))))
    low, high = _paired_interval(both, lost, gained, n - both - lost - gained)
    return PairedTest(
        n, both + lost, both + gained, lost, gained, mcnemar_p(lost, gained), (gained - lost) / n, low, high
    )


def mcnemar_p(b: int, c: int) -> float:
    """Two-sided binomial test of b against c at one half: 1 where no pair changed."""
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    return min(1.0, 2 * tail / 2 ** (b + c))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjustment for several tests in one table."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted


def _paired_interval(both: int, b: int, c: int, neither: int) -> tuple[float, float]:
    """Interval for P(after) - P(before); see `mcnemar`."""
    n = both + b + c + neither
    before, after = (both + b) / n, (both + c) / n
    low0, high0 = wilson(both + b, n)
    low1, high1 = wilson(both + c, n)
    product = (both + b) * (c + neither) * (both + c) * (b + neither)
    surplus = float(both * neither - b * c)
    if surplus > 0:
        surplus = max(surplus - n / 2, 0.0)  # continuity correction
    phi = surplus / math.sqrt(product) if product else 0.0
    down, up = (after - low1, high0 - before), (high1 - after, before - low0)
    difference = after - before
    return difference - _length(*down, phi), difference + _length(*up, phi)


def _length(x: float, y: float, phi: float) -> float:
    return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))


def bootstrap(
    values: ArrayLike,
    statistic: Callable[[Array], Any] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    *,
    clusters: Sequence[int] | None = None,
    vectorized: bool = False,
) -> tuple[float, float]:
    """Percentile interval of a statistic under resampling of rows (prompts) with replacement, widened where they are few.

    The ends are attained values of the statistic, so that a count stays a count. (nan, nan) where the statistic is
    undefined on some resample, and where there is but one row or cluster, which tells nothing of the others.

    Args:
        values: (n,) or (n, ...) one row per prompt; NaN is passed on to the statistic.
        statistic: maps resampled rows (n, ...) to a number; the mean over all of them by default.
        clusters: (n,) cluster of each row; whole clusters are resampled then (rows that are near-duplicates).
        vectorized: the statistic maps (resamples, n, ...) to (resamples,) at once, which is faster.

    Raises:
        ValueError: no rows, or clusters of another length.
    """
    import numpy as np

    rows = np.asarray(values, dtype=float)
    if not len(rows):
        raise ValueError("no rows to resample")
    groups = group_count(len(rows), clusters)
    rng = np.random.default_rng(seed)
    if statistic is None:
        statistic, vectorized = lambda rows: rows.reshape(len(rows), -1).mean(1), True
    if clusters is not None:
        samples = _cluster_samples(rows, statistic, rng, n_resamples, clusters, vectorized)
    else:
        samples = _row_samples(rows, statistic, rng, n_resamples, vectorized)
    return interval(samples, groups)


def group_count(rows: int, clusters: Sequence[int] | None = None) -> float:
    """How many independent groups the rows amount to: all of them, or as many clusters of one size as tell as much.

    Raises:
        ValueError: clusters of another length.
    """
    if clusters is None:
        return float(rows)
    if len(clusters) != rows:
        raise ValueError(f"{len(clusters)} clusters for {rows} rows")
    return rows**2 / sum(size**2 for size in Counter(clusters).values())


def draws(rows: int, n_resamples: int, rng: np.random.Generator, clusters: Sequence[int] | None = None) -> Array:
    """How often each row is drawn in each resample (n_resamples, rows); rows of one cluster are drawn together."""
    import numpy as np

    _, cluster = np.unique(np.arange(rows) if clusters is None else np.asarray(clusters), return_inverse=True)
    groups = int(cluster.max()) + 1
    counts: Array = rng.multinomial(groups, np.full(groups, 1 / groups), size=n_resamples)[:, cluster].astype(float)
    return counts


def interval(samples: Array, groups: float) -> tuple[float, float]:
    """The percentile interval of a statistic's resamples, for data of so many independent groups.

    Resamples of few groups spread too little, and their ends are those of a normal distribution; so the percentiles are
    taken as far out as Student's t lies (the expanded percentile interval of Hesterberg, The American Statistician 69:371,
    2015). (nan, nan) for one group, and where any resample is undefined.
    """
    import numpy as np

    if groups <= 1 or np.isnan(samples).any():
        return math.nan, math.nan
    tail = NormalDist().cdf(-math.sqrt(groups / (groups - 1)) * student(groups - 1))  # resamples beyond either end
    low, high = np.quantile(samples, tail, method="lower"), np.quantile(samples, 1 - tail, method="higher")
    return float(low), float(high)


def student(freedom: float, share: float = 0.5 + LEVEL / 2) -> float:
    """The quantile of Student's t, below which a `share` lies; degrees of freedom need not be whole."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def _row_samples(
    rows: Array, statistic: Callable[[Array], Any], rng: np.random.Generator, n_resamples: int, vectorized: bool
) -> Array:
    """The statistic of each resample, in blocks of at most 2**22 numbers (32 MiB)."""
    import numpy as np

    block = max(1, 2**22 // rows.size)
    samples = []
    for start in range(0, n_resamples, block):
        chosen = rng.integers(0, len(rows), size=(min(block, n_resamples - start), len(rows)))
        if vectorized:
            samples.append(np.asarray(statistic(rows[chosen]), dtype=float))
        else:
            samples.append(np.array([statistic(rows[index]) for index in chosen], dtype=float))
    return np.concatenate(samples)


def _cluster_samples(
    rows: Array,
    statistic: Callable[[Array], Any],
    rng: np.random.Generator,
    n_resamples: int,
    clusters: Sequence[int],
    vectorized: bool,
) -> Array:
    """As `_row_samples`, one at a time: resamples of whole clusters differ in their number of rows."""
    import numpy as np

    names = np.unique(np.asarray(clusters))
    members = [np.flatnonzero(np.asarray(clusters) == name) for name in names]
    samples = []
    for _ in range(n_resamples):
        chosen = rng.integers(0, len(members), size=len(members))
        sample = rows[np.concatenate([members[i] for i in chosen])]
        samples.append(float(statistic(sample[None])[0]) if vectorized else float(statistic(sample)))
    return np.array(samples)


def near_duplicates(texts: Sequence[str], threshold: float = 0.5) -> list[int]:
    """Cluster of each text: 0, 1, ... in order of first appearance; a text like no other is alone in its cluster.

    Two texts are near-duplicates when the sets of their pairs of neighbouring words have a Jaccard similarity (shared /
    all) of at least `threshold`; clusters are the connected groups of such texts. Case, punctuation and width of letters
    do not count. A text of one word is that word, and one without words is itself. Of scripts without blanks between words
    (Han, kana, Thai, Lao, Burmese, Khmer) three neighbouring characters are what a pair of words is elsewhere.

    Raises:
        ValueError: threshold not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold}")
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not texts:
        return []
    first, second = _similar_pairs([_shingles(text) for text in texts], threshold)
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(len(texts), len(texts)))
    _, labels = connected_components(graph, directed=False)
    order: dict[int, int] = {}
    return [order.setdefault(int(label), len(order)) for label in labels]


def near_pairs(first: Sequence[str], second: Sequence[str], threshold: float = 0.5) -> list[tuple[int, int, float]]:
    """Each text of one list with its near-duplicates in another, as (i, j, similarity); see `near_duplicates`.

    Raises:
        ValueError: threshold not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold}")
    if not first or not second:
        return []
    runs = [_shingles(text) for text in (*first, *second)]
    pairs = [(int(i), int(j)) for i, j in zip(*_similar_pairs(runs, threshold, len(first)), strict=True)]
    return [(i, j - len(first), len(runs[i] & runs[j]) / len(runs[i] | runs[j])) for i, j in pairs]


def _shingles(text: str) -> set[tuple[str, ...]]:
    plain = unicodedata.normalize("NFKC", text).casefold().strip()
    words = [word for piece in _PIECES.findall(plain) for word in _words(piece)] or [plain] * bool(plain)
    return set(pairwise(words)) or ({tuple(words)} if words else set())


def _words(piece: str) -> Sequence[str]:
    """A word as it is; of characters that no blanks part each two neighbours, so that a pair of these is three characters."""
    if len(piece) < 3 or not _UNPARTED.fullmatch(piece):
        return [piece]
    return [piece[i : i + 2] for i in range(len(piece) - 1)]


def _similar_pairs(shingles: Sequence[set[tuple[str, ...]]], threshold: float, cut: int = 0) -> Any:
    """Indices (i, j) of pairs with Jaccard similarity >= threshold: shared runs by a sparse product, block by block.

    With a `cut`, i is below and j is not, so that two lists behind each other are compared; else all pairs are.
    """
    import numpy as np
    from scipy.sparse import csr_array

    column: dict[tuple[str, ...], int] = {}
    indices = [column.setdefault(run, len(column)) for runs in shingles for run in runs]
    sizes = np.array([len(runs) for runs in shingles])
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    table = csr_array(
        (np.ones(len(indices), dtype=np.int32), indices, bounds), shape=(len(shingles), max(1, len(column)))
    )
    turned, end = table[cut:].T.tocsr(), cut or len(shingles)
    first, second = [], []
    for start in range(0, end, BLOCK):
        shared = (table[start : min(start + BLOCK, end)] @ turned).tocoo()
        i, j = shared.row + start, shared.col + cut
        alike = shared.data >= threshold * (sizes[i] + sizes[j] - shared.data) - 1e-9
        first.append(i[alike])
        second.append(j[alike])
    return np.concatenate(first), np.concatenate(second)
