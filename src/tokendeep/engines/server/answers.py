"""What a server answered -> a completion whose ids are known, or an error in one sentence.

Ids that come back are taken where they spell the text beside them; a text without ids is tokenised again and must then be the
same text of as many tokens. Knows nothing of connections and kinds of servers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from tokendeep import chat
from tokendeep.chat.ids import continuation_ids, control_ids
from tokendeep.engines.base import Completion
from tokendeep.engines.server.dialects import Ask, Ids, Reply
from tokendeep.errors import InputError

UNSURE = re.compile(
    r"[\s\ufffd]+"
)  # blanks and halves of characters: each program writes them in its own way at a seam


SEAM = 8  # tokens before an answer that can be a part of its first character


class Unverified(InputError):
    """An answer whose token ids cannot be known."""


def completion(tokenizer: Any, ask: Ask, reply: Reply, vocabulary: int) -> Completion:
    """The answer up to its first end token.

    Args:
        vocabulary: token ids that the model knows.

    Raises:
        InputError: the server went on from other ids, wrote less than it was asked to, or its ids are none of the model or do
            not spell its text.
        Unverified: it gave a text alone, whose ids are not certain.
    """
    asked = ask.request.ids
    if (reply.prompt is not None and reply.prompt != asked) or reply.prompt_tokens not in (None, len(asked)):
        raise InputError(
            f"The server went on from {reply.prompt_tokens or len(reply.prompt or ())} tokens, which are not the {len(asked)} "
            "that it was given: it adds or cuts some, so it is not of use here."
        )
    longest = ask.request.decoding.max_new_tokens
    if unknown := [token for token in reply.ids or () if not 0 <= token < vocabulary]:
        raise InputError(
            f"The server answered with the token id {unknown[0]}, which the model's vocabulary of {vocabulary} does not have: it "
            "serves another model than --model names."
        )
    ids = _spelt(tokenizer, ask, reply) if reply.ids is None else reply.ids
    written = next((ids[:i] for i, token in enumerate(ids) if token in ask.ends), ids)
    if reply.ids and reply.stopped and written == ids and ids[-1] in control_ids(tokenizer):
        written = ids[:-1]  # an end of the server's own, which is no text either
    stopped = len(written) < len(ids) or reply.stopped
    if len(written) > longest or (not stopped and len(written) < longest):
        raise InputError(
            f"The server was asked for {longest} tokens at most and stopped for length at {len(written)}: its context is "
            "shorter than it says, so lower max_new_tokens."
        )
    text = chat.decode(tokenizer, written)
    if reply.ids is not None and _bare(text) != _bare(reply.text):
        check_text(tokenizer, ids, reply.text, ask.request.ids, ask.ends)
    return Completion(written, text, len(written) == longest)


def check_text(
    tokenizer: Any, ids: Ids, text: str, before: Sequence[int] = (), hidden: Collection[int] = frozenset()
) -> None:
    """Raises InputError where the ids of an answer do not spell its text: the server has another tokenizer.

    Blanks and halves of characters do not count. A control token may be shown or left out, each as the server likes.

    Args:
        before: the ids that it follows: the first character may have begun there.
        hidden: more tokens that the text may leave out.
    """
    hidden = {*control_ids(tokenizer), *hidden}
    ways = [_pattern(tokenizer, ids, hidden)]
    if halved := _rest(tokenizer, before, ids, hidden):  # vLLM gives all of the prompt then, and the answer behind it
        ways += [halved, _pattern(tokenizer, [*before, *ids], hidden)]
    if not any(way.fullmatch(_bare(text)) for way in ways):
        raise InputError(
            "The token ids of an answer do not spell the text that the server gave with them: it serves a model of another "
            "tokenizer than --model names."
        )


def _pattern(tokenizer: Any, ids: Sequence[int], hidden: Collection[int], drop: str = "") -> re.Pattern[str]:
    """Matches the bare text of ids, each of `hidden` shown or not; `drop` stands before the text and is taken off."""
    parts: list[str] = []
    run: list[int] = []
    for token in [*ids, None]:
        if token is not None and token not in hidden:
            run.append(token)
            continue
        spelt = _written(tokenizer, run)
        parts.append(re.escape(_bare(spelt.removeprefix(drop) if not parts else spelt)))
        if token is not None:
            parts.append(f"(?:{re.escape(_bare(_written(tokenizer, [token])))})?+")  # and never tried the other way
        run = []
    return re.compile("".join(parts))


def _rest(tokenizer: Any, before: Sequence[int], ids: Sequence[int], hidden: Collection[int]) -> re.Pattern[str] | None:
    """The pattern of an answer whose first character began before it; None where that cannot be."""
    tail = list(before[-SEAM:])
    tail = tail[max((place + 1 for place, token in enumerate(tail) if token in hidden), default=0) :]
    begun = _written(tokenizer, tail)
    whole = begun.rstrip("\ufffd")
    if whole == begun:
        return None
    return _pattern(tokenizer, [*tail, *ids], hidden, whole)


def _written(tokenizer: Any, ids: Sequence[int]) -> str:
    """What ids spell, all of them shown."""
    return (
        str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)) if ids else ""
    )


def _bare(text: str) -> str:
    return UNSURE.sub("", text)


def _spelt(tokenizer: Any, ask: Ask, reply: Reply) -> Ids:
    """The ids of a text that came without. Raises Unverified."""
    ids = tuple(continuation_ids(tokenizer, reply.text, behind=ask.request.ids))
    same = chat.decode(tokenizer, list(ids)) in (reply.text, reply.text.lstrip())
    counts = (None, len(ids), len(ids) + 1) if reply.stopped else (None, len(ids))
    if not same or reply.new_tokens not in counts:
        raise Unverified(
            "The server gives texts without token ids, and the ids of this one cannot be told from it: serve the model with "
            "vLLM, SGLang or llama.cpp, which return them."
        )
    return ids
