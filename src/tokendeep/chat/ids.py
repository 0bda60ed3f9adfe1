"""Texts as token ids, whatever a tokenizer does to the start of a text; and its control tokens.

Knows nothing of conversations and templates.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tokendeep.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# an added token that is text: blank (also as SentencePiece writes it), or an element of HTML
_TEXT = re.compile(
    r"[\s\u2581]*|</?(?:a|b|blockquote|body|caption|code|div|em|footer|h[1-6]|html|i|iframe|img|li|s|span|strong|sub|sup|table|tbody|td|tfoot"
    r"|th|thead|tr|u|ul|bbox)>"
)
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


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str, literal: bool = False) -> list[int]:
    """Ids of a text that follows other text, the same whatever stands before it.

    Tokenizers treat the start of a text in their own ways (SentencePiece puts a space there), so the text is
    tokenised behind an anchor that it does not merge with, and the anchor's ids are taken off.
    """
    if not text:
        return []
    literal = literal and control_words(tokenizer).search(text) is not None
    anchors = ("x", "\n", "x\n") if text[0].isspace() else ("\n", "x\n")
    for anchor in anchors:
        head, ids = text_ids(tokenizer, anchor), text_ids(tokenizer, anchor + text, literal)
        if ids[: len(head)] == head:
            return ids[len(head) :]
    return text_ids(tokenizer, text, literal)  # every anchor merges: as the tokenizer begins a text


def end_ids(tokenizer: PreTrainedTokenizerBase, tail: str) -> tuple[int, ...]:
    """Ids that close an answer: the tail up to its first control tokens that stand together, or its text and EOS."""
    ids = [] if not tail else text_ids(tokenizer, "x" + tail)[len(text_ids(tokenizer, "x")) :]
    control = control_ids(tokenizer)
    if places := [i for i, token in enumerate(ids) if token in control]:
        last = next(i for i in places if i + 1 not in places)
        return tuple(ids[: last + 1])
    text = tail.rstrip()
    ids = text_ids(tokenizer, "x" + text)[len(text_ids(tokenizer, "x")) :] if text else []
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise InputError(
            "Nothing ends an answer: the chat template writes no end of turn and the tokenizer has no EOS."
        )
    return tuple(ids)


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that are no text: special tokens, and others that were added to the vocabulary and mark something.

    Many vocabularies have common text among their added tokens: Gemma's line breaks, tabs and elements of HTML, the runs of blanks of
    GPT-NeoX and CodeGen. These are text; `<think>` or `<|im_end|>` are not, also where the tokenizer does not call them special.
    """
    known = memory(tokenizer)
    key = ("no text", len(tokenizer))
    if key not in known:
        added = tokenizer.added_tokens_decoder
        marks = {i for i, token in added.items() if token.special or not _TEXT.fullmatch(token.content)}
        known[key] = frozenset({*tokenizer.all_special_ids, *marks})
    ids: frozenset[int] = known[key]
    return ids


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


def memory(tokenizer: PreTrainedTokenizerBase) -> dict[Any, Any]:
    """What has been found out about a tokenizer; forgotten with it."""
    return _MEMORIES.setdefault(tokenizer, {})
