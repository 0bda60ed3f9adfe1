"""compare.json: two sides on the same prompts, condition by condition; gate.json: what of it is within a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tokendeep.records import plots
from tokendeep.records.base import File, Known, Record
from tokendeep.records.rates import frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class ComparedRow(Record):
    """One condition: an attack with its parameters on one kind of requests, or a task."""

    requests: str
    """harmful, or harmless ones: twins or unseen; of a task `task`."""
    attack: str
    """Name of the attack, or of the task's metric."""
    variant: str
    """Its parameters in words; empty where there is none."""
    judge: str
    """Name of the judge; of a task its metric."""
    event: str
    """What is counted: the judge's rate, `refused or broken off` on harmless requests, `score` of a task."""
    n: int
    """Prompts with a scored answer on both sides, which all else is counted over."""
    left_out: int
    """Prompts of both sides of which one or both have no scored answer."""
    before: float
    """Share, or mean score, before."""
    after: float
    """The same after."""
    lost: float
    """Prompts that were counted before and are not after; of several answers a prompt, the sum of the shares."""
    gained: float
    """The other way round."""
    difference: float
    """after minus before, from -1 to 1."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end, likewise."""
    p: float
    """Two-sided p that there is no difference."""
    p_holm: float
    """The same, adjusted for all rows (Holm)."""
    test: str
    """`exact McNemar`; `score` where prompts are near-duplicates, or few changed by a part of 1; else `paired t`."""
    effect: float
    """The design effect: near-duplicates and differing runs make n prompts worth n / effect."""
    clusters: int | None = None
    """Groups of near-duplicate prompts, each prompt unlike all others counted as one; null: their texts are not known."""
    detectable: Known
    """The smallest true difference that would be found with 80 % power; null: none."""
    runs_before: int
    """Runs of the side before, such as seeds of a training."""
    runs_after: int
    """Runs of the side after."""
    unscored_before: float = 0.0
    """Share of the answers before, to prompts that both sides were asked, which could not be judged."""
    unscored_after: float = 0.0
    """The same after."""
    models_before: list[str] = Field(default_factory=list)
    """The models that answered before; several are taken for repeats, such as seeds of a training."""
    models_after: list[str] = Field(default_factory=list)
    """The same after."""

    @property
    def name(self) -> str:
        """The condition in words."""
        return " ".join(filter(None, (self.attack, self.variant, f"({self.requests})")))


class Compared(File):
    """Two sides of one or several runs each."""

    FILE: ClassVar[str] = "compare.json"

    before: list[str]
    """Folders of the runs before."""
    after: list[str]
    """Folders of the runs after."""
    rows: list[ComparedRow]
    """A row for each condition that both have."""
    allowed: dict[str, list[str]] = Field(default_factory=dict)
    """Fields in which the runs differ and that were allowed to -> a value before and one after."""
    parity: str | None = None
    """What a check of the two engines that answered has found, where it lets them differ."""
    unknown_dtype: list[str] = Field(default_factory=list)
    """Folders of runs whose number format is not known, and was taken for that of the others."""
    one_side: list[str] = Field(default_factory=list)
    """Conditions that only one side has, or of which the judge does not tell what is counted."""

    def to_frame(self) -> pd.DataFrame:
        """A line a condition."""
        return frame(row.given() for row in self.rows)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Shares before and after, by condition."""
        ticks = [row.name for row in self.rows]
        none: list[None] = [None] * len(ticks)
        curves = [
            plots.Curve(side, ticks, [getattr(row, side) for row in self.rows], none, none, style=number)
            for number, side in enumerate(("before", "after"))
        ]
        return plots.legend(plots.shares(plots.fresh(axes), curves, ticks, "share", xlabel="condition"))


class Check(Record):
    """One limit on one condition."""

    limit: str
    """asr-rise, refusal-rise or utility-drop."""
    condition: str
    """The condition in words."""
    at_most: float
    """The largest rise, or drop, that passes."""
    change: Known
    """The rise, or drop, that was seen; this and its bounds are null where `reason` says why there is none."""
    low: Known
    """One-sided lower 95 % bound of it."""
    high: Known
    """One-sided upper 95 % bound of it."""
    n: int
    """Prompts with a scored answer on both sides."""
    left_out: int
    """Prompts without one."""
    unscored_before: float = 0.0
    """Share of the answers before that could not be judged."""
    unscored_after: float = 0.0
    """The same after."""
    verdict: str
    """pass: `high` is within the limit; fail: `low` is beyond it; else undecided, also where too many answers are unscored."""
    needed: int | None = None
    """Undecided: prompts that would decide, were shares to stay as they are; null: more of them would not."""
    reason: str | None = None
    """Undecided: why the condition cannot be compared at all, such as `before only`."""


class Gated(File):
    """What a gate found."""

    FILE: ClassVar[str] = "gate.json"

    verdict: str
    """fail where any check fails; else undecided where any is; else pass."""
    passes: bool
    """Whether the gate lets it through: pass, or undecided where that was asked to pass."""
    checks: list[Check]
    """One for each limit and condition."""
    skipped: list[str] = Field(default_factory=list)
    """Conditions that cannot be compared and that were allowed to be left out (`--allow conditions`)."""
