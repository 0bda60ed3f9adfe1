"""Faster products of few rows with a weight matrix on a CPU, lent to a model while it decodes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NARROW = range(4, 49)  # rows of a float32 product for which MKL is up to 3 times faster the other way round


def narrow_linears(lm: Any) -> dict[nn.Linear, Callable[[Tensor], Tensor]]:
    """Forwards to use for the model's linear layers while decoding on a CPU.

    A decoding step multiplies a few rows by every weight matrix: x Wᵀ with 4 to 48 rows. MKL has a fast path for
    W xᵀ, which is the same product, and a slow one for x Wᵀ (16 rows of SmolLM2 on 2 cores: 190 ms a step against 120).
    """
    if not torch.backends.mkl.is_available():
        return {}

    def forward(x: Tensor, layer: nn.Linear) -> Tensor:
        weight, bias = layer.weight, layer.bias
        rows = x.numel() // x.shape[-1]
        if rows not in NARROW or x.dtype != torch.float32 or weight.dtype != x.dtype:
            return F.linear(x, weight, bias)
        out = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
        return out if bias is None else out + bias

    layers = (m for m in lm.modules() if type(m) is nn.Linear and "forward" not in vars(m))
    return {m: partial(forward, layer=m) for m in layers if m.weight.device.type == "cpu"}


@contextmanager
def lent(forwards: dict[nn.Linear, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Lend the layers these forwards."""
    for layer, forward in forwards.items():
        layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        for layer in forwards:
            layer.__dict__.pop("forward", None)
