"""How rows are read: the option that every verb with data shares, with its help.

Its annotations are no strings (no `from __future__ import annotations`): they are read from the modules of the verbs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from cyclopts import Group, Parameter, Token

ROLES = ("harmful", "twins", "unseen")  # what asking for rows is


def _pairs(_type: object, tokens: Sequence[Token]) -> list[str]:
    """`a=b,c=d` and `a=b c=d`."""
    return [part.strip() for token in tokens for part in token.value.split(",") if part.strip()]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How the columns of rows are called."""

    columns: Annotated[
        list[str],
        Parameter(
            help="What the columns of --data are, such as instruction=Goal,response=Target; others that are not ours are "
            "left out. Holds for the other rows of a verb (eval-data, benign, utility) too, where they have all these columns.",
            converter=_pairs,
            group=Group("Rows", sort_key=1.05),
        ),
    ] = field(default_factory=list)
