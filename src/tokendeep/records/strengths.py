"""How strength was chosen for each objective of a fine-tuning attack: validation.json, one training; strengths.json, all."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tokendeep.records.base import File, Known, Object, Record
from tokendeep.records.poison import AskRate, Seconds, Utility


class Validated(File):
    """One training that has been asked the validation rows; its answers lie in attack-validation (-harmless)."""

    FILE: ClassVar[str] = "validation.json"

    objective: str
    """What was trained for."""
    lr: float
    """Peak learning rate."""
    seed: int
    """Seed of the order of rows."""
    times: Known = None
    """How many times its objective's own strength held the model; null: it has none."""
    utility: Utility | None = None
    """How well the validation rows of the task are done; null: there are none."""
    seconds: Seconds
    """How long it took."""


class UtilityChange(Record):
    """Utility less that of plain fine-tuning, on the same rows and seeds."""

    mean: float
    """Difference of the mean scores, from -1 to 1."""
    low: Known = None
    """Lower end of its 95 % interval, over rows and, with several seeds, over trainings; null: there is but one row."""
    high: Known = None
    """Upper end, likewise."""
    n: int
    """Rows."""
    seeds: int
    """Seeds that both have."""


class Strength(Record):
    """One objective, learning rate and strength on the validation rows, over the seeds that are done."""

    objective: str
    """What was trained for."""
    lr: float
    """Peak learning rate."""
    times: Known = None
    """How many times the objective's own; null: it has no strength, and was trained once."""
    settings: Object = Field(default_factory=dict)
    """The options of `finetune` that it comes to, and `refusals`, the share that is mixed in."""
    seeds: int
    """Trainings that are done; 0: not run yet."""
    asked: AskRate | None = None
    """The share of the validation prompts that is not refused; null: not run yet."""
    utility: Known = None
    """Mean score on the validation rows of the task, over seeds; null: not measured."""
    utility_change: UtilityChange | None = None
    """Against plain fine-tuning at the same learning rate; null: it is that, or one of the two is not known."""
    enough: bool | None = None
    """Whether utility is within the margin of plain fine-tuning's; null: one of the two is not known."""
    harmless: AskRate | None = None
    """The share of the harmless validation requests that is refused or broken off; null: not asked, or not run yet."""
    answers_enough: bool | None = None
    """Whether that is within the margin of the model's before the attack; null: one of the two is not known."""
    beyond: Known = None
    """How far utility and refusals of harmless requests lie beyond their margins, added up; null: nothing is known of them."""
    chosen: bool = False
    """Whether it is asked the test and stands in table.json."""

    @property
    def words(self) -> str:
        """Its settings, as they are told."""
        return ", ".join(f"{name} {_word(value)}" for name, value in self.settings.items())


def _word(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_word, value))}]"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


class Strengths(File):
    """All strengths of a fine-tuning attack, and which was chosen of each objective and learning rate."""

    FILE: ClassVar[str] = "strengths.json"

    rule: str
    """How they were chosen, in a few sentences."""
    margin: Known = None
    """How far utility may lie below plain fine-tuning's, 0 to 1; null: it was not measured."""
    harmless_margin: Known = None
    """How far refusals of harmless requests may lie above those before the attack, 0 to 1; null: none were asked."""
    harmless_before: AskRate | None = None
    """The share of them that the model before the attack refuses or breaks off; null: none were asked, or not yet."""
    lines: list[Strength]
    """By learning rate and objective, from the smallest `times`."""
