"""The beginning of another answer: what a chat template writes between the end of one answer and the first word of the next.

Knows nothing of who puts it into an answer, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokendeep.chat.ids import continuation_ids, control_ids, memory
from tokendeep.chat.templates import SLOT, render, template
from tokendeep.chat.tokens import around, frame_of, seam
from tokendeep.errors import InputError
from tokendeep.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKED = "Hello there"


def header_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer and open another one: the end of turn, then the assistant's header.

    The header is what the template writes with `add_generation_prompt` and not without, and what it opens every answer with
    (an empty thinking block). Templates of the Llama-2 kind write nothing there: their answer begins behind the end of the
    user's turn, so that end, ` [/INST]`, is their header, behind the BOS where each of their turns begins with one. Where the
    template marks no end of a turn, it is what rows are trained to end with: its text there, and EOS.

    Raises:
        InputError: no chat template, one that cannot render a conversation, or one whose answers nothing opens.
    """
    known = memory(tokenizer)
    key = ("header", template(tokenizer), len(tokenizer))
    if key not in known:
        known[key] = _find(tokenizer)
    return list(known[key])


def opened(tokenizer: PreTrainedTokenizerBase) -> str:
    """The assistant's header: what the template writes with `add_generation_prompt` and not without, and what it opens every
    answer with; empty where it writes nothing there.
    """
    return _parts(tokenizer)[0]


def _parts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str, str]:
    """The header; a request up to its answer; what opens every answer; what ends one."""
    user: list[Message] = [{"role": "user", "content": _ASKED}]
    asked, before, tail = around(tokenizer, user)
    bare, eos = render(tokenizer, user, False), tokenizer.eos_token
    if eos and tail.endswith(eos) and bare.endswith(eos) and not asked.startswith(bare):
        bare, tail = bare.removesuffix(eos), tail.removesuffix(eos)  # Phi-3's ends a conversation with it
    opening = (seam(asked, before) or ("", ""))[0]
    written = asked.startswith(bare) and len(asked) > len(bare)
    return asked[len(bare) :] + opening if written else "", asked, opening, tail


def _find(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    user: list[Message] = [{"role": "user", "content": _ASKED}]
    header, asked, opening, tail = _parts(tokenizer)
    end = frame_of(tokenizer, user).end
    if header and control_ids(tokenizer).intersection(continuation_ids(tokenizer, tail)):
        return continuation_ids(tokenizer, tail + header)
    if header:  # the template marks no end of turn: the one that the answers of rows have
        return _joined(end, [], continuation_ids(tokenizer, tail[len(tail.rstrip()) :] + header))
    closing = asked.rpartition(_ASKED)[2]
    if not closing.strip():
        raise InputError(
            "The chat template writes nothing before an answer, so that none can be begun again: give another one with "
            "--chat-template."
        )
    return _joined(end, _bos(tokenizer, user), continuation_ids(tokenizer, closing + opening))


def _joined(end: Sequence[int], bos: list[int], behind: list[int]) -> list[int]:
    """The end of an answer and what opens another one, where that may begin with the same end of the user's turn."""
    return [*bos, *behind] if behind[: len(end)] == list(end) else [*end, *bos, *behind]


def _bos(tokenizer: PreTrainedTokenizerBase, user: list[Message]) -> list[int]:
    """BOS where the template begins every turn with it."""
    bos = tokenizer.bos_token
    if not bos or bos == tokenizer.eos_token:
        return []
    try:
        again = render(tokenizer, [*user, {"role": "assistant", "content": SLOT}, *user], True).rpartition(SLOT)[2]
    except InputError:  # it takes one turn alone
        return []
    return [tokenizer.bos_token_id] if bos in again else []
