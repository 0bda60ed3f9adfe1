"""outcomes.jsonl: what became of each answer, by the hash of its request and without any text, so that it can be shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tokendeep.errors import InputError
from tokendeep.records.base import AGAIN, Number, Row, place
from tokendeep.records.rates import Params, frame

if TYPE_CHECKING:
    import pandas as pd


class Outcome(Row):
    """One answer under one judge. Who has the same data can join its rows by `prompt`."""

    prompt: str
    """SHA-256 of the request without spaces at its ends: of the last turn of the user, as the data holds it."""
    id: str
    """Its id in the data, or a part of the hash of its row."""
    category: str | None = None
    """Its category, where the data has any."""
    attack: str
    """Name of the attack."""
    params: Params
    """Its parameters, as in asr.json."""
    seed: int
    """Seed of the sample."""
    model: str
    """Name of the model."""
    judge: str
    """Name of the judge."""
    outcome: str
    """What became of the answer, as in asr.json."""
    value: int | None = None
    """1: counts in the rate; 0: does not; null: not scored."""
    score: Number | None = None
    """On the judge's own scale; null where it has none."""
    truncated: bool
    """Whether the answer reached its length limit."""


class Outcomes(list[Outcome]):
    """The rows of one outcomes.jsonl."""

    FILE: ClassVar[str] = "outcomes.jsonl"

    @classmethod
    def load(cls, path: str | Path) -> Outcomes:
        """Read the file, or the one in a folder.

        Raises:
            InputError: it is missing, damaged or written by a newer version; the message names the line.
        """
        path = place(path, cls.FILE)
        try:
            lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other ends of lines
            values = [json.loads(line) for line in lines if line]
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as JSON lines ({error}); {AGAIN}") from error
        return cls(Outcome.parse(value, f"{path}, line {number}") for number, value in enumerate(values, 1))

    def to_frame(self) -> pd.DataFrame:
        """A line for each answer and judge; parameters have columns of their own."""
        return frame(
            {**{k: v for k, v in one.given().items() if k not in ("params", "schema")}, **one.params.given()}
            for one in self
        )
