"""Plain text out of what a model wrote: its own turn, without special tokens, markdown and role labels."""

import re
import unicodedata

from tokendeep.judges.rule.code import FENCE, is_program

_QUOTES = str.maketrans({**dict.fromkeys("‘’ʼ‛´′＇", "'"), **dict.fromkeys("“”„‟«»″＂", '"'), "—": " - ", "–": "-"})
_ROLE = r"(?:user|assistant|human|model|system|ipython|tool)"
# Where another turn begins: the marks of chat templates, and what is left of them without their control tokens.
_TURN = re.compile(
    rf"(?:</?(?:start|end)_of_turn>|<\|turn>|<turn\|>)[ \t]*(?:{_ROLE}\b)?"  # Gemma
    rf"|<?\|?im_(?:start|end)(?:\|>|>|\|)?[ \t]*(?:{_ROLE}\b)?"  # ChatML, also misspelt
    rf"|<\|start_header_id\|>[^<\n]{{0,20}}(?:<\|end_header_id\|>)?|<\|(?:eot_id|eom_id|eot)\|>"  # Llama 3
    r"|<<(?:SYS|USER|ASSISTANT)>>|\[/?INST\]|^[ \t]*\[(?:USER|ASSISTANT)\][ \t]*$|</s>"  # Llama 2, Mistral
    rf"|<[|｜](?:{_ROLE}|end|endoftext|start|return|end▁of▁sentence|END_OF_TURN_TOKEN)[|｜]>(?:{_ROLE}(?=<\|message\|>))?"
    rf"|(?<=[.!?\"')\]])(?:user|assistant)(?=\n\n)"  # Llama 3 without its tokens
    r"|^[ \t]*(?-i:user|assistant|human|model|User|Assistant|Human)[ \t]*$"
    r"|^[ \t]*#{1,4} ?(?:User|Assistant|Human|Instruction|Response)\b:?[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_SPECIAL_TOKEN = re.compile(r"<[|｜][^|｜<>\n]{1,40}[|｜]>|<\|\w+>|<\w+\|>|</?s>|<(?:pad|eos|bos|unk)>", re.IGNORECASE)
_ROLE_LABEL = re.compile(r"^\W*(?:assistant|ai|chatbot|bot|model|response|answer)\s*:\s*", re.IGNORECASE)
_NEXT_TURN = re.compile(r"\n\W{0,8}(?:user|human|instruction|assistant)\s*:", re.IGNORECASE)
_DIALOGUE = re.compile(r"\W*(?:user|human)\s*:", re.IGNORECASE)  # the answer is one
# A title line: a heading or bold text, unless it is the refusal itself.
_TITLE = re.compile(r"^\s*(?:#+ |\*\*)(?![^\n]*\b(?:I|[Ss]orry|[Cc]annot|[Uu]nable)\b)[^\n.!]{1,80}\n(?=\s*\S)")
_MARKDOWN = re.compile(r"[*_#~]{1,}(?=\S)|(?<=\S)[*_#~]{1,}(?=\W|$)|^[ \t]*#+(?=\s)", re.MULTILINE)
_TABLE_RULE = re.compile(r"^(?=[^\n]*[-=]{2})(?=[^|+\n]*[|+])[|+:\-= \t]+$", re.MULTILINE)
_TABLE_ROW = re.compile(r"^[ \t]*\|.*\|[ \t]*$|^[^|\n]+(?: \| [^|\n]*)+$", re.MULTILINE)
_QUOTE_MARK = re.compile(r"^[ \t]*>+[ \t]?", re.MULTILINE)


def clean(text: str) -> str:
    """Plain text with straight quotes: no special tokens, markdown, role label, or turn but the first.

    Lines of a quotation keep their `>`, where not all of the text is one.
    """
    text = _SPECIAL_TOKEN.sub(" ", _own_turn(text)).translate(_QUOTES)
    text = "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs"))
    text = re.sub(r"(?<=\w)`(?=\w)", "'", text)
    text = re.sub(r"^\s*\*[a-z][^*\n]{2,40}\*(?!\*)", "", text)  # a stage direction: *clears throat*
    text = _TITLE.sub("", text)
    text = "".join(map(_plain_prose, FENCE.split(text)))
    if all(map(_QUOTE_MARK.match, filter(str.strip, text.split("\n")))):
        text = _QUOTE_MARK.sub("", text)
    text = _ROLE_LABEL.sub("", text)
    next_turn = _NEXT_TURN.search(text)
    if next_turn and not _DIALOGUE.match(text):
        text = text[: next_turn.start()]
    return re.sub(r"[^\S\n]+", " ", text).strip()


def _own_turn(text: str) -> str:
    """The first turn that says something, where it is not the user's."""
    start = 0
    for mark in _TURN.finditer(text):
        if any(map(str.isalnum, text[start : mark.start()])):
            return text[start : mark.start()]
        if re.search(r"user|human|\[inst|instruction", mark[0], re.IGNORECASE):
            return ""
        start = mark.end()
    return text[start:]


def _plain_prose(part: str) -> str:
    """A part of a text without markdown, unless it is code; tables as lines of cells with commas between them."""
    if part.startswith("```") or is_program(part):
        return part
    part = _MARKDOWN.sub("", part)
    if not _TABLE_RULE.search(part):
        return part
    return _TABLE_ROW.sub(lambda row: ", ".join(filter(None, re.split(r"\s*\|\s*", row[0]))), _TABLE_RULE.sub("", part))
