"""The numbers of a report unrounded, for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokendeep.report.depth import named, odds_errors
from tokendeep.report.gather import Condition, Run, Series
from tokendeep.report.paired import comparisons, complied, not_answered
from tokendeep.report.rates import OUTCOME_COLUMNS
from tokendeep.report.words import interval_of, outcome_count

Csv = tuple[list[str], list[list[Any]]]


def tables(runs: Sequence[Run], found: Sequence[Series]) -> dict[str, Csv]:
    """Name -> header and rows of unrounded numbers, for other programs."""
    measured = [(name, run.profile) for name, run in named([r for r in runs if r.profile is not None]) if run.profile]
    return {
        "rates": _csv_rates(found),
        "paired": _csv_paired(found),
        "kl": _csv_kl(measured),
        "recovery": _csv_recovery(measured),
        "depth": _csv_depth(measured),
    }


def _csv_rates(found: Sequence[Series]) -> Csv:
    head = ["model", "requests", "attack", "parameter", "judge", "settings", "rate", "low", "high", "n", "unscored",
            *OUTCOME_COLUMNS, "truncated", "skipped", "best", "worst", "any_of_n", "common_rate", "common_low",
            "common_high", "common_n"]  # fmt: skip
    rows = []
    for one in found:
        said = "; ".join(f"{name}={value}" for name, value in one.settings.items())
        for condition, row in one.rows.items():
            common = row.get("common") or {}
            rows.append(
                [one.label, one.role, *_attack(row, condition), one.judge, said, row["rate"], *interval_of(row), row["n"],
                 row["unscored"], *(outcome_count(row, outcome) for outcome in OUTCOME_COLUMNS), row.get("truncated"),
                 row.get("skipped"), row.get("best"), row.get("worst"), row.get("any_of_n"),
                 *(common.get(name) for name in ("rate", "low", "high", "n"))]
            )  # fmt: skip
    return head, rows


def _attack(row: Mapping[str, Any], condition: Condition) -> list[Any]:
    """The attack's own name, and its parameter: a value, or in words what tells it from others of that name."""
    words, value = condition
    return [row["attack"], words if value is None and words != row["attack"] else value]


def _csv_paired(found: Sequence[Series]) -> Csv:
    head = ["before", "after", "requests", "attack", "parameter", "event", "n", "true_before", "true_after",
            "became_false", "became_true", "difference", "low", "high", "p", "p_holm"]  # fmt: skip
    harmful = [one for one in found if one.role == "harmful"]
    harmless = [one for one in found if one.role != "harmful"]
    rows: list[list[Any]] = []
    for group, name, event in ((harmful, "not refused", complied), (harmless, "refused or broken off", not_answered)):
        for one in comparisons(group, event):
            t = one.test
            rows.append([one.before.name, one.after.name, one.after.role,
                         *_attack(one.after.rows[one.condition], one.condition), name, t.n, t.before, t.after,
                         t.lost, t.gained, t.difference, t.low, t.high, t.p, one.p])  # fmt: skip
    return head, rows


def _csv_kl(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> Csv:
    rows = [
        [name, answers, position, *values]
        for name, profile in measured
        for answers, kl in (("harmful", profile.get("kl")), ("benign", profile.get("kl_benign")))
        if kl
        for position, values in enumerate(zip(kl["mean"], kl["stderr"], kl["n"], strict=True), 1)
    ]
    return ["model", "answers", "position", "kl_nats", "stderr", "n"], rows


def _csv_recovery(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> Csv:
    rows = [
        [name, *values]
        for name, profile in measured
        for r in [profile["recovery"]]
        for values in zip(r["k"], r["log_odds"], odds_errors(profile), r["recovered"], r["n"], strict=True)
    ]
    return ["model", "k", "log_odds_nats", "stderr", "recovered", "n"], rows


def _csv_depth(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> Csv:
    rows = [
        [name, figure, *(value.get(key) for key in ("value", "low", "high", "censored"))]
        for name, profile in measured
        for figure, value in profile["depth"].items()
    ]
    return ["model", "figure", "value", "low", "high", "censored"], rows
