"""The report's sections on decoding parameters and on suffixes: each by itself, and any of many."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..attack.decoding import KNOBS
from .gather import Run, data_of
from .words import Section, Table, percent, rate_of

Row = Mapping[str, Any]


def decoding_section(runs: Sequence[Run]) -> list[Section]:
    """A line per model and way of asking; nothing where decoding was not attacked."""
    lines = [line for run in runs for line in _lines(run)]
    if not lines:
        return []
    section = Section("decoding", "Decoding parameters")
    section.text.append(
        "The same requests, sampled with many settings. The rate of one setting and the share of requests that any of "
        "several settings broke are different numbers: the second is the attack's, and grows with the settings tried. "
        "Best single setting: the highest of many rates on the same requests, so it flatters the attacker."
    )
    heads = [
        "name",
        "chat template",
        "settings",
        "greedy",
        "best single setting",
        *(f"any of {k}" for k in KNOBS),
        "any of all",
    ]
    section.tables.append(Table("Not refused, by decoding setting", heads, lines))
    return [section]


def decoding_line(run: Run) -> list[str]:
    """What sampling did to each model, in one sentence."""
    found = []
    for rows in _groups(run, "decoding"):
        everything, greedy = _any(rows, "all"), _single(rows).get("greedy")
        if everything is None or not everything["n"]:
            continue
        plain = f", greedy alone {percent(greedy['rate'])}" if greedy and greedy["n"] else ""
        found.append(
            f"{_named(run)}: some setting of {everything['params']['settings']} tried was not refused on "
            f"{percent(everything['rate'])} of {everything['n']} requests{plain}."
        )
    return found


def _lines(run: Run) -> list[list[str]]:
    template = str((run.manifest.get("config") or {}).get("chat_template") or "the model's own")
    lines = []
    for rows in _groups(run, "decoding"):
        single = _single(rows)
        judged = [row for row in single.values() if row["n"]]
        best = max(judged, key=lambda row: row["rate"], default=None)
        knobs = [_any(rows, knob) for knob in (*KNOBS, "all")]
        lines.append([
            _named(run), template, str(len(single)),
            rate_of(single["greedy"]) if "greedy" in single else "-",
            "-" if best is None else f"{rate_of(best)} ({best['params']['setting']})",
            *("-" if row is None else rate_of(row) for row in knobs),
        ])  # fmt: skip
    return lines


def _named(run: Run) -> str:
    """The model, and what it was asked."""
    data = data_of(run).partition(" (")[0]
    return f"{run.label} on {data}" if data else run.label


def _groups(run: Run, attack: str) -> list[list[Row]]:
    """The run's rows of the attack, by model and judge."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in run.rows or ():
        if row["attack"] == attack:
            groups.setdefault((row["model"], row["judge"]), []).append(row)
    return list(groups.values())


def _single(rows: Sequence[Row]) -> dict[str, Row]:
    return {str(row["params"]["setting"]): row for row in rows if "setting" in row["params"]}


def _any(rows: Sequence[Row], knob: str) -> Row | None:
    return next((row for row in rows if row["params"].get("any_of") == knob), None)


# --- suffixes ----------------------------------------------------------------------------------------

BEST = 3  # of the searches, in the paper's way of reporting


def suffix_section(runs: Sequence[Run]) -> list[Section]:
    """A line per model: the paper's best three searches, and all of them; nothing where no suffix was tried."""
    lines = [line for run in runs for line in _suffix_lines(run)]
    if not lines:
        return []
    section = Section("suffix", "Adversarial suffixes")
    section.text.append(
        "Requests with a text behind them that was found by search. The paper reports mean and deviation of the most "
        f"successful {BEST} of its searches; the mean over all of them is what one search can be expected to give. "
        "A suffix of its own for each request counts as one series."
    )
    heads = ["name", "suffixes", "best of them", f"best {BEST}: mean ± deviation", "all: mean ± deviation"]
    section.tables.append(Table("Not refused, with a suffix", heads, lines))
    return [section]


def _suffix_lines(run: Run) -> list[list[str]]:
    lines = []
    for rows in _groups(run, "suffix"):
        judged = sorted((row for row in rows if row["n"]), key=lambda row: -row["rate"])
        if not judged:
            lines.append([_named(run), str(len(rows)), "none scored", "-", "-"])
            continue
        rates = [row["rate"] for row in judged]
        lines.append([
            _named(run), str(len(rows)), rate_of(judged[0]), _spread(rates[:BEST]) if len(rates) > BEST else "-",
            _spread(rates) if len(rates) > 1 else "-",
        ])  # fmt: skip
    return lines


def _spread(rates: Sequence[float]) -> str:
    return f"{percent(statistics.mean(rates))} ± {100 * statistics.stdev(rates):.1f}"
