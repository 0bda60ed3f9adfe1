"""Plain text out of what a model wrote: without special tokens, markdown, role labels and invented further turns."""

from __future__ import annotations

import re
import unicodedata

_QUOTES = str.maketrans({**dict.fromkeys("‘’ʼ‛´′＇", "'"), **dict.fromkeys("“”„‟«»″＂", '"'), "—": " - ", "–": "-"})
_SPECIAL_TOKEN = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:pad|eos|bos|unk|end_of_turn|start_of_turn)>|\[/?INST\]", re.IGNORECASE
)
_ROLE_LABEL = re.compile(r"^\W*(?:assistant|ai|chatbot|bot|model|response|answer)\s*:\s*", re.IGNORECASE)
_NEXT_TURN = re.compile(r"(?<=\S)\s*\n\W*(?:user|human|instruction)\s*:", re.IGNORECASE)
_DIALOGUE = re.compile(r"\W*(?:user|human)\s*:", re.IGNORECASE)  # the answer is one
# A title line: a heading or bold text, unless it is the refusal itself.
_TITLE = re.compile(r"^\s*(?:#+ |\*\*)(?![^\n]*\b(?:I|[Ss]orry|[Cc]annot|[Uu]nable)\b)[^\n.!]{1,80}\n(?=\s*\S)")
_MARKDOWN = re.compile(r"[*_#~]{1,}(?=\S)|(?<=\S)[*_#~]{1,}(?=\W|$)|^[ \t]*>+|^[ \t]*#+(?=\s)", re.MULTILINE)


def clean(text: str) -> str:
    """Plain text with straight quotes: no special tokens, thinking, markdown, role label or invented next turn."""
    text = text.rpartition("</think>")[2]
    text = _SPECIAL_TOKEN.sub(" ", text).translate(_QUOTES)
    text = "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs"))
    text = re.sub(r"(?<=\w)`(?=\w)", "'", text)
    text = re.sub(r"^\s*\*[a-z][^*\n]{2,40}\*(?!\*)", "", text)  # a stage direction: *clears throat*
    text = _TITLE.sub("", text)
    text = _MARKDOWN.sub("", text)
    text = _ROLE_LABEL.sub("", text)
    next_turn = _NEXT_TURN.search(text)
    if next_turn and not _DIALOGUE.match(text):
        text = text[: next_turn.start()]
    return re.sub(r"[^\S\n]+", " ", text).strip()
