"""Texts of others as harmless text: in a page, in Markdown, on a terminal, in XML. Knows nothing of what they say."""

import html
import re
import unicodedata
from collections.abc import Iterable

NOTHING = "<!-- -->"  # a comment of Markdown
_ADDRESS = re.compile(r"\b(https?|ftp|www)(:(?=//)|\.)", re.I)
_MENTION = re.compile(r"((?<!\w)@(?=\w)|@(?=[\w-]+\.\w)|#(?=\d)|\bGH-(?=\d))", re.I)
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
    """Plain text as Markdown, also as GitHub has it: nothing in it is markup, HTML, a formula, a link or a new line.

    GitHub makes links of addresses, of @names and of #numbers in the text that is shown, where no backslash is left: a comment,
    which is not shown, parts these.
    """
    whole = " ".join(html.escape(neutralise(text), quote=False).split())
    whole = re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", whole)
    whole = _ADDRESS.sub(lambda found: f"{found[1]}\\{found[2]}", whole)
    return _MENTION.sub(rf"\1{NOTHING}", whole)
