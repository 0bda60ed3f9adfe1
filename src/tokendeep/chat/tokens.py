"""THE tokenisation: measuring, attacking and training all get their token ids here.

A conversation is rendered by the tokenizer's own chat template. The prompt ends where the answer begins: behind the
generation prompt and behind whatever the template writes before every answer (a newline, an empty `<think>` block).
Answers are token ids of their own, put behind the prompt as ids and never merged with it, so that

    encode(...).input_ids == prompt_ids(...) + context_ids + response_ids(...)

holds for every template and tokenizer. Response position 1 is the first id after the prompt.

Choices made here, once:
- BOS stands once where the template writes it or the tokenizer adds it, and not at all where neither does.
- Control tokens spelled out in messages and answers get their ids, as when a chat template is tokenised in one call; an
  answer that holds the end-of-turn token is refused.
- An answer is supervised as it was given, or refused where the template rewrites it.
- What the template writes behind the end-of-turn token (mostly a newline) is left out.

Knows nothing of models and files of data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokendeep.chat import reasoning, tools
from tokendeep.chat.ends import end_ids
from tokendeep.chat.ids import alike, continuation_ids, control_ids, memory, text_ids, with_bos
from tokendeep.chat.templates import GAP, SLOT, THINKING, check_arguments, render, template
from tokendeep.errors import InputError, Unusable
from tokendeep.types import IGNORE, Encoded, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHED = 8192  # prompts remembered per tokenizer


@dataclass(frozen=True)
class Frame:
    """A conversation rendered up to its next answer."""

    prompt: tuple[int, ...]
    before: str  # text in front of the answer, where the answer is rendered with the rest
    lead: str  # spaces of it that belong to the first word of the answer
    tail: str  # text behind the answer
    end: tuple[int, ...]  # the ids that close the answer
    stops: frozenset[int]  # the control tokens among them


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids up to the answer, the first token of which is response position 1.

    Args:
        messages: the conversation, ending with the turn to be answered.

    Raises:
        InputError: no chat template, or one that cannot render these messages.
    """
    return list(frame_of(tokenizer, messages).prompt)


def closed_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a whole conversation, without the beginning of another answer: for models whose template asks about it.

    Some of these templates read a message as a list of parts and leave out without a word what is a text: which it wants is
    tried with a word for each message.

    Raises:
        InputError: no chat template, or one that cannot render these messages or leaves one of them out.
    """
    words = [f"word{number}word" for number in range(len(messages))]
    probe = [Message(role=one["role"], content=word) for one, word in zip(messages, words, strict=True)]
    for form in (_as_text, _as_parts):
        try:
            shown = render(tokenizer, form(probe), generation=False)
        except InputError:
            if form is _as_text:
                raise
            break
        if all(word in shown for word in words):
            return with_bos(tokenizer, text_ids(tokenizer, render(tokenizer, form(messages), generation=False)))
    raise InputError("The chat template leaves out a message of the conversation: it cannot ask about all of it.")


def _as_text(messages: Sequence[Message]) -> Sequence[Message]:
    return messages


def _as_parts(messages: Sequence[Message]) -> Sequence[Message]:
    return [
        {"role": one["role"], "content": [{"type": "text", "text": one["content"]}]}  # type: ignore[typeddict-item]
        for one in messages
    ]


def open_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> tuple[list[int], list[int], Callable[[Sequence[str]], list[list[int]]]]:
    """The prompt, open for a text behind its last user turn.

    Returns:
        ids before and behind that text, and what gives the prompt's ids with each of several texts in its place: those
        of `prompt_ids`, for texts that do not end in blank space.

    Raises:
        InputError: as `prompt_ids`, and where the template does not keep the turn in one piece.
    """
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise InputError("The conversation has no user message: it must end with one that is to be answered.")
    opened = [{**m, "content": m["content"] + GAP} if i == last else m for i, m in enumerate(messages)]
    asked, before, _ = around(tokenizer, opened)  # type: ignore[arg-type]
    between = seam(asked, before) or ("", "")
    left, *rest = (asked + between[0]).split(GAP)
    if len(rest) != 1:
        raise InputError("The chat template writes the user's turn twice or not at all: give another one.")
    right = rest[0]

    def spell(texts: Sequence[str]) -> list[list[int]]:
        whole = [left + text + right for text in texts]
        read = tokenizer(whole, add_special_tokens=False, verbose=False).input_ids if whole else []
        return [with_bos(tokenizer, ids) for ids in read]

    return with_bos(tokenizer, text_ids(tokenizer, left)), continuation_ids(tokenizer, right), spell


def thinking_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids up to the inside of the thinking block that the template opens an answer with, of a prompt that asks for
    thoughts.

    Raises:
        InputError: as `prompt_ids`, and for a template that knows no such block.
    """
    asked, before, _ = around(tokenizer, messages, dict.fromkeys(THINKING, True))
    opening = (seam(asked, before) or ("", ""))[0]
    return with_bos(tokenizer, text_ids(tokenizer, reasoning.inside(asked, opening)))


def lead_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message] | None, text: str) -> list[int]:
    """Ids of a text that begins the answer to `messages` (None: that stands elsewhere); control tokens are read as such."""
    if not messages:
        return continuation_ids(tokenizer, text)
    frame = frame_of(tokenizer, messages)
    return continuation_ids(tokenizer, frame.lead + text, behind=frame.prompt)


def response_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str, *, end: bool = True
) -> list[int]:
    """Token ids of an answer as they are supervised; `end=False` leaves out what closes the turn.

    Raises:
        InputError: as `prompt_ids`, and for an answer that the template rewrites.
    """
    frame = frame_of(tokenizer, messages)
    answer: Message = {"role": "assistant", "content": response}
    return _body(tokenizer, messages, answer, frame, None, continued=False) + list(frame.end if end else ())


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    response: str | Message,
    *,
    context_ids: Sequence[int] = (),
    max_length: int | None = None,
    end: bool = True,
    arguments: Mapping[str, Any] | None = None,
) -> Encoded:
    """One row: prompt, context, answer and end of turn; only the last two are supervised.

    Args:
        messages: the conversation, ending with the turn to be answered.
        response: the answer, or what follows the context; blank space at its start is kept behind a context. A message
            may hold `tool_calls`, which are supervised as the template writes them.
        context_ids: answer tokens that stand before the response and are not supervised.
        max_length: longest row in tokens; the answer's tail is cut where it does not fit.
        end: False leaves out the end of turn, for an answer that was cut off.
        arguments: what the row gives to the template beside the messages, such as `tools`.

    Raises:
        Unusable: an empty response; prompt and context that leave no room for a response token.
        InputError: as `response_ids`; a context that ends the turn; arguments or tool calls that the template leaves out.
    """
    answer: Message = {"role": "assistant", "content": response} if isinstance(response, str) else response
    if not answer["content"].strip() and not answer.get("tool_calls"):
        raise Unusable("The answer is empty: give it at least one word or leave the row out.")
    frame = frame_of(tokenizer, messages, arguments)
    if frame.stops & set(context_ids):
        raise InputError("The context holds the end-of-turn token: take context ids from response_ids(..., end=False).")
    start = [*frame.prompt, *context_ids]
    ids = _body(tokenizer, messages, answer, frame, arguments, continued=len(context_ids) > 0)
    ids += frame.end if end else ()
    if max_length is not None:
        if len(start) >= max_length:
            raise Unusable(
                f"Prompt and context take {len(start)} tokens and leave no room in {max_length}: "
                "shorten the instruction or raise the maximal length."
            )
        ids = ids[: max_length - len(start)]
    return Encoded(start + ids, [IGNORE] * len(start) + ids)


# --- where the answer begins ----------------------------------------------------------------------


def frame_of(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], arguments: Mapping[str, Any] | None = None
) -> Frame:
    known = memory(tokenizer)
    key = (template(tokenizer), len(tokenizer), repr((list(messages), arguments or {})))
    facts = known.get(key)  # other threads may empty it meanwhile
    if facts is None:
        if len(known) >= CACHED:
            known.clear()
        facts = known[key] = _examine(tokenizer, messages, arguments or {})
    return facts


def _examine(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], arguments: Mapping[str, Any]) -> Frame:
    if not any(message["role"] == "user" for message in messages):
        raise InputError("The conversation has no user message: it must end with one that is to be answered.")
    if messages[-1]["role"] == "assistant":
        raise InputError(
            "The conversation ends with the assistant's turn: it must end with one that is to be answered."
        )
    check_arguments(tokenizer, arguments)
    asked, before, tail = around(tokenizer, messages, arguments)
    tools.check(messages, arguments, asked)
    between = seam(asked, before)
    if between is None:  # such as Mistral's, which forgets the system prompt once there is an answer
        between = seam(*around(tokenizer, [{"role": "user", "content": "Hello there"}])[:2]) or ("", "")
    ids = with_bos(tokenizer, text_ids(tokenizer, asked + between[0]))
    end = end_ids(tokenizer, tail)
    stops = frozenset(end) & control_ids(tokenizer)
    _check_open(tokenizer, asked, before, stops)
    return Frame(tuple(ids), before, between[1], tail, end, stops)


def _check_open(tokenizer: PreTrainedTokenizerBase, asked: str, before: str, stops: frozenset[int]) -> None:
    """Refuse a template whose generation prompt ends the turn that it opens."""
    more = text_ids(tokenizer, asked[alike(asked, before) :].rstrip())
    if more and more[-1] in {*stops, tokenizer.eos_token_id}:
        raise InputError(
            "The chat template writes an end token behind the generation prompt, where the answer begins: give another "
            "template, or take that token out of it."
        )


def around(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], arguments: Mapping[str, Any] | None = None
) -> tuple[str, str, str]:
    """The text with a generation prompt, and the text before and behind an answer in its place."""
    whole = render(tokenizer, [*messages, {"role": "assistant", "content": SLOT}], False, arguments)
    if SLOT not in whole:
        raise InputError("The chat template leaves out the assistant's answer: give another one.")
    before, _, tail = whole.rpartition(SLOT)
    return render(tokenizer, messages, True, arguments), before, tail


def seam(asked: str, before: str) -> tuple[str, str] | None:
    """What belongs to the prompt behind `asked`, and the spaces that belong to the answer; None: cannot be told.

    Args:
        asked: the conversation with a generation prompt.
        before: the same with an answer, up to that answer.
    """
    if before.startswith(asked):  # the usual case: nothing, or what the template opens every answer with
        opening = before[len(asked) :].rstrip(" ")
        return opening + reasoning.left_open(asked + opening), before[len(asked) + len(opening) :]
    if not asked.startswith(before):
        return None
    return reasoning.closing(asked[len(before) :]), ""  # the generation prompt writes more than the answer gets


def _body(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    answer: Message,
    frame: Frame,
    arguments: Mapping[str, Any] | None,
    *,
    continued: bool,
) -> list[int]:
    """Ids of the answer itself, trimmed as the template trims it."""
    whole = render(tokenizer, [*messages, answer], False, arguments)
    text = whole[len(frame.before) : len(whole) - len(frame.tail)]
    framed = whole.startswith(frame.before) and whole.endswith(frame.tail)
    if answer.get("tool_calls"):
        tools.check_answer(answer, text if framed else "")
    elif not framed or text.strip() != answer["content"].strip():
        raise InputError(
            "The chat template rewrites this answer: take out of it what the template changes, such as <think> blocks (Falcon's "
            "drops blank lines), or give another template."
        )
    response = answer["content"]
    blank = response[: len(response) - len(response.lstrip())]
    # behind a context the blank space at the seam belongs to the caller
    text = blank + text.lstrip() if continued and blank else frame.lead + text
    ids = continuation_ids(tokenizer, text, behind=() if continued else frame.prompt)
    if frame.stops & set(ids):
        raise InputError("The answer spells out the end-of-turn token: take it out.")
    return ids
