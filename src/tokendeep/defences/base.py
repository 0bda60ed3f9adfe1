"""What a defence at inference time is: its options, and what it makes of whoever answers.

Knows none of the defences by name, nor which engine answers. Importing this loads no torch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tokendeep.engines.base import Completion, Request
from tokendeep.models.options import own

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Options = TypeVar("Options")
Ask = Callable[
    [Request], Awaitable[Completion]
]  # token ids to what is written behind them: an engine, or a defended one


@dataclass(frozen=True)
class Defence(Generic[Options]):
    """A defence at inference time.

    Args:
        name: as the command line, Inspect and results call it.
        does: what it does, as the end of a sentence that begins with its name.
        options: a frozen dataclass; its fields are options of the command line and arguments of the Inspect model.
        wrap: an engine -> the same, defended. It is given as many requests at once as the engine is.
        describe: what results call it, from its options: two that are called alike are the same defence.
        check: raises InputError for options that cannot be used, before anything is loaded.
    """

    name: str
    does: str
    options: type[Options]
    wrap: Callable[[Ask, PreTrainedTokenizerBase, Options], Ask]
    describe: Callable[[Options], str]
    check: Callable[[Options], None] = lambda options: None

    def of(self, given: Any) -> Options:
        """Its own options out of an object that has them all."""
        return own(self.options, given)
