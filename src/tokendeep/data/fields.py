"""The columns of a record -> its conversation, its answers and what is known about it, checked.

One record is read alike for every verb and for the trainer. A mistake is one InputError with the record's place and the
fix, and never shows its text. No column is guessed, and none is left out in silence.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokendeep.data.known import KNOWN, Known
from tokendeep.data.row import FIELDS, Origin, Row, nearest_field, shown, type_name
from tokendeep.errors import InputError
from tokendeep.types import Message

Kind = Literal["pairs", "triples", "chats", "prompts"]

ROLES = ("system", "user", "assistant")
SHAREGPT = {"human": "user", "gpt": "assistant"}
NAMES = {"conversations": ("from", "value")}  # what a message's role and content are called; role and content elsewhere
REQUESTS = ("messages", "conversations", "instruction", "prompt")
ANSWERS = ("response", "completion")
UNREAD = ("tools", "chat_template_kwargs")  # would change the prompt, and no encoding of ours takes them

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fields:
    """A checked record in our own terms: the messages up to the answer, and whatever answers there are."""

    id: str  # "" where it has none
    messages: tuple[Message, ...]  # without a final assistant message
    response: str | None
    harmful: str | None
    refusal: str | None
    meta: dict[str, Any]
    where: str
    kind: Kind


def interpret(row: Row) -> Fields:
    """Check one record and bring it into our terms.

    Raises:
        InputError: a column that is unknown, missing, doubled or of the wrong type; an empty text; a bad conversation.
    """
    known = row.origin.known or _known_by(row.values)
    return _from_known(row, known) if known else _from_generic(row)


def conversation(values: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """The whole conversation of a record, with its answer where it has one.

    Args:
        values: `messages`; ShareGPT's `conversations`; or `prompt` (`instruction`) and `completion` (`response`), each a
            text or a list of messages. Other columns are left to the caller.
        where: the record's place, for error sentences.

    Raises:
        InputError: as `interpret`.
    """
    messages, answer = _conversation(Row(0, where, dict(values), Origin(where, hub=True)))
    return messages if answer is None else (*messages, Message(role="assistant", content=answer))


def needed(value: str | None, field: str, where: str) -> str:
    """An answer that must be there. Raises InputError where it is not."""
    if value is None:
        raise InputError(f"{where}: no field '{field}'; add \"{field}\" with the answer's text.")
    return value


# --- public sets -----------------------------------------------------------------------------------


def _known_by(names: Collection[str]) -> Known | None:
    """The public set whose columns these are, unless they are all our own names."""
    columns = set(names)
    if columns <= set(FIELDS):
        return None
    return next((known for known in KNOWN if known.required <= columns <= known.columns), None)


def _from_known(row: Row, known: Known) -> Fields:
    _mention_unused(row, known.columns)
    if missing := sorted(known.required - set(row.values)):
        have = ", ".join(shown(name) for name in row.values)
        raise InputError(
            f"{row.where}: {known.name} should have a column '{missing[0]}' but has {have}; "
            "pin the revision that has it, or write the rows to a file with our field names."
        )
    text = known.opening + _column(row, known.instruction)
    context = row.values.get(known.context) if known.context else None
    if context:
        text = known.layout.format(instruction=text, context=_column(row, known.context or ""))
    meta = {name.lower(): row.values[name] for name in known.meta if row.values.get(name)}
    if known.category and row.values.get(known.category):
        meta["category"] = _column(row, known.category)
    return Fields(
        id=_id(row),
        messages=(Message(role="user", content=text),),
        response=_column(row, known.response) if known.response else None,
        harmful=None,
        refusal=None,
        meta=meta,
        where=row.where,
        kind="pairs" if known.response else "prompts",
    )


# --- our own columns -------------------------------------------------------------------------------


def _from_generic(row: Row) -> Fields:
    """A record that uses our own column names, or an error with the nearest of them."""
    if row.origin.hub:
        _mention_unused(row, FIELDS)
    else:
        _refuse_unknown(row)
    messages, response = _conversation(row)
    present = {name for name, value in row.values.items() if value is not None}
    return Fields(
        id=_id(row),
        messages=messages,
        response=response,
        harmful=_column(row, "harmful") if "harmful" in present else None,
        refusal=_column(row, "refusal") if "refusal" in present else None,
        meta=_meta(row),
        where=row.where,
        kind=_kind(present, response),
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
    if row.number == 1 and len(unknown) == len(row.values) and not any(nearest_field(name) for name in unknown):
        raise InputError(
            f"{row.where}: none of its {len(unknown)} columns is known; name them {', '.join(FIELDS)}"
            + (" (in a first line of column names)." if row.origin.name.endswith(".csv") else ".")
        )
    near = nearest_field(unknown[0])
    advice = f"did you mean '{near}'" if near else f"known are {', '.join(FIELDS)}"
    raise InputError(
        f"{row.where}: unknown column {shown(unknown[0])}; {advice} (rename it, remove it or put it under 'meta')."
    )


def _mention_unused(row: Row, used: Collection[str]) -> None:
    """Say once which columns of a hub set are not read: nobody can take them out of it."""
    unused = [shown(name) for name in row.values if name not in used]
    if row.origin.hub and row.number == 1 and unused:
        log.warning("%s has columns that are not used: %s", row.origin.name, ", ".join(unused))


def _column(row: Row, name: str) -> str:
    return checked_text(row.values[name], name, row.where)


def checked_text(value: Any, name: str, where: str) -> str:
    """A text that is one, and not empty. Raises InputError for anything else."""
    if not isinstance(value, str):
        raise InputError(f"{where}: '{name}' must be text, not {type_name(value)}; put it in quotes as one string.")
    if not value.strip():
        raise InputError(f"{where}: '{name}' is empty; fill it in or remove the row.")
    if re.search("[\ud800-\udfff]", value):
        raise InputError(
            f"{where}: '{name}' holds half of a surrogate pair, which is no valid Unicode; re-save the row."
        )
    return value


def _id(row: Row) -> str:
    value = row.values.get("id")
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return checked_text(value, "id", row.where)


def _meta(row: Row) -> dict[str, Any]:
    meta = row.values.get("meta")
    if meta is not None and not isinstance(meta, dict):
        raise InputError(f"{row.where}: 'meta' must be an object, not {type_name(meta)}; write it as {{...}}.")
    category = row.values.get("category")
    named = {} if category in (None, "") else {"category": _column(row, "category")}
    return {**(meta or {}), **named}


# --- conversations ---------------------------------------------------------------------------------


def _conversation(row: Row) -> tuple[tuple[Message, ...], str | None]:
    """The messages up to the answer, and the answer where there is one."""
    _refuse_unread(row)
    request, answer = _one_of(REQUESTS, row), _one_of(ANSWERS, row)
    if request is None:
        have = ", ".join(shown(name) for name in row.values) or "nothing"
        raise InputError(f'{row.where}: no field \'instruction\' (it has {have}); add "instruction" or "messages".')
    messages = _turns(row, request)
    text = None
    if answer and messages[-1]["role"] == "assistant":
        raise InputError(f"{row.where}: '{request}' already end with an answer and '{answer}' gives another; keep one.")
    if answer and isinstance(row.values[answer], list):
        messages = (*messages, *_turns(row, answer))
    elif answer:
        text = _column(row, answer)
    _check_order(messages, row.where, request)
    if messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1]["content"]
    return messages, text


def _refuse_unread(row: Row) -> None:
    for name in UNREAD:
        if row.values.get(name):
            raise InputError(
                f"{row.where}: its {name} would be left out of the prompt; render such rows to input_ids and labels."
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
    if name in ("messages", "conversations") or (isinstance(value, list) and name in ("prompt", "completion")):
        return _messages(value, name, row.where)
    return (Message(role="user", content=_column(row, name)),)


def _messages(value: Any, name: str, where: str) -> tuple[Message, ...]:
    names = NAMES.get(name, ("role", "content"))
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else type_name(value)
        raise InputError(
            f"{where}: '{name}' must be a list of messages, not {what}; "
            f'write [{{"{names[0]}": "user", "{names[1]}": "..."}}, ...].'
        )
    return tuple(_message(item, names, f"{where}, message {n}") for n, item in enumerate(value, 1))


def _check_order(messages: tuple[Message, ...], where: str, name: str) -> None:
    """System first if at all, at least one user message before an answer."""
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise InputError(f"{where}: a system message stands after others; move it to the first place.")
    if "user" not in roles:
        raise InputError(f"{where}: '{name}' have no user message; add the request.")
    if "user" not in roles[:-1] and roles[-1] == "assistant":
        raise InputError(f"{where}: no user message stands before the answer; add the request.")


def _message(item: Any, names: tuple[str, str], where: str) -> Message:
    shape = f'{{"{names[0]}": ..., "{names[1]}": ...}}'
    if not isinstance(item, dict):
        raise InputError(f"{where}: must be an object, not {type_name(item)}; write {shape}.")
    for name in names:
        if item.get(name) is None:
            raise InputError(f"{where}: no field '{name}'; write {shape}.")
    if extra := [name for name, value in item.items() if name not in names and value is not None]:
        raise InputError(
            f"{where}: unknown field {shown(extra[0])}; only '{names[0]}' and '{names[1]}' are read, remove it."
        )
    role, content = item[names[0]], item[names[1]]
    role = SHAREGPT.get(role, role) if "from" in names and isinstance(role, str) else role
    if role not in ROLES:
        raise InputError(f"{where}: its '{names[0]}' is none of {', '.join(ROLES)}; change it to one of them.")
    if role == "system" and content == "":
        return Message(role="system", content="")  # how a chat says that it wants no system prompt
    return Message(role=role, content=checked_text(content, names[1], where))
