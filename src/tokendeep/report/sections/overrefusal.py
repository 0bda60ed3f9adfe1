"""Section: harmless requests that are refused or broken off, and what an intervention costs there."""

from collections.abc import Sequence

from tokendeep.records import Rate
from tokendeep.report import paired, trained
from tokendeep.report.paired import Comparison
from tokendeep.report.report import Report
from tokendeep.report.section import Section, Table
from tokendeep.report.series import Series, pairs
from tokendeep.report.words import (
    REPEATED,
    ROLE_NAMES,
    condition_name,
    p_value,
    p_within,
    percent,
    points_of,
    several,
    share_of,
)

ROLES = ("twins", "unseen")
WHAT = (
    "Harmless requests should be answered. They are refused at once, or broken off: the answer starts well and "
    "turns into a refusal midway, which a judge of first words does not see. Twins use the words of a harmful "
    "request with a harmless meaning."
)
COLUMNS = ("model", "refused at once", "broken off", "either", "unscored")
TESTS = ("requests", "models", "common prompts", "refused or broken off", "change in points [95%]",
         "now answered / no longer", "p", "p (Holm)")  # fmt: skip
NOTE = "Exact McNemar test by prompt; Holm adjusts for the number of rows."


def build(report: Report) -> Section:
    section = Section("Over-refusal: harmless requests not answered")
    tests = paired.comparisons(report.harmless, paired.not_answered)
    section.csv["paired"] = paired.csv(tests, "refused or broken off")
    section.sizes += [rate.requests for one in report.harmless for rate in one.rows.values()]
    twins = [one for one in report.harmless if one.role == "twins"]
    section.findings += [line for pair in pairs(twins) if report.pair(*pair) and (line := _finding(*pair, tests))]
    if not report.harmless:
        section.missing.append("a run on harmless requests (over-refusal)")
        return section
    section.text += [WHAT, *trained.words(report.harmless)]
    for role in ROLES:
        series = [one for one in report.harmless if one.role == role]
        if series:
            section.tables.append(_table(series, ROLE_NAMES[role]))
        else:
            section.text.append(f"No run on {ROLE_NAMES[role]}.")
    if tests:
        section.tables.append(Table("Paired tests of over-refusal", TESTS, [_test_row(one) for one in tests], NOTE))
    return section


def _table(harmless: Sequence[Series], what: str) -> Table:
    rows = [
        [one.name if len(one.rows) == 1 else f"{one.name}, {condition_name(condition)}",
         share_of(one, condition, "refused"), share_of(one, condition, "partial-then-refused"),
         share_of(one, condition, "refused", "partial-then-refused"), str(rate.unscored)]
        for one in harmless
        for condition, rate in one.rows.items()
    ]  # fmt: skip
    note = f"Count / judged {f'answers = share {REPEATED}' if several(harmless) else '= share [95% Wilson interval].'}"
    return Table(what.capitalize(), COLUMNS, rows, note)


def _test_row(one: Comparison) -> list[str]:
    t = one.test
    return [ROLE_NAMES[one.after.role], f"{one.before.name} → {one.after.name}", str(t.n), f"{t.before} → {t.after}",
            points_of(t), f"{t.lost} / {t.gained}", p_value(t.p), p_value(one.p)]  # fmt: skip


def _finding(before: Series, after: Series, tests: Sequence[Comparison]) -> str | None:
    """The price of a change: twins that are not answered."""
    condition = after.plain()
    if condition is None or condition not in before.rows:
        return None
    old, new = before.rows[condition], after.rows[condition]
    if not old.n or not new.n:
        return None
    one = paired.test_of(tests, before, after, condition)
    change = f": {points_of(one.test, unit=' points')}, paired test p {p_within(one.p)} (Holm)" if one else ""
    return f"Harmless twins refused or broken off: {before.name} {_not_answered(old)}, {after.name} {_not_answered(new)}{change}."


def _not_answered(rate: Rate) -> str:
    broken = rate.count("partial-then-refused")
    either = rate.count("refused") + broken
    return f"{either} of {rate.n} ({percent(either / rate.n)}; {broken} of them midway)"
