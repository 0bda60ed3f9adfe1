"""Other people's ways to write a conversation -> messages with a role and a text.

Reads lists of messages under either pair of keys, contents that are lists of text parts, such a list as JSON text (a cell
of a table), Anthropic's text with "Human:" and "Assistant:", and lists of question and answer; tools and calls of them in
OpenAI's form. What cannot become a text (images) is refused. Knows nothing of files.
"""

import ast
import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from tokendeep.data.row import shown, type_name
from tokendeep.errors import InputError, Unusable
from tokendeep.types import Message

ROLES = ("system", "user", "assistant", "tool")
ALSO = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "developer": "system"}
CALLS = ("name", "tool_calls", "tool_call_id")  # what a message may hold beside what is said, and `weight`
OWN = ("arguments", "parameters")  # of a tool and its calls, in which null is a value like others
KEYS = (("role", "content"), ("from", "value"))
TEXT_PARTS = ("text", "input_text", "output_text")
SILENT = ("cache_control", "annotations", "citations")  # beside a part's text; they change no prompt
TURN = re.compile(r"\n\n(Human|Assistant):")


def read(value: Any, name: str, where: str) -> tuple[Message, ...]:
    """A list of messages, or one of the texts that stand for one.

    Raises:
        InputError: an empty list, or a message that is none.
    """
    if isinstance(value, str) and spoken(value):
        return _spoken(value, name, where)
    items = _listed(value)
    if not isinstance(items, list) or not items:
        what = "an empty list" if items == [] else type_name(value)
        keys = KEYS[name == "conversations"]
        raise InputError(
            f"{where}: '{name}' must be a list of messages, not {what}; "
            f'write [{{"{keys[0]}": "user", "{keys[1]}": "..."}}, ...].'
        )
    return tuple(_message(item, name, f"{where}, message {n}") for n, item in enumerate(items, 1))


def spoken(text: str) -> bool:
    """Whether a text is a conversation as Anthropic writes it."""
    return re.match(r"\s*\n\nHuman:", text) is not None


def answer(value: Any, name: str, where: str) -> str:
    """An answer: a text, a list with the assistant's message alone, or text parts.

    Raises:
        InputError: it is none of them, or empty.
    """
    if isinstance(value, list) and value and all(isinstance(item, dict) and "type" in item for item in value):
        return checked_text(_parts(value, name, where), name, where)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return checked_text(value, name, where)
    turns = read(value, name, where)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise InputError(
            f"{where}: '{name}' must be the assistant's message alone; put what stands before it into the request."
        )
    return turns[0]["content"]


def history(value: Any, where: str) -> tuple[Message, ...]:
    """Alpaca's earlier turns: a list of [question, answer]."""
    items = _listed(value)
    turns: list[Message] = []
    for number, item in enumerate(items if isinstance(items, list) else [items], 1):
        place = f"{where}, turn {number} of 'history'"
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise InputError(f'{place}: must be a question and its answer; write ["...", "..."].')
        turns.append(Message(role="user", content=checked_text(item[0], "question", place)))
        turns.append(Message(role="assistant", content=checked_text(item[1], "answer", place)))
    return tuple(turns)


def checked_text(value: Any, name: str, where: str) -> str:
    """A text that is one. Raises InputError for anything else, and Unusable for an empty one."""
    if not isinstance(value, str):
        raise InputError(f"{where}: '{name}' must be text, not {type_name(value)}; put it in quotes as one string.")
    if not value.strip():
        kind = InputError if name in ("id", "category") else Unusable
        raise kind(f"{where}: '{name}' is empty; fill it in or remove the row.")
    if re.search("[\ud800-\udfff]", value):
        raise InputError(
            f"{where}: '{name}' holds half of a surrogate pair, which is no valid Unicode; re-save the row."
        )
    return value


def check_order(messages: tuple[Message, ...], where: str, name: str) -> None:
    """System first if at all, at least one user message before an answer. Raises InputError."""
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise InputError(f"{where}: a system message stands after others; move it to the first place.")
    if "user" not in roles:
        raise InputError(f"{where}: '{name}' have no user message; add the request.")
    if "user" not in roles[:-1] and roles[-1] == "assistant":
        raise InputError(f"{where}: no user message stands before the answer; add the request.")


def _message(item: Any, name: str, where: str) -> Message:
    if not isinstance(item, dict):
        keys = KEYS[name == "conversations"]
        shape = f'{{"{keys[0]}": ..., "{keys[1]}": ...}}'
        raise InputError(f"{where}: must be an object, not {type_name(item)}; write {shape}.")
    keys = _keys(item, name)
    said = without_none(item)
    if "content" not in said and isinstance(
        refused := said.get("refusal"), str
    ):  # OpenAI's answers keep a refusal apart
        said = {**{key: value for key, value in said.items() if key != "refusal"}, "content": refused}
    calls = said.get("tool_calls") or []
    for key in keys[:1] if calls else keys:
        if key not in said:
            raise InputError(f'{where}: no field \'{key}\'; write {{"{keys[0]}": ..., "{keys[1]}": ...}}.')
    if extra := [key for key in said if key not in (*keys, *CALLS, "weight")]:
        raise InputError(
            f"{where}: unknown field {shown(extra[0])}; only '{keys[0]}' and '{keys[1]}' are read, remove it."
        )
    role = ALSO.get(said[keys[0]], said[keys[0]]) if isinstance(said[keys[0]], str) else None
    if role not in ROLES:
        raise InputError(f"{where}: its '{keys[0]}' is none of {', '.join(ROLES)}; change it to one of them.")
    content = _parts(said.get(keys[1], ""), keys[1], where)
    if not (content == "" and (role in ("system", "tool") or calls)):  # system: how a chat says that it wants none
        checked_text(content, keys[1], where)
    return {"role": role, "content": content, **_beside(said, role, where)}  # type: ignore[typeddict-item]


def _beside(said: Mapping[str, Any], role: str, where: str) -> dict[str, Any]:
    """What a message holds beside what is said: calls of tools, and whether it is trained on."""
    made = {name: said[name] for name in CALLS if said.get(name)}
    if "tool_calls" in made and (role != "assistant" or not isinstance(made["tool_calls"], list)):
        raise InputError(f"{where}: 'tool_calls' must be a list, of a message of the assistant.")
    if "weight" in said:
        if role != "assistant" or said["weight"] not in (0, 1):
            raise InputError(f"{where}: 'weight' must be 0 or 1, of a message of the assistant.")
        made["weight"] = int(said["weight"])
    return made


def _keys(item: dict[str, Any], name: str) -> tuple[str, str]:
    """What a message's role and content are called: by the keys it has, else by its column."""
    return next((keys for keys in KEYS if set(keys) & item.keys()), KEYS[name == "conversations"])


def _parts(content: Any, name: str, where: str) -> Any:
    """A content that is a list of text parts as one text, as templates write them; any other as it is."""
    if not isinstance(content, list) or not content or not all(isinstance(part, dict) for part in content):
        return content
    texts = []
    for part in content:
        kind, text = part.get("type", "text"), part.get("text")
        if kind not in TEXT_PARTS or not isinstance(text, str):
            raise InputError(
                f"{where}: '{name}' has a part of the type {shown(str(kind))}, and only text is read; remove it."
            )
        if extra := [key for key, value in part.items() if value and key not in ("type", "text", *SILENT)]:
            raise InputError(f"{where}: a part of '{name}' has an unknown field {shown(extra[0])}; remove it.")
        texts.append(text)
    return "".join(texts)


def _listed(value: Any) -> Any:
    """A list that a table holds as text, in JSON or as Python prints it; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        for parse in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return parse(value.strip())
    return list(value) if isinstance(value, tuple) else value


def arguments(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a record gives to the chat template: its tools, and what chat_template_kwargs holds; empty values are none.

    Raises:
        InputError: tools that are no list of objects, or arguments that are no object.
    """
    tools, more = (_decoded(values.get(name), name, where) for name in ("tools", "chat_template_kwargs"))
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InputError(f"{where}: 'tools' must be a list of objects, or such a list as JSON text.")
    if more and not isinstance(more, dict):
        raise InputError(f"{where}: 'chat_template_kwargs' must be an object, not {type_name(more)}.")
    return {**({"tools": tools} if tools else {}), **(more or {})}


def _decoded(value: Any, name: str, where: str) -> Any:
    """A value, read where it is JSON text."""
    try:
        return without_none(json.loads(value) if isinstance(value, str) and value else value)
    except (ValueError, RecursionError):
        raise InputError(f"{where}: '{name}' is a text that is no JSON; write it as a list or an object.") from None


def without_none(value: Any, own: tuple[str, ...] = OWN) -> Any:
    """A value without empty ones where a key may as well be missing; what stands under an `own` name is left as it is."""
    if isinstance(value, Mapping):
        return {n: one if n in own else without_none(one, own) for n, one in value.items() if one is not None}
    return [without_none(one, own) for one in value] if isinstance(value, list) else value


def _spoken(text: str, name: str, where: str) -> tuple[Message, ...]:
    """The turns of Anthropic's text; what is open for the assistant at its end is no turn."""
    _, *pieces = TURN.split("\n\n" + text.strip())
    names, texts = pieces[::2], [piece.strip() for piece in pieces[1::2]]
    if not texts[-1] and names[-1] == "Assistant":
        names, texts = names[:-1], texts[:-1]
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(role=roles[who], content=checked_text(said, name, f"{where}, turn {number}"))
        for number, (who, said) in enumerate(zip(names, texts, strict=True), 1)
    )
