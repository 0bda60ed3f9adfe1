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
import threading
from collections import Counter
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
OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
TUNABLES = "GLIBC_TUNABLES"
Read = Callable[[Any], tuple[Tensor, float]]  # a norm -> its weight (D,) and its epsilon
TRIM, MAP = -1, -3  # mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
MOST_MAPPED = 32 * 2**20  # bytes; the most that glibc takes for MAP: tensors from there on are fetched anew as before
SDPA = "sdpa"  # transformers' name of the attention that is replaced


@contextmanager
def quick(model: nn.Module) -> Iterator[None]:
    """Within it `model` attends and normalises as above wherever its layers lie on a CPU.

    Its configuration keeps the name `sdpa`, which some models ask for; what a user has registered under it is left alone.
    Trainings in several threads share what is replaced: the last one that ends puts it back.
    """
    with _LOCK:
        used = _replace(model)
    try:
        yield
    finally:
        with _LOCK:
            _put_back(used)


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """Within it a process that computes on a CPU keeps what it frees; afterwards it gives back what it can.

    With glibc only, and not where the user has set what it keeps: other libraries have settings of their own.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc" or _told_by_user():
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


def _told_by_user() -> bool:
    return any(name in os.environ for name in OWN) or "glibc.malloc." in os.environ.get(TUNABLES, "")


def precision(accelerator: Any, model: Any) -> str:
    """The number format of a training, and of its attention where that is another one: of what is kept, its key."""
    kind: str = accelerator.mixed_precision
    halved = kind == "bf16" or (kind == "no" and model.dtype == torch.bfloat16)
    attends = model.config._attn_implementation == SDPA and accelerator.device.type == "cpu"
    return f"{kind}, attention in float32" if halved and attends else kind


# --- what is replaced, for all that train -----------------------------------------------------------

_LOCK = threading.Lock()
_users: Counter[Any] = Counter()  # the name of attention, or a class of norms -> how many trainings use it
_plain: dict[Any, Any] = {}  # the same -> what it was
_reads: dict[type, Read] = {}  # a type of norms that is known and used -> how its weight is read


def _replace(model: nn.Module) -> list[Any]:
    """Replace what `model` needs and nobody has replaced yet; what it uses."""
    used: list[Any] = [SDPA]
    if not _users[SDPA]:
        _plain[SDPA] = AttentionInterface()[SDPA]
        if _plain[SDPA] is sdpa_attention_forward:
            AttentionInterface.register(SDPA, _attention)
    for norm in {type(module) for module in model.modules()}:
        if read := _reads.get(norm) or KNOWN.get(_code(norm)):
            _reads[norm] = read
            used.append(next(base for base in norm.__mro__ if "forward" in vars(base)))
    for one in used[1:]:
        if not _users[one]:
            _plain[one] = one.forward
            one.forward = _normed(one.forward)
    _users.update(used)
    return used


def _put_back(used: list[Any]) -> None:
    """Put back what no training uses any more."""
    _users.subtract(used)
    for one in {*used}:
        if _users[one]:
            continue
        del _users[one]
        if one == SDPA:
            AttentionInterface.register(SDPA, _plain.pop(SDPA))
            continue
        one.forward = _plain.pop(one)
        for norm in [norm for norm in _reads if issubclass(norm, one)]:
            del _reads[norm]


# --- attention ----------------------------------------------------------------------------------------


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """`sdpa` of transformers on queries (B, heads, S, D), in float32 where it would be in bfloat16 on a CPU."""
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    if value.device.type != "cpu" or kind != torch.bfloat16:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    attention_mask = _float32(attention_mask)
    settings = {name: _float32(value) for name, value in settings.items()}  # such as a bias of positions
    with torch.autocast("cpu", enabled=False):
        given = (query.float(), key.float(), value.float())
        attended, weights = sdpa_attention_forward(module, *given, attention_mask, **settings)
    return attended.to(kind), weights


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


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


def _own_weight(norm: Any) -> tuple[Tensor, float]:
    return norm.weight, norm.variance_epsilon


def _weight_beside_one(norm: Any) -> tuple[Tensor, float]:
    return 1.0 + norm.weight, norm.eps


def _code(norm: type) -> tuple[Any, ...]:
    """What the norm of a class does: instructions, names and constants of the functions that it consists of."""
    functions: list[Any] = [getattr(norm, name, None) for name in ("forward", "_norm")]
    codes: list[CodeType] = [function.__code__ for function in functions if hasattr(function, "__code__")]
    return tuple((code.co_code, code.co_names, code.co_varnames, code.co_consts) for code in codes)


KNOWN: dict[tuple[Any, ...], Read] = {  # by what a norm does
    _code(LlamaRMSNorm): _own_weight,
    _code(Olmo2RMSNorm): _own_weight,
    _code(GemmaRMSNorm): _weight_beside_one,
}


def _normed(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The forward of known norms: in one pass where all of it is float32 and lies on a CPU, else as it was.

    Other norms that inherit it, and do something else within, keep theirs.
    """

    def forward(self: Any, *given: Any, **more: Any) -> Tensor:
        read = _reads.get(type(self))
        if read is None or more or len(given) != 1:
            return plain(self, *given, **more)
        (states,) = given
        alike = self.weight.shape == states.shape[-1:] and not states.is_inference()
        if not alike or any(one.device.type != "cpu" or one.dtype != torch.float32 for one in (states, self.weight)):
            return plain(self, states)
        normed: Tensor = RMSNorm.apply(states.contiguous(), *read(self))
        return normed

    return forward
