"""The columns of a record -> its conversation, its answers and what is known about it, checked.

One record is read alike for every verb and for the trainer. A mistake is one InputError with the record's place and the
fix, and never shows its text. No column is guessed, and none is left out in silence.
"""

import functools
import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tokendeep.data import about
from tokendeep.data import messages as chats
from tokendeep.data.known import BESIDE, KNOWN, Known
from tokendeep.data.messages import checked_text
from tokendeep.data.row import ANSWERS, FIELDS, REQUESTS, Row, nearest_field, of_dataset, renamed, says_nothing, shown
from tokendeep.errors import InputError
from tokendeep.types import Message

Kind = Literal["pairs", "triples", "chats", "prompts"]

WHOLE = ("response", "completion", "harmful", "refusal")  # answers that may bring the conversation before them
IDLE = ("functions", "parallel_tool_calls")  # columns of OpenAI's rows that say nothing where they are empty or true
EMPTY: tuple[Any, ...] = (None, "", [], {}, "[]")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fields:
    """A checked record in our own terms: the messages up to the answer, and whatever answers there are."""

    id: str  # "" where it has none
    messages: tuple[Message, ...]  # without a final assistant message
    response: str | None
    harmful: str | None
    refusal: str | None
    meta: dict[str, Any]  # `harmless` is there where the record says it
    where: str
    kind: Kind
    turn: Message | None = None  # the final assistant message, with all that it holds
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the chat template


def interpret(row: Row) -> Fields:
    """Check one record and bring it into our terms.

    Raises:
        InputError: a column that is unknown, missing, doubled or of the wrong type; an empty text; a bad conversation.
    """
    known = row.origin.known or _known_by(row)
    plain = _plain(renamed(row))
    if known and not row.origin.columns:
        fields = _from_known(plain, known)
    else:
        fields = _from_generic(plain)
        if known and (row.origin.known or not known.common):  # it holds whatever columns the user has named
            fields = replace(fields, meta={**_said(row, known), **fields.meta})
    _check_text(plain)
    return fields


def _check_text(row: Row) -> None:
    """Raises InputError for a record that cannot be written again as UTF-8 and JSON."""
    try:
        json.dumps(row.values, ensure_ascii=False, default=str).encode()
        json.dumps(row.values.get("meta"), allow_nan=False, default=str)
    except UnicodeEncodeError:
        raise InputError(
            f"{row.where}: holds half of a surrogate pair, which is no text; save the file as UTF-8."
        ) from None
    except ValueError:
        raise InputError(f"{row.where}: 'meta' holds NaN or infinity; write null, or leave it out.") from None


def texts_only(fields: Fields) -> Fields:
    """The same where a conversation of roles and texts is all that is wanted, and its last answer the one that counts.

    Raises:
        InputError: tools, calls of them or other arguments of the chat template; answers before the last are marked as
            those to train on.
    """
    turns = [*fields.messages, *([fields.turn] if fields.turn else [])]
    beside = [name for turn in turns for name in turn if name not in ("role", "content", "weight")]
    tool = ["tool message"] if any(turn["role"] == "tool" for turn in turns) else []
    if lost := [*fields.arguments, *beside, *tool]:
        raise InputError(
            f"{fields.where}: its {lost[0]} would be left out; such rows can be trained on (finetune, the trainers) and "
            "nothing else."
        )
    if any(turn.get("weight") for turn in fields.messages) or (fields.turn and fields.turn.get("weight") == 0):
        raise InputError(
            f"{fields.where}: its weights say that other answers count than the last one; end it where they do."
        )
    texts = (Message(role=turn["role"], content=turn["content"]) for turn in fields.messages)
    return replace(fields, messages=tuple(texts))


def needed(value: str | None, field: str, where: str) -> str:
    """An answer that must be there. Raises InputError where it is not."""
    if value is None:
        raise InputError(f"{where}: no field '{field}'; add \"{field}\" with the answer's text.")
    return value


def _plain(row: Row) -> Row:
    """The record without columns that say nothing, and with the request that only its answers bring as its messages."""
    values = {name: value for name, value in row.values.items() if name not in IDLE or value not in (*EMPTY, True)}
    if row.origin.table:
        values = {name: value if isinstance(value, str) else _of_table(value, row) for name, value in values.items()}
    whole = [name for name in WHOLE if _is_whole(values.get(name))]
    if whole and not any(values.get(name) is not None for name in REQUESTS):
        for name in whole:
            *request, answer = chats.read(values[name], name, row.where)
            if answer["role"] != "assistant" or values.setdefault("messages", request) != request:
                raise InputError(
                    f"{row.where}: '{name}' must be the same conversation as the others, up to its own answer."
                )
            values[name] = [answer] if name in ANSWERS else answer["content"]
    return replace(row, values=values)


def _of_table(value: Any, row: Row) -> Any:
    """A value without what Arrow puts where a key is missing; said once where it may have been meant."""
    if not isinstance(value, list | dict):
        return value
    made = chats.without_none(value, own=())
    if made != chats.without_none(value):
        _tell_nulls(row.origin.name)
    return made


@functools.cache
def _tell_nulls(name: str) -> None:
    log.warning(
        "%s: null inside the arguments or parameters of tools is left out, for Arrow writes it where a key is missing; "
        "write them as JSON text where null is meant.",
        name,
    )


def _is_whole(value: Any) -> bool:
    """Whether an answer is a conversation: several messages, or Anthropic's text."""
    if isinstance(value, str):
        return chats.spoken(value)
    return isinstance(value, list) and len(value) > 1 and all(isinstance(v, dict) and "type" not in v for v in value)


# --- public sets -----------------------------------------------------------------------------------


def _known_by(row: Row) -> Known | None:
    """The public set whose columns these are, and whose file where several have them, unless they are all our own names."""
    columns = set(row.values)
    fitting = [known for known in KNOWN if known.required <= columns <= known.columns]
    named = [known for known in fitting if known.files and re.match(known.files, row.origin.part.lower())]
    others = [] if columns <= set(FIELDS) else [known for known in fitting if not known.files]
    return next(iter([*named, *others]), None)


def _from_known(row: Row, known: Known) -> Fields:
    _mention_unused(row, known.columns)
    if missing := sorted(known.required - set(row.values)):
        have = ", ".join(shown(name) for name in row.values)
        raise InputError(
            f"{row.where}: {known.name} should have a column '{missing[0]}' but has {have}; "
            "pin the revision that has it, or name its columns with --columns."
        )
    _check_context(row, known)
    text = known.opening + _known_text(row, known)
    meta = {name.lower(): row.values[name] for name in known.meta if row.values.get(name)}
    if known.context and row.values.get(known.context):
        context = _column(row, known.context)
        text = known.layout.format(instruction=text, context=context)
        meta |= {"context": context} if known.behind else {}
    return Fields(
        id=about.row_id(row),
        messages=_behind(row, (Message(role="user", content=text),)),
        response=_column(row, known.response) if known.response else None,
        harmful=None,
        refusal=None,
        meta={**meta, **_said(row, known)},
        where=row.where,
        kind="pairs" if known.response else "prompts",
    )


def _check_context(row: Row, known: Known) -> None:
    """Raises InputError where a request would be asked without the document that it is about."""
    need, name = known.needs(row.values, row.origin.part.lower()), known.context
    if name is None or need is False or (name in row.values and (need is None or row.values[name] not in EMPTY)):
        return
    lacks = f"has no text in '{name}'" if name in row.values else f"has no column '{name}'"
    raise InputError(
        f"{row.where}: {known.name} {lacks}, without which a contextual behaviour would be asked without its document; take the "
        "set as its authors made it, or name its columns with --columns."
    )


def _said(row: Row, known: Known) -> dict[str, Any]:
    """What a public set says of a request: its category, and whether it is harmless."""
    category = row.values.get(known.category) if known.category else None
    said = known.says(row.values, row.origin.part.lower())
    return {
        **({"category": str(category)} if category not in (None, "") else {}),
        **({} if said is None else {"harmless": said}),
    }


def _known_text(row: Row, known: Known) -> str:
    """The request; a list of one turn is that turn."""
    name = known.instead if known.instead and row.values[known.instruction] in EMPTY else known.instruction
    value = row.values.get(name)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return checked_text(value, name, row.where)


# --- our own columns -------------------------------------------------------------------------------


def _from_generic(row: Row) -> Fields:
    """A record that uses our own column names, or an error with the nearest of them."""
    if row.origin.hub:
        _mention_unused(row, FIELDS)
    else:
        _refuse_unknown(row)
    messages, turn = _conversation(row)
    response = turn["content"] if turn else None
    present = {name for name, value in row.values.items() if value is not None}
    return Fields(
        id=about.row_id(row),
        messages=messages,
        response=response,
        harmful=chats.answer(row.values["harmful"], "harmful", row.where) if "harmful" in present else None,
        refusal=chats.answer(row.values["refusal"], "refusal", row.where) if "refusal" in present else None,
        meta=about.meta(row),
        where=row.where,
        kind=_kind(present, response),
        turn=turn,
        arguments=chats.arguments(row.values, row.where),
    )


def _kind(present: Collection[str], response: str | None) -> Kind:
    if "refusal" in present:
        return "triples"
    if response is not None and "response" not in present:  # in the conversation itself, or a completion
        return "chats"
    return "pairs" if response is not None or "harmful" in present else "prompts"


def _refuse_unknown(row: Row) -> None:
    unknown = [name for name in row.values if name not in FIELDS]
    if not unknown:
        return
    if {"chosen", "rejected"} <= set(unknown):
        raise _preference(row)
    if row.number == 1 and len(unknown) == len(row.values) and not any(nearest_field(name) for name in unknown):
        raise InputError(
            f"{row.where}: none of its {len(unknown)} columns is known; say what they are with --columns, such as "
            f"instruction=NAME, or name them {', '.join(FIELDS)}."
        )
    if row.origin.trainer:
        raise InputError(
            f"{row.where}: unknown column {shown(unknown[0])}; {of_dataset(unknown[0])}, or rename it to one of "
            f"{', '.join(FIELDS)} with dataset.rename_column(...)."
        )
    near = nearest_field(unknown[0])
    advice = f"did you mean '{near}'" if near else f"known are {', '.join(FIELDS)}"
    raise InputError(
        f"{row.where}: unknown column {shown(unknown[0])}; {advice} (rename it, remove it, put it under 'meta', or say with "
        f"--columns which ones are meant, such as {near or 'instruction'}=NAME)."
    )


def _mention_unused(row: Row, used: Collection[str]) -> None:
    """Say once which columns of a hub set are not read: nobody can take them out of it."""
    unused = [shown(name) for name in row.values if name not in used or says_nothing(name, row.values)]
    if row.origin.hub and row.number == 1 and unused:
        log.warning("%s has columns that are not used: %s", row.origin.name, ", ".join(unused))


def _column(row: Row, name: str) -> str:
    return checked_text(row.values[name], name, row.where)


# --- conversations ---------------------------------------------------------------------------------


def _conversation(row: Row) -> tuple[tuple[Message, ...], Message | None]:
    """The messages up to the answer, and the answer where there is one."""
    request, answer = _one_of(REQUESTS, row), _one_of(ANSWERS, row)
    if request is None:
        raise _no_request(row)
    messages = _behind(row, _turns(row, request))
    listed = answer == "completion" and isinstance(row.values[answer], list)
    if answer and messages[-1]["role"] == "assistant":
        raise InputError(f"{row.where}: '{request}' already end with an answer and '{answer}' gives another; keep one.")
    if answer and listed:
        messages = _completed(messages, _turns(row, answer))
    elif answer:
        text = chats.answer(row.values[answer], answer, row.where)
        messages = (*messages, Message(role="assistant", content=text))
    chats.check_order(messages, row.where, request)
    return (messages[:-1], messages[-1]) if messages[-1]["role"] == "assistant" else (messages, None)


def _completed(prompt: tuple[Message, ...], completion: tuple[Message, ...]) -> tuple[Message, ...]:
    """One conversation in which the completion's answers are those to train on, where there are others or several."""
    answers = [turn for turn in (*prompt, *completion) if turn["role"] == "assistant"]
    if len(answers) < 2:
        return (*prompt, *completion)
    return (*_weighted(prompt, 0), *_weighted(completion, 1))


def _weighted(messages: tuple[Message, ...], weight: int) -> tuple[Message, ...]:
    return tuple({"weight": weight, **turn} if turn["role"] == "assistant" else turn for turn in messages)


def _no_request(row: Row) -> InputError:
    have = ", ".join(shown(name) for name in row.values) or "nothing"
    if {"chosen", "rejected"} <= row.values.keys():
        return _preference(row)
    return InputError(f'{row.where}: no field \'instruction\' (it has {have}); add "instruction" or "messages".')


def _preference(row: Row) -> InputError:
    if row.origin.trainer:
        return InputError(
            f"{row.where}: of a preference say which answer is trained on, such as "
            "dataset.rename_column('chosen', 'completion').remove_columns('rejected')."
        )
    return InputError(
        f"{row.where}: of a preference say which answer is what, such as --columns harmful=rejected,refusal=chosen "
        "(or response=chosen, which takes that one alone)."
    )


def _one_of(names: Collection[str], row: Row) -> str | None:
    """The one of these columns that a record has; of a hub set, which often repeats the request, the first."""
    present = [name for name in names if row.values.get(name) is not None]
    if len(present) > 1 and not (row.origin.hub and present[0] == "messages"):
        raise InputError(f"{row.where}: has both '{present[0]}' and '{present[1]}'; keep one of them.")
    return present[0] if present else None


def _turns(row: Row, name: str) -> tuple[Message, ...]:
    """A column as messages: a list of them, or the text of the user's only one."""
    value = row.values[name]
    listed = name in ("messages", "conversations") or (isinstance(value, list) and name in ("prompt", "completion"))
    if listed or (isinstance(value, str) and chats.spoken(value)):
        return chats.read(value, name, row.where)
    return (Message(role="user", content=_column(row, name)),)


def _behind(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages behind what the columns `system` and `history` put before them."""
    system, history = (None if row.values.get(name) in EMPTY else row.values[name] for name in BESIDE)
    if history is not None:
        first = 1 if messages[0]["role"] == "system" else 0
        messages = (*messages[:first], *chats.history(history, row.where), *messages[first:])
    if system is None:
        return messages
    if messages[0]["role"] == "system":
        raise InputError(f"{row.where}: has a column 'system' and a system message; keep one of them.")
    return (Message(role="system", content=checked_text(system, "system", row.where)), *messages)
