"""Rank-assisted prefilling: of the victim's own likeliest tokens, take the best that a scorer accepts, and so on.

Vega & Singh (arXiv 2512.05518): a deepened model puts its mass on refusing, while tokens of an answer stay among its top
20; picking those by rank walks around the refusal. Where none is accepted the last token is taken back and the next rank
tried, within a budget. What comes out is a prefix, from which the victim then goes on by itself.

Scorers: an unaligned model that finds the token likely (`Likely`), the offline judge that sees no refusal in the text so
far (`NotRefusing`), or any callable. Knows nothing of how rates are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from tokendeep import chat, judges, models
from tokendeep.attacks import prompts
from tokendeep.attacks.base import Attack, Params, Prepared, Rows, Victim, option
from tokendeep.errors import InputError, check_budget, check_least
from tokendeep.progress import Bar
from tokendeep.runs import parts
from tokendeep.types import Prompt, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "rank-prefill"
Scorer = Callable[[Sequence[int], Sequence[int], Sequence[int]], Sequence[bool]]
SAME = 3  # the same token so many times in a row is never taken
SCORERS = {"base": " by an unaligned model", "judge": " by the offline judge"}  # in words, by their name in the cost


@dataclass(frozen=True, kw_only=True)
class RankPrefillOptions:
    """How the prefix is searched for."""

    rank_base: Annotated[
        str | None,
        option(
            help="Unaligned model with the same tokenizer whose likeliest tokens rank-prefill takes; without one, any token that "
            "the offline judge does not read as refusing."
        ),
    ] = None
    rank_base_top: Annotated[int, option(help="How many tokens the unaligned model accepts in a place.")] = 5
    rank_top: Annotated[int, option(help="How many of the victim's likeliest tokens rank-prefill chooses from.")] = 20
    rank_length: Annotated[int, option(help="Tokens that rank-prefill looks for.")] = 32
    rank_budget: Annotated[int, option(help="Forward passes of the victim at most, for each prompt.")] = 256


@dataclass(frozen=True)
class Budget:
    """How to search: ranks looked at in every place, tokens of the prefix, and the victim's forward passes at most."""

    top: int = 20
    length: int = 32
    passes: int = 256


@dataclass(frozen=True)
class Walk:
    """A prefix, and what it cost: forward passes of the victim, tokens taken back; `whole`: it has the whole length."""

    ids: tuple[int, ...]
    passes: int
    backtracks: int
    whole: bool


def walk(subject: Subject, prompt: Sequence[int], scorer: Scorer, budget: Budget) -> Walk:
    """Search one prefix, depth first; of a search whose budget ran out, the longest it had.

    Args:
        prompt: token ids up to the answer.
        scorer: (prompt, answer so far, candidates) -> which candidates it accepts.

    Raises:
        InputError: a budget of nothing.
    """
    from tokendeep.compute.reader import Reader

    check_budget(budget, ("top", "length", "passes"))
    reader, ends = Reader(subject), chat.control_ids(subject.tokenizer)  # no part of a text
    answer: list[int] = []
    waiting: list[list[int]] = []  # at each place the ranked candidates that are left
    passes = backtracks = 0
    best: tuple[int, ...] = ()
    while len(answer) < budget.length:
        if len(waiting) == len(answer):  # a new place
            if passes >= budget.passes:
                break
            ranked = reader.likeliest([*prompt, *answer], budget.top)
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
    return Walk(best, passes, backtracks, len(best) == budget.length)


class Likely:
    """Accepts a token that an unaligned model with the same vocabulary has among its `rank` likeliest."""

    def __init__(self, subject: Subject, rank: int = 5) -> None:
        from tokendeep.compute.reader import Reader

        self.reader, self.rank = Reader(subject), rank

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], candidates: Sequence[int]) -> list[bool]:
        likely = set(self.reader.likeliest([*prompt, *answer], self.rank))
        return [token in likely for token in candidates]


class NotRefusing:
    """Accepts a token while the offline judge finds no refusal in the answer so far with it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, prompt: Sequence[int], answer: Sequence[int], candidates: Sequence[int]) -> list[bool]:
        texts = self.tokenizer.batch_decode([[*answer, token] for token in candidates])
        verdicts = [judges.judge_refusal(text, truncated=True) for text in texts]
        return [verdict.outcome not in ("refused", "partial-then-refused") for verdict in verdicts]


# --- the attack ------------------------------------------------------------------------------------


def check(options: RankPrefillOptions) -> None:
    check_least(options, dict.fromkeys(("rank_top", "rank_length", "rank_budget", "rank_base_top"), 1))


def prepare(rows: Rows, options: RankPrefillOptions, victim: Victim) -> Prepared:
    """The prompts with their prefixes, and what finding them has cost; each walk is kept on disk as it is found.

    Raises:
        InputError: the unaligned model has another vocabulary.
    """
    subject = victim.subject()
    scorer = _scorer(subject, options, victim)
    budget = Budget(options.rank_top, options.rank_length, options.rank_budget)
    kept = parts.Parts(victim.folder() / "walks.jsonl") if victim.folder else None
    walks, seconds = [], 0.0
    for number, prompt in enumerate(Bar.over(rows.prompts, NAME, "prompt")):
        took, one = _kept(kept, number) or _walked(subject, prompt, scorer, budget)
        if kept and number not in kept.done:
            kept.add({number: [took, one.passes, one.backtracks, one.whole, *one.ids]})
        walks.append(one)
        seconds += took
    cost = {
        "passes": sum(w.passes for w in walks), "backtracks": sum(w.backtracks for w in walks),
        "tokens": sum(len(w.ids) for w in walks), "whole": sum(w.whole for w in walks), "prompts": len(walks),
        "scorer": "base" if options.rank_base else "judge", "seconds": round(seconds, 3),
    }  # fmt: skip
    made = [attacked(prompt, one, subject.tokenizer) for prompt, one in zip(rows.prompts, walks, strict=True)]
    return Prepared(made, cost=cost)


def _scorer(subject: Subject, options: RankPrefillOptions, victim: Victim) -> Scorer:
    if not options.rank_base:
        return NotRefusing(subject.tokenizer)
    alike = replace(victim.options, chat_template=None)
    base = models.load(options.rank_base, options=alike, needs_template=False)
    models.check_same_vocabulary(subject, base)
    return Likely(base, options.rank_base_top)


def _walked(subject: Subject, prompt: Prompt, scorer: Scorer, budget: Budget) -> tuple[float, Walk]:
    """A walk and the seconds it took."""
    start = time.perf_counter()
    try:
        one = walk(subject, chat.prompt_ids(subject.tokenizer, list(prompt.messages)), scorer, budget)
    except InputError as error:
        raise InputError(f"Row {prompt.id}: {error}") from error
    return time.perf_counter() - start, one


def _kept(kept: parts.Parts | None, number: int) -> tuple[float, Walk] | None:
    """A walk of an earlier attempt."""
    if kept is None or number not in kept.done:
        return None
    took, passes, backtracks, whole, *ids = kept.done[number]
    return took, Walk(tuple(map(int, ids)), int(passes), int(backtracks), bool(whole))


def attacked(prompt: Prompt, walked: Walk, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """The prompt with the prefix that was found; with none, where not one token was accepted, it is asked plainly."""
    text = str(tokenizer.decode(list(walked.ids), clean_up_tokenization_spaces=False))
    return prompts.attacked(prompt, NAME, {}, ids=walked.ids, text=text)


def describe(params: Params) -> str:
    """Other walks are other attacks: `params` with the run's options and costs beside them say which."""
    length, by = params.get("rank_length"), SCORERS.get(str(params.get("scorer")), "")
    return f"{NAME}{f' of {length} tokens' if length else ''}{by}"


def effort(rows: Rows, options: RankPrefillOptions) -> str:
    return f"found with {len(rows.prompts) * options.rank_budget} forward passes of the model at most"


ATTACK = Attack(
    NAME, "gives the best of the victim's own likely tokens in advance", RankPrefillOptions, prepare, describe, check=check,
    prefills=True, weights=True, models=("rank_base",), effort=effort,
)  # fmt: skip
