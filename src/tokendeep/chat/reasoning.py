"""Thinking blocks in the texts that chat templates write.

A template that opens `<think>` in the generation prompt and does not close it gets the empty block that its family uses.
"""

from __future__ import annotations

import re

from tokendeep.errors import InputError

THOUGHT = "\n</think>\n\n"  # closes a `<think>` that the generation prompt opens


def closing(written: str) -> str:
    """What closes the block that a generation prompt opens, "" where it opens none or closes it itself."""
    return THOUGHT if "<think>" in written and "</think>" not in written else ""


def inside(asked: str, opening: str) -> str:
    """A prompt up to the inside of the block that an answer begins with.

    Args:
        asked: the conversation with a generation prompt.
        opening: what the template writes between that and an answer.

    Raises:
        InputError: the template knows no such block.
    """
    if "think>" not in asked[-len(THOUGHT) - 40 :] + opening:
        raise InputError("The chat template opens no thinking block: leave thinking out.")
    asked = re.sub(r"<think>\s*</think>\s*$", "", asked)  # a block that is closed at once is opened instead
    return asked if asked.rfind("<think>") > asked.rfind("</think>") else f"{asked}<think>\n"
