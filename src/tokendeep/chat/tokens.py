"""THE tokenisation: measuring, attacking and training all get their token ids here.

A conversation is rendered by the tokenizer's own chat template. The prompt ends where the answer begins: behind the
generation prompt and behind whatever the template writes before every answer (a newline, an empty `<think>` block).
Answers are token ids of their own, put behind the prompt as ids and never merged with it, so that

    encode(...).input_ids == prompt_ids(...) + context_ids + response_ids(...)

holds for every template and tokenizer. Response position 1 is the first id after the prompt.

Choices made here, once:
- Reasoning models are asked not to think. A template that opens `<think>` in the generation prompt and does not close
  it gets the empty block that its family uses.
- BOS stands once where the template writes it or the tokenizer adds it, and not at all where neither does.
- A system message with empty content means: no system prompt, not even the template's default one.
- A system message for a template without system role is an error: merging it elsewhere would be another prompt.
- Control tokens spelled out in an answer are text; those in messages are what every chat server makes of them.
- What the template writes behind the end-of-turn token (mostly a newline) is left out.
- Templates that print the date get a fixed one, so that today's ids are tomorrow's.

Knows nothing of models and files of data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tokendeep import runs
from tokendeep.errors import InputError
from tokendeep.types import IGNORE, Encoded, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GAP = "\ue0f0"  # a sign of no script, where another text will stand
SLOT = "tokendeep-slot"  # stands for an answer or a system prompt while the template is examined
TODAY = date(2024, 7, 26)  # the default of the Llama 3 templates
ARGUMENTS: dict[str, Any] = {
    "enable_thinking": False,  # Qwen3, GLM, SmolLM3
    "thinking": False,  # Granite, DeepSeek
    "date_string": TODAY.strftime("%d %b %Y"),
    "strftime_now": TODAY.strftime,
}
THOUGHT = "\n</think>\n\n"  # closes a `<think>` that the generation prompt opens
CACHED = 8192  # prompts remembered per tokenizer


@dataclass(frozen=True)
class TemplateFacts:
    """What a chat template does, found out by rendering a short conversation.

    Args:
        system: role (it has one), default (it has one and fills it when nothing is given), refused or ignored.
        default_system: the system prompt it inserts by itself, None where it inserts none.
        opening: what it writes between the generation prompt and an answer; never supervised.
        end_ids: what closes an answer; supervised.
        bos: who puts BOS in front: template, tokenizer or none.
        spliced: for some answers, tokenising all in one call gives other ids than prompt and answer apart.
    """

    system: str
    default_system: str | None
    opening: str
    end_ids: tuple[int, ...]
    bos: str
    spliced: bool


@dataclass(frozen=True)
class _Frame:
    """A conversation rendered up to its next answer."""

    prompt: tuple[int, ...]
    before: str  # text in front of the answer, where the answer is rendered with the rest
    lead: str  # spaces of it that belong to the first word of the answer
    tail: str  # text behind the answer
    end: tuple[int, ...]  # the ids that close the answer
    stop: int | None  # the control token among them


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids up to the answer, the first token of which is response position 1.

    Args:
        messages: the conversation, ending with the turn to be answered.

    Raises:
        InputError: no chat template, or one that cannot render these messages.
    """
    return list(_frame(tokenizer, messages).prompt)


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
        raise InputError("the conversation has no user message: it must end with one that is to be answered")
    opened = [{**m, "content": m["content"] + GAP} if i == last else m for i, m in enumerate(messages)]
    asked, before, _ = _around(tokenizer, opened)  # type: ignore[arg-type]
    seam = _seam(asked, before) or ("", "")
    left, *rest = (asked + seam[0]).split(GAP)
    if len(rest) != 1:
        raise InputError("the chat template writes the user's turn twice or not at all: give another one")
    right = rest[0]

    def spell(texts: Sequence[str]) -> list[list[int]]:
        whole = [left + text + right for text in texts]
        read = tokenizer(whole, add_special_tokens=False, verbose=False).input_ids if whole else []
        return [_with_bos(tokenizer, ids) for ids in read]

    return _with_bos(tokenizer, _ids(tokenizer, left)), continuation_ids(tokenizer, right), spell


def thinking_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids up to the inside of the thinking block that the template opens an answer with.

    Raises:
        InputError: as `prompt_ids`, and for a template that knows no such block.
    """
    asked, before, _ = _around(tokenizer, messages)
    opening = (_seam(asked, before) or ("", ""))[0]
    if "think>" not in asked[-len(THOUGHT) - 40 :] + opening:
        raise InputError("the chat template opens no thinking block: leave thinking out")
    asked = re.sub(r"<think>\s*</think>\s*$", "", asked)  # a block that is closed at once is opened instead
    inside = asked.rfind("<think>") > asked.rfind("</think>")
    return _with_bos(tokenizer, _ids(tokenizer, asked if inside else f"{asked}<think>\n"))


def lead_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message] | None, text: str) -> list[int]:
    """Ids of a text that begins the answer to `messages` (None: that stands elsewhere); control tokens are read as such."""
    return continuation_ids(tokenizer, (_frame(tokenizer, messages).lead if messages else "") + text)


def response_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str, *, end: bool = True
) -> list[int]:
    """Token ids of an answer as they are supervised; `end=False` leaves out what closes the turn.

    Raises:
        InputError: as `prompt_ids`, and for an answer that the template rewrites.
    """
    frame = _frame(tokenizer, messages)
    return _body(tokenizer, messages, response, frame, continued=False) + list(frame.end if end else ())


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    response: str,
    *,
    context_ids: Sequence[int] = (),
    max_length: int | None = None,
    end: bool = True,
) -> Encoded:
    """One row: prompt, context, answer and end of turn; only the last two are supervised.

    Args:
        messages: the conversation, ending with the turn to be answered.
        response: the answer, or what follows the context; blank space at its start is kept behind a context.
        context_ids: answer tokens that stand before the response and are not supervised.
        max_length: longest row in tokens; the answer's tail is cut where it does not fit.
        end: False leaves out the end of turn, for an answer that was cut off.

    Raises:
        InputError: as `response_ids`; an empty response; a context that ends the turn; prompt and context that leave
            no room for a response token.
    """
    if not response.strip():
        raise InputError("the answer is empty: give it at least one word or leave the row out")
    frame = _frame(tokenizer, messages)
    if frame.stop in context_ids:
        raise InputError("the context holds the end-of-turn token: take context ids from response_ids(..., end=False)")
    start = [*frame.prompt, *context_ids]
    answer = [*_body(tokenizer, messages, response, frame, continued=len(context_ids) > 0), *(frame.end if end else ())]
    if max_length is not None:
        if len(start) >= max_length:
            raise InputError(
                f"prompt and context take {len(start)} tokens and leave no room in {max_length}: "
                "shorten the instruction or raise the maximal length"
            )
        answer = answer[: max_length - len(start)]
    return Encoded(start + answer, [IGNORE] * len(start) + answer)


def with_system(messages: Sequence[Message], system: str) -> list[Message]:
    """The messages with another system prompt.

    Args:
        system: `default` changes nothing, `none` asks for none at all (an empty system message stands for that), any
            other text replaces the system prompt.
    """
    if system == "default":
        return list(messages)
    rest = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "" if system == "none" else system}, *rest]


def template_names() -> list[str]:
    """Names of the chat templates that come with tokendeep."""
    return sorted(p.name.removesuffix(".jinja") for p in _shipped().iterdir() if p.name.endswith(".jinja"))


def use_template(tokenizer: PreTrainedTokenizerBase, name_or_file: str) -> None:
    """Give the tokenizer a shipped chat template or that of a Jinja file.

    A shipped template that writes no BOS gets it where the tokenizer adds one to plain text, so that the tokenizer,
    once saved, does the same everywhere.

    Raises:
        InputError: neither a known name nor a readable file, or a template that is no valid Jinja.
    """
    text = read_template(name_or_file)
    if name_or_file in template_names() and "bos_token" not in text and _adds_bos(tokenizer):
        text = "{{- bos_token }}" + text
    tokenizer.chat_template = text


def read_template(name_or_file: str) -> str:
    """The text of a shipped chat template or of a Jinja file. Raises InputError as `use_template`."""
    import jinja2

    if name_or_file in template_names():
        return (_shipped() / f"{name_or_file}.jinja").read_text(encoding="utf-8")
    try:
        text = Path(name_or_file).read_text(encoding="utf-8")
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except FileNotFoundError:
        known = ", ".join(template_names())
        raise InputError(f"no chat template {name_or_file}: name a Jinja file or one of {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the chat template {name_or_file} cannot be read: {error}") from error
    except jinja2.TemplateSyntaxError as error:
        if "Encountered unknown tag" not in str(error):  # such as {% generation %}, which transformers knows
            raise InputError(
                f"the chat template {name_or_file}, line {error.lineno}, is no valid Jinja: {error.message}"
            ) from error
    if not text.strip():
        raise InputError(f"the chat template {name_or_file} is empty: write one or name one that is shipped")
    return text


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the chat template's text. Raises InputError where there is none."""
    return runs.sha256_text(_template(tokenizer))


def check(tokenizer: PreTrainedTokenizerBase) -> TemplateFacts:
    """Render a short conversation and say what the template does.

    Raises:
        InputError: no template, or one that fails, drops the user's words or has no place for an answer.
    """
    user: list[Message] = [{"role": "user", "content": "Hello there"}]
    if "Hello there" not in _render(tokenizer, user, True):
        raise InputError("the chat template leaves out what the user says: give another one")
    frame = _frame(tokenizer, user)
    asked, before, _ = _around(tokenizer, user)
    system, default = _system(tokenizer)
    written = bool(tokenizer.bos_token) and asked.startswith(tokenizer.bos_token)
    return TemplateFacts(
        system=system,
        default_system=default,
        opening=(_seam(asked, before) or ("", ""))[0],
        end_ids=frame.end,
        bos="template" if written else "tokenizer" if _adds_bos(tokenizer) else "none",
        spliced=any(_merges(tokenizer, user, answer) for answer in ("Sure, here is", "I cannot", "the end", "1.")),
    )


def _merges(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str) -> bool:
    """True when tokenising the conversation in one call gives other ids than prompt and answer apart."""
    text = _render(tokenizer, [*messages, {"role": "assistant", "content": answer}], False)
    apart = encode(tokenizer, messages, answer).input_ids
    return _with_bos(tokenizer, _ids(tokenizer, text))[: len(apart)] != apart


# --- rendering -----------------------------------------------------------------------------------


def _shipped() -> Any:
    return resources.files("tokendeep") / "assets" / "templates"


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the chat template that is used."""
    if not tokenizer.chat_template:
        raise InputError(
            "the tokenizer has no chat template: give one with --chat-template "
            f"({', '.join(template_names())}, or a Jinja file)"
        )
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # several named ones and none called default
        raise InputError(
            "the tokenizer has several chat templates and no default one: give one with --chat-template"
        ) from error


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], generation: bool) -> str:
    """The template's own text for these messages."""
    import jinja2

    turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    template = _template(tokenizer)
    try:
        return str(
            tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=generation, **ARGUMENTS
            )
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"the chat template cannot render this conversation ({error}): check its roles") from error


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], generation: bool) -> str:
    """The text for these messages, where an empty system message means that there is no system prompt at all."""
    if not messages or messages[0]["role"] != "system":
        return _apply(tokenizer, messages, generation)
    kind, _ = _system(tokenizer)
    if messages[0]["content"].strip():
        if kind in ("refused", "ignored"):
            raise InputError(
                "the chat template has no system role: use --system none, or put these words into the user's message"
            )
        return _apply(tokenizer, messages, generation)
    if kind != "default":
        return _apply(tokenizer, messages[1:], generation)
    slot: Message = {"role": "system", "content": SLOT}
    block = _apply(tokenizer, [slot], False)
    text = _apply(tokenizer, [slot, *messages[1:]], generation)
    if SLOT not in block or not text.startswith(block):
        raise InputError("the chat template inserts a system prompt that cannot be taken out: give --system a text")
    rest, bos = text[len(block) :], tokenizer.bos_token
    return bos + rest if bos and block.startswith(bos) and not rest.startswith(bos) else rest


def _system(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str | None]:
    """What the template does with a system message (see TemplateFacts.system), and its default system prompt."""
    memory = _memory(tokenizer)
    key = ("system", _template(tokenizer))
    found = memory.get(key)
    if found is None:
        found = memory[key] = _examine_system(tokenizer)
    return found


def _examine_system(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str | None]:
    user: Message = {"role": "user", "content": "Hello there"}
    slot: Message = {"role": "system", "content": SLOT}
    plain = _apply(tokenizer, [user], True)
    try:
        text = _apply(tokenizer, [slot, user], True)
    except InputError:
        return "refused", None
    if SLOT not in text:
        return "ignored", None
    before, after = text.split(SLOT, 1)
    same_frame = plain.startswith(before) and plain.endswith(after) and len(plain) >= len(before) + len(after)
    default = plain[len(before) : len(plain) - len(after)]
    if not same_frame or not (default or _stands_alone(tokenizer, slot)):
        return "role", None
    return "default", default


def _stands_alone(tokenizer: PreTrainedTokenizerBase, slot: Message) -> bool:
    """True when the template has a turn of its own for the system prompt, rather than a place in the user's."""
    try:
        return SLOT in _apply(tokenizer, [slot], False)
    except InputError:
        return False


def _frame(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> _Frame:
    memory = _memory(tokenizer)
    key = (_template(tokenizer), len(tokenizer), tuple((m["role"], m["content"]) for m in messages))
    found = memory.get(key)  # other threads may empty it meanwhile
    if found is None:
        if len(memory) >= CACHED:
            memory.clear()
        found = memory[key] = _examine(tokenizer, messages)
    return found


def _examine(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> _Frame:
    if not any(message["role"] == "user" for message in messages):
        raise InputError("the conversation has no user message: it must end with one that is to be answered")
    if messages[-1]["role"] == "assistant":
        raise InputError("the conversation ends with the assistant's turn: it must end with one that is to be answered")
    asked, before, tail = _around(tokenizer, messages)
    seam = _seam(asked, before)
    if seam is None:  # such as Mistral's, which forgets the system prompt once there is an answer
        seam = _seam(*_around(tokenizer, [{"role": "user", "content": "Hello there"}])[:2]) or ("", "")
    ids = _with_bos(tokenizer, _ids(tokenizer, asked + seam[0]))
    end = _end(tokenizer, tail)
    stop = end[-1] if end[-1] in control_ids(tokenizer) else None
    return _Frame(tuple(ids), before, seam[1], tail, end, stop)


def _around(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, str, str]:
    """The text with a generation prompt, and the text before and behind an answer in its place."""
    whole = _render(tokenizer, [*messages, {"role": "assistant", "content": SLOT}], False)
    if SLOT not in whole:
        raise InputError("the chat template leaves out the assistant's answer: give another one")
    before, _, tail = whole.rpartition(SLOT)
    return _render(tokenizer, messages, True), before, tail


def _seam(asked: str, before: str) -> tuple[str, str] | None:
    """What belongs to the prompt behind `asked`, and the spaces that belong to the answer; None: cannot be told.

    Args:
        asked: the conversation with a generation prompt.
        before: the same with an answer, up to that answer.
    """
    if before.startswith(asked):  # the usual case: nothing, or what the template opens every answer with
        opening = before[len(asked) :].rstrip(" ")
        return opening, before[len(asked) + len(opening) :]
    if not asked.startswith(before):
        return None
    thinking = asked[len(before) :]  # the generation prompt writes more than the answer gets
    return (THOUGHT if "<think>" in thinking and "</think>" not in thinking else ""), ""


def _body(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], response: str, frame: _Frame, *, continued: bool
) -> list[int]:
    """Ids of the answer itself, trimmed as the template trims it."""
    whole = _render(tokenizer, [*messages, {"role": "assistant", "content": response}], False)
    if not (whole.startswith(frame.before) and whole.endswith(frame.tail)):
        raise InputError("the chat template rewrites this answer: take special blocks such as <think> out of it")
    text = whole[len(frame.before) : len(whole) - len(frame.tail)]
    blank = response[: len(response) - len(response.lstrip())]
    # behind a context the blank space at the seam belongs to the caller
    text = blank + text.lstrip() if continued and blank else frame.lead + text
    ids = continuation_ids(tokenizer, text, literal=True)
    if frame.stop in ids:
        raise InputError("the answer spells out the end-of-turn token: take it out")
    return ids


# --- token ids -----------------------------------------------------------------------------------


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, literal: bool = False) -> list[int]:
    """Ids of a text without anything added; `literal` reads control tokens in it as plain text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=literal, verbose=False).input_ids


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str, literal: bool = False) -> list[int]:
    """Ids of a text that follows other text, the same whatever stands before it.

    Tokenizers treat the start of a text in their own ways (SentencePiece puts a space there), so the text is
    tokenised behind an anchor that it does not merge with, and the anchor's ids are taken off.
    """
    if not text:
        return []
    literal = literal and _control(tokenizer).search(text) is not None
    anchors = ("x", "\n", "x\n") if text[0].isspace() else ("\n", "x\n")
    for anchor in anchors:
        head, ids = _ids(tokenizer, anchor), _ids(tokenizer, anchor + text, literal)
        if ids[: len(head)] == head:
            return ids[len(head) :]
    return _ids(tokenizer, text, literal)  # every anchor merges: as the tokenizer begins a text


def _end(tokenizer: PreTrainedTokenizerBase, tail: str) -> tuple[int, ...]:
    """Ids that close an answer: up to the first control token of the tail, or its text and EOS where it has none."""
    ids = [] if not tail else _ids(tokenizer, "x" + tail)[len(_ids(tokenizer, "x")) :]
    control = control_ids(tokenizer)
    for i, token in enumerate(ids):
        if token in control:
            return tuple(ids[: i + 1])
    text = tail.rstrip()
    ids = _ids(tokenizer, "x" + text)[len(_ids(tokenizer, "x")) :] if text else []
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise InputError("nothing ends an answer: the chat template writes no end of turn and the tokenizer has no EOS")
    return tuple(ids)


def control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that are no text: special tokens, and whatever was added to the vocabulary."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def _with_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """The ids with BOS in front where the tokenizer adds one and the template does not write it."""
    bos = tokenizer.bos_token_id
    if bos is None or ids[:1] == [bos] or not _adds_bos(tokenizer):
        return ids
    return [bos, *ids]


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True when the tokenizer puts BOS before plain text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x", verbose=False).input_ids[:1] == [bos]


def _control(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches every control token of the tokenizer."""
    memory = _memory(tokenizer)
    key = ("control", len(tokenizer))
    found = memory.get(key)
    if found is None:
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        words = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
        found = memory[key] = re.compile("|".join(map(re.escape, words)) or r"(?!)")
    return found


_MEMORIES: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


def _memory(tokenizer: PreTrainedTokenizerBase) -> dict[Any, Any]:
    """What has been found out about a tokenizer; forgotten with it."""
    return _MEMORIES.setdefault(tokenizer, {})
