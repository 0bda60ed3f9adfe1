"""Passages in which somebody else than the speaker talks: quotations, letters, dialogues, code."""

import re

from tokendeep.judges.rule import phrases
from tokendeep.judges.rule.code import FENCE, hide_words, is_program, unwrap
from tokendeep.judges.rule.sentences import is_about_itself

_HIDDEN = "quoted"  # stands for each word of a passage that speaks in another voice
_QUOTED = re.compile(r'"[^"\n]{1,400}"')
# All of it in quotes is the speaker's own.
_ALL_SINGLE = re.compile(r"^\s*'(?=\w)([^`]*?)(?<=[.!?])'\s*$")
_ALL_QUOTED = re.compile(r'^\W*(?:"\w+"\s*:\s*)?"([^"]*)(?:"\W*)?$')  # "..." or {"answer": "...
_QUOTED_SINGLE = re.compile(r"(?<![\w'])'(?=\w)[^'\n]*(?:\w'\w[^'\n]*)*[.,!?]'(?!\w)")
_QUOTE_BEGUN_BEFORE = re.compile(r'^[^"\n]{1,300}[.,!?]"(?=\s(?:\w+ ){0,2}(?:said|says|asked|replied|answered|cried))')
_BLOCK = re.compile(r"^[ \t]*>[^\n]*", re.MULTILINE)  # a quotation as markdown marks it
_LETTER = re.compile(
    r"^\s*(?:dear (?!user\b|friend\b)|(?:hi|hello|hey) (?!there\b|user\b"
    r"|friend\b)\w+,?\s*\n)[\s\S]{0,3000}?^\W*(?:best|kind|warm|yours|sincerely|regards|love|thanks|thank you|cheers)"
    r"(?: \w+){0,3}[,.!]?\s*$",
    re.MULTILINE | re.IGNORECASE,
)
_SPEECH = re.compile(
    r"^\W*(?!assistant|ai\b|note|warning|step|answer|[QA]\b|question)([A-Z][\w'.]*(?: [A-Z]?\w+)?): .*$", re.MULTILINE
)


_LIST_ITEM = re.compile(
    r"^\W{0,3}(\d{1,2}(?=[.)])|[-+*•])\W{1,6}(?:[\w ]{1,20}: \W?)?((?:i|sorry|thank|that|this|no|my|unfortunately|we)\b.*)",
    re.MULTILINE,
)
# A screenplay's name in capitals on a line of its own, and what is said below it.
_CUE = re.compile(r"^[ \t]*[A-Z][A-Z0-9 .']{1,30}(?:\([\w ]+\))?\n(?:\([^)\n]*\)\n)?[^\n]+$", re.MULTILINE)


def hide_other_voices(text: str) -> str:
    """Blank out quotations, letters, dialogues and code blocks, word for word."""
    text = _ALL_QUOTED.sub(r"\1", _ALL_SINGLE.sub(r"\1", unwrap(text)))
    if is_program(text):
        text = hide_words(text, _hide)
    if re.search(r"\w", _BLOCK.sub("", text)):
        text = _BLOCK.sub(_hide, text)
    for pattern in (FENCE, _LETTER, _QUOTE_BEGUN_BEFORE, _QUOTED, _QUOTED_SINGLE):
        text = pattern.sub(_hide, text)
    if len(_CUE.findall(text)) >= 2:
        text = _CUE.sub(_hide, text)
    speakers = [m.group(1) for m in _SPEECH.finditer(text)]
    return _SPEECH.sub(_hide, text) if len(speakers) > len(set(speakers)) > 1 else text


def hide_listed_refusals(text: str) -> str:
    """Blank out a list of which each item declines: examples that were asked for. Takes the text as the rule reads it."""
    items = [item for item in _LIST_ITEM.finditer(text) if _declines(item[2])]
    before = text[: items[0].start()] if items else ""
    numbered = all(item[1].isdigit() for item in items) and len(items) > 2
    if len(items) < 2 or is_about_itself(before) or not (numbered or before.rstrip().endswith(":")):
        return text
    return _LIST_ITEM.sub(lambda item: _hide(item) if _declines(item[2]) else item[0], text)


def _declines(item: str) -> bool:
    return bool(phrases.ANYWHERE.search(item[:120]) or phrases.OPENING.match(item))


def _hide(match: re.Match[str]) -> str:
    return re.sub(r"\w[\w']*", _HIDDEN, match.group()).replace('"', " ")
