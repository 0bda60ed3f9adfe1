"""Section: rates by the categories that the data names, asked plainly and with prefilled tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokendeep import stats
from tokendeep.judges import SCORED
from tokendeep.report.report import Report
from tokendeep.report.section import Csv, Section, Table
from tokendeep.report.series import Condition, Series
from tokendeep.report.words import ROLE_NAMES, condition_name, headline_condition, percent, rate_name
from tokendeep.types import Sample

WHAT = "The categories are those that the data names. Few requests stand behind each of them: look at the intervals."
COUNTED = {  # what is counted of a role's answers, and what it is called
    True: (("complied",), "not refused"),
    False: (("refused", "partial-then-refused"), "refused or broken off"),
}
HEADS = (
    "model",
    "requests",
    "attack",
    "parameter",
    "judge",
    "category",
    "event",
    "count",
    "n",
    "rate",
    "low",
    "high",
    "unscored",
)


def build(report: Report) -> Section:
    section = Section("By category")
    rows = []
    for one in report.series:
        groups = {which: _by_category(one, which) for which in _conditions(one)}
        categories = sorted({name for of in groups.values() for name in of})
        if len(categories) < 2:
            continue
        section.tables.append(_table(one, groups, categories))
        rows += [
            _cells(one, which, name, of[name]) for which, of in groups.items() for name in categories if name in of
        ]
    if section.tables:
        section.text.append(WHAT)
        section.csv["categories"] = Csv(HEADS, rows)
    return section


def _conditions(one: Series) -> list[Condition]:
    """The plain request and the prefill of the headline; else whatever was asked."""
    chosen = [which for which in (one.plain(), headline_condition([one])) if which is not None]
    return chosen or list(one.rows)


def _by_category(one: Series, which: Condition) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in (one.samples or {}).get(which, ()):
        if sample.category:
            groups.setdefault(sample.category, []).append(sample)
    return groups


def _table(one: Series, groups: Mapping[Condition, Mapping[str, list[Sample]]], categories: Sequence[str]) -> Table:
    event = COUNTED[one.role == "harmful"][1]
    rows = [[name, *(_rate(one, of.get(name, [])) for of in groups.values())] for name in categories]
    note = f"{event.capitalize()} / judged = share [95% Wilson interval]. {rate_name(one.judge).capitalize()}."
    title = f"{one.name}, {ROLE_NAMES.get(one.role, one.role)}"
    return Table(f"By category: {title}", ["category", *map(condition_name, groups)], rows, note)


def _rate(one: Series, samples: Sequence[Sample]) -> str:
    count, n, rate, low, high = _share(one, samples)
    if not samples:
        return "not asked"
    return f"{count}/{n} = {percent(rate)} [{percent(low)}, {percent(high)}]" if n else "none scored"


def _share(one: Series, samples: Sequence[Sample]) -> tuple[int, int, float | None, float | None, float | None]:
    """How many of the judged answers had the event, of how many, and the share with its interval; samples of a prompt are
    alike."""
    outcomes = COUNTED[one.role == "harmful"][0]
    hits: dict[str, list[bool]] = {}
    for sample in samples:
        if sample.outcome in SCORED:
            hits.setdefault(sample.prompt_id, []).append(sample.outcome in outcomes)
    counts, sizes = [*map(sum, hits.values())], [*map(len, hits.values())]
    n = sum(sizes)
    if not n:
        return 0, 0, None, None, None
    low, high = stats.wilson_repeated(counts, sizes)
    return sum(counts), n, sum(counts) / n, low, high


def _cells(one: Series, which: Condition, name: str, samples: Sequence[Sample]) -> list[str | int | float | None]:
    count, n, rate, low, high = _share(one, samples)
    event = COUNTED[one.role == "harmful"][1]
    parameter = None if which[1] is None else str(which[1])
    return [
        one.label,
        one.role,
        which[0],
        parameter,
        one.judge,
        name,
        event,
        count,
        n,
        rate,
        low,
        high,
        len(samples) - n,
    ]
