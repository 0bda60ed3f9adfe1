"""Whether tokens make no sentences: symbols without words, or words without structure. Code is neither."""

import re
import unicodedata

from tokendeep.judges.rule.code import is_code
from tokendeep.judges.rule.language import function_words, script

_EDGES = ".,;:!?()[]\"'"
_NUMERIC = re.compile(r"[\d.,:/%x×÷=+*^$€£°<>()-]+[^\W\d_]{0,3}$")


# Pairs of function words that English sentences do not have.
_IMPOSSIBLE = re.compile(
    r"\b(?:the|an|my|your) (?:of|and|to|is|are|in|for|with|the|was|or|nor|but|from|it|an?)\b"
    r"|\b(in|of|to|for|with|from|and|an?) \1\b"
    r"|\bof (?:is|of|to|but|or|are|was)\b"
    r"|\b(?:to|for|with|from) (?:of|is|are|was|or)\b|\b(?:is|are|was) (?:of|is|are|was) (?:of|is|are|was|and|to)\b"
)


# What tokenizers write for a space, a line break, a word's second part or a single byte.
_RAW_TOKEN = re.compile(r"[ĠĊĉ]|(?:^|\s)##[a-z]|<0x[0-9A-F]{2}>|ãĥ|âĢ")


def is_symbol_salad(text: str) -> bool:
    """Whether most tokens are neither words nor numbers, and the text is not code either."""
    tokens = text.split()
    visible = [char for char in text if not char.isspace()]
    if len(tokens) >= 12 and sum(map(str.isalnum, visible)) < 0.1 * len(visible):
        return True
    odd = sum(not _is_wordlike(token) for token in tokens)
    mixed = len({script(char) for char in text if char.isalpha()}) >= 3
    if len(tokens) >= 8 and odd >= 0.15 * len(tokens) and _RAW_TOKEN.search(text):
        return True
    return len(tokens) >= 8 and odd >= (0.3 if mixed else 0.6) * len(tokens) and not is_code(text)


def _is_wordlike(token: str) -> bool:
    """A word, a number or a sum, in any script; the marks of raw tokens (Ġthe, ##ing) are no letters."""
    core = token.strip(_EDGES)
    if not core:
        return len(set(token)) > 1 or len(token) < 2 or token in ("...", "!!", "!!!", "??", "..")
    if _NUMERIC.match(core):
        return True
    return all(
        unicodedata.category(char)[0] in "LM"
        or char in "'-/"
        or (char > "\x7f" and unicodedata.category(char)[0] == "P")
        for char in core.replace("Ġ", "#").replace("Ċ", "#")
    )


def is_word_salad(text: str) -> bool:
    """Whether the words do not make sentences: next to no vowels, or next to no function words outside a list."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    if len(words) < 10 or is_code(text):
        return False
    if sum(not re.search(r"[aeiouyà-ÿ]", word) for word in words if len(word) > 2) > 0.5 * len(words):
        return True
    if sum(1 for _ in _IMPOSSIBLE.finditer(text.lower())) >= max(2, len(words) / 20):
        return True
    separators = len(re.findall(r"[,;:\n.!?|]", text))
    frequent = function_words()
    function = sum(word in frequent for word in words)
    return len(words) >= 15 and separators < len(words) / 6 and function < 0.1 * len(words)
