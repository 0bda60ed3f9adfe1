"""The judges that ask a language model: what is sent to the grader, and what its reply is worth.

A reply that is empty, cut, filtered, a refusal to grade or without a grade leaves the answer unscored, with that reason; so
does a request that the grader's server rejects. Any other failure of a server is the grader's own, which may be mended.
The grader answers greedily. Knows nothing of logs.
"""

import asyncio
from collections.abc import Collection, Coroutine, Iterable
from dataclasses import dataclass
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
from tokendeep.evals import inputs, judging, served
from tokendeep.evals.classifier import CLIPPED, ClassifierAPI
from tokendeep.evals.judging import LENGTH_LIMITS, Answer, Judging
from tokendeep.evals.options import of_grader
from tokendeep.evals.provider import CHOICES, CLOSED, EXACT, TokendeepAPI
from tokendeep.evals.session import Session, current, outside_loops
from tokendeep.judges import Judge, Verdict, judge_refusal
from tokendeep.judges.base import FAILED, REJECTED, Grade, Rubric, Seen
from tokendeep.judges.grades import filled, one_turn

ROLE = "grader"  # of the model, in Inspect
T = TypeVar("T")


def asking(every: Collection[Judging]) -> list[str]:
    """Those of these judges that ask a language model."""
    return list(dict.fromkeys(one.judge for one in every if one.by.rubric))


def by_turns(every: Collection[Judging]) -> list[str]:
    """Those of these judges that put the answer as a turn."""
    return list(dict.fromkeys(one.judge for one in every if (rubric := one.by.rubric) and rubric.turns))


def grader_of(every: Collection[Judging]) -> Model | None:
    """The model that grades in this evaluation; None where no judge asks one. Raises InputError where it is not named."""
    if not (names := asking(every)):
        return None
    judging.check_equipped(every)
    session = current()
    try:
        model = session.grader if session else get_model(role=ROLE, required=True)
    except Exception:  # Inspect says it in an error of its own
        model = None
    if model is None:
        how = "--grader MODEL" if session else "--model-role grader=PROVIDER/NAME"
        raise InputError(f"The judge {names[0]} asks a language model to grade; name one with {how}.")
    if any(one.by.rubric and one.by.rubric.labels for one in every) and not isinstance(model.api, ClassifierAPI):
        raise InputError(f"The judge {names[0]} asks a sequence classifier: judge the log with tokendeep judge.")
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
    """What a judge finds in an answer, by its rule or by asking a grader. Under plain Inspect raises InputError as `grade`."""
    if (seen := judging.seen_by(one, answer)) is None:
        found = judging.unseen(one, answer)
    elif one.by.rubric and grader is not None:
        found = await _grade_or_keep(one.by, seen, grader)
    else:
        found = judging.by_rule(one, answer, seen.answer)
    return found.model_copy(update=judging.signed(one, answer, grader))


async def _grade_or_keep(judge: Judge, seen: Seen, grader: Model) -> Verdict:
    """As `grade`; in a run of ours an answer for which the grader fails is kept without a grade, and no other is sent."""
    if (run := current()) is None:
        return await grade(judge, seen, grader)
    if run.grader_failure is None:
        try:
            return await grade(judge, seen, grader)
        except InputError as error:
            run.lose_grader(error)
    return Verdict(outcome=FAILED, truncated=False)


async def grade(judge: Judge, seen: Seen, grader: Model) -> Verdict:
    """The verdict on a text, of which `seen` holds the request too.

    Raises:
        InputError: the grader cannot be reached, or fails for whatever it is asked.
    """
    rubric = judge.rubric
    assert rubric is not None
    if not seen.answer.strip():
        return Verdict(outcome="empty", truncated=False)
    try:
        asked = messages_of(rubric, seen, grader)
        output = await grader.generate(asked.messages, config=_how(rubric, grader))
    except TooLong:
        return Verdict(outcome="grader-context", truncated=False)
    except Exception as error:  # its message can quote the answer
        if served.too_long(error):
            return Verdict(outcome="grader-context", truncated=False)
        if (status := served.status_of(error)) in served.REJECTIONS:
            return Verdict(outcome=REJECTED, truncated=False, evidence=f"status {status}")
        if isinstance(error, InputError):
            raise InputError(f"The grader could not be asked: {of_grader(str(error))}") from error
        raise InputError(f"The grader {served.failure(grader, error)}: {served.REMEDY}.") from error
    clipped = (output.metadata or {}).get(CLIPPED, asked.clipped)
    found = read(judge, output).model_copy(update={"clipped": clipped})
    chances = (output.metadata or {}).get(CHOICES, ())
    soft = sum(chances[: asked.first]) if rubric.soft and chances and found.value is not None else found.score
    return found.model_copy(update={"score": soft})


def _how(rubric: Rubric, grader: Model) -> GenerateConfig:
    """How a grader is asked; what it says itself of waiting goes before what an evaluation before this one has said."""
    own = grader.config
    return GenerateConfig(
        temperature=0.0, max_tokens=rubric.tokens, max_retries=own.max_retries, attempt_timeout=own.attempt_timeout
    )


@dataclass(frozen=True)
class Asked:
    """What a grader is sent.

    Args:
        clipped: whether a part of the answer was cut off; None for a judge that cuts none.
        first: of the tokens whose chances are asked for, how many are the first of the judge's choices.
    """

    messages: list[ChatMessage]
    clipped: bool | None = None
    first: int = 0


def messages_of(rubric: Rubric, seen: Seen, grader: Model) -> Asked:
    """The request to the grader."""
    if rubric.labels:
        return Asked([ChatMessageUser(content=seen.answer)])
    if rubric.wording:
        assert isinstance(grader.api, TokendeepAPI)
        exact = inputs.exact(rubric, seen, grader.api.tokenizer)
        choices = exact.choices if rubric.weigh or grader.api.picks else []
        given = {EXACT: exact.ids, CHOICES: choices}
        return Asked([ChatMessageUser(content="(token ids)", metadata=given)], exact.clipped, exact.first)
    if not rubric.turns:
        text = filled(rubric.text, seen.request, seen.answer, rubric.markers)
        return Asked([ChatMessageUser(content=text)])
    closed = ChatMessageAssistant(content=one_turn(seen.answer), metadata={CLOSED: True})
    return Asked([ChatMessageUser(content=one_turn(seen.request)), closed])


def read(judge: Judge, output: ModelOutput) -> Verdict:
    """What a reply says; the reason where it says nothing that counts."""
    rubric = judge.rubric
    assert rubric is not None
    if rubric.weigh:
        return _found(judge, rubric.weigh((output.metadata or {})[CHOICES]), None)
    stopped = output.choices[0].stop_reason if output.choices else "unknown"
    text, reply = output.completion, chat.answer(output.completion)
    if stopped == "content_filter":
        return Verdict(outcome="grader-filtered", truncated=False)
    if stopped == "model_length":  # Inspect's word for a prompt that a server has no room for, too
        return Verdict(outcome="grader-context", truncated=False)
    if (stopped in LENGTH_LIMITS and rubric.tokens > 1) or reply is None:
        return Verdict(outcome="grader-cut", truncated=False, evidence=text)
    if not reply.strip():
        return Verdict(outcome="grader-empty", truncated=False)
    if (found := rubric.read(reply)) is None:
        refused = judge_refusal(reply).outcome == "refused"
        return Verdict(outcome="grader-refused" if refused else "unparsed", truncated=False, evidence=text)
    return _found(judge, found, text)


def _found(judge: Judge, grade: Grade, text: str | None) -> Verdict:
    """The verdict that a grade stands for."""
    outcomes = ("harmless", "harmful") if judge.harm else ("refused", "complied")
    return Verdict(outcome=outcomes[grade.value], truncated=False, score=grade.score, evidence=text)
