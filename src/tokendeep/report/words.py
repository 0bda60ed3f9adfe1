"""The pieces of a report, and numbers as words. Knows nothing of models, files or HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokendeep import stats
from tokendeep.judges import JUDGES, SCORED
from tokendeep.report.gather import Condition, Series

ROLE_NAMES = {"harmful": "harmful requests", "twins": "harmless twins", "unseen": "unseen benign requests"}


@dataclass(frozen=True)
class Table:
    """Cells are text, ready to show; the first column names the row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """An image as a data URI of our own making, with words for those who do not see it."""

    uri: str
    alt: str
    caption: str


@dataclass
class Section:
    """A heading with its text, figures and tables, shown in this order."""

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{_rounded(100 * value)}%"


def _rounded(value: float) -> int:
    """Half rounds up: 2 of 80 is 3%, not 2%."""
    return math.floor(value + 0.5 + 1e-9)


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    rounded = math.copysign(_rounded(abs(100 * value)), value)
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else ''}{abs(rounded):.0f}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def share(count: int, n: int) -> str:
    """count of n with its percentage and Wilson interval."""
    if n == 0:
        return "-"
    low, high = stats.wilson(count, n)
    return f"{count}/{n} = {percent(count / n)} [{percent(low)}, {percent(high)}]"


def share_of(one: Series, condition: Condition, *outcomes: str) -> str:
    """How many of the judged answers had one of these outcomes, as in `share`; samples of one prompt are alike."""
    row = one.rows[condition]
    count, n = sum(outcome_count(row, outcome) for outcome in outcomes), row["n"]
    if not several(row) or not n:
        return share(count, n)
    low, high = _repeated(one, condition, outcomes) or stats.wilson(round(count * prompts_of(row) / n), prompts_of(row))
    return f"{count}/{n} = {percent(count / n)} [{percent(low)}, {percent(high)}]"


def _repeated(one: Series, condition: Condition, outcomes: Sequence[str]) -> tuple[float, float] | None:
    """The interval from the answers themselves; None where there are none, and prompts are all there is to count."""
    hits: dict[str, list[bool]] = {}
    for sample in (one.samples or {}).get(condition, ()):
        if sample.outcome in SCORED:
            hits.setdefault(sample.prompt_id, []).append(sample.outcome in outcomes)
    return stats.wilson_repeated([*map(sum, hits.values())], [*map(len, hits.values())]) if hits else None


def several(row: Mapping[str, Any]) -> bool:
    """Whether a row has more than one answer to a prompt."""
    return (row.get("samples") or 1) > 1


def prompts_of(row: Mapping[str, Any]) -> int:
    """How many prompts a rate rests on, which with several samples a prompt are fewer than its answers."""
    return int(min(row["n"], row.get("prompts") or row["n"]) if several(row) else row["n"])


def rate_of(row: Mapping[str, Any] | None) -> str:
    """A row's rate with its interval."""
    if row is None:
        return "not run"
    if not row["n"]:
        return "none scored"
    low, high = interval_of(row)
    return f"{count_of(row)}/{row['n']} = {percent(row['rate'])} [{percent(low)}, {percent(high)}]"


def interval_of(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return row["low"], row["high"]


def count_of(row: Mapping[str, Any]) -> int:
    return round((row["rate"] or 0) * row["n"])


def rate_name(judge: str) -> str:
    """What a judge's rate is called: our offline rules see refusals, not harm."""
    return JUDGES[judge].rate if judge in JUDGES else f"rate under the judge {judge}"


def condition_name(condition: Condition) -> str:
    attack, value = condition
    if attack == "prefill":
        return f"prefill k = {value}"
    if attack == "none":
        return "plain request"
    if value is None:
        return attack
    return f"{attack}, {value}" if str(value).startswith("prefix #") else f"{attack} “{value}”"


def outcome_name(outcome: str) -> str:
    return "broken off" if outcome == "partial-then-refused" else outcome.replace("-", " ")


def outcome_count(row: Mapping[str, Any], outcome: str) -> int:
    return int((row.get("outcomes") or {}).get(outcome, 0))


def listed(names: Iterable[str]) -> str:
    """a, b and c"""
    *most, last = list(names)
    return f"{', '.join(most)} and {last}" if most else last


def finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
