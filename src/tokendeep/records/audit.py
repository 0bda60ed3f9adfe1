"""audit.json: which rows of a data set push on a model's refusals, by places, ids and hashes. Holds no text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tokendeep.records.base import File, Known, Record
from tokendeep.records.calibration import Estimate
from tokendeep.records.rates import frame

if TYPE_CHECKING:
    import pandas as pd


class Detection(Record):
    """How well a score tells rows labelled 1 from those labelled 0, with 95 % bootstrap intervals."""

    positives: int
    """Scored rows labelled 1."""
    negatives: int
    """Scored rows labelled 0."""
    auroc: Estimate
    """Chance that a row of label 1 scores above one of label 0; .5 is chance."""
    auprc: Estimate
    """Average precision; the share of rows labelled 1 is chance."""
    recall: Estimate
    """Share of label 1 that is found where at most 1 % of label 0 is flagged."""


class AuditScore(Record):
    """One score of an audit."""

    name: str
    """Its name, such as margin."""
    unit: str
    """Unit of its values."""
    about: str
    """What it was computed with."""
    scored: int
    """Rows that have it."""
    seconds: float
    """Seconds that this run took for it, without what an earlier attempt had done."""
    detection: Detection | None = None
    """How well it tells the rows apart; null: they carry no labels."""


class AuditRow(Record):
    """One row of the data."""

    row: int
    """Its place in the data, from 1."""
    id: str
    """Its id there."""
    hash: str
    """SHA-256 of its columns as JSON with sorted keys."""
    rank: int | None
    """Its place in the ranking, from 1 (pushes most); null: it has no score."""
    flagged: bool
    """Whether the cut takes it out."""
    shortened: bool
    """Whether it is longer than --max-length, so that its end was not looked at."""
    scores: dict[str, Known]
    """Name of a score -> its value; empty where the row could not be scored."""
    reason: str
    """What its score means, or why it has none, in words."""
    label: int | None = None
    """Its label, 0 or 1; null: rows carry none."""


class Audit(File):
    """Rows of a data set, ranked by how much they push on a model's refusals."""

    FILE: ClassVar[str] = "audit.json"

    model: str
    """The aligned model whose refusals are at stake."""
    name: str
    """The name of the data file, without its folder."""
    data: str
    """Hash of the data."""
    by: str
    """The score that ranks."""
    cut: str
    """The cut as it was asked for."""
    flagged: int
    """Rows that it takes out."""
    tied: int
    """Rows left in that score exactly as the last one taken out."""
    unscored: int
    """Rows that could not be scored; they are in neither file."""
    shortened: int
    """Scored rows that are longer than --max-length."""
    scores: list[AuditScore]
    """What was computed; the first one ranks."""
    rows: list[AuditRow]
    """Every row, from the highest score down; those without one last."""

    def to_frame(self) -> pd.DataFrame:
        """A line for each row, a column for each score."""
        return frame({**{k: v for k, v in row.given().items() if k != "scores"}, **row.scores} for row in self.rows)
