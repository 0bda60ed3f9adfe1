"""What a run of ours tells the registered tasks, which Inspect may also run by itself.

A context variable, because a task's arguments are written to its log and must stay plain values.
"""

import asyncio
import contextvars
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
from inspect_ai.model import Model, ModelOutput, get_model

from tokendeep.attacks.base import Prepared
from tokendeep.errors import InputError

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class Once:
    """One answer for several samples that ask the same."""

    ready: anyio.Event = field(default_factory=anyio.Event)
    output: ModelOutput | None = None  # none where it failed


@dataclass
class Session:
    """One run of ours.

    Args:
        model: the model under attack.
        prepared: attack -> its prompts, where the run has made them already.
        digest: the hash of the rows that they are made of.
        on_judged: called after each judged answer.
        grader: the model that grades, where a judge asks one.
        grader_name: what earlier attempts of the run have called it.
        judges: attack -> verdicts on each of its answers.
        verdicts: attack -> how many there are.
        on_failure: called with the first thing that goes wrong.
        failures: all that went wrong.
        grader_failure: what the grader failed with; it is asked no more, and answers are kept without a grade.
        interrupted: the user stopped the run: answers that still come are dropped.
        answers: what was asked already, with its answer.
    """

    model: Model
    prepared: Mapping[str, Prepared] = field(default_factory=dict)
    digest: str = ""
    on_judged: Callable[[], None] = lambda: None
    grader: Model | None = None
    grader_name: str | None = None
    judges: Mapping[str, int] = field(default_factory=dict)
    verdicts: Counter[str] = field(default_factory=Counter)
    on_failure: Callable[[Exception], None] = lambda error: None
    failures: list[Exception] = field(default_factory=list)
    grader_failure: InputError | None = None
    interrupted: bool = False
    answers: dict[str, Once] = field(default_factory=dict)

    def fail(self, error: Exception) -> None:
        """Keep the error; the first one also stops what still waits, for it would only fail as well."""
        self.failures.append(error)
        if len(self.failures) == 1:
            self.on_failure(error)

    def lose_grader(self, error: InputError) -> None:
        """Keep the first error of the grader, and say it at once."""
        if self.grader_failure is None:
            self.grader_failure = error
            log.warning("%s Answers that come meanwhile are kept without a grade.", error)

    def judged(self, attack: str) -> None:
        """Count a verdict; an answer is judged when it has them all."""
        self.verdicts[attack] += 1
        if self.verdicts[attack] % self.judges.get(attack, 1) == 0:
            self.on_judged()

    def interrupt(self) -> None:
        """End the run from another thread: what waits for an answer gets none."""
        self.interrupted = True
        self.on_failure(InputError("The run was interrupted."))


_current: ContextVar[Session | None] = ContextVar("session", default=None)


def current() -> Session | None:
    """The run of ours that is going on, None under `inspect eval`."""
    return _current.get()


def current_model() -> Model:
    """The model under attack: that of a run of ours, else the one Inspect evaluates."""
    session = current()
    return session.model if session else get_model()


@contextmanager
def use(session: Session) -> Iterator[Session]:
    """Make `session` the current one."""
    token = _current.set(session)
    try:
        yield session
    finally:
        _current.reset(token)


def outside_loops(work: Callable[[], T], session: Session) -> T:
    """Do the work; in a thread of its own where an event loop is running here, as in a notebook."""
    if not _in_loop():
        return work()
    result: Future[T] = Future()

    def done() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(done,), daemon=True)
    thread.start()
    try:
        return result.result()
    except KeyboardInterrupt:  # what waits for an answer gets none, nothing more is asked; what is on disk stays
        session.interrupt()
        thread.join()
        raise


def _in_loop() -> bool:
    """Whether an event loop is running here. The work must not be done where that is found out: Inspect reports the error
    that another one arose from, which would be the one that says that there is no loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
