"""Attention of short rows in float32, where they are trained in bfloat16 on a CPU.

PyTorch's attention on a CPU takes longer backwards in bfloat16 than in float32 for rows of up to some 250 tokens: twice as long
at 100 tokens of SmolLM2-135M, where it was a fifth of a whole training step (docs/results.md, Speed). Float32 is the more exact
of the two as well. Models that attend by PyTorch's `sdpa` are concerned, and training steps alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "tokendeep_short_rows_in_float32"
LONGEST = 192  # tokens of a row


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """`sdpa` of transformers on queries (B, heads, S, D), in float32 where they are short rows in bfloat16."""
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    if kind != torch.bfloat16 or query.shape[2] > LONGEST:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        given = (query.float(), key.float(), value.float())
        attended, weights = sdpa_attention_forward(module, *given, attention_mask, **settings)
    return attended.to(kind), weights


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def short_rows_in_float32(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it the model attends as above, where it runs on a CPU."""
    configs = {
        id(one): one for one in (getattr(module, "config", None) for module in model.modules()) if one is not None
    }
    known = [(one, one._attn_implementation) for one in configs.values() if hasattr(one, "_attn_implementation")]
    if device.type != "cpu" or not any(name == "sdpa" for _, name in known):
        yield
        return
    _attend(known, NAME)
    try:
        yield
    finally:
        _attend(known, "sdpa")


def _attend(known: list[tuple[Any, str | None]], name: str) -> None:
    """Give those configurations that have `sdpa` another name for it; the others, which theirs may lie in, keep their own."""
    for config, own in known:  # outer ones first: setting it reaches what lies in them
        config._attn_implementation = name if own == "sdpa" else own
