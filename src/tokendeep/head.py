"""The output head applied to chosen positions only: shared by scoring, training and the reference.

A causal language model is a decoder (tokens -> hidden states) and a head (hidden state -> vocabulary).
The head is a large part of the work and almost all of the memory, and only the positions that
predict answer tokens need it. This file runs the two parts apart, for any Hugging Face causal model.

What an architecture does after the head (bias, soft-capping, scaling) is honoured by calling the
model's own forward with its decoder replaced, for that one call, by the hidden states at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPast

from .types import IGNORE, InputError

CHUNK_BYTES = 32 * 2**20  # float32 logits held at once; at a vocabulary of 49,152 that is 170 positions


def causal_lm(model: Any) -> Any:
    """The Hugging Face causal model inside PEFT and distributed wrappers (adapters stay active in it)."""
    while not hasattr(model, "get_base_model") and hasattr(model, "module"):
        model = model.module
    if hasattr(model, "get_base_model"):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            raise InputError(
                "This adapter learns prompt tokens, which shift every position; merge it or use LoRA-like adapters."
            )
        return model.get_base_model()
    return model


def hidden_states(model: nn.Module, input_ids: Tensor, **kwargs: Any) -> Tensor:
    """Final hidden states (B, S, H) for right-padded `input_ids` (B, S).

    No padding mask is needed: attention is causal, so a token never sees what stands to its right.
    Pass `attention_mask` (4-D) and `position_ids` to score a tree of continuations in one row.
    """
    decoder = causal_lm(model).base_model
    return decoder(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state


class _Handed(BaseModelOutputWithPast):
    """A decoder's output that holds hidden states only: whatever else a model's forward passes on is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _decoder_returns(lm: Any, hidden: Tensor) -> Iterator[None]:
    """Within it, the decoder of `lm` gives `hidden` to whoever calls it.

    Most forwards call `base_model`; a few (OPT) call the decoder inside it.
    """
    calls = []

    def forward(*args: Any, **kwargs: Any) -> _Handed:
        calls.append(1)
        return _Handed(last_hidden_state=hidden)

    found = (lm.base_model, lm.get_decoder())  # the second is None where a captured model has lost it
    decoders = {id(module): module for module in found if module is not None}.values()
    own = [module.__dict__.get("forward") for module in decoders]
    for module in decoders:
        module.forward = forward
    try:
        yield
    finally:
        for module, before in zip(decoders, own, strict=True):
            if before is None:
                del module.forward
            else:
                module.forward = before
    if not calls:
        raise InputError(
            f"{type(lm).__name__} keeps its decoder where tokendeep does not find it, so its head cannot run alone; "
            "use an architecture of transformers' own."
        )


def project(model: Any, hidden: Tensor, forward: Any = None) -> Tensor:
    """Logits (N, V) of hidden states (N, H) in float32, exactly as the model itself would compute them.

    `forward` is the model's own forward where `model.forward` has been wrapped.
    """
    lm = causal_lm(model)
    dummy = torch.zeros(1, hidden.shape[0], dtype=torch.long, device=hidden.device)
    with _decoder_returns(lm, hidden[None]):
        logits = (forward or lm.forward)(input_ids=dummy, use_cache=False).logits
    return logits[0].float()


def chunk_rows(model: nn.Module) -> int:
    """How many positions are projected at once so that their logits stay within CHUNK_BYTES."""
    vocabulary = causal_lm(model).get_output_embeddings().weight.shape[0]
    return max(16, CHUNK_BYTES // (4 * vocabulary))


def select(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states (N, H) that predict a supervised label, and those labels (N,), in row order.

    `labels` (B, S) are not shifted: the state at position s predicts the label at s + 1.
    """
    targets = labels[:, 1:].to(hidden.device)  # layers spread over several devices end on another one
    mask = targets != IGNORE
    return hidden[:, :-1][mask], targets[mask]


def label_logps(model: nn.Module, hidden: Tensor, targets: Tensor, forward: Any = None) -> Tensor:
    """Log-probabilities (N,), in nats, of `targets` (N,) given `hidden` (N, H); differentiable.

    The head runs in chunks. When gradients flow and there are several chunks, each is recomputed in
    the backward pass, so that one chunk of logits is alive at any time.
    """

    def chunk(states: Tensor, wanted: Tensor) -> Tensor:
        return -F.cross_entropy(project(model, states, forward), wanted, reduction="none")

    step = chunk_rows(model)
    if len(targets) <= step:
        return chunk(hidden, targets) if len(targets) else hidden.sum(-1).float()
    pieces = zip(hidden.split(step), targets.split(step), strict=True)
    if not (torch.is_grad_enabled() and hidden.requires_grad):
        return torch.cat([chunk(*piece) for piece in pieces])
    return torch.cat([checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces])


def add_supervised_forward(lm: Any) -> None:
    """Let `lm(input_ids=..., labels=..., supervised_only=True)` return label log-probabilities (N,).

    The call has to go through the model's forward so that distributed wrappers see it. N counts the
    labels that are not IGNORE, in row order. Without the flag the forward is unchanged.
    """
    original = lm.forward

    def forward(*args: Any, supervised_only: bool = False, **kwargs: Any) -> Any:
        if not supervised_only:
            return original(*args, **kwargs)
        states, targets = select(hidden_states(lm, kwargs["input_ids"]), kwargs["labels"])
        return label_logps(lm, states, targets, original)

    lm.forward = forward
