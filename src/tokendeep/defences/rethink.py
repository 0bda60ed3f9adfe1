"""The defence `rethink`: at fixed depths of its answer the model is asked, by its own template, to begin anew.

A shallow alignment lives in the first tokens behind the assistant's header. So the header is put behind what is written so
far, and the model writes a few tokens more: where these refuse, a canned refusal takes the place of the answer. This is
ADA-RK of "Any-Depth Alignment" (arXiv 2510.18081), with two choices of ours: the offline judge reads the tokens, for all
models alike, in place of a list of phrases for each model; and the answer is written whole before it is checked.

The latter changes nothing that a user sees: a check reads tokens that stand already and writes none into the answer, so that
answer and checks do not depend on which is computed first. It keeps an answer that is never stopped the same, token by token,
as without the defence, on every engine whose answers repeat and for every way of sampling; and all checks of an answer share
one computation of it. What is written behind a stop is thrown away: a service that checks while it decodes saves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from tokendeep import chat
from tokendeep.defences.base import Ask, Defence
from tokendeep.engines.base import Completion, Request, TooLong
from tokendeep.errors import InputError, check_least
from tokendeep.judges import judge_refusal
from tokendeep.models.options import advanced
from tokendeep.types import Decoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSAL = "I'm sorry, but I can't help with that."
REFUSING = ("refused", "partial-then-refused")


@dataclass(frozen=True, kw_only=True)
class RethinkOptions:
    """How often an answer is checked, and by how many tokens."""

    every: Annotated[int, advanced(help="Answer tokens from one check of the defence rethink to the next.")] = 25
    think_tokens: Annotated[int, advanced(help="Tokens that the model writes for a check of rethink.")] = 20


@dataclass(frozen=True)
class Rethink:
    """An engine whose answers are checked.

    Args:
        ask: the engine.
        header: ids that end an answer and open another one.
        canned: ids of the refusal that takes the place of an answer.
    """

    ask: Ask
    header: tuple[int, ...]
    canned: tuple[int, ...]
    options: RethinkOptions

    async def __call__(self, request: Request) -> Completion:
        """The engine's completion, with its `checks`; or the canned refusal where one of these stopped it."""
        given, seconds, checks = request.given, 0.0, []
        if given:  # what the caller gave: the model writes nothing before that is checked
            refused, seconds = await self._check(request, given)
            checks.append((given, refused))
            if refused:
                return self._stopped(checks, seconds)
        done = await self.ask(request)
        whole = replace(request, ids=(*request.ids, *done.ids), given=given + len(done.ids))
        depths = self.depths(given, len(done.ids))
        found = await asyncio.gather(*(self._check(whole, depth) for depth in depths))
        checks += [(depth, refused) for depth, (refused, _) in zip(depths, found, strict=True)]
        seconds += done.seconds + sum(cost for _, cost in found)
        if any(refused for _, refused in checks):
            return self._stopped(checks, seconds)
        return replace(done, seconds=seconds, checks=tuple(checks))

    def depths(self, given: int, written: int) -> Sequence[int]:
        """Where the answer is checked while it is written: at each multiple of `every`, counted from its first token."""
        every = self.options.every
        return range((given // every + 1) * every, given + written + 1, every)

    async def _check(self, request: Request, depth: int) -> tuple[bool, float]:
        """Whether the model refuses when its answer is begun anew behind `depth` tokens; and the seconds it took."""
        start = len(request.ids) - request.given
        ids = (*request.ids[: start + depth], *self.header)
        try:
            thought = await self.ask(Request(ids, Decoding(max_new_tokens=self.options.think_tokens)))
        except TooLong as error:
            raise InputError(
                f"The defence rethink adds {len(self.header) + self.options.think_tokens} tokens behind an answer of {depth}, "
                "which do not fit the model's context: "
                + ("shorten the request, or give fewer tokens." if depth == request.given else "lower max_new_tokens.")
            ) from error
        verdict = judge_refusal(thought.text, truncated=thought.truncated)
        return verdict.outcome in REFUSING, thought.seconds

    def _stopped(self, checks: Sequence[tuple[int, bool]], seconds: float) -> Completion:
        return Completion(self.canned, REFUSAL, False, seconds, checks=tuple(checks))


def wrap(ask: Ask, tokenizer: PreTrainedTokenizerBase, options: RethinkOptions) -> Ask:
    """The engine with its answers checked. Raises InputError for a chat template that opens no answer."""
    canned = chat.continuation_ids(tokenizer, REFUSAL)
    return Rethink(ask, tuple(chat.header_ids(tokenizer)), tuple(canned), options)


DEFENCE = Defence(
    "rethink",
    does="asks the model every few tokens to begin its answer anew, and stops it where it would refuse",
    options=RethinkOptions,
    wrap=wrap,
    describe=lambda options: f"rethink (every {options.every}, {options.think_tokens} tokens)",
    check=lambda options: check_least(options, {"every": 1, "think_tokens": 1}),
)
