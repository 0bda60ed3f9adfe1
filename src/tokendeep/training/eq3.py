"""The token-wise constrained objective (the paper's Eq. 3): pure tensors, no model and no files.

Names: `logps` is log pi_theta(y_t | x, y_<t) and `ref_logps` the same of the aligned model, both in nats and already
shifted: element (b, s) belongs to the label at s. Delta_t = ref_logps - logps, so learning makes Delta negative.

    Eq. 3 per token   -(2 / beta_t) log sigmoid(beta_t (log pi_theta - log pi_aligned))
    its gradient      w_t = 2 sigmoid(beta_t Delta_t) times that of the cross-entropy; w_t is 1 at the start

A large beta_t holds the token near the aligned model, a small one lets it learn as plain fine-tuning does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tokendeep.errors import InputError

PAPER_HEAD, PAPER_TAIL = (0.5, 2.0, 2.0, 2.0, 2.0), 0.1  # section 4 and appendix B.5; beta_1 is smaller because the
# first token's loss starts high, where a large beta would saturate the sigmoid at once
LN2 = math.log(2)
STOPPED = 0.05  # a token whose weight is below it has stopped learning


@dataclass(frozen=True)
class BetaSchedule:
    """beta_t by response position: `head` for positions 1, 2, ..., then `tail`; the paper's biased beta by default.

    Any other callable from positions to betas can take its place, for example `lambda t: 2 / t.clamp(min=1)`.

    Args:
        head: beta of the first positions; empty makes the schedule uniform.
        tail: beta of every later position.

    Raises:
        InputError: a beta that is not a finite number above 0.
    """

    head: Sequence[float] = PAPER_HEAD
    tail: float = PAPER_TAIL

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", tuple(float(beta) for beta in self.head))
        for place, beta in [*enumerate(self.head, 1), (f"{len(self.head) + 1} and later", self.tail)]:
            if not (math.isfinite(beta) and beta > 0):
                raise InputError(
                    f"The beta of position {place} is {beta}, but must be above 0; a very small one, such as 0.001, "
                    "is plain fine-tuning."
                )

    @classmethod
    def uniform(cls, beta: float) -> BetaSchedule:
        """The same beta at every position (the paper's Table 8)."""
        return cls((), beta)

    def __call__(self, positions: Tensor) -> Tensor:
        """Betas (B, S), float32, for 1-based `positions` (B, S); 1 at position 0, so that nothing divides by zero."""
        table = torch.tensor([1.0, *self.head, self.tail], dtype=torch.float32, device=positions.device)
        return table[positions.clamp(max=len(self.head) + 1)]


def response_positions(supervised: Tensor) -> Tensor:
    """1-based position of each token inside its run of supervised tokens, 0 elsewhere.

    A run is an answer: packing several rows into one, or several turns in a row, each starts at 1 again.

    Args:
        supervised: bool (B, S).

    Returns:
        int64 (B, S).
    """
    count = supervised.long().cumsum(-1)
    before = torch.where(supervised, 0, count).cummax(-1).values  # what had been counted when the run began
    return torch.where(supervised, count - before, 0)


def constraint_weights(logps: Tensor, ref_logps: Tensor, betas: Tensor) -> Tensor:
    """w_t = 2 sigmoid(beta_t Delta_t), in (0, 2): what Eq. 3 multiplies the gradient of each token's cross-entropy by.

    Args:
        logps, ref_logps: nats, of one shape (B, S); half precision is computed in float32.
        betas: above 0, of that shape or broadcast to it.

    Returns:
        (B, S), with no gradient.
    """
    logps, ref_logps, betas = _upcast(logps.detach(), ref_logps.detach(), betas)
    return 2 * torch.sigmoid(betas * (ref_logps - logps))


def constrained_nll(
    logps: Tensor, ref_logps: Tensor, positions: Tensor, betas: Tensor, *, min_weight: float = 0.0
) -> Tensor:
    """Eq. 3 per token, 0 where `positions` is 0.

    Masked places may hold anything, infinities and NaN included: their value and their gradient are exactly 0. No
    gradient ever reaches `ref_logps`.

    Args:
        logps, ref_logps: nats, of one shape (B, S); half precision is computed in float32.
        positions: `response_positions` of that shape.
        betas: above 0, of that shape or broadcast to it.
        min_weight: 0 gives Eq. 3. Above 0 it gives the form of the authors' code, max(w_t, min_weight) times the
            cross-entropy with a weight that has no gradient: the same gradient as Eq. 3 but for the floor, another value
            (they use 1e-3).

    Returns:
        (B, S) in nats; at the start every token of Eq. 3 is (2 / beta_t) ln 2.
    """
    masked = positions == 0
    logps, ref_logps, betas = _upcast(logps, ref_logps.detach(), betas)
    logps = logps.masked_fill(masked, 0.0)
    ref_logps = ref_logps.masked_fill(masked, 0.0)
    betas = torch.where(masked, torch.ones_like(betas), betas)
    if min_weight > 0:
        loss = -constraint_weights(logps, ref_logps, betas).clamp(min=min_weight) * logps
    else:
        loss = -(2 / betas) * F.logsigmoid(betas * (logps - ref_logps))
    return loss.masked_fill(masked, 0.0)


def constrained_excess(logps: Tensor, ref_logps: Tensor, betas: Tensor) -> Tensor:
    """Eq. 3 per token minus its value at Delta = 0, (2 / beta_t) ln 2: 0 at the start, below 0 once a token is learned.

    Without it the printed loss is mostly a constant (14 nats a token at beta = 0.1). Shapes as `constraint_weights`; no
    gradient. Computed as (2 / beta)(x / 2 + ln cosh(x / 2)) with x = beta Delta, which loses no digits near 0.
    """
    logps, ref_logps, betas = _upcast(logps.detach(), ref_logps.detach(), betas)
    half = betas * (ref_logps - logps) / 2
    return (2 / betas) * (half + half.abs() + torch.log1p(torch.expm1(-2 * half.abs()) / 2))


def _upcast(*tensors: Tensor) -> list[Tensor]:
    """The tensors broadcast together, in float64 where one is, else in float32."""
    kind = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return list(torch.broadcast_tensors(*(t.to(kind) for t in tensors)))
