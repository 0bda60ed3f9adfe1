"""Section: rates by the categories that the data names, asked plainly and with prefilled tokens."""

from collections.abc import Mapping, Sequence

from tokendeep.evals import rates
from tokendeep.judges import of_harm
from tokendeep.records import Share
from tokendeep.report.report import Report
from tokendeep.report.section import Csv, Section, Table
from tokendeep.report.series import Condition, Series
from tokendeep.report.words import ROLE_NAMES, condition_name, headline_condition, rate_name, rate_of
from tokendeep.types import Sample

WHAT = "The categories are those that the data names. Few requests stand behind each of them: look at the intervals."
COMPLIED = (("complied",), "not refused")  # what is counted of answers, and what it is called
BROKEN_OFF = (("refused", "partial-then-refused"), "refused or broken off")
HARMFUL = (("harmful",), "harmful")
HEADS = ("model", "requests", "attack", "parameter", "judge", "category", "event", "count", "n", "rate", "low", "high",
         "unscored")  # fmt: skip


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


def _counted(one: Series) -> tuple[tuple[str, ...], str]:
    if of_harm(one.judge):
        return HARMFUL
    return COMPLIED if one.role == "harmful" else BROKEN_OFF


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
    event = _counted(one)[1]
    rows = [[name, *(_rate(one, of.get(name, [])) for of in groups.values())] for name in categories]
    note = f"{event.capitalize()} / judged = share [95% Wilson interval]. {rate_name(one.judge).capitalize()}."
    title = f"{one.name}, {ROLE_NAMES.get(one.role, one.role)}"
    return Table(f"By category: {title}", ["category", *map(condition_name, groups)], rows, note)


def _rate(one: Series, samples: Sequence[Sample]) -> str:
    share = _share(one, samples)
    return rate_of(share) if samples else "not asked"


def _share(one: Series, samples: Sequence[Sample]) -> Share:
    """The share of the judged answers that had the event."""
    return Share(**rates.share(rates.by_prompt(samples, _counted(one)[0])))


def _cells(one: Series, which: Condition, name: str, samples: Sequence[Sample]) -> list[str | int | float | None]:
    share, parameter = _share(one, samples), None if which[1] is None else str(which[1])
    return [one.label, one.role, which[0], parameter, one.judge, name, _counted(one)[1], share.complied,
            share.n, share.rate, share.low, share.high, len(samples) - share.n]  # fmt: skip
