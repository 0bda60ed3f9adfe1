"""PACT: a few safety tokens of a model, and the divergence inside them (Wang et al., arXiv 2603.07445, their code).

The tokens and their direction come from the model's own refusals and the base model that it was aligned from; the loss from
the logits of the reference with and without the prompt. Where the code is not followed, it is said. Numbers as there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokendeep import chat, models
from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.types import IGNORE, Subject

TOKENS = 50
TEMPERATURE = 2.0
MASS = 0.9  # of the probability inside the set, by which its spread is counted
STEEPNESS = 2.0
FIRST, DECAY = 9, 8.0  # answer tokens at which the gate counts in full (0 to 8 there), and how it fades behind them
PLAIN = "User: {}\n\nAssistant: "  # how the base model is asked


@dataclass(frozen=True)
class SafetyTokens:
    """The tokens `ids` (K,), and the `direction` (K,) from the base model to the aligned one, of length 1."""

    ids: Tensor
    direction: Tensor


def safety_tokens(aligned: Subject, base: Subject, asked: Sequence[str], rows: Sequence[Any]) -> SafetyTokens:
    """The tokens that the aligned model gives most probability in its refusals, averaged over tokens and then over rows.

    The authors take 512 sampled refusals, cut off at 64 tokens; here they are the model's greedy ones to the requests of the
    stock, as far as they end within `--safety-tokens`, without their end tokens.

    Args:
        asked: the requests, which the base model is asked as plain text.
        rows: of `input_ids` and `labels`, the refusals of those requests by the aligned model.

    Raises:
        InputError: the two have different vocabularies, or the base says the same.
    """
    models.check_same_tokens(
        (aligned.name, aligned.tokenizer), (base.name, base.tokenizer), "give the model that it was aligned from"
    )
    control = chat.control_ids(aligned.tokenizer)
    means, differences = [], []
    for text, row in zip(asked, rows, strict=True):
        answer = [label for label in row["labels"] if label != IGNORE and label not in control]
        start = next(i for i, label in enumerate(row["labels"]) if label != IGNORE)
        plain = list(aligned.tokenizer(PLAIN.format(text), add_special_tokens=False)["input_ids"])
        ours, theirs = _probabilities(aligned, [*row["input_ids"][:start]], answer), _probabilities(base, plain, answer)
        common = min(len(ours), len(theirs))  # one may have its embeddings padded further than the other
        means.append(ours[:common])
        differences.append(ours[:common] - theirs[:common])
    mean, difference = torch.stack(means).mean(0), torch.stack(differences).mean(0)
    ids = mean.topk(min(TOKENS, len(mean))).indices
    chosen = difference[ids]
    spread = chosen.std(correction=0)
    if not spread:
        raise InputError(
            f"{base.name} gives the refusals of {aligned.name} the same probability; give the unaligned model."
        )
    scores = (chosen - chosen.mean()) / spread
    return SafetyTokens(ids, scores / scores.norm())


@torch.no_grad()
def _probabilities(subject: Subject, prompt: list[int], answer: list[int]) -> Tensor:
    """The mean (V,), on the CPU, of the distributions that predict the tokens of the answer."""
    model = subject.model
    ids = torch.tensor([[*prompt, *answer]], device=next(model.parameters()).device)
    states = lm_head.hidden_states(model, ids)[0, len(prompt) - 1 : -1]
    return lm_head.project(model, states).softmax(-1).mean(0).cpu()


def spread(logits: Tensor) -> Tensor:
    """The share (N,) of the tokens of a set (N, K) that are needed for nine tenths of its probability."""
    ordered = logits.softmax(-1).sort(-1, descending=True).values
    return ((ordered.cumsum(-1) < MASS).sum(-1) + 1).clamp(max=logits.shape[-1]) / logits.shape[-1]


def gate(inside: Tensor, alone: Tensor, positions: Tensor) -> Tensor:
    """How much (N,) of the reference without the prompt is mixed in: more where the model is more spread than it.

    Args:
        inside, alone: logits (N, K) of the safety tokens, of the model and of the reference without the prompt.
        positions: (N,) in the answer, from 1.
    """
    fade = torch.exp(-(positions - FIRST).clamp(min=0) / DECAY)
    return torch.sigmoid(STEEPNESS * (spread(inside) - spread(alone))) * fade


def value(tokens: SafetyTokens, *, full: bool = False) -> Callable[..., Tensor]:
    """The loss of each answer token: the divergence of the model from the target, times the temperature squared.

    The target mixes the two references, and counts the tokens of the set along the direction only.

    Args:
        full: ours, an ablation: both are distributions over the full vocabulary, and the mixed reference's mass of the set
            stays what it is; the authors look inside the set alone, so its mass may leave it unseen.
    """

    def of_tokens(logits: Tensor, ref: Tensor, alone: Tensor, positions: Tensor) -> Tensor:
        ids, along = tokens.ids.to(logits.device), tokens.direction.to(logits.device).clamp(min=0)
        with torch.no_grad():
            blend = gate(logits[:, ids], alone[:, ids], positions)[:, None]  # (N, 1)
            target = (((1 - blend) * ref + blend * alone) / TEMPERATURE)[:, slice(None) if full else ids].softmax(-1)
            inside = target[:, ids] if full else target
            turned = inside * along
            turned = turned / turned.sum(-1, keepdim=True) * inside.sum(-1, keepdim=True)
            target = target.index_copy(1, ids, turned) if full else turned
        ours = ((logits if full else logits[:, ids]) / TEMPERATURE).log_softmax(-1)
        return (torch.xlogy(target, target) - target * ours).sum(-1) * TEMPERATURE**2

    return of_tokens
