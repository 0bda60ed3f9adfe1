"""Eq. 3 against hand-computed values, autograd, the limits the paper proves, and the authors' form written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tokendeep.errors import InputError
from tokendeep.training.eq3 import (
    BetaSchedule,
    constrained_excess,
    constrained_nll,
    constraint_weights,
    response_positions,
)
from tokendeep.types import IGNORE

LN2 = math.log(2)


def case(seed: int = 0, rows: int = 4, length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Random log-probabilities of the model and of the reference, and positions with masked prompts; float64."""
    draw = torch.Generator().manual_seed(seed)
    logps, ref = -5 * torch.rand(2, rows, length, generator=draw, dtype=torch.float64)
    supervised = torch.arange(length) >= torch.arange(rows)[:, None]  # prompts of 0, 1, 2, ... tokens
    return logps, ref, response_positions(supervised)


# --- hand-computed ---------------------------------------------------------------------------------


def test_eq3_by_hand() -> None:
    # Delta = ref - logp = ln 3 and beta = 1: sigmoid(-ln 3) = 1/4, so Eq. 3 is 2 ln 4 and w = 2 sigmoid(ln 3) = 3/2;
    # Delta = -1.5 and beta = 2: -ln sigmoid(3) = ln(1 + e^-3)
    logps = torch.tensor([[math.log(0.1), -1.0]])
    ref = torch.tensor([[math.log(0.3), -2.5]])
    betas = torch.tensor([[1.0, 2.0]])
    loss = constrained_nll(logps, ref, torch.tensor([[1, 2]]), betas)
    torch.testing.assert_close(loss, torch.tensor([[2 * math.log(4), math.log1p(math.exp(-3))]]))
    weights = constraint_weights(logps, ref, betas)
    torch.testing.assert_close(weights, torch.tensor([[1.5, 2 / (1 + math.exp(3))]]))


def test_the_papers_schedule() -> None:
    betas = BetaSchedule()(torch.tensor([[0, 0, 1, 2, 3, 4, 5, 6, 7, 500]]))
    assert betas.tolist() == [[1, 1, 0.5, 2, 2, 2, 2, pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1)]]
    assert betas.dtype == torch.float32


def test_a_uniform_and_an_own_schedule() -> None:
    positions = torch.tensor([[0, 1, 2, 9]])
    assert BetaSchedule.uniform(2.0)(positions).tolist() == [[1, 2, 2, 2]]
    assert BetaSchedule([3], 4)(positions).tolist() == [[1, 3, 4, 4]]


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_a_beta_that_is_not_above_zero_is_refused(wrong: float) -> None:
    with pytest.raises(InputError, match=r"position 2 is .* above 0"):
        BetaSchedule((0.5, wrong), 0.1)
    with pytest.raises(InputError, match="position 1 and later"):
        BetaSchedule.uniform(wrong)


def test_positions_start_again_in_every_run() -> None:
    supervised = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    assert response_positions(supervised).tolist() == [
        [0, 0, 1, 2, 3, 0],
        [1, 0, 1, 2, 0, 1],
        [0, 0, 0, 0, 0, 0],
        [1, 2, 3, 4, 5, 6],
    ]


# --- the gradient ----------------------------------------------------------------------------------


def policy(seed: int = 3, vocabulary: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (2, 7, V) to be trained, those of a reference, and labels (2, 7) with two prompt places."""
    draw = torch.Generator().manual_seed(seed)
    logits, ref = torch.randn(2, 2, 7, vocabulary, generator=draw, dtype=torch.float64) * 2
    labels = torch.randint(vocabulary, (2, 7), generator=draw)
    labels[0, :2] = labels[1, :1] = IGNORE
    return logits.requires_grad_(), ref, labels


def picked(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]


def test_the_gradient_is_the_weight_times_that_of_cross_entropy() -> None:
    logits, ref_logits, labels = policy()
    logps, ref = picked(logits, labels), picked(ref_logits, labels)
    positions = response_positions(labels != IGNORE)
    betas = BetaSchedule()(positions)
    (gradient,) = torch.autograd.grad(constrained_nll(logps, ref, positions, betas).sum(), logits, retain_graph=True)
    weights = constraint_weights(logps, ref, betas)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORE)
    (expected,) = torch.autograd.grad((weights.flatten() * cross_entropy).sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_no_gradient_reaches_the_reference() -> None:
    logps, ref, positions = case()
    ref.requires_grad_()
    logps.requires_grad_()
    constrained_nll(logps, ref, positions, BetaSchedule()(positions)).sum().backward()
    assert ref.grad is None


def test_the_authors_form_has_the_gradient_of_their_code() -> None:
    logits, ref_logits, labels = policy()
    logps, ref = picked(logits, labels), picked(ref_logits, labels)
    logps = logps + torch.where(torch.arange(7) == 4, 6.0, 0.0)  # learned so far that the floor holds: w = 2.5e-5
    positions = response_positions(labels != IGNORE)
    betas = BetaSchedule()(positions)
    ours = constrained_nll(logps, ref, positions, betas, min_weight=1e-3)
    literal = []
    for row in range(2):
        for place in range(7):
            if labels[row, place] != IGNORE:
                beta = betas[row, place].double()
                weight = 2 * (1 - torch.sigmoid(beta * (logps[row, place] - ref[row, place])))
                literal.append(-weight.detach().clamp(min=1e-3) * logps[row, place])
    (gradient,) = torch.autograd.grad(ours.sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(torch.stack(literal).sum(), logits)
    torch.testing.assert_close(ours.sum(), torch.stack(literal).sum())
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    assert (constraint_weights(logps, ref, betas)[positions > 0] < 1e-3).any()  # the floor was in force somewhere


# --- the limits (Theorems 1 to 3) --------------------------------------------------------------------


def test_at_the_start_every_weight_is_one() -> None:
    logps, _, positions = case()
    betas = BetaSchedule()(positions)
    assert torch.equal(constraint_weights(logps, logps, betas), torch.ones_like(logps))
    loss = constrained_nll(logps, logps, positions, betas)
    torch.testing.assert_close(loss[positions > 0], (2 * LN2 / betas.double())[positions > 0])
    assert torch.equal(constrained_excess(logps, logps, betas), torch.zeros_like(logps))


def test_a_vanishing_beta_is_cross_entropy() -> None:
    logps, ref, _ = case()
    everywhere = torch.ones(logps.shape, dtype=torch.long)
    beta = torch.full_like(logps, 1e-6)
    torch.testing.assert_close(constraint_weights(logps, ref, beta), torch.ones_like(logps), rtol=0, atol=1e-5)
    left = constrained_nll(logps, ref, everywhere, beta) - 2 * LN2 / beta
    torch.testing.assert_close(left, ref - logps, rtol=0, atol=1e-4)
    torch.testing.assert_close(constrained_excess(logps, ref, beta), ref - logps, rtol=0, atol=1e-4)


def test_a_huge_beta_is_a_hinge() -> None:
    logps, ref, _ = case()
    everywhere = torch.ones(logps.shape, dtype=torch.long)
    beta = torch.full_like(logps, 1e5)
    loss = constrained_nll(logps, ref, everywhere, beta)
    torch.testing.assert_close(loss, 2 * (ref - logps).clamp(min=0), rtol=0, atol=1e-4)
    weights = constraint_weights(logps, ref, beta)
    assert torch.equal(weights[ref < logps], torch.zeros_like(weights[ref < logps]))
    assert torch.equal(weights[ref > logps], torch.full_like(weights[ref > logps], 2.0))


def test_the_hinge_is_zero_for_equal_distributions_only() -> None:
    draw = torch.Generator().manual_seed(1)
    truth, one, two = torch.randn(3, 6, generator=draw, dtype=torch.float64).log_softmax(-1)

    def expected(policy: Tensor, reference: Tensor) -> float:
        beta = torch.full((6,), 1e6, dtype=torch.float64)
        loss = constrained_nll(policy[None], reference[None], torch.ones(1, 6, dtype=torch.long), beta[None])
        return float((truth.exp() * loss).sum())

    assert expected(one, one) == pytest.approx(0, abs=1e-5)
    assert expected(two, one) > 0.01  # two distributions: somewhere the policy is below the reference


# --- numbers that break things -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("delta", [-1e4, -300.0, 300.0, 1e4])
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_far_from_the_reference_it_stays_finite_and_right(kind: torch.dtype, delta: float, beta: float) -> None:
    logps = torch.tensor([[-1.0 - max(delta, 0)]], dtype=kind, requires_grad=True)
    ref = logps.detach() + delta
    position = torch.ones(1, 1, dtype=torch.long)
    loss = constrained_nll(logps, ref, position, torch.tensor([[beta]]))
    loss.sum().backward()
    gap = (ref.double() - logps.detach().double()).item()
    exact = (2 / beta) * max(beta * gap, 0) + (2 / beta) * math.log1p(math.exp(-abs(beta * gap)))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=1e-5, abs=1e-9)
    assert logps.grad is not None
    assert logps.grad.item() == pytest.approx(-2 / (1 + math.exp(min(-beta * gap, 700))), rel=1e-2, abs=1e-6)
    excess = constrained_excess(logps, ref, torch.tensor([[beta]]))
    assert excess.item() == pytest.approx(exact - 2 * LN2 / beta, rel=1e-4, abs=1e-5)


def test_half_precision_is_computed_in_float32() -> None:
    logps = torch.tensor([[-1.0078125]], dtype=torch.bfloat16)
    ref = torch.tensor([[-1.0]], dtype=torch.bfloat16)
    weight = constraint_weights(logps, ref, torch.tensor([[2.0]], dtype=torch.bfloat16))
    assert weight.dtype == torch.float32
    assert weight.item() == pytest.approx(2 / (1 + math.exp(-2 * 0.0078125)), rel=1e-6)


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("floor", [0.0, 1e-3])
def test_masked_places_may_hold_anything(rubbish: float, floor: float) -> None:
    logps = torch.tensor([[rubbish, -1.0, rubbish]], requires_grad=True)
    ref = torch.tensor([[rubbish, -2.0, -1.0]])
    positions = torch.tensor([[0, 1, 0]])
    betas = torch.tensor([[rubbish, 0.5, 0.0]])
    loss = constrained_nll(logps, ref, positions, betas, min_weight=floor)
    loss.sum().backward()
    assert loss[0, 0] == loss[0, 2] == 0
    assert logps.grad is not None
    assert logps.grad[0, 0] == logps.grad[0, 2] == 0
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logps.grad).all()


def test_the_excess_keeps_its_digits_near_zero() -> None:
    logps = torch.tensor([[-1.0, -1.0]])
    ref = logps + torch.tensor([[1e-4, -1e-4]])
    excess = constrained_excess(logps, ref, torch.tensor([[0.1, 0.1]]))
    torch.testing.assert_close(excess, ref - logps, rtol=1e-3, atol=0)  # to first order it is Delta
