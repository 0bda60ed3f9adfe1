"""The language-model head applied to chosen positions only: shared by scoring, training and the reference.

A causal language model is a decoder (tokens -> hidden states) and a language-model head (hidden state -> vocabulary), here
called lm_head. It is a large part of the work and almost all of the memory, and only the positions that predict answer
tokens need it. This file runs the two parts apart, for any Hugging Face causal model.

What an architecture does after the lm_head (bias, soft-capping, scaling) is honoured by calling the forward of its class on
a shell: a model that shares everything with the real one, but whose decoder gives the hidden states at hand. The real
model is never changed, and the head stays outside the graph where a model is compiled.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPast

from tokendeep.errors import InputError
from tokendeep.types import IGNORE

CHUNK_BYTES = 32 * 2**20  # float32 logits held at once; at a vocabulary of 49,152 that is 170 positions


def padded(model: Any, rows: Sequence[Sequence[int]], fill: int = 0) -> Tensor:
    """Rows of token ids or labels as (B, S), padded on the right, where the model takes its input."""
    width, device = max(map(len, rows)), causal_lm(model).get_input_embeddings().weight.device
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)


def causal_lm(model: Any) -> Any:
    """The Hugging Face causal model inside PEFT, compiled and distributed wrappers (adapters stay active in it)."""
    while True:
        if "_orig_mod" in getattr(model, "_modules", ()):
            model = model._orig_mod
        elif not hasattr(model, "get_base_model") and hasattr(model, "module"):
            model = model.module
        else:
            break
    if hasattr(model, "get_base_model"):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            raise InputError(
                "This adapter learns prompt tokens, which shift every position; merge it or use LoRA-like adapters."
            )
        return model.get_base_model()
    return model


def decoder(lm: Any) -> Any:
    """What makes hidden states of tokens in a causal model.

    Raises:
        InputError: the architecture keeps it elsewhere.
    """
    if lm.base_model is not lm:
        return lm.base_model
    embedding = lm.get_input_embeddings()  # Llama 4 has a base of another name: the part that tokens go into
    inner = next((part for part in lm._modules.values() if any(one is embedding for one in part.modules())), None)
    if inner is None or inner is embedding:
        raise _not_found(lm)
    return inner


def _not_found(lm: Any) -> InputError:
    return InputError(
        f"{type(lm).__name__} keeps its decoder where tokendeep does not find it, so its language-model head cannot "
        "run alone; use an architecture of transformers' own."
    )


def hidden_states(model: nn.Module, input_ids: Tensor, **kwargs: Any) -> Tensor:
    """Final hidden states (B, S, H) for right-padded `input_ids` (B, S).

    No padding mask is needed: attention is causal, so a token never sees what stands to its right.
    Pass `attention_mask` (4-D) and `position_ids` to score a tree of continuations in one row.
    """
    inner = decoder(causal_lm(model))
    return inner(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state


class _Output(BaseModelOutputWithPast):
    """A decoder's output that holds hidden states only: whatever else a model's forward passes on is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Handed(nn.Module):
    """Stands where a model's decoder is, and gives the hidden states at hand to whoever calls it.

    Most forwards call `base_model`; a few (OPT) call the decoder inside it, for which it stands too.
    """

    def __init__(self, decoder: Any, inner: Any, hidden: Tensor) -> None:
        super().__init__()
        self.__dict__.update(_decoder=decoder, _inner=inner, _hidden=hidden, called=False)

    def forward(self, *args: Any, **kwargs: Any) -> _Output:
        self.called = True
        return _Output(last_hidden_state=self._hidden)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_decoder"], name)
        return self if value is not None and value is self.__dict__["_inner"] else value


def _shell(lm: Any, **modules: Any) -> Any:
    """A model of the same class that shares everything with `lm` but these modules; its forward is that of the class."""
    shell = object.__new__(type(lm))  # not copy.copy: sharded classes build their own
    shell.__dict__.update(lm.__dict__, _modules={**lm._modules, **modules})
    shell.__dict__.pop("forward", None)  # wrapped ones are bound to `lm`
    return shell


def project(model: Any, hidden: Tensor) -> Tensor:
    """Logits (N, V) of hidden states (N, H) in float32, exactly as the model itself would compute them."""
    lm = causal_lm(model)
    outer = decoder(lm)
    name = next((name for name, module in lm._modules.items() if module is outer), lm.base_model_prefix)
    handed = _Handed(outer, lm.get_decoder() if outer is lm.base_model else None, hidden[None])
    shell = _shell(lm, **{name: handed})
    dummy = torch.zeros(1, hidden.shape[0], dtype=torch.long, device=hidden.device)
    logits = shell.forward(input_ids=dummy, use_cache=False).logits
    if not handed.called:
        raise _not_found(lm)
    return logits[0].to(hidden.device).float()


def chunk_rows(model: nn.Module) -> int:
    """How many positions are projected at once so that their logits stay within CHUNK_BYTES."""
    vocabulary = causal_lm(model).get_output_embeddings().weight.shape[0]
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def select(hidden: Tensor, labels: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The hidden states (N, H) that predict a supervised label, and those labels (N,), in row order.

    `labels` (B, S) are not shifted: the state at position s predicts the label at s + 1. Where the `places` (N,) of the
    labels among all B * S are given, nothing is waited for.
    """
    if places is not None:
        places = places.to(hidden.device)
        return hidden.flatten(0, 1)[places - 1], labels.flatten().to(hidden.device)[places]
    targets = labels[:, 1:].to(hidden.device)  # layers spread over several devices end on another one
    mask = targets != IGNORE
    return hidden[:, :-1][mask], targets[mask]


def label_logps(
    model: nn.Module, hidden: Tensor, targets: Tensor, statistics: dict[str, list[Tensor]] | None = None
) -> Tensor:
    """Log-probabilities (N,), in nats, of `targets` (N,) given `hidden` (N, H); differentiable.

    The lm_head runs in chunks. When gradients flow and there are several chunks, each is recomputed in
    the backward pass, so that one chunk of logits is alive at any time.

    Args:
        statistics: gets, in pieces, the `entropy` (N,) in nats and `is_top1` (N,), whether the target is the likeliest
            token; from the same logits, without gradient.
    """
    pending = 0 if statistics is None else len(targets)  # rows whose statistics are still to come

    def chunk(states: Tensor, wanted: Tensor) -> Tensor:
        nonlocal pending
        logits = project(model, states)
        if statistics is not None and pending:  # not again when the chunk is recomputed for the backward pass
            pending -= len(wanted)
            with torch.no_grad():
                logps = logits.log_softmax(-1)
                statistics["is_top1"].append(logps.argmax(-1) == wanted)
                statistics["entropy"].append(-(logps.exp() * logps).sum(-1))
        return -F.cross_entropy(logits, wanted, reduction="none")

    if not len(targets):
        return hidden.sum(-1).float()
    return _in_chunks(model, chunk, hidden, targets)


def _in_chunks(model: nn.Module, chunk: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`chunk` over pieces of the tensors (N, ...) small enough for CHUNK_BYTES, put together again (N,)."""
    step = chunk_rows(model)
    pieces = zip(*(tensor.split(step) for tensor in tensors), strict=True)
    if len(tensors[0]) <= step or not (torch.is_grad_enabled() and tensors[0].requires_grad):
        return torch.cat([chunk(*piece) for piece in pieces])
    return torch.cat([checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces])


def forward_kl(logits: Tensor, ref_logits: Tensor, *beside: Tensor) -> Tensor:
    """D_KL(reference || model) (N,) in nats, of logits (N, V); nothing beside them is looked at."""
    ref = ref_logits.log_softmax(-1)
    return F.kl_div(logits.log_softmax(-1), ref, log_target=True, reduction="none").sum(-1)


def against(model: nn.Module, hidden: Tensor, anchor: "Anchor") -> Tensor:
    """The value of an anchor (M,) at the model's final states `hidden` (M, H), float32; differentiable in `hidden`
    and the lm_head.

    The anchor's head is what `frozen_lm_head` gave before training; None where the model's own is not trained and serves both.
    """
    if not len(hidden):
        return hidden.sum(-1).float()
    head = model if anchor.lm_head is None else anchor.lm_head
    references = [states.to(hidden) for states in (anchor.states, *anchor.more)]

    def chunk(states: Tensor, *given: Tensor) -> Tensor:
        with torch.no_grad():
            known = [project(head, ref) for ref in given[: len(references)]]
        return anchor.value(project(model, states), *known, *given[len(references) :])

    if anchor.lm_head is not None and not torch.is_autocast_enabled(hidden.device.type):
        _match(anchor.lm_head.get_output_embeddings(), hidden.dtype)
    return _in_chunks(model, chunk, hidden, *references, *(one.to(hidden.device) for one in anchor.beside))


def _match(projection: Any, dtype: torch.dtype) -> None:
    """FSDP and DeepSpeed run a model of float32 weights in bfloat16 without autocast; a copy outside them must follow."""
    if getattr(projection, "base_layer", projection).weight.dtype != dtype:
        projection.to(dtype)


def frozen_lm_head(lm: Any) -> Any:
    """A causal model that shares everything with `lm` but its language-model head, of which it keeps a frozen copy."""
    theirs = lm.get_output_embeddings()
    name = next((name for name, module in lm._modules.items() if module is theirs), None)
    if name is None:
        raise InputError(
            f"{type(lm).__name__} keeps its language-model head where tokendeep does not find it, so it cannot be copied; "
            "train an adapter, which leaves it alone."
        )
    return _shell(lm, **{name: copy.deepcopy(theirs).requires_grad_(False)})


class Anchor(NamedTuple):
    """Where the model is held to the reference's whole distribution: `at` (M,) which supervised tokens of a batch, the
    reference's final `states` (M, H) there, and its `lm_head` (None: the model's own, which is not trained).

    `more` are further final states (M, H) of the reference, `beside` further values (M, ...); `value` makes (n,) of the
    logits (n, V) of the model, of all states of the reference, and of the values beside: the divergence, where it says
    nothing else.
    """

    at: Tensor
    states: Tensor
    lm_head: Any = None
    more: tuple[Tensor, ...] = ()
    beside: tuple[Tensor, ...] = ()
    value: Callable[..., Tensor] = forward_kl


class Supervised(NamedTuple):
    """What a forward pass gives at the supervised tokens of a batch, in row order; None where it was not asked for.

    All of it lies where the labels do.

    `logps` (N,) in nats; `entropy` (N,) in nats and `is_top1` (N,), without gradient; `states` (N, H); `anchor_kl` (M,),
    the value of the anchor.
    """

    logps: Tensor
    entropy: Tensor | None = None
    is_top1: Tensor | None = None
    states: Tensor | None = None
    anchor_kl: Tensor | None = None


OURS = ("supervised", "statistics", "keep_states", "anchor", "places")  # arguments that the decoder is not given
PADDED_ONLY = ("attention_mask", "labels", "input_ids", "use_cache")


def add_supervised_forward(lm: Any) -> None:
    """Let `lm(input_ids=..., labels=..., supervised=True)` return a `Supervised`.

    The call has to go through the model's forward so that distributed wrappers see it. Rows are right-padded, or packed
    with `position_ids` that start again at 0. Further arguments: `places` (N,) of the supervised labels among all of them,
    `statistics=True` adds entropy and top-1 hits, `keep_states=True` the states, `anchor=Anchor(...)` the divergence from
    the reference. Without `supervised` the forward is unchanged.
    """
    original = lm.forward

    def forward(*args: Any, supervised: bool = False, **kwargs: Any) -> Any:
        if not supervised:
            return original(*args, **kwargs)
        inputs = {name: value for name, value in kwargs.items() if name not in (*OURS, *PADDED_ONLY)}
        states = hidden_states(lm, kwargs["input_ids"], **inputs)
        wanted = {name: value for name, value in kwargs.items() if name in OURS}
        return _at_supervised(lm, states, kwargs["labels"], **wanted)

    lm.forward = forward


@torch.compiler.disable
def _at_supervised(
    lm: Any,
    states: Tensor,
    labels: Tensor,
    *,
    places: Tensor | None = None,
    statistics: bool = False,
    keep_states: bool = False,
    anchor: Anchor | None = None,
) -> Supervised:
    """What `add_supervised_forward` promises, from the decoder's states (B, S, H), where the labels are."""
    home = labels.device  # layers spread over several devices end on another one
    states, targets = select(states, labels, places)
    pieces: dict[str, list[Tensor]] = {
        "entropy": [states.new_zeros(0).float()],
        "is_top1": [targets.new_zeros(0).bool()],
    }
    logps = label_logps(lm, states, targets, pieces if statistics else None)
    return Supervised(
        logps.to(home),
        torch.cat(pieces["entropy"]).to(home) if statistics else None,
        torch.cat(pieces["is_top1"]).to(home) if statistics else None,
        states.to(home) if keep_states else None,
        against(lm, states[anchor.at.to(states.device)], anchor).to(home) if anchor is not None else None,
    )
