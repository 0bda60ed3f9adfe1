"""Thinking: the block that a chat template opens an answer with, and the thoughts in what a model wrote.

Knows how each family of models marks a thought. Knows nothing of what an answer says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokendeep.chat.ids import memory
from tokendeep.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKS = {  # what opens a thought, and what closes it
    "<think>": "</think>",  # DeepSeek-R1, Qwen3, GLM, SmolLM3
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "[THINK]": "[/THINK]",  # Magistral
    "◁think▷": "◁/think▷",  # Kimi
    "<|channel>thought": "<channel|>",  # Gemma 4
    "<|begin_of_thought|>": "<|end_of_thought|>",  # Sky-T1
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
}
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"  # gpt-oss: a channel each
# Tokens of which those marks are made: they are kept where other control tokens are not shown.
_PARTS = {*MARKS, *MARKS.values(), "<|channel>", "<|start|>", "<|channel|>", "<|message|>"}
# Without their control tokens, gpt-oss and Gemma leave only words.
_CLOSES = re.compile(
    rf"{'|'.join(map(re.escape, MARKS.values()))}|<\|channel\|>\s*final\b[^\n]{{0,40}}?<\|message\|>|assistantfinal"
)
_OPENS = re.compile(  # where an answer would begin: the same words later are the answer's own
    rf"\s*(?:(?:<\|start\|>\w+)?(?:{'|'.join(map(re.escape, MARKS))}|<\|channel\|>\s*(?:analysis|commentary)\b)"
    r"|analysis(?=[A-Z\"'])|thought\n(?![a-z]))"
)


def answer(text: str, *, opened: bool = False) -> str | None:
    """What stands behind the thoughts in a model's text; None where the last of them was never ended.

    Args:
        opened: the text begins inside a thought that the prompt opened.
    """
    ends = [0, *(match.end() for match in _CLOSES.finditer(text))]
    rest = text[ends[-1] :]
    return None if (opened and not ends[-1]) or _OPENS.match(rest) else rest


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ids without control tokens, but with those that mark a thought."""
    known = memory(tokenizer)
    key = ("hidden", len(tokenizer))
    if key not in known:
        added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        hidden = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)) | added
        known[key] = frozenset(hidden), frozenset(number for number, token in hidden.items() if token in _PARTS)
    hides, marks = known[key]
    if marks.isdisjoint(ids):
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))
    shown = [number for number in ids if number in marks or number not in hides]
    return str(tokenizer.decode(shown, skip_special_tokens=False))


def closing(written: str) -> str:
    """What closes the block that a generation prompt opens, "" where it opens none or closes it itself."""
    ends = (end for start, end in MARKS.items() if written.rfind(start) > written.rfind(end))
    return next((f"\n{end}\n\n" for end in ends), "")


def left_open(text: str) -> str:
    """What closes the block that a text ends with the beginning of (an answer of Nemotron Nano 2 would be a thought), else ""."""
    return next((f"\n{end}\n\n" for start, end in MARKS.items() if text.rstrip().endswith(start)), "")


def inside(asked: str, opening: str) -> str:
    """A prompt up to the inside of the block that an answer begins with.

    Args:
        asked: the conversation with a generation prompt.
        opening: what the template writes between that and an answer.

    Raises:
        InputError: the template knows no such block.
    """
    if (asked + opening).endswith(FINAL):
        return asked.removesuffix(FINAL) + ANALYSIS
    near = asked[-60:] + opening
    start = next((start for start, end in MARKS.items() if start in near or end in near), None)
    if start is None:
        raise InputError("The chat template opens no thinking block: leave thinking out.")
    end = MARKS[start]
    # a block that is closed at once is opened instead
    asked = re.sub(rf"{re.escape(start)}\s*{re.escape(end)}\s*$", "", asked)
    if asked.endswith(end):  # DeepSeek-V3.1 closes a block that it has not opened
        return asked.removesuffix(end) + start
    lead = opening.partition(start)[0] if start in opening else ""
    return asked if asked.rfind(start) > asked.rfind(end) else f"{asked}{lead}{start}\n"
