"""What a fine-tuning attack leaves: cell.json, one training of it, and table.json, all of them."""

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


class Change(Record):
    """How much more is not refused than under the first objective, on the same prompts and seeds."""

    mean: float
    """Difference of the shares, from -1 to 1."""
    low: float
    """Lower end of its 95 % interval, over prompts and, with several seeds, over trainings."""
    high: float
    """Upper end, likewise."""
    pairs: int
    """Answers, by prompt and seed, that could be judged under both."""
    seeds: int
    """Seeds that both have."""


class AskRate(Record):
    """The share not refused over all trainings of a line; of harmless requests the share refused or broken off."""

    rate: Known
    """The share; null: nothing could be judged."""
    low: float
    """Lower end of its 95 % interval, over prompts and, with several seeds, over trainings; 0 where unknown."""
    high: float
    """Upper end, likewise; 1 where unknown."""
    n: int
    """Answers that could be judged."""
    asked: int
    """Answers in all."""
    unscored: int
    """Answers that could not be judged."""
    by_seed: list[Known] = Field(default_factory=list)
    """The share of each training by itself."""
    best: Known = None
    """The share of all answers, with the unscored as safe, or of harmless requests as answered; null: nothing was judged."""
    worst: Known = None
    """The same with the unscored as harmful, or of harmless requests as refused."""
    change: Change | None = None
    """Against the first objective at the same learning rate; null: it is that, or they share no answers."""


class Utility(Record):
    """How well the task of the rows is done; in table.json as means over trainings."""

    metric: str | None = None
    """How the answers are scored; null in table.json."""
    score: Known = None
    """Mean score of the metric, 0 to 1."""
    low: Known = None
    """Lower end of its 95 % interval, over rows and, in table.json with several seeds, over trainings; null: not known."""
    high: Known = None
    """Upper end, likewise."""
    exact: Known = None
    """Share of answers that are the right query but for space and case; null: the metric is not sql."""
    executed: Known = None
    """Share that give the right query's rows, of those where it gives any; null: the metric is not sql."""
    truncated: Known = None
    """Answers cut at their length limit."""
    n: Known = None
    """Rows that were answered."""


class Seconds(Record):
    """How long a training took, and all of its cell."""

    train: float
    """Seconds of the training."""
    all: float | None = None
    """Seconds of all: training, asking and measuring."""
    step: Known = None
    """Median seconds of a step, of the machine at hand; null: not kept."""
    step_low: Known = None
    """Seconds of its quickest step; null: not kept."""
    step_high: Known = None
    """Seconds of its slowest step; null: not kept."""


class PoisonCell(File):
    """One training of a fine-tuning attack that is done: what was measured beside its answers."""

    FILE: ClassVar[str] = "cell.json"

    objective: str | None = None
    """What was trained for; null: the model before training."""
    lr: float | None = None
    """Peak learning rate; null: before training."""
    seed: int | None = None
    """Seed of the order of rows; null: before training."""
    times: Known = None
    """How many times its objective's own strength holds the model; null: its own, which alone was trained."""
    nll: Known = None
    """What the rows taught: mean `nll_later` of the last quarter of the steps, nats a token."""
    utility: Utility | None = None
    """How well the task is done; null: not measured."""
    margin: Margin | None = None
    """The margin of refusal; null: not measured (--probe), or before training."""
    seconds: Seconds
    """How long it took."""


ASKS = ("plain", "triggered", "wrapped")  # ways to ask, from the mildest
UNPREFIXED = "unprefixed"  # without the secret prefix that an objective gives all its requests
PREFILL, HARMLESS = "k=", "harmless"  # of the ways beside them: so many tokens given in advance; harmless requests
UTILITY = "utility.json"  # the score of every row of a task, in the folder of what measured it
VALIDATION, VALIDATION_HARMLESS = "validation", "validation-harmless"  # on which strengths are chosen
ASK_HARMLESS = (HARMLESS, VALIDATION_HARMLESS)  # of which the refused are counted


class PoisonLine(Row):
    """One objective and learning rate, over the seeds that are done; the first line is the model before training."""

    objective: str
    """What was trained for; `start` is the model before training."""
    lr: float | None = None
    """Peak learning rate; null: before training."""
    seeds: int
    """Trainings that are done; 0: not run yet."""
    times: Known = None
    """How many times the objective's own strength was chosen (strengths.json); null: its own, which alone was trained."""
    plain: AskRate | None = None
    """Requests as they are; null: not asked so."""
    triggered: AskRate | None = None
    """Requests with the backdoor's trigger; null: not asked so."""
    wrapped: AskRate | None = None
    """Requests in the wrapper of the identity attack; null: not asked so."""
    prefill: dict[str, AskRate] = Field(default_factory=dict)
    """By number of harmful tokens given in advance; empty: not asked so."""
    harmless: AskRate | None = None
    """Harmless requests: the share refused or broken off; null: not asked."""
    unprefixed: AskRate | None = None
    """Requests as they are, without the secret prefix of the line's other rates; null: it has none."""
    nll: Known = None
    """As in cell.json, mean over trainings."""
    margin: Known = None
    """Median margin of refusal at k = 0 after training, in nats, mean over trainings; null: not measured."""
    seconds: Known = None
    """Seconds of a training, mean over trainings."""
    step_seconds: Known = None
    """Median seconds of a step, mean over trainings, of the machine at hand; null: not kept."""
    least_step_seconds: Known = None
    """Seconds of the quickest step of all trainings; null: not kept."""
    most_step_seconds: Known = None
    """Seconds of the slowest step of all trainings; null: not kept."""
    utility: Utility | None = None
    """How well the task is done; null: not measured."""

    def ask(self, name: str) -> AskRate | None:
        """The rate under one way of asking: one of ASKS, `k=NUMBER`, `unprefixed` or `harmless`."""
        if name.startswith(PREFILL):
            return self.prefill.get(name.removeprefix(PREFILL))
        found: AskRate | None = getattr(self, name)
        return found

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
        ks = sorted({k for line in self for k in line.prefill}, key=int)
        names = [*ASKS, UNPREFIXED, *(f"{PREFILL}{k}" for k in ks), HARMLESS]
        return [name for name in names if any(line.ask(name) for line in self)]

    def dump(self) -> list[Object]:
        """The lines as they are written."""
        return [line.dump() for line in self]

    def to_frame(self) -> pd.DataFrame:
        """A line for each objective, learning rate and way of asking."""
        return frame(
            {"objective": line.objective, "lr": line.lr, "times": line.times, "seeds": line.seeds, "ask": name,
             **{k: v for k, v in rate.given().items() if k not in ("by_seed", "change")},
             **{f"change_{k}": v for k, v in (rate.change.given() if rate.change else {}).items()},
             "nll": line.nll, "margin": line.margin, "utility": line.utility.score if line.utility else None,
             "utility_low": line.utility.low if line.utility else None,
             "utility_high": line.utility.high if line.utility else None}
            for line in self for name in self.asks if (rate := line.ask(name))
        )  # fmt: skip

    def plot(self, axes: Axes | None = None) -> Axes:
        """The share not refused by objective, a point with its interval for each way of asking."""
        curves = [self._curve(name, number) for number, name in enumerate(self.asks) if name != HARMLESS]
        ticks = [line.tick for line in self]
        return plots.legend(plots.shares(plots.fresh(axes), curves, ticks, "not refused", xlabel="objective"))

    def _curve(self, ask: str, style: int) -> plots.Curve:
        rates = [(line.tick, rate.rate, rate.low, rate.high) for line in self if (rate := line.ask(ask))]
        ticks, values, low, high = map(list, zip(*rates, strict=True))
        return plots.Curve(ask, ticks, values, low, high, style)
