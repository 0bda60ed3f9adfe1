"""Section: before and after on the same harmful requests, and how the rate changes from model to model."""

from collections.abc import Sequence

from tokendeep.judges import of_harm
from tokendeep.pairing.pairs import complied
from tokendeep.report import paired
from tokendeep.report.paired import Comparison
from tokendeep.report.report import Report
from tokendeep.report.section import Section, Table
from tokendeep.report.series import LENGTH, WORDS, Condition, Series, apart, pairs
from tokendeep.report.words import (
    condition_name,
    headline_condition,
    listed,
    p_value,
    p_within,
    percent,
    points_of,
    rate_name,
)

ADJUSTED = "paired tests on the same prompts, adjusted for their number (Holm)"
STRANGERS = "Their difference says nothing of a training; it stands in the table and not among the findings."
HARM = "Under a judge of harm, harmful answers are counted instead of those that do not refuse."
COLUMNS = ("models", "attack", "common prompts", "not refused before", "after", "change in points [95%]",
           "now refuse / no longer", "p", "p (Holm)")  # fmt: skip


def build(report: Report) -> Section:
    section = Section("Before and after, prompt by prompt")
    compared, tests = pairs(report.harmful), paired.comparisons(report.harmful, complied)
    section.csv["paired"] = paired.csv(tests)
    section.text += [_apart(*one) for one in apart(report.harmful)]
    section.findings += _findings([pair for pair in compared if report.pair(*pair)], tests)
    if not compared:
        if len({one.label for one in report.harmful}) > 1:
            section.text.append(
                "No comparison: it takes two models on the same data, under the same judge and settings."
            )
        return section
    if strangers := [f"{before.name} and {after.name}" for before, after in compared if not report.pair(before, after)]:
        section.text.append(f"Nothing tells that one was made from the other: {'; '.join(strangers)}. {STRANGERS}")
    if silent := {one.name: None for pair in compared for one in pair if one.samples is None}:
        section.text.append(f"No paired tests with {listed(silent)}: the folder holds no evaluation logs.")
    if tests:
        section.tables.append(
            _table(tests, repeated=any(one.settings["samples"] > 1 for pair in compared for one in pair))
        )
    else:
        section.text.append("No prompt was judged under both models.")
    return section


def _apart(before: Series, after: Series, names: Sequence[str]) -> str:
    """Why two models are not compared, and what to do."""
    shown = {WORDS: f"words of the judge {after.judge} (hash)", LENGTH: "longest answer (tokens)"}
    parts = [f"{shown[name]} {before.settings.get(name)} and {after.settings.get(name)}" for name in names]
    how = "attack both with one --max-new-tokens" if LENGTH in names else "judge both again with tokendeep judge"
    return f"{before.name} and {after.name} are not compared: {listed(parts)}; {how}."


def _table(tests: Sequence[Comparison], repeated: bool) -> Table:
    rows = [
        [f"{one.before.name} → {one.after.name}", condition_name(one.condition), str(t.n),
         f"{t.before} = {percent(t.before / t.n)}", f"{t.after} = {percent(t.after / t.n)}", points_of(t),
         f"{t.lost} / {t.gained}", p_value(t.p), p_value(one.p)]
        for one in tests
        for t in [one.test]
    ]  # fmt: skip
    first = ", first sample of each" if repeated else ""
    note = f"Exact McNemar test on prompts judged under both models{first}; Holm adjusts for the number of rows."
    note += f" {HARM}" if any(of_harm(one.after.judge) for one in tests) else ""
    return Table("Paired tests of non-refusal", COLUMNS, rows, note)


def _findings(compared: Sequence[tuple[Series, Series]], tests: Sequence[Comparison]) -> list[str]:
    changes = [line for before, after in compared if (line := _finding(before, after, tests))]
    if len(changes) == 1:
        return [f"{changes[0]}; {ADJUSTED}."]
    return [f"{line}." for line in changes] + ([f"Changes from model to model: {ADJUSTED}."] if changes else [])


def _finding(before: Series, after: Series, tests: Sequence[Comparison]) -> str | None:
    """How the rate changed from one model to the next, asked plainly and after prefilled tokens."""
    deep = headline_condition([before, after])
    asked: list[tuple[Condition | None, str]] = [
        (after.plain() if after.plain() in before.rows else None, "when asked plainly"),
        (deep, f"after {deep[1]} prefilled tokens" if deep else ""),
    ]
    parts = [
        f"by {points_of(one.test, unit=' points')} {words} (n = {one.test.n}, p {p_within(one.p)})"
        for condition, words in asked
        if (one := paired.test_of(tests, before, after, condition))
    ]
    return f"From {_from_to(before, after)} the {rate_name(after.judge)} changes {listed(parts)}" if parts else None


def _from_to(before: Series, after: Series) -> str:
    """Both names; what tells them from others of their models is said once where it is the same."""
    same = before.name.removeprefix(before.label) == after.name.removeprefix(after.label)
    return f"{before.label if same else before.name} to {after.name}"
