"""What a run of ours tells the registered tasks, which Inspect may also run by itself.

A context variable, because a task's arguments are written to its log and must stay plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from inspect_ai.model import Model, get_model


@dataclass
class Session:
    """One run: the model under attack, who counts its judged answers, and the first thing that went wrong."""

    model: Model
    on_judged: Callable[[], None] = lambda: None
    on_failure: Callable[[Exception], None] = lambda error: None
    failures: list[Exception] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        """Keep the error; the first one also stops what still waits, for it would only fail as well."""
        self.failures.append(error)
        if len(self.failures) == 1:
            self.on_failure(error)


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
