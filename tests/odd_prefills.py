"""Prefills as token ids that do not survive a way through text: blanks at their end, halves of characters, control tokens."""

from __future__ import annotations

from typing import Any

from tokendeep import chat

BLANKS = (
    " ",
    "  ",
    "   ",
    "        ",
    "\n",
    "\n\n",
    "\n\n\n",
    " \n",
    "\n ",
    "\t",
    "\t\t",
    "\r\n",
    ":\n",
    ": ",
    ".\n\n",
    ".  ",
)
WIDE = "🙂👩‍🔬漢字भाषा€żёא"  # characters that byte-level tokenizers cut
ODD = ("", "Ġ", "�", "\u200b", "\u00a0", " ,", "''", "```\n", "<think>\n", "</s>")


def odd(tokenizer: Any) -> list[tuple[str, tuple[int, ...]]]:
    """At least 40 of them, each with what it is."""
    found = [(repr(end), tuple(chat.continuation_ids(tokenizer, f"Here it is{end}"))) for end in (*BLANKS, *ODD)]
    for character in WIDE:
        ids = chat.continuation_ids(tokenizer, f"Look: {character}")
        if len(ids) > len(chat.continuation_ids(tokenizer, "Look: ")) + 1:
            found.append((f"a part of {character}", tuple(ids[:-1])))
    control = sorted(chat.ids.control_ids(tokenizer))
    found += [(f"control token {token}", (*found[0][1], token)) for token in control[:12]]
    return found
