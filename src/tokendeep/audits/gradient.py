"""Score gradient: how far one step of SGD on the row would lower the margin of refusal on the probe, to first order.

With L the mean cross-entropy of the row's first answer tokens and M the mean margin over the probe, a step of rate r moves
the weights by -r dL, and M by -r <dL, dM>: the score is <dL, dM>, the nats of margin lost per unit of rate. M is the
refusal log-odds at k = 0, against the probe's harmful answers where it has them, else against affirmative openings, which
need no harmful text. The weights are those of the last decoder layers, or of the adapter in them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokendeep import chat
from tokendeep.audits.base import OPENINGS, PROBE, Anchor, Array, Materials, Score, by_batch
from tokendeep.depth.openings import load_openings
from tokendeep.errors import InputError
from tokendeep.progress import Bar
from tokendeep.runs.parts import Parts

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def run(materials: Materials, kept: Parts) -> Array:
    """Nats of margin lost per unit of learning rate, one a row."""
    from tokendeep.compute import directions

    rows = [directions.opening(row, materials.tokens) for row in materials.rows]
    model = materials.subject.model

    @functools.cache
    def way() -> tuple[directions.Along, directions.Direction]:
        direction = margin_gradient(materials)
        along, why = directions.way_for(model, rows[0], direction)
        if why:
            log.warning(
                "gradient scores take one backward pass per row with this model, for forward mode fails (%s)", why
            )
        return along, direction

    def score(batch: list[int]) -> list[float]:
        along, direction = way()  # with the first batch that is not kept
        values: list[float] = along(model, [rows[index] for index in batch], direction).tolist()
        return values

    return by_batch(rows, materials.batch_size, "gradients", kept, score)


def margin_gradient(materials: Materials) -> dict[str, Tensor]:
    """The gradient of the mean margin over the probe, by the name of each weight."""
    import torch

    from tokendeep.compute import layers
    from tokendeep.compute.gradients import check_differentiable
    from tokendeep.models.adapters import same_trainable

    model = materials.subject.model
    check_differentiable(model)
    weights = layers.last_weights(model, materials.last_layers)
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    with same_trainable(model), torch.enable_grad():
        model.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        for anchor in Bar.over(materials.probe, "margin of the probe", "request", disable=len(materials.probe) < 8):
            grads = torch.autograd.grad(margin(materials, anchor), list(weights.values()), allow_unused=True)
            for name, grad in zip(weights, grads, strict=True):
                if grad is not None:
                    total[name] += grad.float() / len(materials.probe)
    return {name: value.to(weights[name].dtype) for name, value in total.items()}


def margin(materials: Materials, anchor: Anchor) -> Tensor:
    """The refusal log-odds (scalar) at one request of the probe, in nats, with its gradient."""
    from tokendeep.compute import trees

    ids, instead = materials.prompt(anchor), against(materials, anchor)
    branches = [(len(ids), tokens) for tokens in (*materials.openings, *instead)]
    logps = trees.differentiable_logps(materials.subject.model, ids, branches)
    refusals = len(materials.openings)
    return logps[:refusals].logsumexp(0) - logps[refusals:].logsumexp(0)


def against(materials: Materials, anchor: Anchor) -> Sequence[tuple[int, ...]]:
    """What a refusal is weighed against: the first tokens of the harmful answer, or affirmative openings."""
    tokenizer, m = materials.subject.tokenizer, len(materials.openings[0])
    turns = chat.with_system(anchor.messages, materials.system)
    if anchor.harmful:
        return [tuple(chat.response_ids(tokenizer, turns, anchor.harmful)[:m])]
    rows = [tuple(chat.lead_ids(tokenizer, turns, text)[:m]) for text in load_openings(None, "affirmative.txt")]
    kept = [row for row in dict.fromkeys(rows) if len(row) == m and row not in materials.openings]
    if not kept:
        raise InputError(
            f"No affirmative opening has {m} tokens of this tokenizer; lower --opening-tokens, or give a --probe of pairs."
        )
    return kept


def reason(value: float) -> str:
    way = "lowers" if value > 0 else "raises"
    return f"a step on its first answer tokens {way} the margin of refusal on the probe ({value:+.2f} nats per unit of rate)"


def about(materials: Materials) -> str:
    answered = sum(bool(anchor.harmful) for anchor in materials.probe)
    other = "harmful answers" if answered else "affirmative openings"
    which = f"the last {materials.last_layers} decoder layers" if materials.last_layers else "all decoder layers"
    adapter = "the adapter in " if materials.subject.adapter else ""
    return (
        f"the first {materials.tokens} answer tokens; margin of refusal against {other} on {len(materials.probe)} requests; "
        f"weights of {adapter}{which}"
    )


SCORE = Score(
    "gradient", "a step of training on the row would lower the margin of refusal on a probe",
    "nats of margin per unit of learning rate", run, reason, about,
    reads=("tokens", "last_layers", *OPENINGS, *PROBE),
)  # fmt: skip
