"""What an attack is: its options, what it makes of the rows, and what results call it.

Knows none of the attacks by name. Everything that runs, records or shows attacks goes by what an `Attack` says of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from cyclopts import Group, Parameter

from tokendeep.models.options import ModelOptions
from tokendeep.types import Decoding, Pair, Prompt, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

option = partial(Parameter, group=Group("Attacks", sort_key=1.1))  # the heading in the help for options of attacks
Options = TypeVar("Options")
ANY_OF = ("any_of", "settings")  # parameters of the row that takes several settings together
Params = Mapping[str, Any]  # an attack's parameters, as results hold them


@dataclass(frozen=True)
class Rows:
    """What is attacked: requests, and with their harmful answers where the data has them."""

    prompts: Sequence[Prompt]
    pairs: Sequence[Pair] = ()


@dataclass(frozen=True)
class Victim:
    """The model under attack, as far as an attack may ask for it; nothing is loaded before it is asked for.

    Args:
        tokenizer: the one that counts its tokens.
        route: how it takes tokens given in advance, as ids or as text. Raises InputError where they would be lost.
        subject: the model with its weights. Raises InputError for a model that runs elsewhere.
        decoding: how its answers are sampled.
        options: how it is loaded; a further model is loaded alike.
        folder: where long work can be kept, so that a run that was cut off goes on; None keeps nothing.
    """

    tokenizer: Callable[[], PreTrainedTokenizerBase]
    route: Callable[[], Literal["ids", "text"]]
    subject: Callable[[], Subject]
    decoding: Decoding = field(default_factory=Decoding)
    options: ModelOptions = field(default_factory=ModelOptions)
    folder: Callable[[], Path] | None = None


@dataclass(frozen=True)
class Prepared:
    """The attacked prompts; for each k how many answers were too short for it; what finding the prompts has cost."""

    prompts: Sequence[Prompt]
    skipped: Mapping[int, int] = field(default_factory=dict)
    cost: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Attack(Generic[Options]):
    """An attack at inference time.

    Args:
        name: as the command line, Inspect and results call it.
        does: what it does, as the end of a sentence that begins with its name.
        options: a frozen dataclass; its fields are options of the command line and arguments of the Inspect task.
        prepare: rows -> attacked prompts.
        describe: what a report calls it, from its parameters and, where known, the run's options and costs.
        check: raises InputError for options that cannot be used, before anything is read.
        needs: whether its rows must have answers.
        tells: parameters that tell one variant of it from another; the first is swept, and gets a rate a value.
        sets: sampling settings that it chooses itself, one of them at a time.
        prefills: it puts tokens into the answer, which not every server takes.
        refuses: what it puts there is part of a refusal, so that each judge knows by itself what it must see.
        together: its rows are settings of one attack, of which one may do; reports show them in a section of their own.
        weights: it reads the victim's own logits, so it is prepared when the weights are there.
        models: options that name further models.
        files: name -> file, of options whose content tells a run from another.
        recorded: options as manifests show them, where their text is the user's own.
        effort: what finding its prompts takes at most, in words.
    """

    name: str
    does: str
    options: type[Options]
    prepare: Callable[[Rows, Options, Victim], Prepared]
    describe: Callable[[Params], str]
    check: Callable[[Options], None] = lambda options: None
    needs: Literal["prompts", "pairs"] = "prompts"
    tells: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    prefills: bool = False
    refuses: bool = False
    together: bool = False
    weights: bool = False
    models: tuple[str, ...] = ()
    files: Callable[[Options], Mapping[str, Path]] = lambda options: {}
    recorded: Callable[[Options], Mapping[str, Any]] = lambda options: {}
    effort: Callable[[Rows, Options], str] = lambda rows, options: ""

    @property
    def by_row(self) -> tuple[str, ...]:
        """Parameters in which the rows of one run differ, where these are settings of one attack."""
        return (*self.tells, *self.sets, *ANY_OF) if self.together else ()

    @property
    def group(self) -> str | None:
        """The parameter that is swept."""
        return self.tells[0] if self.tells else None

    def variant(self, params: Params) -> str:
        """The value of the swept parameter, short enough for a column; empty where there is none."""
        value = params.get(self.group or "")
        return "" if value is None else f"{self.group}={value}" if isinstance(value, int) else str(value)
