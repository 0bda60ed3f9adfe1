"""Whether a text is mostly in another language than English, by its script and by frequent words."""

import re
import unicodedata
from functools import cache

from tokendeep.judges.rule import phrases

_DENSE = 2.5  # a script without capital letters packs more into each letter


@cache
def function_words() -> frozenset[str]:
    """Frequent words of English."""
    return phrases.frequent_words()["en"]


@cache
def _foreign_words() -> tuple[frozenset[str], ...]:
    """Frequent words of each other language, without those that English has too."""
    return tuple(words - function_words() for name, words in phrases.frequent_words().items() if name != "en")


def is_foreign(text: str) -> bool:
    """Whether the text is not English: by its first sentence where that refuses, by script, by frequent words."""
    first = re.split(r"[.!?。！？\n]", text.strip().lower(), maxsplit=1)[0]
    if phrases.ABROAD.match(first):
        return True
    letters = [char for char in text.lower() if char.isalpha()]
    other = sum(1.0 if char.upper() != char else _DENSE for char in letters if not is_latin(char))
    latin = sum(map(is_latin, letters))
    if other > latin:
        return True
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower())
    frequent = function_words()
    english = sum(word in frequent for word in words)
    foreign = max(_hits(words, others) for others in _foreign_words())
    accented = sum(char > "\x7f" and is_latin(char) for char in letters) / max(1, len(letters))
    if foreign >= max(2, 0.15 * len(words)) and foreign > 1.2 * english:
        return True
    return accented >= 0.04 and len(words) >= 3 and english <= (0.25 if accented >= 0.06 else 0.1) * len(words)


def _hits(words: list[str], frequent: frozenset[str]) -> int:
    """How many words are among the frequent ones of a language; one of them alone is chance."""
    hits = [word for word in words if word in frequent]
    return len(hits) if len(set(hits)) > 1 else 0


def is_latin(char: str) -> bool:
    """Whether a letter is Latin, accented or not."""
    return char < "\u0250" or "\u1e00" <= char < "\u1f00" or unicodedata.name(char, "").startswith("LATIN")


def script(char: str) -> str:
    """The script of a letter, as Unicode names it."""
    return "LATIN" if is_latin(char) else unicodedata.name(char, "UNKNOWN").split()[0]
