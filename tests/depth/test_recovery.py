"""Refusal log-odds against models with planted depth, and by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
import torch

from planted import LONG, OPENINGS, harmful_rows, planted
from tokendeep.compute import scoring
from tokendeep.depth import recovery
from tokendeep.engines.server.branches import Branch
from tokendeep.errors import InputError
from tokendeep.types import IGNORE, Encoded, Subject


def test_log_odds_by_hand() -> None:
    """In the refusing state the 4 refusal tokens have logit 12 and 60 others 0; three such tokens in a row."""
    rows = harmful_rows(1)
    (value,) = recovery.recovery_log_odds(planted(1), rows, OPENINGS, [0], [LONG])
    refuse = 12 - math.log(4 * math.exp(12) + 60)
    first_harmful = -math.log(4 * math.exp(12) + 60)
    comply = 12 - math.log(60 * math.exp(12) + 4)
    expected = math.log(2) + 3 * refuse - (first_harmful + 2 * comply)
    assert value[0] == pytest.approx(expected, abs=1e-4)


def test_answers_too_short_for_a_k_are_left_out_there() -> None:
    rows = harmful_rows(2)
    log_odds = recovery.recovery_log_odds(planted(3), rows, OPENINGS, [0, 10, 20], [LONG, 12])
    assert np.isfinite(log_odds).tolist() == [[True, True, True], [True, False, False]]
    assert recovery.share_recovered(log_odds).tolist() == [1.0, 0.0, 0.0]


def test_the_first_ks_context_is_exactly_k_answer_tokens() -> None:
    """Depth 3: refusing is natural for answer tokens 1..3, so after 2 given tokens and not after 3."""
    log_odds = recovery.recovery_log_odds(planted(3), harmful_rows(1), OPENINGS, [2, 3], [LONG])
    assert log_odds[0, 0] > 0 > log_odds[0, 1]


def test_nan_from_a_server_is_no_matter_of_how_a_model_is_loaded_here() -> None:
    def score(jobs: Iterable[tuple[Sequence[int], Sequence[Branch]]]) -> Iterator[list[float]]:
        return ([math.nan] * len(branches) for _, branches in jobs)

    with pytest.raises(InputError) as caught:
        recovery.recovery_log_odds(score, harmful_rows(1), OPENINGS, [0], [LONG])
    assert str(caught.value) == (
        "The model gave NaN or infinite values at row 1; have its server compute in float32 or check its weights."
    )


def test_scores_of_a_real_model_shape(tiny_subject: Subject) -> None:
    row = Encoded([5, 6, 7, 8, 9, 10, 11], [IGNORE] * 3 + [8, 9, 10, 11])
    value = recovery.recovery_log_odds(tiny_subject, [row], [(5, 6), (7, 8)], [0, 1], [4])
    plain = [
        scoring.token_logps(tiny_subject, [Encoded(row.input_ids[:4] + list(t), [IGNORE] * 4 + list(t))])[0].sum()
        for t in ((5, 6), (7, 8), (9, 10))
    ]
    assert value[0, 1] == pytest.approx((torch.logsumexp(torch.stack(plain[:2]), 0) - plain[2]).item(), abs=1e-4)


def test_the_margin_is_told_as_quantiles_over_prompts() -> None:
    log_odds = np.array([[3.0, 1.0, -9.0], [1.0, np.nan, -9.0], [2.0, np.nan, -9.0]])
    found = recovery.margin(recovery.Recovery([0, 5, 10], log_odds))
    assert found["k"] == [0, 5]
    assert found["quantiles"]["0.5"] == [2.0, 1.0]
    assert found["quantiles"]["0.05"] == [pytest.approx(1.1), 1.0]
