"""Passages in which somebody else than the speaker talks: quotations, letters, dialogues, code."""

from __future__ import annotations

import re

_HIDDEN = "quoted"  # stands for each word of a passage that speaks in another voice
_FENCE = re.compile(r"```.*?```", re.DOTALL)
_QUOTED = re.compile(r'"[^"\n]{1,400}"')
# All of it in a fence or in quotes is the speaker's own.
_ALL_FENCED = re.compile(r"^\s*(?:```\w*\s|'(?=\w))([^`]*?)(?:```|(?<=[.!?])')\s*$")
_ALL_QUOTED = re.compile(r'^\W*(?:"\w+"\s*:\s*)?"([^"]*)"\W*$')  # "..." or {"answer": "..."}: the speaker's own
_QUOTED_SINGLE = re.compile(r"(?<![\w'])'(?=\w)[^'\n]*(?:\w'\w[^'\n]*)*[.,!?]'(?!\w)")
_QUOTE_BEGUN_BEFORE = re.compile(r'^[^"\n]{1,300}[.,!?]"(?=\s(?:\w+ ){0,2}(?:said|says|asked|replied|answered|cried))')
_LETTER = re.compile(
    r"^\s*(?:dear (?!user\b|friend\b)|(?:hi|hello|hey) (?!there\b|user\b"
    r"|friend\b)\w+,?\s*\n)[\s\S]{0,3000}?^\W*(?:best|kind|warm|yours|sincerely|regards|love|thanks|thank you|cheers)"
    r"(?: \w+){0,3}[,.!]?\s*$",
    re.MULTILINE | re.IGNORECASE,
)
_SPEECH = re.compile(
    r"^\W*(?!assistant|ai\b|note|warning|step|answer|[QA]\b|question)([A-Z][\w'.]*(?: [A-Z]?\w+)?): .*$", re.MULTILINE
)


# A screenplay's name in capitals on a line of its own, and what is said below it.
_CUE = re.compile(r"^[ \t]*[A-Z][A-Z0-9 .']{1,30}(?:\([\w ]+\))?\n(?:\([^)\n]*\)\n)?[^\n]+$", re.MULTILINE)


def hide_other_voices(text: str) -> str:
    """Blank out quotations, letters, dialogues and code blocks, word for word."""
    text = _ALL_QUOTED.sub(r"\1", _ALL_FENCED.sub(r"\1", text))
    for pattern in (_FENCE, _LETTER, _QUOTE_BEGUN_BEFORE, _QUOTED, _QUOTED_SINGLE):
        text = pattern.sub(_hide, text)
    if len(_CUE.findall(text)) >= 2:
        text = _CUE.sub(_hide, text)
    speakers = [m.group(1) for m in _SPEECH.finditer(text)]
    return _SPEECH.sub(_hide, text) if len(speakers) > len(set(speakers)) > 1 else text


def _hide(match: re.Match[str]) -> str:
    return re.sub(r"\w[\w']*", _HIDDEN, match.group()).replace('"', " ")
