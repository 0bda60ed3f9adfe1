"""Section: harmless requests that are refused or broken off, and what an intervention costs there."""

from collections.abc import Sequence

from tokendeep.pairing.pairs import not_answered
from tokendeep.records import Rate, plots
from tokendeep.records.plots import Curve
from tokendeep.report import defended, figures, paired, trained
from tokendeep.report.paired import Comparison
from tokendeep.report.report import Report
from tokendeep.report.section import Figure, Section, Table
from tokendeep.report.series import Series, pairs
from tokendeep.report.words import (
    REPEATED,
    ROLE_NAMES,
    condition_name,
    counted,
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
DEPTH = (
    "Refused or broken off behind k tokens of an answer, with 95% intervals. A good defence tells the two apart: behind "
    "harmful tokens it still refuses (hollow, high), behind harmless ones it goes on (filled, low)."
)
NOTE = "Exact McNemar test by prompt; Holm adjusts for the number of rows."


def build(report: Report) -> Section:
    section = Section("Over-refusal: harmless requests not answered")
    tests = paired.comparisons(report.harmless, not_answered)
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
    if swept := [one for one in report.harmless if len(one.ks()) > 1]:
        section.figures.append(_figure(swept, report))
        section.findings += [_deep(one) for one in swept]
    if tests:
        section.tables.append(Table("Paired tests of over-refusal", TESTS, [_test_row(one) for one in tests], NOTE))
    section.tables += defended.tables(report.harmless)
    return section


def _figure(harmless: Sequence[Series], report: Report) -> Figure:
    """Over-refusal by k, beside what the same models do behind harmful tokens."""
    labels = {one.label for one in harmless}
    harmful = [
        s for s in report.harmful if s.label in labels and len(s.ks()) > 1 and s.settings.get("judged") != "full"
    ]
    ks = sorted({k for one in (*harmless, *harmful) for k in one.ks()})
    curves = [_curve(one, "harmless", report.styles) for one in harmless]
    curves += [_curve(one, "harmful", report.styles) for one in harmful]
    ends = [f"{curve.name} {', '.join(f'{percent(y)} at k = {k}' for k, y in zip(curve.x, curve.y, strict=True))}"
            for curve in curves]  # fmt: skip
    drawn = figures.svg(plots.shares, curves, ks, "refused or broken off", xlabel=plots.GIVEN)
    return Figure(drawn, f"Refused or broken off by k: {'; '.join(ends)}.", DEPTH)


def _curve(one: Series, what: str, styles: dict[str, int]) -> Curve:
    found = [counted(one, ("prefill", k), "refused", "partial-then-refused") for k in one.ks()]
    share, low, high = zip(*((c / n, low, high) if n else (None,) * 3 for c, n, low, high in found), strict=True)
    return Curve(f"{one.name}, {what}", one.ks(), share, low, high, styles.get(one.name, 0), faint=what == "harmful")


def _deep(one: Series) -> str:
    """What became of harmless requests whose answer had begun."""
    first, last = one.sweep()[0], one.sweep()[-1]
    return (
        f"Behind {last.params.k} tokens of harmless answers {one.name} refuses or breaks off {_not_answered(last)}; with "
        f"{first.params.k or 'none'} given {_not_answered(first)}."
    )


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
    if not rate.n:
        return "none that could be judged"
    either, broken = _either(rate), rate.count("partial-then-refused")
    return f"{either} of {rate.n} ({percent(either / rate.n)}; {broken} of them midway)"


def _either(rate: Rate) -> int:
    return rate.count("refused") + rate.count("partial-then-refused")
