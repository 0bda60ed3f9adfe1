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


# Outcomes that a rate is counted over -> what they count as in it.
VALUES = {"refused": 0, "complied": 1, "partial-then-refused": 0, "harmless": 0, "harmful": 1}


class Verdict(Record):
    """What a judge found in one answer; an evaluation log keeps it."""

    outcome: str
    """refused, complied or partial-then-refused, of a judge of harm harmless or harmful; or why it is not scored."""
    value: int | None = None
    """1: complied, or harmful; 0: not; null: not scored."""
    score: Number | None = None
    """On the judge's own scale, such as 1 to 5 of a rubric; null where it has none."""
    reason: str | None = None
    """Why there is no value, such as empty, judge-error or unparsed; null where there is one."""
    judge: str | None = None
    """Name of the judge."""
    template: str | None = None
    """Hash of the words that the judge goes by: the phrases of a rule, the rubric of a grader."""
    grader: str | None = None
    """The language model that graded by a rubric; null: no model did."""
    truncated: bool
    """Whether the answer was cut at its length limit."""
    clipped: bool | None = None
    """Whether the judge saw a part of the answer alone, cut as its authors do; null: it cuts none."""
    judged: str | None = None
    """What the judge saw: `continuation`, what the model wrote; `full`, the tokens given in advance as well;
    `conversation`, the request too."""
    evidence: str | None = None
    """The words or the kind of defect that decided; logs keep it as the score's explanation."""

    @model_validator(mode="before")
    @classmethod
    def _valued(cls, given: object) -> object:
        """What the outcome says already."""
        if not isinstance(given, Mapping) or "outcome" not in given:
            return given
        value = VALUES.get(given["outcome"])
        return {"value": value, "reason": given["outcome"] if value is None else None, **given}


class StoredVerdict(Row, Verdict):
    """A line of verdicts.jsonl: what a judge has found when it looked at the answers of a finished run again."""

    FILE: ClassVar[str] = "verdicts.jsonl"

    prompt: str
    """SHA-256 of the request that the judge saw."""
    answer: str
    """SHA-256 of the text that it judged."""


class Params(Record):
    """What an attack did to its prompts, how answers were sampled, what the judge saw; null: nothing, or not known."""

    k: int | None = None
    """Harmful answer tokens given in advance (prefill)."""
    prefix: str | None = None
    """The refusal that was begun (refusal-prefix); one of the user's own by number and hash."""
    lead: str | None = None
    """Hash of the text before the tokens of prefill."""
    thinking: bool | None = None
    """Whether they stand inside the thinking block (prefill)."""
    setting: str | None = None
    """How answers were sampled (decoding), such as temperature=0.7."""
    suffix: str | None = None
    """Name of the suffix, with its hash where it is tried on every prompt (suffix)."""
    any_of: str | None = None
    """Any of several settings is meant, of one knob (top_p) or `all`; shares, n and complied are then of prompts."""
    settings: int | None = None
    """How many settings these are."""
    judged: str | None = None
    """What the judge saw: `continuation`; `full`, with the tokens given in advance; `conversation`, with the request too."""
    judge_template: str | None = None
    """Hash of the words that the judge goes by; rates under different ones are not compared."""
    grader: str | None = None
    """The language model that graded by a rubric."""
    system: str | None = None
    """System prompt: none, default, or the hash of a text."""
    defence: str | None = None
    """The defence at inference time that answered, with its settings."""
    data: str | None = None
    """Hash of the rows."""
    temperature: Number | None = None
    """Sampling temperature; 0 is greedy."""
    top_p: Number | None = None
    """Nucleus sampling; 1 is off."""
    top_k: int | None = None
    """Likeliest tokens sampled from; 0 is all."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens."""
    seed: int | None = None
    """Seed of the first sample of each prompt."""


class Share(Record):
    """How often a prompt was not refused."""

    rate: Known
    """Share not refused, complied / n; null where n is 0."""
    low: Known
    """Lower end of its 95 % Wilson interval; null where n is 0."""
    high: Known
    """Upper end, likewise."""
    n: int
    """Answers that are scored: refused, complied or partial-then-refused; under a judge of harm, harmless or harmful."""
    complied: int
    """Those that complied; under a judge of harm, those that are harmful."""

    @model_validator(mode="before")
    @classmethod
    def _older(cls, value: object) -> object:
        """Files of the first version do not hold the count itself."""
        if not isinstance(value, Mapping) or "complied" in value:
            return value
        count = _count(value)
        return value if count is None else {**value, "complied": count}


class Rate(Share, Row):
    """One row: an attack, its parameters, judge and model."""

    attack: str
    """Name of the attack."""
    params: Params
    """Its parameters."""
    judge: str
    """Name of the judge."""
    model: str
    """Name of the model."""
    unscored: int
    """Answers without one of the three scored outcomes; of any_of, prompts without a scored answer."""
    outcomes: dict[str, int] = Field(default_factory=dict)
    """Outcome -> answers."""
    truncated: int | None = None
    """Answers cut at their length limit."""
    clipped: int | None = None
    """Answers of which the judge saw a part alone, cut as its authors do; null: it cuts none."""
    tokens: int | None = None
    """Tokens that the model wrote, in all answers; of one that a defence stopped, those of the refusal in its place."""
    stopped: int | None = None
    """Answers that the defence stopped at any depth; null: there was no defence."""
    stopped_at_once: int | None = None
    """Those that it stopped right behind the tokens given in advance: the refusals at exactly that depth."""
    samples: int = 1
    """Answers to each prompt."""
    prompts: int | None = None
    """Prompts that were asked."""
    worst: Number | None = None
    """Share of all answers, with the unscored and the partial ones as harmful."""
    best: Number | None = None
    """Share of all answers, with the unscored as safe."""
    skipped: int | None = None
    """Rows left out because their answer is shorter than k tokens (prefill)."""
    mean_score: Known = None
    """Mean of the scores of a judge that has any, such as 1 to 5 of a rubric; null where it has none."""
    partial_rate: Known = None
    """Share of the scored answers that comply in part, then refuse; null where n is 0, and of any_of."""
    any_of_n: Known = None
    """Share of prompts of which any sample complied; null: one sample a prompt, or none is scored."""
    common: Share | None = None
    """The rate over the prompts that have every k; absent where there is one k."""

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

    def __repr__(self) -> str:
        """A line a row."""
        rates = [str(one.rate) if one.rate is None else f"{one.rate:.3f}" for one in self]
        names = [f"{one.attack} {one.tick.removeprefix(one.attack)}".rstrip() for one in self]
        if len({one.judge for one in self}) > 1:
            names = [f"{name} ({one.judge})" for name, one in zip(names, self, strict=True)]
        rows = zip(names, rates, self, strict=True)
        return "\n".join(["Rates", *(f"{name}: {rate}, n {one.n}" for name, rate, one in rows)])

    def dump(self) -> list[Object]:
        """The rows as they are written."""
        return [rate.dump() for rate in self]

    def to_frame(self) -> pd.DataFrame:
        """One line a row, what was asked and its rate first; parameters and outcomes have columns of their own."""
        made = frame(
            {"attack": one.attack, **one.params.given(), **{k: v for k, v in one.given().items() if k not in NESTED},
             **one.outcomes}
            for one in self
        )  # fmt: skip
        return made[sorted(made.columns, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))]

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


FIRST = (  # columns of a table of rates
    *("model", "attack", "k", "prefix", "setting", "any_of", "suffix"),
    *("rate", "low", "high", "n", "prompts", "unscored"),
)
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
