"""What a server answered -> a completion whose ids are known, or an error in one sentence.

Ids that come back are taken; a text without ids is tokenised again and must then be the same text of as many tokens.
Knows nothing of connections and kinds of servers.
"""

from __future__ import annotations

import re
from typing import Any

from tokendeep import chat
from tokendeep.chat.ids import continuation_ids, control_ids
from tokendeep.engines.base import Completion
from tokendeep.engines.server.dialects import Ask, Ids, Reply
from tokendeep.errors import InputError

UNSURE = re.compile(
    r"[\s\ufffd]+"
)  # blanks and halves of characters: each program writes them in its own way at a seam


class Unverified(InputError):
    """An answer whose token ids cannot be known."""


def completion(tokenizer: Any, ask: Ask, reply: Reply) -> Completion:
    """The answer up to its first end token.

    Raises:
        InputError: the server went on from other ids, wrote less than it was asked to, or its ids do not spell its text.
        Unverified: it gave a text alone, whose ids are not certain.
    """
    asked = ask.request.ids
    if (reply.prompt is not None and reply.prompt != asked) or reply.prompt_tokens not in (None, len(asked)):
        raise InputError(
            f"The server went on from {reply.prompt_tokens or len(reply.prompt or ())} tokens, which are not the {len(asked)} "
            "that it was given: it adds or cuts some, so it is not of use here."
        )
    longest = ask.request.decoding.max_new_tokens
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
        check_text(tokenizer, ids, reply.text)
    return Completion(written, text, len(written) == longest)


def check_text(tokenizer: Any, ids: Ids, text: str, whole: bool = False) -> None:
    """Raises InputError where the ids of an answer do not spell its text, or a part of it where it may be one: the server has
    another tokenizer.
    """
    ours = {_bare(tokenizer.decode(list(ids), skip_special_tokens=skip)) for skip in (False, True)}
    theirs = _bare(text)
    if not any(own == theirs or (not whole and (own in theirs or theirs in own)) for own in ours):
        raise InputError(
            "The token ids of an answer do not spell the text that the server gave with them: it serves a model of another "
            "tokenizer than --model names."
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
