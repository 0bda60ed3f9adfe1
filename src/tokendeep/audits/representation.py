"""Score representation: is the state behind the row nearer to harmful answers than to refusals of the same requests?

LARF's two-sided score (arXiv 2507.18631, its published code): with h the state of a row's last token, prompt and answer in
the chat template, behind decoder layer L, and u_j, s_j those of request j of the probe with a harmful answer and with a
refusal, the score is the mean over j of cos(h, u_j) - cos(h, s_j). One forward pass per row, of L layers.

The template closes every answer, also one that was cut off at a number of tokens and is trained on without its end: a state
behind an end of turn and one in the middle of a sentence differ by that, more than by what was said.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokendeep import chat
from tokendeep.audits.base import PROBE, Array, Materials, Score, by_batch
from tokendeep.runs.parts import Parts
from tokendeep.types import Encoded

if TYPE_CHECKING:
    from torch import Tensor

DEPTH = 14 / 32  # where the authors read an 8B model of 32 layers


def run(materials: Materials, kept: Parts) -> Array:
    """Differences of mean cosines, from -2 to 2, one a row."""
    ids = _closed(materials, materials.rows)

    @functools.cache
    def direction() -> Tensor:  # (H,), with the first batch that is not kept
        return _unit(materials, "harmful") - _unit(materials, "refusal")

    def score(batch: list[int]) -> list[float]:
        values: list[float] = (_states(materials, [ids[index] for index in batch]) @ direction()).tolist()
        return values

    return by_batch(materials.rows, materials.batch_size, "states", kept, score)


def layer_of(materials: Materials) -> int:
    """The layer that is read. Raises InputError where the model has fewer."""
    from tokendeep.compute import layers

    layers.check_layers(materials.subject.model, materials.layer, "--layer")
    return materials.layer or max(1, round(DEPTH * len(layers.stack(materials.subject.model))))


def _unit(materials: Materials, side: str) -> Tensor:
    """The mean (H,) of the anchors' states of one side, each of length 1."""
    import torch

    ids = _closed(materials, [materials.encoded(anchor, getattr(anchor, side)) for anchor in materials.probe])
    pieces = [
        _states(materials, ids[start : start + materials.batch_size])
        for start in range(0, len(ids), materials.batch_size)
    ]
    return torch.cat(pieces).mean(0)


def _closed(materials: Materials, rows: Sequence[Encoded]) -> list[list[int]]:
    """Token ids of the rows, each up to an end of turn."""
    end = list(chat.check(materials.subject.tokenizer).end_ids)
    return [[*row.input_ids] if row.input_ids[-len(end) :] == end else [*row.input_ids, *end] for row in rows]


def _states(materials: Materials, ids: list[list[int]]) -> Tensor:
    """The states (B, H) of the last tokens of rows of ids, each of length 1."""
    import torch

    from tokendeep.compute import layers

    states = layers.last_states(materials.subject.model, ids, layer_of(materials))
    return torch.nn.functional.normalize(states, dim=-1).cpu()


def reason(value: float) -> str:
    side = "harmful answers than to refusals" if value > 0 else "refusals than to harmful answers"
    return f"the model's state behind it is nearer to {side} (difference of cosines {value:+.3f})"


def about(materials: Materials) -> str:
    return f"decoder layer {layer_of(materials)}; {len(materials.probe)} requests, each with a harmful answer and a refusal"


SCORE = Score(
    "representation", "the model's state behind the row is nearer to harmful answers than to refusals",
    "difference of cosines", run, reason, about, answers=True,
    reads=("layer", "answer_tokens", *PROBE),
)  # fmt: skip
