"""What makes training on a CPU quicker: attention in float32, norms in one pass, memory that is kept (docs/results/speed.md).

Attention: PyTorch's takes longer backwards in bfloat16 than in float32: twice as long for rows of 100 tokens of
SmolLM2-135M, as long at 256, and from there up to a third less. It is done in float32 for rows of every length, so that a
row has the same log-probabilities beside short and long ones; of models that attend by the function that transformers
has under the name of `sdpa`.

Norms: transformers writes the root-mean-square norm as six operations, each of which reads and writes all states. Here it
is three, and two backwards, to the rounding of float32; for the norms of Llama, OLMo 2 and Gemma and all that are written alike.

Memory: what is freed goes back to the system at once, and every tensor of a step begins with its pages being fetched
again. While a model trains, the process keeps it.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

# What glibc lets the user say about memory, so that the user's word counts
OWN = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"}
TRIM, MAP = -1, -3  # mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
# Bytes: the most that glibc takes for MAP, and the size of a chunk of logits (compute.lm_head)
MOST_MAPPED = 32 * 2**20


@contextmanager
def quick(model: nn.Module) -> Iterator[None]:
    """Within it `model` attends and normalises as above wherever its layers lie on a CPU.

    Its configuration keeps the name `sdpa`, which some models ask for.
    """
    attention = AttentionInterface()["sdpa"]
    norms = _norms(model)
    plain = {norm: norm.forward for norm in norms}
    AttentionInterface.register("sdpa", _attention)
    for norm, read in norms.items():
        norm.forward = _normed(plain[norm], read)
    try:
        yield
    finally:
        AttentionInterface.register("sdpa", attention)
        for norm, forward in plain.items():
            norm.forward = forward


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """Within it a process that computes on a CPU keeps what it frees; afterwards it gives back what it can.

    With glibc only, and not where the user has set what it keeps: other libraries have settings of their own.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc" or OWN & set(os.environ):
        yield
        return
    glibc = ctypes.CDLL(None)
    glibc.mallopt(MAP, MOST_MAPPED)
    glibc.mallopt(TRIM, -1)
    try:
        yield
    finally:
        glibc.mallopt(TRIM, 2 * MOST_MAPPED)  # what glibc itself arrives at in a process of large tensors
        glibc.malloc_trim(0)


def precision(accelerator: Any) -> str:
    """The number format of a training, and of its attention where that is another one: of what is kept, its key."""
    kind: str = accelerator.mixed_precision
    return f"{kind}, attention in float32" if kind == "bf16" and accelerator.device.type == "cpu" else kind


# --- attention ----------------------------------------------------------------------------------------


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


# --- norms --------------------------------------------------------------------------------------------


class RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight, for x (..., D) and weight (D,).

    Its gradient is that of the layer norm whose mean is taken for 0, but for the term by which a layer norm takes
    the mean out of the gradient; that one is added again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = squares.div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        size, (of_x, of_weight, _) = x.shape[-1], ctx.needs_input_grad
        grad = grad.contiguous()
        d_x, d_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [size], torch.zeros_like(scale), scale, weight, None, [of_x, of_weight, False]
        )
        if of_x:
            with torch.autocast("cpu", enabled=False):
                mean = torch.mv(grad.view(-1, size), weight).view_as(scale) / size
            d_x.add_(mean.mul_(scale))
        return d_x, d_weight, None


Read = Callable[[Any], tuple[Tensor, float]]


def _own_weight(norm: Any) -> tuple[Tensor, float]:
    return norm.weight, norm.variance_epsilon


def _weight_beside_one(norm: Any) -> tuple[Tensor, float]:
    return 1.0 + norm.weight, norm.eps


def _code(norm: type) -> tuple[Any, ...]:
    """What the norm of a class does: instructions, names and constants of the functions that it consists of."""
    functions: list[Any] = [getattr(norm, name, None) for name in ("forward", "_norm")]
    codes: list[CodeType] = [function.__code__ for function in functions if hasattr(function, "__code__")]
    return tuple((code.co_code, code.co_names, code.co_varnames, code.co_consts) for code in codes)


KNOWN: dict[tuple[Any, ...], Read] = {  # what a norm does -> its weight (D,) and its epsilon
    _code(LlamaRMSNorm): _own_weight,
    _code(Olmo2RMSNorm): _own_weight,
    _code(GemmaRMSNorm): _weight_beside_one,
}


def _norms(model: nn.Module) -> dict[Any, Read]:
    """The classes of norms that are known, where their forward is defined."""
    found = {}
    for norm in {type(module) for module in model.modules()}:
        if read := KNOWN.get(_code(norm)):
            found[next(base for base in norm.__mro__ if "forward" in vars(base))] = read
    return found


def _normed(plain: Callable[..., Tensor], read: Read) -> Callable[..., Tensor]:
    """The forward of a known norm: in one pass where all of it is float32 and lies on a CPU, else as it was."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if any(one.device.type != "cpu" or one.dtype != torch.float32 for one in (hidden_states, self.weight)):
            return plain(self, hidden_states)
        normed: Tensor = RMSNorm.apply(hidden_states.contiguous(), *read(self))
        return normed

    return forward
