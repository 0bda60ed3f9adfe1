"""Intervals against published constants, tests against scipy, the bootstrap against theory, clusters by hand."""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
import os
import re
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tokendeep import stats


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [
        (8, 10, (0.49016, 0.94332)),  # by hand: z = 1.959964, centre (0.8 + 0.19207) / 1.38415
        (0, 10, (0.0, 0.27753)),  # z^2 / (n + z^2)
        (10, 10, (0.72247, 1.0)),
        (81, 263, (0.2553, 0.3662)),  # Newcombe, Statistics in Medicine 17:857 (1998), table I, to four digits
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilson_matches_published_values(successes, n, expected):
    assert stats.wilson(successes, n) == pytest.approx(expected, abs=5e-5)


def test_wilson_ends_solve_the_score_equation():
    for successes, n in [(1, 3), (15, 148), (40, 41), (99, 1000)]:
        for end in stats.wilson(successes, n):
            z = (successes / n - end) / math.sqrt(end * (1 - end) / n)
            assert abs(z) == pytest.approx(1.959963985, rel=1e-8)


def test_wilson_level_and_bad_counts():
    narrow, wide = stats.wilson(5, 20, 0.8), stats.wilson(5, 20, 0.99)
    assert wide[0] < narrow[0] < 0.25 < narrow[1] < wide[1]
    assert stats.wilson(0, 7)[0] == 0.0
    assert stats.wilson(7, 7)[1] == 1.0
    for bad in [(-1, 5), (6, 5)]:
        with pytest.raises(ValueError, match="successes"):
            stats.wilson(*bad)
    with pytest.raises(ValueError, match="level"):
        stats.wilson(1, 2, 1.0)


def test_repeated_samples_that_agree_count_as_one():
    assert stats.wilson_repeated([0, 0, 0], [5, 5, 5]) == stats.wilson(0, 3)
    assert stats.wilson_repeated([5, 5, 5, 0], [5, 5, 5, 0]) == stats.wilson(3, 3)
    assert stats.wilson_repeated([5, 0, 5, 0], [5, 5, 5, 5]) == pytest.approx(stats.wilson(2, 4))
    assert stats.wilson_repeated([5], [10]) == stats._wilson(0.5, 1, 0.95)


def test_a_rare_sample_does_not_tell_that_samples_are_independent():
    """One of 300 answers to 60 prompts says no more of the others than none of 300 does."""
    ends = [stats.wilson_repeated([1] * hits + [0] * (60 - hits), [5] * 60)[1] for hits in range(12)]
    assert ends[0] == stats.wilson(0, 60)[1]
    assert min(ends) == ends[0]
    mirrored = [stats.wilson_repeated([4] * hits + [5] * (60 - hits), [5] * 60)[0] for hits in range(12)]
    assert mirrored == pytest.approx([1 - end for end in ends])
    # behind ten such prompts the spread that is seen counts alone
    few = (stats.student(59) / 1.959964) ** 2
    assert ends[10] == pytest.approx(stats._wilson(10 / 300, 300 / few, 0.95)[1], abs=1e-5)


@pytest.mark.parametrize("alike", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(("prompts", "samples"), [(60, 5), (50, 10), (100, 3)])
def test_wilson_repeated_covers_rare_rates(prompts, samples, alike):
    """At least .93 at rates of .02 and .05, of 800 data sets; it had been .88 to .92."""
    rng, hits = np.random.default_rng(prompts), []
    for p in (0.02, 0.05):
        rest = (1 - alike) / alike
        for _ in range(400):
            successes = rng.binomial(samples, rng.beta(p * rest, (1 - p) * rest, prompts))
            low, high = stats.wilson_repeated(successes.tolist(), [samples] * prompts)
            hits.append(low <= p <= high)
    assert np.mean(hits) >= 0.93


def test_one_sample_a_prompt_is_wilson_and_independent_samples_are_nearly_as_good_as_prompts():
    assert stats.wilson_repeated([1, 0, 1, 1], [1, 1, 1, 1]) == pytest.approx(stats.wilson(3, 4))
    few = (2.009575 / 1.959964) ** 2  # Student's t with 49 degrees of freedom, over the normal's quantile
    assert stats.wilson_repeated([2] * 50, [4] * 50) == pytest.approx(stats._wilson(0.5, 200 / few, 0.95), abs=1e-6)
    assert stats.wilson_repeated([], []) == (0.0, 1.0)


def test_the_design_effect_by_hand():
    # rate 6/12; squares of (4 - 2, 2 - 2, 0 - 2) sum to 8, times 3/2; over 1/4 * 12: effect 4, as large as it can be
    assert stats.wilson_repeated([4, 2, 0], [4, 4, 4]) == pytest.approx(stats._wilson(0.5, 3, 0.95))
    # (4 - 2, 2 - 2, 1 - 2, 1 - 2) five times: 30 * 20/19 / 20; times (2.093024 / 1.959964)^2 for 19 degrees of freedom
    effect = 30 / 19 * 1.140385
    assert stats.wilson_repeated([4, 2, 1, 1] * 5, [4] * 20) == pytest.approx(
        stats._wilson(0.5, 80 / effect, 0.95), abs=1e-5
    )
    # (3 - 2, 2 - 2, 1 - 2): 2 * 3/2 / 3 = 1, times (4.30 / 1.96)^2 for 2: more than 4, as large as it can be
    assert stats.wilson_repeated([3, 2, 1], [4, 4, 4]) == pytest.approx(stats._wilson(0.5, 3, 0.95))
    for bad in [([2], [1]), ([1, 1], [1])]:
        with pytest.raises(ValueError, match="successes"):
            stats.wilson_repeated(*bad)


def _cells(both, b, c, neither):
    before = [True] * (both + b) + [False] * (c + neither)
    after = [True] * both + [False] * b + [True] * c + [False] * neither
    return before, after


def test_mcnemar_equals_scipys_exact_binomial_test():
    from scipy.stats import binomtest

    for b in range(7):
        for c in range(9):
            result = stats.mcnemar(*_cells(3, b, c, 4))
            expected = binomtest(b, b + c).pvalue if b + c else 1.0
            assert result.p == pytest.approx(expected, rel=1e-12)
            assert (result.lost, result.gained) == (b, c)
            assert result.difference == pytest.approx((c - b) / (7 + b + c))


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ((20, 2, 12, 16), (0.0562, 0.3292)),
        ((1, 7, 1, 12), (-0.5069, -0.0256)),  # airway reactivity (Bentur 2009), as published: -0.507 to -0.026
        ((14, 0, 5, 22), (0.0115, 0.2265)),  # Altman, Statistics with Confidence, table 6.2: 0.01 to 0.23
    ],
)
def test_paired_interval_matches_published_values(cells, expected):
    result = stats.mcnemar(*_cells(*cells))
    assert (result.low, result.high) == pytest.approx(expected, abs=1e-4)


def test_paired_interval_turns_with_the_pair_and_is_no_point_without_change():
    before, after = _cells(5, 3, 9, 20)
    there, back = stats.mcnemar(before, after), stats.mcnemar(after, before)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.low < there.difference < there.high
    same = stats.mcnemar([True, False, False], [True, False, False])
    assert same.p == 1.0
    assert same.low < 0 < same.high


def test_paired_interval_covers():
    rng = np.random.default_rng(0)
    hits, trials = 0, 400
    for _ in range(trials):
        shared = rng.random(60)
        before, after = shared < 0.3, np.where(rng.random(60) < 0.7, shared, rng.random(60)) < 0.5
        result = stats.mcnemar(list(before), list(after))
        hits += result.low <= 0.2 <= result.high
    assert 0.92 <= hits / trials <= 0.985


def test_mcnemar_refuses_unpaired_values():
    with pytest.raises(ValueError, match="before"):
        stats.mcnemar([True], [True, False])
    with pytest.raises(ValueError, match="before"):
        stats.mcnemar([], [])


def test_bootstrap_of_the_mean_agrees_with_theory():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    low, high = stats.bootstrap(values, n_resamples=4000, seed=2)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_is_seeded_and_the_same_in_both_forms():
    rows = np.random.default_rng(3).random((30, 7))
    one = stats.bootstrap(rows, lambda sample: sample[:, 0].mean(), n_resamples=300, seed=5)
    again = stats.bootstrap(rows, lambda samples: samples[:, :, 0].mean(1), n_resamples=300, seed=5, vectorized=True)
    other = stats.bootstrap(rows, lambda sample: sample[:, 0].mean(), n_resamples=300, seed=6)
    assert one == pytest.approx(again)
    assert one != other


def test_bootstrap_blocks_change_nothing():
    rows = np.random.default_rng(3).random((1000, 30))  # 2**22 // 30000 = 139 resamples a block
    low, high = stats.bootstrap(rows, n_resamples=300, seed=1)
    chosen = np.random.default_rng(1).integers(0, 1000, size=(300, 1000))
    means = np.sort([rows[index].mean() for index in chosen])
    assert (low, high) == pytest.approx((means[7], means[292]))  # 0.025 * 299 = 7.475 -> 7; 0.975 * 299 -> 292


def test_bootstrap_gives_attained_values_and_passes_holes_on():
    table = np.array([[1.0, np.nan], [2.0, 5.0], [3.0, np.nan], [4.0, 6.0]])
    low, high = stats.bootstrap(table, lambda rows: float(np.isfinite(rows).sum()), n_resamples=500, seed=0)
    assert low == int(low)
    assert high == int(high)
    assert 4 <= low < 6 < high <= 8
    coarse = [stats.bootstrap([0.0, 1.0, 1.0], n_resamples=n, seed=s) for n in range(5, 40) for s in range(5)]
    assert {round(3 * end, 9) for ends in coarse for end in ends} <= {0, 1, 2, 3}
    undefined = stats.bootstrap(table, lambda rows: rows[:, 1].mean(), n_resamples=50)
    assert all(math.isnan(end) for end in undefined)


def test_clusters_are_resampled_whole():
    values, clusters = np.repeat([0.0, 1.0, 0.0, 1.0], 25), np.repeat([0, 1, 2, 3], 25)
    alone = stats.bootstrap(values, seed=0)
    together = stats.bootstrap(values, seed=0, clusters=clusters.tolist())
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])
    single = stats.bootstrap(values, lambda rows: float(len(rows)), clusters=list(range(100)))
    assert single == (100.0, 100.0)


def test_bootstrap_refuses_nonsense():
    with pytest.raises(ValueError, match="no rows"):
        stats.bootstrap([])
    with pytest.raises(ValueError, match="clusters"):
        stats.bootstrap([1.0, 2.0], clusters=[0])


def test_near_duplicates_by_hand():
    texts = [
        "How do I boil an egg for breakfast?",  # 7 runs of two words
        "Name three rivers in Asia.",
        "how do I boil an egg, for lunch",  # shares 6 of 8 with the first
        "How do I boil an onion for lunch?",  # shares 4 of 10 with the first, 5 of 9 with the one before
        "",
        "Eggs",
        "!?",
        "eggs.",
    ]
    assert stats.near_duplicates(texts, 0.5) == [0, 1, 0, 0, 2, 3, 4, 3]
    assert stats.near_duplicates(texts, 0.6) == [0, 1, 0, 2, 3, 4, 5, 4]
    assert stats.near_duplicates(texts, 0.8)[:4] == [0, 1, 2, 3]
    assert stats.near_duplicates([], 0.5) == []


def test_texts_without_words_are_like_themselves():
    texts = ["???", " ??? ", "?!", "", " ", "\U0001f35e\U0001f35e", "\U0001f35e\U0001f35e", "？？？"]
    assert stats.near_duplicates(texts, 1.0) == [0, 0, 1, 2, 3, 4, 4, 0]
    assert stats.near_pairs(texts[:1], texts[1:3]) == [(0, 0, 1.0)]


@pytest.mark.parametrize(
    ("one", "near", "other"),
    [
        ("请告诉我如何在家里烤黑麦面包。", "请告诉我如何在家里烤白麦面包", "挪威有哪三条最长的河流?"),
        ("自宅でライ麦パンを焼く方法を教えて", "自宅でライ麦パンを焼くコツを教えて", "ノルウェーの川を三つ挙げて"),
        ("ช่วยบอกวิธีอบขนมปังไรย์ที่บ้าน", "ช่วยบอกวิธีอบขนมปังไรย์ที่ร้าน", "แม่น้ำสามสายในนอร์เวย์มีอะไรบ้าง"),
    ],
)  # fmt: skip
def test_scripts_without_blanks_are_compared_by_characters(one, near, other):
    assert stats.near_duplicates([one, near, other, f"  {one}!"], 0.5) == [0, 0, 1, 0]
    assert {pair[:2] for pair in stats.near_pairs([one], [other, one, near])} == {(0, 1), (0, 2)}
    assert stats.near_pairs([one], [one])[0][2] == 1.0


def test_three_characters_are_a_pair_of_words():
    assert stats._shingles("烤黑麦面") == {("烤黑", "黑麦"), ("黑麦", "麦面")}
    assert stats._shingles("Python 烤面包") == {("python", "烤面"), ("烤面", "面包")}
    assert stats._shingles("烤") == {("烤",)}


def test_words_between_blanks_are_what_they_were():
    texts = [
        "How do I boil an egg for breakfast?",
        "Name three: A_b, c3, naïve -- Ελλάδα!",
        "Eggs",
        "Привет, мир",
        "빵을 굽는 법",
    ]
    if folder := os.environ.get("TOKENDEEP_TEST_DATA"):
        with (Path(folder) / "advbench_harmful_behaviors.csv").open(encoding="utf-8", newline="") as file:
            advbench = [row[0] for row in csv.reader(file)]
        with (Path(folder) / "xstest_prompts.csv").open(encoding="utf-8", newline="") as file:
            texts += [row["prompt"] for row in csv.DictReader(file)]
        clusters = stats.near_duplicates(advbench)
        assert (len(clusters), len(set(clusters))) == (520, 402)
        assert hashlib.sha256(str(clusters).encode()).hexdigest().startswith("4a2a0121d2c7807")
        texts += advbench
    for text in texts:
        words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
        assert stats._shingles(text) == (set(itertools.pairwise(words)) or {tuple(words)})


def test_near_duplicates_equals_brute_force_across_blocks():
    rng = np.random.default_rng(0)
    words = np.array(["the", "a", "cat", "dog", "runs", "sleeps", "sees", "big", "small", "red", "in", "on"])
    texts = [" ".join(rng.choice(words, size=rng.integers(1, 8))) for _ in range(1100)]  # more than one block
    found = stats.near_duplicates(texts, 0.6)
    runs = [stats._shingles(text) for text in texts]
    expected = list(range(len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            if len(runs[i] & runs[j]) >= 0.6 * len(runs[i] | runs[j]) - 1e-9 and expected[i] != expected[j]:
                old, new = expected[i], expected[j]
                expected = [new if label == old else label for label in expected]
    order: dict[int, int] = {}
    assert found == [order.setdefault(label, len(order)) for label in expected]


def test_near_duplicates_of_two_thousand_texts_is_quick():
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(800)]
    texts = ["please tell me how to " + " ".join(rng.choice(words, size=12)) for _ in range(2000)]
    start = time.process_time()  # of this process alone, whatever else the machine does
    assert len(set(stats.near_duplicates(texts, 0.5))) == 2000
    assert time.process_time() - start < 5


def test_near_duplicates_refuses_a_bad_threshold():
    with pytest.raises(ValueError, match="threshold"):
        stats.near_duplicates(["a"], 0.0)


def test_the_percentiles_of_few_groups_are_as_far_out_as_student_s_t():
    samples = np.arange(10_000.0)
    # eight groups: 2.364624 (t, 7 degrees of freedom) * sqrt(8 / 7) = 2.527891 deviations, beyond which lie 0.57377 %
    assert stats.interval(samples, 8) == (57.0, 9942.0)
    assert stats.interval(samples, 1e9) == (249.0, 9750.0)
    assert all(math.isnan(end) for end in stats.interval(samples, 1))


def test_one_row_or_one_cluster_tells_nothing_of_others():
    for rows, clusters in (([3.0], None), ([1.0, 2.0, 4.0], [7, 7, 7])):
        assert all(math.isnan(end) for end in stats.bootstrap(rows, clusters=clusters))


def test_groups_of_unlike_size_tell_less():
    assert stats.group_count(6) == 6
    assert stats.group_count(6, [0, 0, 1, 1, 2, 2]) == pytest.approx(3)
    assert stats.group_count(6, [0, 0, 0, 0, 1, 2]) == pytest.approx(36 / 18)


def test_draws_take_whole_clusters():
    counts = stats.draws(5, 200, np.random.default_rng(0), [3, 3, 8, 3, 8])
    assert counts.shape == (200, 5)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 0] + counts[:, 2] == 2).all()
    assert set(stats.draws(4, 200, np.random.default_rng(0)).sum(1)) == {4.0}


# --- coverage, by simulation --------------------------------------------------------------------


def _repeated(rng, prompts, sizes, alike, p):
    """Successes and samples of prompts whose samples are alike to a degree (1: all the same)."""
    n = np.full(prompts, 5) if sizes == "equal" else rng.integers(1, 11, prompts)
    if sizes == "lopsided":
        n = np.clip(np.round(rng.lognormal(1.0, 1.0, prompts)), 1, 60).astype(int)
    rest = (1 - alike) / alike if alike else 0.0
    each = rng.beta(p * rest, (1 - p) * rest, prompts) if 0 < alike < 1 else rng.random(prompts) < p if alike else p
    return rng.binomial(n, each), n


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [8, 12, 20, 40])
@pytest.mark.parametrize("sizes", ["equal", "unequal", "lopsided"])
@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9, 1.0])
def test_wilson_repeated_covers(prompts, sizes, alike):
    """At least .93 over rates of .1 to .5, of 1,200 data sets each."""
    rng, hits, trials = np.random.default_rng(prompts), [], 400
    for p in (0.1, 0.3, 0.5):
        for _ in range(trials):
            successes, n = _repeated(rng, prompts, sizes, alike, p)
            low, high = stats.wilson_repeated(successes.tolist(), n.tolist())
            hits.append(low <= p <= high)
    print(f"{prompts} prompts, {sizes}, alike {alike}: {np.mean(hits):.3f}")
    assert np.mean(hits) >= 0.93


CLUSTERED = {  # rows (numerator, denominator) of clusters whose members share half of their variance, and the truth
    "mean": (lambda own, other: np.stack([own, np.ones_like(own)], 1), 0.0),
    "share": (lambda own, other: np.stack([own < -0.25, np.ones_like(own)], 1), 0.4013),
    "ratio": (lambda own, other: np.stack([np.exp(own / 2), np.exp(own / 2) + 2 * np.exp(other / 2)], 1), 1 / 3),
    "skewed mean": (lambda own, other: np.stack([np.exp(0.7 * own), np.ones_like(own)], 1), math.exp(0.49 / 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [5, 8, 15])
@pytest.mark.parametrize("what", CLUSTERED)
@pytest.mark.parametrize("unequal", [False, True])
def test_the_clustered_bootstrap_covers(clusters, what, unequal):
    """At least .93 from 8 clusters on, of 1,000 data sets each; less where the mean of skewed values is asked for."""
    rng, hits = np.random.default_rng(clusters), []
    make, truth = CLUSTERED[what]
    for trial in range(1000):
        sizes = rng.integers(1, 8, clusters) if unequal else np.full(clusters, 4)
        names = np.repeat(np.arange(clusters), sizes)
        own, other = (
            math.sqrt(0.5) * (rng.normal(size=len(names)) + rng.normal(size=clusters)[names]) for _ in range(2)
        )
        drawn = stats.draws(len(names), 1000, np.random.default_rng(trial), names.tolist())
        top, bottom = (drawn @ make(own, other).astype(float)).T
        low, high = stats.interval(top / bottom, stats.group_count(len(names), names.tolist()))
        hits.append(low <= truth <= high)
    print(f"{what}, {clusters} clusters, unequal {unequal}: {np.mean(hits):.3f}")
    assert np.mean(hits) >= (0.88 if what == "skewed mean" or clusters == 5 else 0.93)


def test_holm():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
