"""Errors of ours on Inspect's own command line: one sentence there, too."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from inspect_ai._util.error import PrerequisiteError
from rich.markup import escape

from tokendeep.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")


class EvalInputError(InputError, PrerequisiteError):
    """An InputError that Inspect's own command line prints as one sentence, too."""

    def __init__(self, message: str) -> None:
        InputError.__init__(self, message)
        self.message = escape(message)


def one_sentence(function: Callable[P, T]) -> Callable[P, T]:
    """Let the InputErrors of `function` reach users of `inspect eval` without a traceback."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except InputError as error:
            raise EvalInputError(str(error)) from error

    return wrapper
