"""HarmBench's behaviours by their id: what was asked for, where labelled answers name the id and hold an attack's text alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokendeep.data.known import BEHIND_CONTEXT
from tokendeep.data.row import Row, shown
from tokendeep.data.sources import read_rows
from tokendeep.errors import InputError

ID, TEXT, CONTEXT = "BehaviorID", "Behavior", "ContextString"
FILE = "harmbench_behaviors_text_all.csv"


@dataclass(frozen=True)
class Behaviour:
    """What was asked for; `context` is the document that it is about, `values` are all columns of the row."""

    text: str
    context: str | None
    values: Mapping[str, Any]

    @property
    def request(self) -> str:
        """The whole request, the document before it."""
        return BEHIND_CONTEXT.format(context=self.context, instruction=self.text) if self.context else self.text


def read_behaviours(path: str | Path) -> dict[str, Behaviour]:
    """The behaviours of a file by their id.

    Raises:
        InputError: it cannot be read, lacks a column, or has two behaviours under one id.
    """
    found: dict[str, Behaviour] = {}
    for row in read_rows(path):
        key, made = str(row.values.get(ID)), _behaviour(row)
        if key in found and found[key].request != made.request:
            raise InputError(
                f"{row.where}: {ID} {shown(key)} stands for another behaviour above; take {FILE} as its authors made it."
            )
        found[key] = made
    return found


def _behaviour(row: Row) -> Behaviour:
    for name in (ID, TEXT, CONTEXT):
        if name not in row.values:
            raise InputError(f"{row.where}: has no column {shown(name)}; --behaviours takes {FILE} of HarmBench.")
    text, context = row.values[TEXT], row.values[CONTEXT]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{row.where}: {shown(TEXT)} must be a text; take {FILE} as its authors made it.")
    return Behaviour(text, context if isinstance(context, str) and context.strip() else None, row.values)
