"""Attention in float32, where rows are trained in bfloat16 on a CPU.

PyTorch's attention on a CPU takes longer backwards in bfloat16 than in float32: twice as long for rows of 100 tokens of
SmolLM2-135M, as long at 256, and from there up to a third less (docs/results/speed.md). It is done in float32 for rows of
every length, so that a row has the same log-probabilities beside short and long ones. Steps, evaluations and the pass that
computes the reference are concerned, of models that attend by the function that transformers has under the name of `sdpa`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """`sdpa` of transformers on queries (B, heads, S, D), in float32 where it would be in bfloat16 on a CPU."""
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    if value.device.type != "cpu" or kind != torch.bfloat16:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        given = (query.float(), key.float(), value.float())
        attended, weights = sdpa_attention_forward(module, *given, attention_mask, **settings)
    return attended.to(kind), weights


def precision(accelerator: Any) -> str:
    """The number format of a training, and of its attention where that is another one: of what is kept, its key."""
    kind: str = accelerator.mixed_precision
    return f"{kind}, attention in float32" if kind == "bf16" and accelerator.device.type == "cpu" else kind


@contextmanager
def in_float32() -> Iterator[None]:
    """Within it models attend as above. Their configuration keeps the name `sdpa`, which some of them ask for."""
    known = AttentionInterface()["sdpa"]
    AttentionInterface.register("sdpa", _attention)
    try:
        yield
    finally:
        AttentionInterface.register("sdpa", known)
