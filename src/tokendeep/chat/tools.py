"""Tools and tool calls in conversations: whether a chat template has written all of them.

Knows OpenAI's form of both, as transformers takes it; nothing of tokenizers.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tokendeep.errors import InputError
from tokendeep.types import Message


def check(messages: Sequence[Message], arguments: Mapping[str, Any], text: str) -> None:
    """Raises InputError where the text leaves out a tool, a call of one or what a tool gave back."""
    for tool in arguments.get("tools") or ():
        _need([_function(tool).get("name")], text, "the row's tools")
    for message in messages:
        _need(_spoken(message), text, "a tool call of the conversation")
        if message["role"] == "tool":
            _need([message["content"].strip()], text, "what a tool gave back")


def check_answer(answer: Message, text: str) -> None:
    """Raises InputError where the text of an answer leaves out a tool call or the words beside it."""
    _need([answer["content"].strip(), *_spoken(answer)], text, "a tool call of the answer")


def _spoken(message: Message) -> Iterator[str]:
    """What must stand in the text of a message that calls tools: their names, and the names and texts of arguments."""
    for call in message.get("tool_calls") or ():
        function = _function(call)
        yield str(function.get("name"))
        given = function.get("arguments")
        values = json.loads(given) if isinstance(given, str) and given else given
        for name, value in values.items() if isinstance(values, Mapping) else ():
            yield str(name)
            yield str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _function(call: Any) -> Mapping[str, Any]:
    """A tool or a call without the frame that says that it is a function."""
    inner = call.get("function") if isinstance(call, Mapping) else None
    return inner if isinstance(inner, Mapping) else call if isinstance(call, Mapping) else {}


def _need(words: Iterable[Any], text: str, what: str) -> None:
    spellings = (text, text.replace('\\"', '"'))
    for word in words:
        forms = (str(word), json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1])
        if not any(form in spelling for form in forms for spelling in spellings):
            raise InputError(
                f"The chat template does not write {what} as given: use one that does, or leave the row out."
            )
