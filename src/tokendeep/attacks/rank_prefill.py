"""Rank-assisted prefilling: of the victim's own likeliest tokens, take the best that a scorer accepts, and so on.

Vega & Singh (arXiv 2512.05518): a deepened model puts its mass on refusing, while tokens of an answer stay among its top
20; picking those by rank walks around the refusal. Where none is accepted the last token is taken back and the next rank
tried, within a budget. What comes out is a prefix, from which the victim then goes on by itself.

Scorers: an unaligned model that finds the token likely (`Likely`), the offline judge that sees no refusal in the text so
far (`NotRefusing`), or any callable. Knows nothing of files or of how rates are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokendeep import chat, judges
from tokendeep.attacks import prompts
from tokendeep.compute import lm_head, scoring
from tokendeep.errors import InputError
from tokendeep.types import Prompt, Subject

Scorer = Callable[[Sequence[int], Sequence[int], Sequence[int]], Sequence[bool]]
SAME = 3  # the same token so many times in a row is never taken


@dataclass(frozen=True)
class Settings:
    """How to search: ranks looked at in every place, tokens of the prefix, and the victim's forward passes at most."""

    top: int = 20
    length: int = 32
    budget: int = 256


@dataclass(frozen=True)
class Walk:
    """A prefix, and what it cost: forward passes of the victim, tokens taken back; `found`: it has the whole length."""

    ids: tuple[int, ...]
    passes: int
    backtracks: int
    found: bool


def check(settings: Settings) -> None:
    """Raises InputError for a budget of nothing."""
    for name in ("top", "length", "budget"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} is {getattr(settings, name)}, a budget of nothing; give at least 1")


def attacked(prompt: Prompt, walked: Walk, tokenizer: Any) -> Prompt:
    """The prompt with the prefix that was found; with none, where not one token was accepted, it is asked plainly."""
    text = str(tokenizer.decode(list(walked.ids), clean_up_tokenization_spaces=False))
    return prompts.attacked(prompt, "rank-prefill", {}, ids=walked.ids, text=text)


def walk(subject: Subject, prompt: Sequence[int], scorer: Scorer, settings: Settings) -> Walk:
    """Search one prefix, depth first; of a search whose budget ran out, the longest it had.

    Args:
        prompt: token ids up to the answer.
        scorer: (prompt, answer so far, candidates) -> which candidates it accepts.

    Raises:
        InputError: a budget of nothing.
    """
    check(settings)
    reader, ends = Reader(subject), chat.control_ids(subject.tokenizer)  # no part of a text
    answer: list[int] = []
    waiting: list[list[int]] = []  # at each place the ranked candidates that are left
    passes = backtracks = 0
    best: tuple[int, ...] = ()
    while len(answer) < settings.length:
        if len(waiting) == len(answer):  # a new place
            if passes >= settings.budget:
                break
            ranked = _likeliest(reader([*prompt, *answer]), settings.top)
            passes += 1
            allowed = [t for t in ranked if t not in ends and answer[1 - SAME :] != [t] * (SAME - 1)]
            good = scorer(prompt, answer, allowed) if allowed else []
            waiting.append([token for token, accepted in zip(allowed, good, strict=True) if accepted])
        if waiting[-1]:
            answer.append(waiting[-1].pop(0))
        elif not answer:
            break
        else:
            waiting.pop()
            answer.pop()
            backtracks += 1
        if len(answer) > len(best):
            best = tuple(answer)
    return Walk(best, passes, backtracks, len(best) == settings.length)


class Reader:
    """Next-token logits (V,) behind a row of tokens; what it shares with the row before is not computed again."""

    def __init__(self, subject: Subject) -> None:
        self.lm = lm_head.causal_lm(subject.model)
        self.held: list[int] = []
        self.cache: Any = None

    @torch.no_grad()
    def __call__(self, ids: Sequence[int]) -> Tensor:
        row, device = list(ids), self.lm.get_input_embeddings().weight.device
        if not scoring.plain_cache(self.lm, len(row)):
            return lm_head.project(self.lm, lm_head.hidden_states(self.lm, torch.tensor([row], device=device))[0, -1:])[
                0
            ]
        same = scoring.shared_prefix([row, [*self.held, -1]])
        if self.cache is None or same == 0:
            self.cache, same = None, 0
        elif same < len(self.held):
            self.cache.crop(same - len(self.held))
        out = self.lm.base_model(
            input_ids=torch.tensor([row[same:]], device=device), past_key_values=self.cache, use_cache=True
        )
        self.cache, self.held = out.past_key_values, row
        return lm_head.project(self.lm, out.last_hidden_state[0, -1:])[0]


class Likely:
    """Accepts a token that an unaligned model with the same vocabulary has among its `rank` likeliest."""

    def __init__(self, subject: Subject, rank: int = 5) -> None:
        self.reader, self.rank = Reader(subject), rank

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], candidates: Sequence[int]) -> list[bool]:
        likely = set(_likeliest(self.reader([*prompt, *answer]), self.rank))
        return [token in likely for token in candidates]


class NotRefusing:
    """Accepts a token while the offline judge finds no refusal in the answer so far with it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], candidates: Sequence[int]) -> list[bool]:
        texts = self.tokenizer.batch_decode([[*answer, token] for token in candidates])
        return [
            judges.judge_refusal(text, truncated=True).outcome not in ("refused", "partial-then-refused")
            for text in texts
        ]


def _likeliest(logits: Tensor, count: int) -> list[int]:
    """The tokens of the `count` highest logits (V,), best first; all where there are fewer."""
    return logits.topk(min(count, len(logits))).indices.tolist()
