"""What trainings leave: training.json, dynamics.json, and the table.json of a fine-tuning attack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tokendeep.records import plots
from tokendeep.records.base import File, Known, Object, Record, Row, load_rows, place
from tokendeep.records.manifest import Margin
from tokendeep.records.rates import frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class LogEntry(Record):
    """A line of a training's log: of a step, or of an evaluation (`eval_nll`). What else was logged is kept."""

    step: int | None = None
    loss: Known = None
    nll: Known = None
    nll_later: Known = None  # from the sixth answer token on
    eval_nll: Known = None
    log_ratio_1: Known = None  # nats that the first answer token gained over the reference
    weight_1: Known = None  # share of plain fine-tuning's gradient that is let through
    log_ratio_2_5: Known = None
    weight_2_5: Known = None


class Training(File):
    """The log of a training."""

    FILE: ClassVar[str] = "training.json"

    history: list[LogEntry]
    steps: int

    def to_frame(self) -> pd.DataFrame:
        """A line for each entry of the log."""
        return frame(entry.given() for entry in self.history)

    def plot(self, axes: Axes | None = None) -> Axes:
        """The negative log-likelihood of the supervised tokens by step, or the loss where that was not logged."""
        axes = plots.fresh(axes)
        steps = [entry for entry in self.history if entry.step is not None and entry.eval_nll is None]
        values = [(entry.step or 0, entry.loss if entry.nll is None else entry.nll) for entry in steps]
        points = [(step, value) for step, value in values if value is not None]
        axes.plot([step for step, _ in points], [value for _, value in points])
        axes.set(xlabel="optimizer step", ylabel="negative log-likelihood (nats)")
        return axes


CURVES = {  # figures by answer position -> what the axis says
    "cross_entropy": "cross-entropy (nats)",
    "gradient_norm": "gradient norm",
    "kl": "KL to the aligned model (nats)",
    "kl_sampled": "KL to the aligned model (nats)",
}


class ByPosition(Record):
    """Mean over n rows at every answer position."""

    mean: list[Known]
    n: list[int] = Field(default_factory=list)


class LogOdds(Record):
    """Refusal log-odds after k harmful tokens: the median, and the share of prompts above 0."""

    k: list[int]
    median: list[Known]
    positive: list[Known] = Field(default_factory=list)


class DynamicsStep(Record):
    """What the probe said after one optimizer step; 0 is before the first."""

    step: int
    log_odds: LogOdds
    cross_entropy: ByPosition | None = None
    kl: ByPosition | None = None
    gradient_norm: ByPosition | None = None
    kl_sampled: ByPosition | None = None
    asr: Known = None
    asr_judged: int | None = None
    asr_asked: int | None = None

    def curve(self, name: str) -> ByPosition | None:
        """One of `CURVES`, where it was recorded."""
        curves = {"cross_entropy": self.cross_entropy, "gradient_norm": self.gradient_norm, "kl": self.kl}
        return {**curves, "kl_sampled": self.kl_sampled}[name]

    @property
    def rated(self) -> bool:
        """Whether a rate was measured, known or not."""
        return "asr" in self.model_fields_set


class DynamicsMeta(Record):
    """The probe, and the monitor: nats it allows, and the step at which it fired."""

    pairs: int | None = None
    positions: int | None = None
    fall: Known = None
    fired: int | None = None


class Dynamics(File):
    """A training that was watched."""

    FILE: ClassVar[str] = "dynamics.json"

    meta: DynamicsMeta
    steps: list[DynamicsStep]

    def to_frame(self) -> pd.DataFrame:
        """A line for each step and each figure by position, k or the whole."""
        return frame(row for one in self.steps for row in _step_rows(one))

    def plot(self, axes: Axes | None = None, *, curve: str = "kl") -> Axes:
        """A figure by answer position, a line for each step: kl, cross_entropy, gradient_norm or kl_sampled."""
        return plots.legend(plots.by_position(plots.fresh(axes), self.curves(curve), CURVES[curve]))

    def curves(self, name: str) -> list[plots.Curve]:
        """One figure at every step that has it."""
        return [
            plots.Curve(f"step {one.step}", range(1, len(of.mean) + 1), of.mean, style=number)
            for number, one in enumerate(self.steps)
            if (of := one.curve(name)) is not None
        ]


def _step_rows(one: DynamicsStep) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"step": one.step, "figure": "log_odds", "k": k, "value": value}
        for k, value in zip(one.log_odds.k, one.log_odds.median, strict=True)
    ]
    for name in CURVES:
        if (curve := one.curve(name)) is not None:
            rows += [{"step": one.step, "figure": name, "position": t, "value": v} for t, v in enumerate(curve.mean, 1)]
    return [*rows, {"step": one.step, "figure": "asr", "value": one.asr}] if one.rated else rows


# --- the table of a fine-tuning attack ---------------------------------------------------------------


class Change(Record):
    """How much more is not refused than under the first objective, on the same prompts and seeds."""

    mean: float
    low: float
    high: float
    pairs: int
    seeds: int


class AskRate(Record):
    """The share not refused over all trainings of a line; `by_seed` is each training's own."""

    rate: Known
    low: float
    high: float
    n: int
    asked: int
    unscored: int
    by_seed: list[Known] = Field(default_factory=list)
    best: Known = None
    worst: Known = None
    change: Change | None = None


class Utility(Record):
    """How well the task of the rows is done, as means over trainings."""

    score: Known = None
    exact: Known = None
    executed: Known = None
    truncated: Known = None
    n: Known = None


class Seconds(Record):
    """How long a training took, and all of its cell."""

    train: float
    all: float | None = None


class PoisonCell(File):
    """One training of a fine-tuning attack that is done: what was measured beside its answers."""

    FILE: ClassVar[str] = "cell.json"

    objective: str | None = None  # None: the model before training
    lr: float | None = None
    seed: int | None = None
    nll: Known = None
    utility: Utility | None = None
    margin: Margin | None = None
    seconds: Seconds


ASKS = ("plain", "triggered", "wrapped")  # ways to ask, from the mildest


class PoisonLine(Row):
    """One objective and learning rate, over the seeds that are done; the first line is the model before training."""

    objective: str
    lr: float | None = None
    seeds: int
    plain: AskRate | None = None
    triggered: AskRate | None = None
    wrapped: AskRate | None = None
    nll: Known = None
    margin: Known = None
    seconds: Known = None
    utility: Utility | None = None

    def ask(self, name: str) -> AskRate | None:
        """The rate under one way of asking."""
        return {"plain": self.plain, "triggered": self.triggered, "wrapped": self.wrapped}[name]

    @property
    def tick(self) -> str:
        """The line's name in a figure."""
        return f"{self.objective}, {self.lr:g}" if self.lr else self.objective


class PoisonTable(list[PoisonLine]):
    """The lines of one table.json."""

    FILE: ClassVar[str] = "table.json"

    @classmethod
    def load(cls, path: str | Path) -> PoisonTable:
        """Read it. Raises InputError as `Profile.load`; the message names the line."""
        return cls(load_rows(PoisonLine, place(path, cls.FILE), "line"))

    @property
    def asks(self) -> Sequence[str]:
        """The ways of asking that any line has."""
        return [name for name in ASKS if any(line.ask(name) for line in self)]

    def dump(self) -> list[Object]:
        """The lines as they are written."""
        return [line.dump() for line in self]

    def to_frame(self) -> pd.DataFrame:
        """A line for each objective, learning rate and way of asking."""
        return frame(
            {"objective": line.objective, "lr": line.lr, "seeds": line.seeds, "ask": name,
             **{k: v for k, v in rate.given().items() if k not in ("by_seed", "change")},
             **{f"change_{k}": v for k, v in (rate.change.given() if rate.change else {}).items()},
             "nll": line.nll, "margin": line.margin, "utility": line.utility.score if line.utility else None}
            for line in self for name in self.asks if (rate := line.ask(name))
        )  # fmt: skip

    def plot(self, axes: Axes | None = None) -> Axes:
        """The share not refused by objective, a point with its interval for each way of asking."""
        curves = [self._curve(name, number) for number, name in enumerate(self.asks)]
        ticks = [line.tick for line in self]
        return plots.legend(plots.shares(plots.fresh(axes), curves, ticks, "not refused", xlabel="objective"))

    def _curve(self, ask: str, style: int) -> plots.Curve:
        rates = [(line.tick, rate) for line in self if (rate := line.ask(ask))]
        of = [rate for _, rate in rates]
        low, high = [rate.low for rate in of], [rate.high for rate in of]
        return plots.Curve(ask, [tick for tick, _ in rates], [rate.rate for rate in of], low, high, style)
