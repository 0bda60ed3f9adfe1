"""The prefilling attacks: the model is made to go on from tokens it did not choose.

Knows how a prompt gets its answer prefix, in token ids of the victim's own tokenizer. Knows nothing of models,
generation or judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tokendeep import chat, runs
from tokendeep.attacks.prompts import attacked
from tokendeep.errors import InputError
from tokendeep.types import Pair, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFUSAL_PREFIXES = (  # Table 1 of the paper
    "I cannot",
    "I cannot fulfill",
    "I apologize",
    "I apologize, but I cannot",
    "I am unable",
)


def none(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The plain request, with nothing prefilled: the point every attack is compared with."""
    return [attacked(prompt, "none", {}) for prompt in prompts]


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
        pairs: instructions with the answers to take the tokens from.
        ks: how many tokens, any number of them.
        tokenizer: the victim's; it may be None where every k is 0.
        as_text: the model takes the prefix as text: an answer whose first k tokens do not spell its beginning (a
            character cut in two) is skipped like one that is too short.
        lead: text that stands before the k tokens, such as a refusal that has begun; control tokens in it are read as
            such. Results name it by its hash.
        thinking: lead and tokens stand inside the thinking block that the template opens an answer with.

    Returns:
        The prompts, all k of one pair next to each other, and for each k how many answers were too short for it.

    Raises:
        InputError: no k, a k below 0, no pairs, or a k that is longer than every answer.
    """
    wanted = check_ks(ks)
    if not pairs:
        raise InputError("prefill needs at least one pair of instruction and answer")
    prompts: list[Prompt] = []
    skipped = dict.fromkeys(wanted, 0)
    longest = 0
    for pair in pairs:
        answer: list[int] = []
        if tokenizer is not None and thinking:
            chat.thinking_ids(tokenizer, pair.messages)  # or say that there is no such block
        if tokenizer is not None and wanted[-1]:
            answer = (
                chat.continuation_ids(tokenizer, pair.response, literal=True)
                if lead or thinking
                else chat.response_ids(tokenizer, list(pair.messages), pair.response, end=False)
            )
        longest = max(longest, len(answer))
        for k in wanted:
            text = _spelled(tokenizer, answer[:k])
            if as_text:
                text = text.lstrip()  # spaces there are of the template's making
            if k > len(answer) or (as_text and not pair.response.lstrip().startswith(text)):
                skipped[k] += 1
                continue
            ids = answer[:k]
            params = {
                "k": k,
                **({"lead": runs.fingerprint(lead)} if lead else {}),
                **({"thinking": True} if thinking else {}),
            }
            if lead and tokenizer is not None:
                begins = not thinking  # an answer, whose first space is the template's
                ids = [*chat.lead_ids(tokenizer, pair.messages if begins else None, lead), *ids]
            prompts.append(attacked(pair, "prefill", params, ids=ids, text=lead + text))
    for k, count in skipped.items():
        if count == len(pairs):
            raise InputError(f"k = {k} is beyond every answer of the data: the longest has {longest} tokens, lower k")
    return prompts, skipped


def refusal_prefix(
    prompts: Sequence[Prompt], prefixes: Sequence[str] | None, tokenizer: PreTrainedTokenizerBase | None
) -> list[Prompt]:
    """Prefill the opening of a refusal (Table 1 of the paper), one prompt for each prefix, which goes by its name.

    Args:
        prompts: the plain requests.
        prefixes: the openings; None means `REFUSAL_PREFIXES`.
        tokenizer: the victim's; None leaves `prefix_ids` empty, for models that take the prefix as text.

    Raises:
        InputError: no prefix, an empty one or one given twice.
    """
    openings = check_prefixes(prefixes)
    found: list[Prompt] = []
    for prompt in prompts:
        for name, opening in zip(prefix_names(openings), openings, strict=True):
            ids: Sequence[int] = ()
            if tokenizer is not None:
                ids = chat.response_ids(tokenizer, list(prompt.messages), opening, end=False)
            found.append(attacked(prompt, "refusal-prefix", {"prefix": name}, ids=ids, text=opening))
    return found


def check_ks(ks: Iterable[int]) -> list[int]:
    """The k in rising order, each once. Raises InputError where there is none or one is below 0."""
    wanted = sorted(set(ks))
    if not wanted:
        raise InputError("prefill needs at least one k, for example k = 0,5,10")
    if wanted[0] < 0:
        raise InputError(f"k = {wanted[0]} is below 0: k counts answer tokens given in advance")
    return wanted


def check_prefixes(prefixes: Sequence[str] | None) -> tuple[str, ...]:
    """The refusal prefixes to use. Raises InputError where there is none, an empty one or one given twice."""
    if prefixes is None:
        return REFUSAL_PREFIXES
    openings = tuple(prefixes)
    if not openings or not all(opening.strip() for opening in openings):
        raise InputError("refusal-prefix needs prefixes that are not empty: leave them out for those of the paper")
    if len(set(openings)) < len(openings):
        raise InputError("a refusal prefix is given twice: name each once")
    return openings


def prefix_names(openings: Sequence[str]) -> list[str]:
    """What results call the prefixes: those of the paper by their text, a user's own by number and hash."""
    return [
        opening if opening in REFUSAL_PREFIXES else f"prefix #{number} ({runs.fingerprint(opening)})"
        for number, opening in enumerate(openings, 1)
    ]


def _spelled(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int]) -> str:
    """What the ids read as, byte for byte."""
    if tokenizer is None or not ids:
        return ""
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
