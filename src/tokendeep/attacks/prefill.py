"""Prefilling: the first k tokens of a harmful answer are given in advance, and the model goes on from there.

Knows how a prompt gets its answer prefix, in token ids of the victim's own tokenizer. Knows nothing of models,
generation or judges.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from tokendeep import chat, runs
from tokendeep.attacks.base import Attack, Params, Prepared, Rows, Victim, option
from tokendeep.attacks.prompts import attacked
from tokendeep.errors import InputError
from tokendeep.models.options import Ints
from tokendeep.types import Pair, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "prefill"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrefillOptions:
    """How much of a harmful answer is given in advance, and where it stands."""

    k: Annotated[Ints, option(help="Answer tokens that prefill gives in advance; every number gets a rate.")] = field(
        default_factory=lambda: [0, 5, 10, 20, 40]
    )
    lead: Annotated[str, option(help="Text before the k tokens of prefill, such as a refusal that has begun.")] = ""
    thinking: Annotated[
        bool, option(help="Put lead and tokens inside the thinking block that the chat template opens answers with.")
    ] = False


def prefill(
    pairs: Sequence[Pair],
    ks: Iterable[int],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    as_text: bool = False,
    lead: str = "",
    thinking: bool = False,
) -> tuple[list[Prompt], dict[int, int]]:
    """Prefill the first k tokens of each pair's answer, for every k.

    Token ids are sliced from the answer as `chat.encode` tokenises it, so position k + 1 is the first one the model
    chooses; the end-of-turn token is never among them.

    Args:
        tokenizer: the victim's; it may be None where every k is 0.
        as_text: the model takes the prefix as text: an answer whose first k tokens do not spell its beginning (a
            character cut in two) is skipped like one that is too short.
        lead: text that stands before the k tokens, such as a refusal that has begun; control tokens in it are read as
            such. Results name it by its hash.
        thinking: lead and tokens stand inside the thinking block that the template opens an answer with.

    Returns:
        The prompts, all k of one pair next to each other, and for each k how many answers were too short for it.

    Raises:
        InputError: no k, a k below 0, no pairs, or every k is longer than every answer; where one is, that is said.
    """
    wanted = check_ks(ks)
    if not pairs:
        raise InputError("prefill needs at least one pair of instruction and answer.")
    prompts: list[Prompt] = []
    skipped = dict.fromkeys(wanted, 0)
    longest = 0
    more = {**({"lead": runs.fingerprint(lead)} if lead else {}), **({"thinking": True} if thinking else {})}
    for pair in pairs:
        before, answer = _parts(pair, tokenizer, lead, thinking) if tokenizer is not None else ([], [])
        longest = max(longest, len(answer))
        for k in wanted:
            text = _spelled(tokenizer, answer[:k])
            if as_text:
                text = text.lstrip()  # spaces there are of the template's making
            if k > len(answer) or (as_text and not pair.response.lstrip().startswith(text)):
                skipped[k] += 1
                continue
            prompts.append(attacked(pair, NAME, {"k": k, **more}, ids=[*before, *answer[:k]], text=lead + text))
    beyond = [k for k, count in skipped.items() if count == len(pairs)]
    if not prompts:
        raise InputError(
            f"k = {beyond[0]} is beyond every answer of the data: the longest has {longest} tokens; lower --k, or leave "
            "--limit out."
        )
    for k in beyond:
        log.warning("k = %d of prefill is left out: the longest answer of these rows has %d tokens", k, longest)
    return prompts, skipped


def _parts(
    pair: Pair, tokenizer: PreTrainedTokenizerBase, lead: str, thinking: bool
) -> tuple[Sequence[int], Sequence[int]]:
    """The ids of the lead, and those of the answer that stand behind it."""
    if thinking:
        chat.thinking_ids(tokenizer, pair.messages)  # or say that there is no such block
    if not lead and not thinking:
        return (), chat.response_ids(tokenizer, list(pair.messages), pair.response, end=False)
    answer = chat.continuation_ids(tokenizer, pair.response, literal=True)
    where = None if thinking else pair.messages  # an answer may begin with a space
    return chat.lead_ids(tokenizer, where, lead) if lead else (), answer


def _spelled(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int]) -> str:
    """What the ids read as, byte for byte."""
    if tokenizer is None or not ids:
        return ""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def check_ks(ks: int | str | Iterable[int | str]) -> list[int]:
    """The k in rising order, each once, from a number, numbers or a text such as 0,5,10.

    Raises:
        InputError: none, one below 0, or what is no whole number.
    """
    parts = ks.split(",") if isinstance(ks, str) else list(ks) if isinstance(ks, Iterable) else [ks]
    try:
        if any(isinstance(part, bool | float) for part in parts):
            raise ValueError
        wanted = sorted({int(part) for part in parts})
    except ValueError:
        raise InputError(f"k = {ks} is no list of whole numbers: write it like 0,5,10.") from None
    if not wanted:
        raise InputError("prefill needs at least one k, for example k = 0,5,10.")
    if wanted[0] < 0:
        raise InputError(f"k = {wanted[0]} is below 0: k counts answer tokens given in advance.")
    return wanted


def check(options: PrefillOptions) -> None:
    check_ks(options.k)


def prepare(rows: Rows, options: PrefillOptions, victim: Victim) -> Prepared:
    ks, lead, thinking = check_ks(options.k), options.lead, options.thinking
    given = bool(ks[-1] or lead or thinking)
    by_text = given and victim.route() == "text"
    if thinking and by_text:
        raise InputError("thinking needs the exact tokens of the prompt: it is for models that tokendeep loads itself.")
    tokenizer = victim.tokenizer() if given else None
    return Prepared(*prefill(rows.pairs, ks, tokenizer, as_text=by_text, lead=lead, thinking=thinking))


def describe(params: Params) -> str:
    """A lead goes by its hash; one that is simply True is the only one there is."""
    lead = params.get("lead")
    behind = "" if not lead else " behind a text" if lead is True else f" behind a text ({lead})"
    return f"prefill k = {params['k']}{behind}{' inside the thinking block' if params.get('thinking') else ''}"


def recorded(options: PrefillOptions) -> Mapping[str, Any]:
    return {"lead": runs.fingerprint(options.lead)} if options.lead else {}


ATTACK = Attack(
    NAME, "gives the first k tokens of a harmful answer in advance", PrefillOptions, prepare, describe, check=check,
    needs="pairs", tells=("k", "lead", "thinking"), prefills=True, recorded=recorded,
)  # fmt: skip
