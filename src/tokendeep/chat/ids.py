"""Texts as token ids, whatever a tokenizer does to the start of a text; and its control tokens.

Knows nothing of conversations and templates.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tokendeep.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# added tokens that are text although they are bracketed as marks are
_HTML = re.compile(
    r"</?(?:a|b|blockquote|body|caption|code|div|em|footer|h[1-6]|html|i|iframe|img|li|s|span|strong|sub|sup|table|tbody|td|tfoot"
    r"|th|thead|tr|u|ul|bbox)>"
)
_BRACKETED = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)  # <think>, [INST], |||EMAIL_ADDRESS|||
_STRUCK = ("<s>", "</s>")  # HTML too, but the beginning and the end of a text where no other element is listed
_MEMORIES: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, literal: bool = False) -> list[int]:
    """Ids of a text without anything added; `literal` reads control tokens in it as plain text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=literal, verbose=False).input_ids


def document_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before a text of its own (such as a token for its beginning), and the ids of the text.

    Raises:
        InputError: it puts something between the tokens of the text.
    """
    ids = text_ids(tokenizer, text, literal=True)
    whole = tokenizer(text, split_special_tokens=True, verbose=False).input_ids
    for start in range(len(whole) - len(ids) + 1):
        if whole[start : start + len(ids)] == ids:
            return whole[:start], ids
    raise InputError(
        "The tokenizer puts tokens of its own between those of a text, so that nothing tells its perplexity."
    )


def continuation_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, literal: bool = False, *, behind: Sequence[int] = ()
) -> list[int]:
    """Ids of a text that follows other text, the same whatever stands before it.

    Tokenizers treat the start of a text in their own ways (SentencePiece puts a space there), so the text is
    tokenised behind an anchor that it does not merge with, and the anchor's ids are taken off.

    Args:
        literal: control tokens in the text are read as plain text.
        behind: the ids before the text. Some tokenizers (of Phi-3, MiniCPM) put that space behind a control token too.
    """
    if not text:
        return []
    mark = _added(tokenizer).get(behind[-1]) if behind and not text[0].isspace() and not literal else None
    if mark is not None:
        ids = text_ids(tokenizer, mark + text)
        if ids[:1] == [behind[-1]]:
            return ids[1:]
    literal = literal and control_words(tokenizer).search(text) is not None
    anchors = ("x", "\n", "x\n") if text[0].isspace() else ("\n", "x\n")
    for anchor in anchors:
        head, ids = text_ids(tokenizer, anchor), text_ids(tokenizer, anchor + text, literal)
        if ids[: len(head)] == head:
            return ids[len(head) :]
    return text_ids(tokenizer, text, literal)  # every anchor merges: as the tokenizer begins a text


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that are no text: special tokens, and others that were added to the vocabulary and mark something.

    Many vocabularies have common text among their added tokens: Gemma's line breaks, tabs and elements of HTML, the runs of
    blanks of GPT-NeoX and CodeGen, DeepSeek's ö and ü. These are text; `<think>` or `<|im_end|>` are not, also where the
    tokenizer does not call them special.
    """
    known = memory(tokenizer)
    key = ("no text", len(tokenizer))
    if key not in known:
        added = tokenizer.added_tokens_decoder
        html = {token.content for token in added.values() if _HTML.fullmatch(token.content)}
        text = html if html - {*_STRUCK} else set()
        marks = {i for i, token in added.items() if token.special or _marks(token.content, text)}
        known[key] = frozenset({*tokenizer.all_special_ids, *marks})
    ids: frozenset[int] = known[key]
    return ids


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The added tokens, of which some vocabularies have thousands: read once."""
    known = memory(tokenizer)
    key = ("added", len(tokenizer))
    facts = known.get(key)
    if facts is None:
        facts = known[key] = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    return facts


def _marks(content: str, text: Collection[str]) -> bool:
    """Whether an added token that is not called special marks something; `text`: those that do not."""
    return content not in text and _BRACKETED.fullmatch(content) is not None


def control_words(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches every control token of the tokenizer."""
    known = memory(tokenizer)
    key = ("control", len(tokenizer))
    facts = known.get(key)
    if facts is None:
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        words = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
        facts = known[key] = re.compile("|".join(map(re.escape, words)) or r"(?!)")
    return facts


def with_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """The ids with BOS in front where the tokenizer adds one and the template does not write it."""
    bos = tokenizer.bos_token_id
    if bos is None or ids[:1] == [bos] or not adds_bos(tokenizer):
        return ids
    return [bos, *ids]


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True when the tokenizer puts BOS before plain text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x", verbose=False).input_ids[:1] == [bos]


def alike(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many elements two sequences have in common at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def memory(tokenizer: PreTrainedTokenizerBase) -> dict[Any, Any]:
    """What has been found out about a tokenizer; forgotten with it."""
    return _MEMORIES.setdefault(tokenizer, {})
