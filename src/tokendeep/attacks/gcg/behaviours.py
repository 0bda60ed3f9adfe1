"""What a search for a suffix works on, in token ids: a request with a place for the suffix, and what its answer is driven to.

Knows the loss and how the tokens behind a suffix lie in one row. Knows nothing of searching.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokendeep import chat
from tokendeep.compute import trees
from tokendeep.errors import InputError
from tokendeep.types import Message, Subject

STARTS = (" x", " !", "!", "x")  # the suffix begins as so many of the first that is one token


@dataclass(frozen=True)
class Behaviour:
    """A request as token ids around the suffix, and what its answer is driven to or from.

    The loss of `wanted` alone is its mean cross-entropy. With `unwanted` (openings of a refusal) it is the refusal
    log-odds: log sum P(unwanted) - log P(wanted), all of one length.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    wanted: tuple[int, ...]
    unwanted: tuple[tuple[int, ...], ...] = ()
    spell: Callable[[Sequence[str]], list[list[int]]] = field(compare=False, repr=False, default=lambda texts: [])


def behaviour(
    subject: Subject, name: str, messages: Sequence[Message], target: str, *, tokens: int | None = None,
    openings: Sequence[tuple[int, ...]] = (),
) -> Behaviour:  # fmt: skip
    """A request and what is wanted of its answer, in token ids.

    Args:
        name: for messages.
        messages: the request; the suffix goes behind its last user turn.
        target: how the answer should begin.
        tokens: take the first so many of its tokens; all by default. A longer opening asks for more depth.
        openings: of refusals, as `openings.opening_ids` gives them; the target is then cut to their length.

    Raises:
        InputError: an empty target, one that the tokenizer cannot represent, or a template in which the request cannot
            be told from what surrounds it.
    """
    tokenizer: Any = subject.tokenizer
    wanted = chat.response_ids(tokenizer, messages, target, end=False) if target.strip() else []
    if not wanted:
        raise InputError(f"{name}: the target is empty; say how the answer should begin.")
    size = len(openings[0]) if openings else tokens or len(wanted)
    if len(wanted) < size:
        raise InputError(f"{name}: the target has {len(wanted)} tokens, but {size} are asked for; give a longer one.")
    whole, wanted = len(wanted) == size, wanted[:size]
    read = tokenizer.decode(wanted, clean_up_tokenization_spaces=False).strip()
    unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in wanted
    begun = target.strip().startswith(read.rstrip("\ufffd"))  # the last token may be part of a character
    if unknown or not (read == target.strip() if whole else begun):
        raise InputError(f"{name}: the tokenizer cannot represent the target; take out its unusual characters.")
    before, after, spell = chat.open_prompt(tokenizer, messages)
    return Behaviour(name, tuple(before), tuple(after), tuple(wanted), tuple(openings), spell)


def start(subject: Subject, tokens: int) -> tuple[int, ...]:
    """A suffix of so many tokens to begin with. Raises InputError below 1."""
    if tokens < 1:
        raise InputError(f"A suffix of {tokens} tokens is none; give at least 1.")
    for text in STARTS:
        ids = chat.continuation_ids(subject.tokenizer, text * tokens)
        if len(ids) == tokens:
            return tuple(ids)
    raise InputError("The tokenizer has no plain token to begin a suffix with; give the suffix to begin with.")


class Row:
    """What follows the suffix in one candidate: the rest of the prompt, then the targets as a tree."""

    def __init__(self, b: Behaviour, suffix: Sequence[int]) -> None:
        self.b, self.n = b, len(suffix)
        self.tree = trees.Tree([*b.before, *suffix, *b.after])
        end = self.tree.length
        self.paths = [
            [(self.tree.node(end, target[:depth]), target[depth]) for depth in range(len(target))]
            for target in (b.wanted, *b.unwanted)
        ]
        self.flat = [(node, token) for path in self.paths for node, token in path]
        self.rest = self.tree.tokens[len(b.before) + self.n :]
        self._mask: Tensor | None = None

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """The tree's attention mask; None for one target, an ordinary row."""
        if self.b.unwanted and self._mask is None:
            self._mask = self.tree.mask(dtype)
        return self._mask

    def parents(self, skipped: int) -> list[int]:
        """Where each target token is predicted, counted behind the `skipped` tokens that a cache holds."""
        return [node - skipped for node, _ in self.flat]

    def targets(self, device: Any) -> Tensor:
        return torch.tensor([token for _, token in self.flat], device=device)

    def sums(self, logps: Tensor) -> Tensor:
        """Log-probability of every target: `logps` (T,) in the order of `flat`."""
        return torch.stack([part.sum() for part in logps.split([len(path) for path in self.paths])])


def combine(b: Behaviour, sums: Tensor) -> Tensor:
    """The loss of one behaviour from the log-probabilities (targets,) of its targets."""
    if not b.unwanted:
        return -sums[0] / len(b.wanted)
    return torch.logsumexp(sums[1:], -1) - sums[0]
