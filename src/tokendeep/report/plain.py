"""Texts of others as harmless text: in a page, in Markdown, on a terminal, in XML. Knows nothing of what they say."""

import html
import re
import unicodedata
from collections.abc import Iterable

ACTING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # kinds of characters that are not seen


def neutralise(text: str, kept: str = "\n\t") -> str:
    """Spell out what is not seen but acts: control, direction, zero-width, private and unassigned characters.

    XML allows no character that is spelt out here, and all others.
    """
    seen = (char in kept or unicodedata.category(char) not in ACTING for char in text)
    return "".join(char if plain else f"⟨U+{ord(char):04X}⟩" for char, plain in zip(text, seen, strict=True))


def one_line(text: str) -> str:
    """The same for a line of a terminal: a new line and a tab are spelt out too."""
    return neutralise(text, kept="")


def told(lines: Iterable[str]) -> str:
    """Lines for the terminal, each of which stays one."""
    return "\n".join(map(one_line, lines))


def markdown(text: str) -> str:
    """Plain text as Markdown: nothing in it is markup, HTML, a link or a new line."""
    whole = " ".join(html.escape(neutralise(text), quote=False).split())
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", whole)
