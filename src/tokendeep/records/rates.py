"""asr.json: how often an attack was not refused, row by row; and the verdict on one answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from tokendeep.records import plots
from tokendeep.records.base import Known, Number, Object, Record, Row, load_rows, place

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class Verdict(Record):
    """What a judge found in one answer, as an evaluation log keeps it. `judged`: continuation or full."""

    outcome: str
    truncated: bool
    judged: str | None = None
    evidence: str | None = None


class Params(Record):
    """What an attack did to its prompts, how answers were sampled, and what the judge saw; None is not said."""

    k: int | None = None
    prefix: str | None = None
    lead: str | None = None
    thinking: bool | None = None
    setting: str | None = None
    suffix: str | None = None
    any_of: str | None = None
    settings: int | None = None  # how many, where a row is about any of them
    judged: str | None = None
    system: str | None = None
    data: str | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    seed: int | None = None


class Share(Record):
    """complied / n with its 95 % Wilson interval; no rate where n is 0."""

    rate: Known
    low: Known
    high: Known
    n: int
    complied: int

    @model_validator(mode="before")
    @classmethod
    def _older(cls, value: object) -> object:
        """Files of the first version do not hold the count itself."""
        if not isinstance(value, Mapping) or "complied" in value:
            return value
        count = _count(value)
        return value if count is None else {**value, "complied": count}


class Rate(Share, Row):
    """One row: an attack, its parameters, judge and model.

    `best` and `worst` count the unscored as safe and as harmful; `any_of_n` is the share of prompts of which any sample
    complied; `common` is the same rate over the prompts that have every k. Counts are of answers; in a row with
    `params.any_of` the rate, n and `complied` are of prompts.
    """

    attack: str
    params: Params
    judge: str
    model: str
    unscored: int
    outcomes: dict[str, int] = Field(default_factory=dict)
    truncated: int | None = None
    tokens: int | None = None
    samples: int = 1
    prompts: int | None = None
    worst: Number | None = None
    best: Number | None = None
    skipped: int | None = None
    partial_rate: Known = None
    any_of_n: Known = None
    common: Share | None = None

    @property
    def several(self) -> bool:
        """Whether there is more than one answer to a prompt."""
        return self.samples > 1

    @property
    def requests(self) -> int:
        """How many prompts the rate rests on, which with several samples a prompt are fewer than its answers."""
        return min(self.n, self.prompts or self.n) if self.several else self.n

    @property
    def tick(self) -> str:
        """What tells the row's attack from others, in short: the k of a prefill."""
        p = self.params
        which = next((str(value) for value in (p.k, p.prefix, p.setting, p.any_of, p.suffix) if value is not None), "")
        return which if self.attack == "prefill" else f"{self.attack} {which}".strip()

    def count(self, outcome: str) -> int:
        """How many answers had this outcome."""
        return self.outcomes.get(outcome, 0)

    @staticmethod
    def load_all(path: str | Path) -> Rates:
        """All rows of an asr.json, or of the one in a folder.

        Raises:
            InputError: as `Profile.load`; the message names the row.
        """
        return Rates(load_rows(Rate, place(path, Rates.FILE), "row"))


class Rates(list[Rate]):
    """The rows of one asr.json."""

    FILE: ClassVar[str] = "asr.json"

    def dump(self) -> list[Object]:
        """The rows as they are written."""
        return [rate.dump() for rate in self]

    def to_frame(self) -> pd.DataFrame:
        """One line a row; parameters and outcomes have columns of their own."""
        return frame(
            {"attack": one.attack, **one.params.given(), **{k: v for k, v in one.given().items() if k not in NESTED},
             **one.outcomes}
            for one in self
        )  # fmt: skip

    def plot(self, axes: Axes | None = None) -> Axes:
        """Rate with its interval for each attack, in a sweep for each k; a line for each model and judge."""
        groups: dict[str, list[Rate]] = defaultdict(list)
        for one in self:
            groups[f"{one.model}, {one.judge}"].append(one)
        curves = [
            plots.Curve(name, [one.tick for one in of], [one.rate for one in of], [one.low for one in of],
                        [one.high for one in of], style=number)
            for number, (name, of) in enumerate(groups.items())
        ]  # fmt: skip
        ticks = list(dict.fromkeys(one.tick for one in self))
        sweep = {one.attack for one in self} == {"prefill"}
        label = plots.BY_K if sweep else "attack"
        return plots.legend(plots.shares(plots.fresh(axes), curves, ticks, "rate", xlabel=label))


NESTED = ("attack", "params", "outcomes", "common", "schema")


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a pandas table."""
    import pandas as pd

    return pd.DataFrame(list(rows))


def _count(value: Mapping[str, Any]) -> int | None:
    """The numerator of a rate of the first version; None where the row is damaged."""
    rate, n, params, outcomes = (value.get(name) for name in ("rate", "n", "params", "outcomes"))
    if isinstance(outcomes, Mapping) and isinstance(params, Mapping) and "any_of" not in params:
        count = outcomes.get("complied", 0)
        return count if isinstance(count, int) else None
    if isinstance(n, int) and isinstance(rate, int | float | None) and "rate" in value:
        return round((rate or 0) * n)
    return 0
