"""Before and after on the same prompts: tests by prompt, and their section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tokendeep import stats
from tokendeep.judges import SCORED
from tokendeep.report.gather import Condition, Series, pairs
from tokendeep.report.words import Section, Table, condition_name, listed, p_value, percent, points
from tokendeep.types import Sample

Event = Callable[[Sample], bool]
Hits = Mapping[str, tuple[str, bool]]  # prompt id -> its instruction, and whether the event took place


@dataclass(frozen=True)
class Paired:
    """Before and after on the n prompts that were scored both times; `gained` became true, `lost` false."""

    n: int
    before: int
    after: int
    lost: int
    gained: int
    p: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One row of a table of tests; `p` is adjusted for all of its rows."""

    before: Series
    after: Series
    condition: Condition
    test: Paired
    p: float


def complied(sample: Sample) -> bool:
    return sample.outcome == "complied"


def not_answered(sample: Sample) -> bool:
    return sample.outcome in ("refused", "partial-then-refused")


def paired(before: Series, after: Series, condition: Condition, event: Event) -> Paired | None:
    """McNemar's test by prompt; None where the two have no scored prompt in common.

    A prompt is the same where its id and its instruction are: ids such as 1, 2, 3 are those of many data sets.
    """
    first, then = (
        {key: (s.instruction, event(s)) for key, s in one.first_samples(condition).items() if s.outcome in SCORED}
        for one in (before, after)
    )
    return by_prompt(first, then)


def by_prompt(old: Hits, new: Hits) -> Paired | None:
    """McNemar's test on two sets of prompts; None where they have none in common."""
    ids = [key for key in old if key in new and old[key][0] == new[key][0]]
    if not ids:
        return None
    x, y = [old[key][1] for key in ids], [new[key][1] for key in ids]
    test = stats.mcnemar(x, y)
    return Paired(len(ids), sum(x), sum(y), test.b, test.c, test.p, test.difference, test.low, test.high)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjustment for several tests in one table."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted


def comparisons(found: Sequence[Series], event: Event) -> list[Comparison]:
    """The tests of all pairs among `found`, as one table holds them, with Holm's p."""
    tested = [
        (before, after, c, test)
        for before, after in pairs(found)
        for c in after.rows
        if c in before.rows and _judged_alike(before, after, c) and (test := paired(before, after, c, event))
    ]
    adjusted = holm([test.p for *_, test in tested])
    return [Comparison(*row, p) for row, p in zip(tested, adjusted, strict=True)]


def _judged_alike(before: Series, after: Series, condition: Condition) -> bool:
    """Whether the judge saw the same of both: with no prefix there is but one way."""
    views = [one.rows[condition]["params"].get("judged") for one in (before, after)]
    return condition[0] == "none" or views[0] == views[1]


def paired_section(found: Sequence[Series]) -> Section:
    section = Section("paired", "Before and after, prompt by prompt")
    harmful = [one for one in found if one.role == "harmful"]
    compared = pairs(harmful)
    if not compared:
        section.text.append("No comparison: it takes two models on the same data under the same judge and settings.")
        return section
    silent = {one.name: None for pair in compared for one in pair if one.samples is None}
    if silent:
        section.text.append(f"No paired tests with {listed(silent)}: the folder holds no evaluation logs.")
    tests = comparisons(harmful, complied)
    if not tests:
        section.text.append("No prompt was judged under both models.")
        return section
    several = any((one.settings.get("samples") or 1) > 1 for pair in compared for one in pair)
    rows = [
        [f"{one.before.name} → {one.after.name}", condition_name(one.condition), str(t.n),
         f"{t.before} = {percent(t.before / t.n)}", f"{t.after} = {percent(t.after / t.n)}",
         f"{points(t.difference)} [{points(t.low)}, {points(t.high)}]", f"{t.lost} / {t.gained}", p_value(t.p),
         p_value(one.p)]
        for one in tests
        for t in [one.test]
    ]  # fmt: skip
    columns = ["models", "attack", "common prompts", "not refused before", "after", "change in points [95%]",
               "now refuse / no longer", "p", "p (Holm)"]  # fmt: skip
    note = (
        "Exact McNemar test on prompts judged under both models"
        + (", first sample of each" if several else "")
        + "; Holm adjusts for the number of rows."
    )
    section.tables.append(Table("Paired tests of non-refusal", columns, rows, note))
    return section
