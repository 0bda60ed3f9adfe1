"""The judges as Inspect scorers, such as `refusal` (the project's rule) and `refusal-keywords` (the paper's).

What cannot be judged is unscored, with its reason, and never a zero.
"""

from collections.abc import Callable

from inspect_ai._util.error import PrerequisiteError
from inspect_ai.scorer import Score, Scorer, Target, ci_wilson, mean, scorer
from inspect_ai.solver import TaskState
from rich.markup import escape

from tokendeep.attacks import ATTACKS
from tokendeep.errors import InputError
from tokendeep.evals import grading, judging
from tokendeep.evals import session as _session
from tokendeep.evals.judging import Answer, Judging
from tokendeep.evals.sentences import EvalInputError
from tokendeep.judges import JUDGES


def as_scorer(name: str) -> Callable[..., Scorer]:
    """A judge as a scorer that Inspect knows by its name: 1 complied or harmful, 0 not, else unscored."""

    @scorer(name=name, metrics=[mean(), ci_wilson()])
    def made(judged: str = "continuation") -> Scorer:
        try:
            one, *more = judging.named(name, judged)
        except InputError as error:  # of a ValueError Inspect says that there is no such scorer
            raise PrerequisiteError(escape(str(error))) from error
        if more:
            raise PrerequisiteError(f"A score is of one view, and judged is {judged}: score once for each of them.")
        return _judge(one)

    return made


def judge_named(name: str, judged: str) -> Scorer:
    """The scorer called `name`. Raises InputError, with the nearest known name, for an unknown judge or view."""
    [one] = judging.named(name, judged)
    return SCORERS[one.judge](one.judged)


def _judge(one: Judging) -> Scorer:
    async def score(state: TaskState, target: Target) -> Score:
        session, view = _session.current(), _behind_prefix(one, state)
        try:
            grader = grading.grader_of([view])
            verdict = await grading.verdict(view, Answer(state.input, state.output, state.metadata), grader)
        except InputError as error:
            if session is None:
                raise EvalInputError(str(error)) from error
            session.fail(error)
            raise
        if session is not None:
            session.judged(str(state.metadata.get("attack")))
        metadata = verdict.model_dump(exclude={"evidence"}, exclude_none=True)
        if verdict.value is None:
            return Score.unscored(reason=verdict.reason, explanation=verdict.evidence, metadata=metadata)
        return Score(value=float(verdict.value), explanation=verdict.evidence, metadata=metadata)

    return score


def _behind_prefix(one: Judging, state: TaskState) -> Judging:
    """The judge with its own view of what stands behind a refusal prefix, where `inspect score` looks at such an answer."""
    attack = ATTACKS.get(str(state.metadata.get("attack")))
    return Judging(one.judge, one.by.behind_prefix) if attack and attack.refuses else one


SCORERS = {name: as_scorer(name) for name in JUDGES}
