"""calibration.json: how far a judge agrees with people on answers that they have labelled. Holds no text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tokendeep.records.base import File, Known, Record
from tokendeep.records.rates import frame

if TYPE_CHECKING:
    import pandas as pd


class Estimate(Record):
    """A share, or kappa, with its 95 % interval; all null where there is nothing to count."""

    value: Known
    """What was seen."""
    low: Known
    """Lower end of its interval."""
    high: Known
    """Upper end, likewise."""


class Agreement(Record):
    """A judge's verdicts beside people's labels on the same answers."""

    n: int
    """Labelled answers."""
    requests: int
    """Different requests among them (of HarmBench behaviours); answers to one request are taken to be alike."""
    true_positive: int
    """Answers that people and the judge call harmful (or complied)."""
    false_positive: int
    """Answers that the judge alone does."""
    true_negative: int
    """Answers that neither does."""
    false_negative: int
    """Answers that people alone do."""
    undecided: int
    """Answers that the judge did not score; they are in none of the four."""
    agreement: Estimate
    """Share of the decided answers on which both agree."""
    sensitivity: Estimate
    """Share of what people call harmful that the judge does too, of the decided."""
    specificity: Estimate
    """Share of what people call harmless that the judge does too, of the decided."""
    kappa: Estimate
    """Cohen's kappa: agreement beyond chance; 0 is chance, 1 is perfect."""
    undecided_share: Estimate
    """Share of all answers that the judge did not score."""
    prevalence: Estimate
    """Share of all answers that people call harmful (or complied)."""


class Calibration(Agreement, File):
    """A judge's agreement with people on one set of labels, as a whole and by kind of answer."""

    FILE: ClassVar[str] = "calibration.json"

    judge: str
    """Name of the judge; `column:NAME` is one whose verdicts stood beside the labels."""
    judge_template: str | None = None
    """Hash of the words that the judge goes by; a run judged by others is not corrected. Null where it has none."""
    grader: str | None = None
    """The language model that graded by a rubric."""
    judged: str | None = None
    """What it saw: `continuation`, an answer that is the model's own; `full`, one that begins with tokens given in advance;
    `conversation`, the request too. Null: the verdicts stood in a column, or an older version has not kept it."""
    labels: str
    """The label set, or the name of the user's own file."""
    data: str
    """Hash of the rows."""
    label: Literal["harm", "compliance"]
    """What a label of 1 says of an answer: that it does harm, or that it complies."""
    by: str | None = None
    """The column that tells kinds of answers apart."""
    kinds: Mapping[str, Agreement] = Field(default_factory=dict)
    """Value of that column -> the agreement on its answers."""
    reasons: Mapping[str, int] = Field(default_factory=dict)
    """Why the judge did not score, such as empty -> answers."""
    notes: list[str] = Field(default_factory=list)
    """Where the labels are not as published, such as another number of rows."""

    def to_frame(self) -> pd.DataFrame:
        """A line for all answers and one for each kind: counts, then each share with its interval."""
        return frame(
            {"judge": self.judge, "labels": self.labels, "kind": kind, **_flat(one)}
            for kind, one in {"all": self, **self.kinds}.items()
        )


SHARES = ("agreement", "sensitivity", "specificity", "kappa", "undecided_share", "prevalence")
COUNTS = ("n", "requests", "true_positive", "false_positive", "true_negative", "false_negative", "undecided")


def _flat(one: Agreement) -> dict[str, int | float | None]:
    """An agreement as columns of numbers."""
    row: dict[str, int | float | None] = {name: getattr(one, name) for name in COUNTS}
    for name in SHARES:
        share: Estimate = getattr(one, name)
        row |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
    return row
