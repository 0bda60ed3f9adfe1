"""AUROC, average precision and recall at few false alarms: by hand, and against scikit-learn's definitions."""

from __future__ import annotations

import numpy as np
import pytest

from tokendeep.audits import detection

SCORES = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
LABELS = np.array([True, False, True, False, False])


def test_by_hand() -> None:
    assert detection.auroc(SCORES, LABELS) == pytest.approx(5 / 6)  # of 2 x 3 pairs one is the wrong way round
    assert detection.auprc(SCORES, LABELS) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert detection.recall(SCORES, LABELS) == 0.5  # the first is found before the first false alarm
    assert detection.recall(SCORES, LABELS, 1 / 3) == 1.0


def test_ties_count_one_half_and_are_one_threshold() -> None:
    equal = np.zeros(5)
    assert detection.auroc(equal, LABELS) == 0.5
    assert detection.auprc(equal, LABELS) == pytest.approx(0.4)
    assert detection.recall(equal, LABELS) == 0.0  # the one threshold that finds any flags all


def test_auroc_is_the_share_of_pairs() -> None:
    draw = np.random.default_rng(0)
    scores, labels = draw.integers(0, 9, 80).astype(float), draw.random(80) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels] for b in scores[~labels]]
    assert detection.auroc(scores, labels) == pytest.approx(np.mean(pairs))


def test_recall_allows_one_in_a_hundred_and_no_more() -> None:
    scores = np.array([9.0, 8.0, 7.0, 6.0, *np.zeros(198)])  # two alarms of 200 are allowed
    labels = np.zeros(202, dtype=bool)
    labels[[1, 3]] = True
    assert detection.recall(scores, labels) == 1.0
    assert detection.recall(np.append(scores, 6.5), np.append(labels, False)) == 0.5


def test_figures_have_intervals_that_hold_them() -> None:
    draw = np.random.default_rng(1)
    labels = np.repeat([1, 0], [20, 80])
    scores = draw.normal(labels * 1.5)
    figures = detection.figures(scores.tolist(), labels.tolist())
    assert list(figures) == ["auroc", "auprc", "recall"]
    for value, low, high in figures.values():
        assert low <= value <= high
        assert low < high
    assert figures == detection.figures(scores.tolist(), labels.tolist())
    for bad in ([1] * 100, [0] * 100):
        with pytest.raises(ValueError, match="both labels"):
            detection.figures(scores.tolist(), bad)
