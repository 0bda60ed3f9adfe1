"""What ends an answer in a chat template.

Knows how a template goes on behind an answer. Knows nothing of what an answer says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokendeep.chat.ids import alike, control_ids, memory, text_ids
from tokendeep.chat.templates import SLOT, render, template
from tokendeep.errors import InputError
from tokendeep.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKED, _AGAIN = "Hello there", "And now"


def end_ids(tokenizer: PreTrainedTokenizerBase, tail: str) -> tuple[int, ...]:
    """Ids that close an answer: the tail up to its first control tokens that stand together, or its text and EOS.

    Of several together, those do not belong to the answer that stand there because the conversation ends: the EOS of Phi-3
    behind its end of turn, the header of another answer that the first template of Llama 3 always writes.
    """
    ids = _behind(tokenizer, tail)
    control = control_ids(tokenizer)
    if places := [i for i, token in enumerate(ids) if token in control]:
        last = next(i for i in places if i + 1 not in places)
        end = tuple(ids[: last + 1])
        return end[: _of_the_turn(tokenizer, end)] if last > places[0] else end
    text = tail.rstrip()
    ids = _behind(tokenizer, text)
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise InputError(
            "Nothing ends an answer: the chat template writes no end of turn and the tokenizer has no EOS."
        )
    return tuple(ids)


def next_turn(tokenizer: PreTrainedTokenizerBase, tail: str) -> int | None:
    """The control token that another turn begins with, where the template marks no end of an answer (GLM-4, Nemotron-Mini):
    what is written behind it is no part of an answer.
    """
    control = control_ids(tokenizer)
    if control.intersection(_behind(tokenizer, tail)):
        return None
    return next((token for token in _known(tokenizer)[0] if token in control), None)


def _behind(tokenizer: PreTrainedTokenizerBase, tail: str) -> list[int]:
    """Ids of what stands behind an answer."""
    return text_ids(tokenizer, "x" + tail)[len(text_ids(tokenizer, "x")) :] if tail else []


def _of_the_turn(tokenizer: PreTrainedTokenizerBase, end: Sequence[int]) -> int:
    """How many of several end tokens close the turn, also where the conversation goes on; all where that cannot be told."""
    turn, opener = _known(tokenizer)
    together = alike(end, turn) or len(
        end
    )  # none where the turn ends in another way than the conversation, as in gpt-oss
    if opener in end[1:together]:
        return end.index(opener, 1)
    return together


def _known(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int | None]:
    known = memory(tokenizer)
    key = ("goes on", template(tokenizer), len(tokenizer))
    facts = known.get(key)
    if facts is None:
        facts = known[key] = _goes_on(tokenizer)
    return facts


def _goes_on(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int | None]:
    """Ids between an answer and the next request, and the control token that a turn begins with: None where the header of
    an answer is written only when it is asked for.
    """
    asked: list[Message] = [{"role": "user", "content": _ASKED}]
    again: list[Message] = [*asked, {"role": "assistant", "content": SLOT}, {"role": "user", "content": _AGAIN}]
    try:
        turn = render(tokenizer, again, False).rpartition(SLOT)[2].partition(_AGAIN)[0]
    except InputError:  # it takes one turn alone
        return [], None
    bare = render(tokenizer, asked, False)
    if bare != render(tokenizer, asked, True):
        return _behind(tokenizer, turn), None
    control = control_ids(tokenizer) - {tokenizer.bos_token_id}
    return _behind(tokenizer, turn), next((i for i in text_ids(tokenizer, bare) if i in control), None)
