"""Models that run elsewhere: what a server does with a prefill, and what it answers when it fails.

A server that continues a final assistant message goes on from the prefill; others send the prefill back before they go on,
or begin a new turn, in which the prefill is lost. One request shows which. Knows nothing of attacks or of rows.
"""

import logging
import re
import time
from collections.abc import Sequence
from typing import Literal
from weakref import WeakKeyDictionary, WeakSet

import anyio
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelAPI,
    RetryDecision,
)

from tokendeep.errors import InputError

Habit = Literal["continues", "echoes", "ignores"]
# The prefill breaks off where any model writes a bracket, with which no new turn begins. It is longer than the answer may
# be, so that an answer with all of it in front is an echo, and not a new turn that repeats it.
QUESTION = "Count to twenty in words, one number a line, each behind its figure in brackets."
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
BEGINNING = "".join(f"[{number}] {word}\n" for number, word in enumerate(WORDS, 1)) + "[12"
REST = "]"
CANARY_TOKENS = 16
SILENCE = 60  # seconds between two notes that a server is waited for

log = logging.getLogger(__name__)
_habits: WeakKeyDictionary[ModelAPI, Habit] = WeakKeyDictionary()
_told: WeakSet[ModelAPI] = WeakSet()
_locks: WeakKeyDictionary[ModelAPI, anyio.Lock] = WeakKeyDictionary()


async def habit(model: Model, trusted: bool = False, max_retries: int | None = None) -> Habit:
    """What the server does with a prefill; it is asked once.

    Args:
        trusted: the user says that it continues one, so that an answer which does not show it is no reason to stop.
        max_retries: how often a server that failed is asked again; None is what the run says.

    Raises:
        InputError: the prefill would be lost, or the server does not answer.
    """
    async with _locks.setdefault(model.api, anyio.Lock()):
        known = _habits.get(model.api) or await _ask(model, max_retries)
        _habits[model.api] = known
    if known == "ignores" and not trusted:
        raise InputError(
            f"{model} does not go on from the beginning of an answer, so a prefill would be lost: set the server up to "
            "continue a final assistant message, or give continues=true if you know that it does."
        )
    return "continues" if known == "ignores" else known


def tell_of_system(model: Model, messages: Sequence[ChatMessage]) -> None:
    """Say once what an empty system message, which stands for none, becomes on a server."""
    if messages and messages[0].role == "system" and not messages[0].text and model.api not in _told:
        _told.add(model.api)
        log.warning(
            "%s is sent an empty system message (--system none): a chat template may write it down as an empty turn, which a "
            "model that tokendeep loads itself does not get; compare such rates with those of the same server only",
            model,
        )


def take_over(asked: Model, model: Model) -> None:
    """Know of a model what was found out with another handle on it."""
    _habits[model.api] = _habits[asked.api]


async def _ask(model: Model, max_retries: int | None) -> Habit:
    config = GenerateConfig(temperature=0.0, max_tokens=CANARY_TOKENS, max_retries=max_retries)
    try:
        output = await model.generate(
            [ChatMessageUser(content=QUESTION), ChatMessageAssistant(content=BEGINNING)], config=config
        )
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{failure(model, error)}, asked whether it continues a prefill; {REMEDY}.") from None
    return habit_of(output.completion)


def habit_of(answer: str) -> Habit:
    """What an answer to `BEGINNING` shows."""
    text = answer.lstrip()
    if text.startswith(BEGINNING):
        return "echoes"
    return "continues" if text.startswith(REST) else "ignores"


def without_echo(answer: str, prefix: str) -> str:
    """The answer of a server that sends prefills back, from where the prefill ends. Raises InputError where it has none."""
    for text, start in ((answer, prefix), (answer.lstrip(), prefix.lstrip())):
        if text.startswith(start):
            return text.removeprefix(start)
    raise InputError("The server sends prefills back, but this answer does not begin with its own: look at its log.")


# --- failures ------------------------------------------------------------------------------------

REMEDY = (
    "check that the server runs, serves a model of that name and has room for the prompt and max_new_tokens in its "
    "context, then call again to go on"
)


def tell_of_waiting(model: Model) -> None:
    """Say on the terminal that the server failed and is asked again: at once, then every minute."""
    ask, told = model.api.should_retry, float("-inf")

    def should_retry(error: Exception) -> bool | RetryDecision:
        nonlocal told
        decision = ask(error)
        again = decision.retry if isinstance(decision, RetryDecision) else decision
        if again and time.monotonic() - told > SILENCE:
            told = time.monotonic()
            log.warning("%s, and is asked again after a while", failure(model, error))
        return decision

    model.api.should_retry = should_retry  # type: ignore[assignment, method-assign]


REJECTIONS = frozenset(
    {400, 413, 422}
)  # statuses of a request that a server would not take, of which another may be taken

# llama.cpp, vLLM, SGLang, OpenAI
NO_ROOM = re.compile(
    "exceed_context_size|available context size|maximum context length|model's context length|context_length_exceeded",
    re.I,
)


def too_long(error: BaseException | None) -> bool:
    """Whether a server says that the prompt does not fit into its model's context."""
    if error is None:
        return False
    inner = last.exception() if (last := getattr(error, "last_attempt", None)) is not None else error.__cause__
    said = f"{error} {getattr(error, 'body', '')}"
    return bool(NO_ROOM.search(said)) or too_long(inner)


def failure(model: Model, error: BaseException) -> str:
    """A server's error as the beginning of a sentence: its class and status alone, for its text can quote the prompt."""
    last, status = getattr(error, "last_attempt", None), status_of(error)
    tries = f" after {last.attempt_number} tries" if last is not None and last.attempt_number > 1 else ""
    return f"{model} failed with {type(_last(error)).__name__}{f' (status {status})' if status else ''}{tries}"


def status_of(error: BaseException) -> int | None:
    """The HTTP status that a server has failed with; None where there is none."""
    error = _last(error)
    told = (getattr(error, "status_code", None), getattr(getattr(error, "response", None), "status_code", None))
    return next((one for one in (*told, getattr(error, "status", None)) if isinstance(one, int) and one), None)


def _last(error: BaseException) -> BaseException:
    """What the last try failed with, where a server was asked again until that was enough."""
    last = getattr(error, "last_attempt", None)
    return error if last is None else last.exception() or error
