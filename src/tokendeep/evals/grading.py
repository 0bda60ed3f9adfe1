"""The judges that ask a language model: what is sent to the grader, and what its reply is worth.

A reply that is empty, cut, filtered, a refusal to grade or without a grade leaves the answer unscored, with that reason.
The grader answers greedily. Knows nothing of logs.
"""

import asyncio
from collections.abc import Collection, Coroutine, Iterable
from typing import Any, TypeVar

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    get_model,
)

from tokendeep import chat
from tokendeep.engines.base import TooLong
from tokendeep.errors import InputError
from tokendeep.evals import judging, served
from tokendeep.evals.judging import LENGTH_LIMITS, Answer, Judging
from tokendeep.evals.provider import CLOSED, TokendeepAPI
from tokendeep.evals.session import Session, current, outside_loops
from tokendeep.judges import JUDGES, Verdict, judge_refusal
from tokendeep.judges.base import Rubric
from tokendeep.judges.grades import filled, one_turn

ROLE = "grader"  # of the model, in Inspect
T = TypeVar("T")


def asking(every: Collection[Judging]) -> list[str]:
    """Those of these judges that ask a language model."""
    return list(dict.fromkeys(one.judge for one in every if JUDGES[one.judge].rubric))


def by_turns(every: Collection[Judging]) -> list[str]:
    """Those of these judges that put the answer as a turn."""
    return [name for name in asking(every) if (rubric := JUDGES[name].rubric) and rubric.turns]


def grader_of(every: Collection[Judging]) -> Model | None:
    """The model that grades in this evaluation; None where no judge asks one. Raises InputError where it is not named."""
    if not (names := asking(every)):
        return None
    session = current()
    try:
        model = session.grader if session else get_model(role=ROLE, required=True)
    except Exception:  # Inspect says it in an error of its own
        model = None
    if model is None:
        how = "--grader MODEL" if session else "--model-role grader=PROVIDER/NAME"
        raise InputError(f"The judge {names[0]} asks a language model to grade; name one with {how}.")
    return model


def together(grader: Model, work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of this work comes to, at once and outside an evaluation; the first failure ends all of it.

    A grader that is loaded here is closed behind it.
    """
    local = grader.api if isinstance(grader.api, TokendeepAPI) else None
    session = Session(grader, on_failure=local.fail if local else lambda error: None)

    async def done() -> list[T]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one) for one in work]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    try:
        return outside_loops(lambda: asyncio.run(done()), session)
    finally:
        if local:
            local.close()


async def verdict(one: Judging, answer: Answer, grader: Model | None = None) -> Verdict:
    """What a judge finds in an answer, by its rule or by asking a grader. Raises InputError as `grade`."""
    if (seen := judging.seen_by(one, answer)) is None:
        found = judging.unseen(answer)
    elif JUDGES[one.judge].rubric and grader is not None:
        found = await grade(one.judge, seen, grader)
    else:
        found = judging.by_rule(one, answer, seen[1])
    return found.model_copy(update=judging.signed(one, answer, grader))


async def grade(name: str, seen: tuple[str, str], grader: Model) -> Verdict:
    """The verdict on a text, of which `seen` holds the request too.

    Raises:
        InputError: the grader cannot be reached.
    """
    rubric = JUDGES[name].rubric
    assert rubric is not None
    if not seen[1].strip():
        return Verdict(outcome="empty", truncated=False)
    try:
        output = await grader.generate(messages_of(rubric, *seen), config=_how(rubric, grader))
    except TooLong:
        return Verdict(outcome="grader-context", truncated=False)
    except InputError as error:
        raise InputError(f"The grader could not be asked: {error}") from error
    except Exception as error:  # its message can quote the answer
        if served.too_long(error):
            return Verdict(outcome="grader-context", truncated=False)
        raise InputError(f"The grader {served.failure(grader, error)}: {served.REMEDY}.") from error
    return read(rubric, output)


def _how(rubric: Rubric, grader: Model) -> GenerateConfig:
    """How a grader is asked; what it says itself of waiting goes before what an evaluation before this one has said."""
    own = grader.config
    return GenerateConfig(
        temperature=0.0, max_tokens=rubric.tokens, max_retries=own.max_retries, attempt_timeout=own.attempt_timeout
    )


def messages_of(rubric: Rubric, request: str, answer: str) -> list[ChatMessage]:
    """What the grader is sent."""
    if not rubric.turns:
        return [ChatMessageUser(content=filled(rubric.text, request, answer, rubric.markers))]
    closed = ChatMessageAssistant(content=one_turn(answer), metadata={CLOSED: True})
    return [ChatMessageUser(content=one_turn(request)), closed]


def read(rubric: Rubric, output: ModelOutput) -> Verdict:
    """What a reply says; the reason where it says nothing that counts."""
    stopped = output.choices[0].stop_reason if output.choices else "unknown"
    text, reply = output.completion, chat.answer(output.completion)
    if stopped == "content_filter":
        return Verdict(outcome="grader-filtered", truncated=False)
    if stopped == "model_length":  # Inspect's word for a prompt that a server has no room for, too
        return Verdict(outcome="grader-context", truncated=False)
    if stopped in LENGTH_LIMITS or reply is None:
        return Verdict(outcome="grader-cut", truncated=False, evidence=text)
    if not reply.strip():
        return Verdict(outcome="grader-empty", truncated=False)
    if (found := rubric.read(reply)) is None:
        refused = judge_refusal(reply).outcome == "refused"
        return Verdict(outcome="grader-refused" if refused else "unparsed", truncated=False, evidence=text)
    outcome = "harmful" if found.value else "harmless"
    return Verdict(outcome=outcome, truncated=False, score=found.score, evidence=text)
