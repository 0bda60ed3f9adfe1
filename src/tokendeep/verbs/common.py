"""What every verb shares: the headings of its help, lists as they are typed, and what a plan is.

A verb is one module, named as the verb (the pattern is `measure.py`), with three things:

    @dataclass(frozen=True, kw_only=True)
    class NameOptions(ModelOptions):            # ModelOptions only where the verb loads a model
        '''What the verb does, in one line: the first line of its --help.'''

        data: Annotated[str, what(help="One plain sentence: what it is, its unit, when to change it.")]
        k: Annotated[Ints, what(help="...")] = field(default_factory=lambda: [0, 5])

    def plan(options: NameOptions) -> NamePlan   # reads and checks everything once; loads no weights, writes nothing
    def run(plan: NamePlan, ...) -> Path         # does the work and returns the folder

- A field without a default is required: help marks it, the command line asks for it. Nothing is repeated elsewhere.
- Each field stands under one heading: `what` (made by `heading("What to ...")`), `loading` (the model), `output`, and
  `advanced` for what few people need. Common ones first: help keeps the order of the fields.
- A list has one of the types below, so that `--k 0,5`, `--k 0 5` and `--k "[0, 5]"` are the same; a choice is a `Literal`.
- A plan is a frozen dataclass that holds the options, what was read, and `lines()`, which `--dry-run` prints.
- Nothing heavy (torch, transformers, Inspect, trl, datasets, matplotlib) is imported at the top of a verb.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

from cyclopts import Group, Parameter, Token

from tokendeep.models.options import advanced, loading

__all__ = ["Floats", "Ints", "Names", "Plan", "Texts", "advanced", "folder_line", "heading", "loading", "output"]


class Plan(Protocol):
    """What a verb is about to do, with everything read and checked."""

    def lines(self) -> list[str]:
        """What would run, on how many rows, with which models, and what is there already: for `--dry-run`."""


def heading(title: str) -> partial[Parameter]:
    """The first heading of a verb's help, such as "What to measure"."""
    return partial(Parameter, group=Group(title, sort_key=1))


output = partial(Parameter, group=Group("Output", sort_key=3))


def folder_line(out: str) -> str:
    """What lies in the output folder already, as a line of a plan."""
    manifest = Path(out) / "manifest.json"
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        status = f"holds a {found['verb']} run, {found['status']}"
    except FileNotFoundError:
        status = "new"
    except (OSError, ValueError, KeyError, TypeError):
        status = "holds a manifest that cannot be read"
    return f"out: {out} ({status})"


# --- lists, as they are typed on the command line ------------------------------------------------


def _words(tokens: Sequence[Token], commas: bool) -> list[str]:
    """The words of a list: `0,5`, `0 5` and `[0, 5]`; without `commas` a comma is part of a text."""
    text = " ".join(token.value for token in tokens).strip()
    if text.startswith("["):
        return [value if isinstance(value, str) else json.dumps(value) for value in json.loads(text)]
    values = [token.value for token in tokens]
    return [part.strip() for value in values for part in value.split(",") if part.strip()] if commas else values


def _converter(convert: Callable[[str], object], meaning: str, commas: bool = True) -> Callable[..., Any]:
    def converted(_type: object, tokens: Sequence[Token]) -> list[object]:
        try:
            values = [convert(word) for word in _words(tokens, commas)]
        except ValueError:
            values = []
        if not values and tokens[0].value != "[]":
            raise ValueError(f"must be {meaning}")
        return values

    return converted


Ints = Annotated[list[int], Parameter(converter=_converter(int, "whole numbers, such as 0,5,10"))]
Floats = Annotated[list[float], Parameter(converter=_converter(float, "numbers, such as 0.5,2,2"))]
Names = Annotated[list[str], Parameter(converter=_converter(str, "names, such as one,two"))]
Texts = Annotated[list[str], Parameter(converter=_converter(str, "texts, each in quotes", commas=False))]
