"""Which suffixes may be tried: swaps of one token that read back as the same tokens once they are a text.

Knows the tokenizer and which tokens are sound. Knows nothing of losses.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokendeep import chat
from tokendeep.attacks.gcg.behaviours import Behaviour
from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.types import Subject

ROUNDS = 8  # times that new candidates are drawn when too few survive retokenisation
Swap = tuple[int, int]  # place, token


def swapped(suffix: tuple[int, ...], swap: Swap) -> tuple[int, ...]:
    """The suffix with one token in place of another."""
    place, token = swap
    return (*suffix[:place], token, *suffix[place + 1 :])


class Candidates:
    """The suffixes of one tokenizer."""

    def __init__(self, subject: Subject, ascii_only: bool) -> None:
        self.tokenizer: Any = subject.tokenizer
        self.allowed = _allowed(subject, ascii_only)
        self.anchor = chat.continuation_ids(self.tokenizer, "x")

    def draw(
        self,
        gradient: Tensor,
        suffix: tuple[int, ...],
        first: Behaviour,
        generator: torch.Generator,
        top: int,
        width: int,
    ) -> list[Swap]:
        """Up to `width` different swaps, each of the `top` of its place, that survive behind the first behaviour.

        Args:
            gradient: d loss / d one-hot (n, V) at the suffix's n tokens.

        Raises:
            InputError: none survives.
        """
        tokens = self._steepest(gradient, suffix, top)  # (n, top)
        count = tokens.shape[1]
        order = torch.randperm(tokens.numel(), generator=generator)
        kept: list[Swap] = []
        for start in range(0, min(len(order), ROUNDS * width), width):
            swaps = [(i // count, int(tokens[i // count, i % count])) for i in order[start : start + width].tolist()]
            sound = self.survive(first, [swapped(suffix, swap) for swap in swaps])
            kept += [swap for swap, good in zip(swaps, sound, strict=True) if good]
            if len(kept) >= width:
                break
        if not kept:
            raise InputError("No candidate survives retokenisation: begin with another suffix, or allow other tokens.")
        return kept[:width]

    def _steepest(self, gradient: Tensor, suffix: tuple[int, ...], top: int) -> Tensor:
        """The allowed tokens (n, top) of steepest descent at each place."""
        slopes = gradient.clone()
        slopes[:, ~self.allowed[: slopes.shape[1]]] = float("inf")  # V is what all models have
        slopes[torch.arange(len(suffix)), list(suffix)] = float("inf")  # the token that is there is no swap
        count = min(top, int(torch.isfinite(slopes).sum(-1).min()))
        return slopes.topk(count, largest=False).indices

    def survive(self, b: Behaviour, suffixes: Sequence[tuple[int, ...]]) -> list[bool]:
        """Whether each suffix, decoded and tokenised again behind the request, gives the same ids."""
        texts = [self.text(suffix) for suffix in suffixes]
        return [
            text == text.rstrip() and ids == [*b.before, *suffix, *b.after]
            for text, ids, suffix in zip(texts, b.spell(texts), suffixes, strict=True)
        ]

    def text(self, suffix: Sequence[int]) -> str:
        """The suffix as it is typed, its leading space included."""
        behind = [*self.anchor, *suffix]  # some tokenizers drop a space that begins a text
        whole, anchor = (
            self.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (behind, self.anchor)
        )
        return str(whole[len(anchor) :])


def _allowed(subject: Subject, ascii_only: bool) -> Tensor:
    """Which tokens (V,) may stand in a suffix: no control tokens, none that decode to nothing or to broken text."""
    tokenizer: Any = subject.tokenizer
    size = lm_head.causal_lm(subject.model).get_input_embeddings().weight.shape[0]
    allowed = torch.zeros(size, dtype=torch.bool)
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    for i, text in enumerate(texts[:size]):
        sound = bool(text) and text.isprintable() and "\ufffd" not in text
        allowed[i] = sound and (text.isascii() or not ascii_only)
    allowed[[i for i in chat.control_ids(tokenizer) if i < size]] = False
    return allowed
