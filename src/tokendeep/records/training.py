"""What a training leaves: training.json, its log, and dynamics.json, what happened per token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tokendeep.records import plots
from tokendeep.records.base import File, Known, Record
from tokendeep.records.rates import frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class LogEntry(Record):
    """A line of a training's log: of a step, or of an evaluation. Means over tokens; what else was logged is kept."""

    step: int | None = None
    """Optimizer steps taken so far."""
    loss: Known = None
    """What is minimised; null: the line is of no step."""
    nll: Known = None
    """Cross-entropy of the answer tokens in nats; null: the line is of no step."""
    nll_later: Known = None
    """The same from the sixth answer token on; absent in deepen, which logs it by kind of row."""
    eval_nll: Known = None
    """The same as `nll` on held-out rows; null: the line is of no evaluation."""
    log_ratio_1: Known = None
    """Nats that the first answer token gained over the reference; absent without a reference."""
    weight_1: Known = None
    """Share of plain fine-tuning's gradient that is let through at the first answer token (0 to 2)."""
    log_ratio_2_5: Known = None
    """As `log_ratio_1`, of answer tokens 2 to 5."""
    weight_2_5: Known = None
    """As `weight_1`, of answer tokens 2 to 5."""
    step_seconds: Known = None
    """Seconds that the step took on the machine at hand, without what was done between steps; absent before it was kept."""


class Training(File):
    """The log of a training."""

    FILE: ClassVar[str] = "training.json"

    history: list[LogEntry]
    """The lines in order."""
    steps: int
    """Optimizer steps that were taken."""

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
    """Means over the rows of the probe, by answer position; index 0 is position 1."""

    mean: list[Known]
    """The mean; null: not known."""
    n: list[int] = Field(default_factory=list)
    """Rows that are so long."""


class LogOdds(Record):
    """Refusal log-odds on the probe."""

    k: list[int]
    """Harmful answer tokens already given."""
    median: list[Known]
    """Median over prompts at each k, in nats."""
    positive: list[Known] = Field(default_factory=list)
    """Share of prompts above 0, which would rather refuse."""


class DynamicsStep(Record):
    """What the probe said after one optimizer step."""

    step: int
    """The step; 0 is before the first."""
    log_odds: LogOdds
    """Refusal log-odds after k harmful tokens."""
    cross_entropy: ByPosition | None = None
    """Of the harmful answers, in nats."""
    kl: ByPosition | None = None
    """D_KL(trained || aligned, the model before step 1) on the harmful answers, in nats."""
    gradient_norm: ByPosition | None = None
    """Norm of the gradient of each token's cross-entropy; null: not recorded."""
    kl_sampled: ByPosition | None = None
    """D_KL on answers that the model in training samples, in nats; null: not recorded."""
    asr: Known = None
    """Share of the test instructions not refused; null: none could be judged; absent: none were asked."""
    asr_judged: int | None = None
    """Answers to them that could be judged."""
    asr_asked: int | None = None
    """Instructions that were asked."""

    def curve(self, name: str) -> ByPosition | None:
        """One of `CURVES`, where it was recorded."""
        found: ByPosition | None = getattr(self, name)
        return found

    @property
    def rated(self) -> bool:
        """Whether a rate was measured, known or not."""
        return "asr" in self.model_fields_set


class DynamicsMeta(Record):
    """What a training was watched with."""

    pairs: int | None = None
    """Harmful pairs of the probe."""
    positions: int | None = None
    """Answer positions that are looked at."""
    fall: Known = None
    """Nats that the median log-odds at k = 0 may fall; null: there is no monitor."""
    fired: int | None = None
    """Step at which they had fallen so far; null: they have not."""


class Dynamics(File):
    """A training that was watched."""

    FILE: ClassVar[str] = "dynamics.json"

    meta: DynamicsMeta
    """The probe, and the monitor."""
    steps: list[DynamicsStep]
    """The recorded steps in order."""

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
