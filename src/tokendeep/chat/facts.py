"""Looking at a chat template: does it take a system prompt, what ends an answer, who puts BOS in front?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokendeep.chat.ends import next_turn
from tokendeep.chat.ids import adds_bos, text_ids, with_bos
from tokendeep.chat.templates import render, system_of
from tokendeep.chat.tokens import around, encode, frame_of, seam
from tokendeep.errors import InputError
from tokendeep.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TemplateFacts:
    """What a chat template does, found out by rendering a short conversation.

    Args:
        system: role (it has one), default (it has one and fills it when nothing is given), refused or ignored.
        default_system: the system prompt it inserts by itself, None where it inserts none.
        opening: what it writes between the generation prompt and an answer; never supervised.
        end_ids: what closes an answer; supervised.
        next_turn: the control token that another turn begins with, where the template marks no end of an answer.
        bos: who puts BOS in front: template, tokenizer or none.
        spliced: for some answers, tokenising all in one call gives other ids than prompt and answer apart.
    """

    system: str
    default_system: str | None
    opening: str
    end_ids: tuple[int, ...]
    next_turn: int | None
    bos: str
    spliced: bool


def check(tokenizer: PreTrainedTokenizerBase) -> TemplateFacts:
    """Render a short conversation and say what the template does.

    Raises:
        InputError: no template, or one that fails, drops the user's words or has no place for an answer.
    """
    user: list[Message] = [{"role": "user", "content": "Hello there"}]
    if "Hello there" not in render(tokenizer, user, True):
        raise InputError("The chat template leaves out what the user says: give another one.")
    frame = frame_of(tokenizer, user)
    asked, before, _ = around(tokenizer, user)
    system, default = system_of(tokenizer)
    written = bool(tokenizer.bos_token) and asked.startswith(tokenizer.bos_token)
    return TemplateFacts(
        system=system,
        default_system=default,
        opening=(seam(asked, before) or ("", ""))[0],
        end_ids=frame.end,
        next_turn=next_turn(tokenizer, frame.tail),
        bos="template" if written else "tokenizer" if adds_bos(tokenizer) else "none",
        spliced=any(_merges(tokenizer, user, answer) for answer in ("Sure, here is", "I cannot", "the end", "1.")),
    )


def _merges(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str) -> bool:
    """True when tokenising the conversation in one call gives other ids than prompt and answer apart."""
    text = render(tokenizer, [*messages, {"role": "assistant", "content": answer}], False)
    apart = encode(tokenizer, messages, answer).input_ids
    return with_bos(tokenizer, text_ids(tokenizer, text))[: len(apart)] != apart
