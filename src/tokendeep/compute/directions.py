"""How the loss of each row changes along one direction in weight space: <gradient of the row, direction>, for every row.

The gradients of the rows are never formed. Their inner product with a direction is the derivative of the rows' losses
where the weights move along it, which one forward pass in forward mode gives for all rows of a batch (a Jacobian-vector
product); layers below the weights that move run as ever. Tested against one backward pass per row, which is also the way
for models that forward mode does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from tokendeep.compute import lm_head
from tokendeep.compute.gradients import check_differentiable
from tokendeep.models.adapters import same_trainable
from tokendeep.types import IGNORE, Encoded

Direction = Mapping[str, Tensor]  # name of a weight in the decoder -> a tensor of its shape
Along = Callable[[Any, Sequence[Encoded], Direction], Tensor]


def opening(row: Encoded, tokens: int) -> Encoded:
    """The row up to its first `tokens` supervised tokens: nothing to the right of them matters to their loss."""
    places = [place for place, label in enumerate(row.labels) if label != IGNORE][:tokens]
    end = places[-1] + 1
    return Encoded(list(row.input_ids[:end]), list(row.labels[:end]))


def along(model: Any, rows: Sequence[Encoded], direction: Direction) -> Tensor:
    """The derivative (B,), float32, of each row's mean cross-entropy along a direction, in one pass in forward mode.

    Raises:
        NotImplementedError: an operation of the model does not know forward mode.
    """
    decoder = lm_head.decoder(lm_head.causal_lm(model))
    weights = dict(decoder.named_parameters())
    ids, labels = _padded(model, rows)
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        moved = {name: forward_ad.make_dual(weights[name].detach(), way) for name, way in direction.items()}
        states = functional_call(decoder, moved, (), {"input_ids": ids, "use_cache": False}).last_hidden_state
        logps = lm_head.label_logps(model, *lm_head.select(states, labels))
        tangent = forward_ad.unpack_dual(logps).tangent
    if tangent is None:
        raise NotImplementedError("the weights do not reach the loss in forward mode")
    return _means(-tangent, rows)


def plain_along(model: Any, rows: Sequence[Encoded], direction: Direction) -> Tensor:
    """The same by one backward pass per row: what the way above is checked against."""
    check_differentiable(model)
    weights = dict(lm_head.decoder(lm_head.causal_lm(model)).named_parameters())
    chosen = [weights[name] for name in direction]
    values = []
    with same_trainable(model), torch.enable_grad():
        for weight in chosen:
            weight.requires_grad_(True)
        for row in rows:
            ids, labels = _padded(model, [row])
            logps = lm_head.label_logps(model, *lm_head.select(lm_head.hidden_states(model, ids), labels))
            grads = torch.autograd.grad(-logps.mean(), chosen, allow_unused=True)  # of some a row has no need
            both = zip(grads, direction.values(), strict=True)
            values.append(
                sum(((g.float() * way.float()).sum() for g, way in both if g is not None), logps.new_zeros(()))
            )
    return torch.stack(values).float().cpu()


def way_for(model: Any, row: Encoded, direction: Direction) -> tuple[Along, str | None]:
    """The way that works with a model, tried on a row; and why, where it is one backward pass per row."""
    check_differentiable(model)
    try:
        value = along(model, [row], direction)
    except (NotImplementedError, RuntimeError) as error:
        return plain_along, str(error).splitlines()[0]
    return (along, None) if torch.isfinite(value).all() else (plain_along, "forward mode gives no number")


def _padded(model: Any, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Token ids and labels (B, S)."""
    ids, labels = [row.input_ids for row in rows], [row.labels for row in rows]
    return lm_head.padded(model, ids), lm_head.padded(model, labels, IGNORE)


def _means(values: Tensor, rows: Sequence[Encoded]) -> Tensor:
    """The mean (B,) over the supervised tokens of each row, of values (N,) in row order."""
    counts = [sum(label != IGNORE for label in row.labels[1:]) for row in rows]
    return torch.stack([piece.mean() for piece in values.float().cpu().split(counts)])
