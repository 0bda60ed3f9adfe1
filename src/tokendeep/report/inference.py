"""The report's sections on decoding parameters and on suffixes: each by itself, and any of many."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tokendeep.attacks.decoding import KNOBS
from tokendeep.report.gather import Run, file_name, key_of, labels_of
from tokendeep.report.words import Section, Table, listed, percent, rate_of

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


def decoding_lines(runs: Sequence[Run]) -> list[str]:
    """What sampling did to each model, in one sentence a model."""
    found: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for run in runs:
        for rows in groups(run, "decoding") if run.role == "harmful" and run.finished else []:
            everything, greedy = any_of(rows, "all"), single(rows).get("greedy")
            if everything is None or not everything["n"]:
                continue
            alone = f" (greedy alone {percent(greedy['rate'])})" if greedy and greedy["n"] else ""
            alike = labels_of(run)[rows[0]["model"]], rows[0]["judge"], tuple(sorted(single(rows)))
            found.setdefault(alike, []).append(
                f"{percent(everything['rate'])} of {everything['n']} requests{_where(run)}{alone}"
            )
    judges = {judge for _, judge, _ in found}
    return [
        f"{label}{f' (judge {judge})' if len(judges) > 1 else ''}: some setting of {len(settings)} tried was not refused on "
        f"{listed(said)}."
        for (label, judge, settings), said in found.items()
    ]


def _lines(run: Run) -> list[list[str]]:
    lines = []
    for rows in groups(run, "decoding"):
        each, best = single(rows), best_of(list(single(rows).values()))
        knobs = [any_of(rows, knob) for knob in (*KNOBS, "all")]
        lines.append([
            _named(run, rows, template=False), template_of(run) or "the model's own", str(len(each)),
            rate_of(each["greedy"]) if "greedy" in each else "-",
            "-" if best is None else f"{rate_of(best)} ({best['params']['setting']})",
            *("-" if row is None else rate_of(row) for row in knobs),
        ])  # fmt: skip
    return lines


def _named(run: Run, rows: Sequence[Row], template: bool = True) -> str:
    """The model, what it was asked, and in which chat template where that is not its own."""
    return labels_of(run)[rows[0]["model"]] + _where(run, template)


def _where(run: Run, template: bool = True) -> str:
    own = template_of(run)
    return (f" on {run.file}" if run.file else "") + (f" (chat template {own})" if own and template else "")


def template_of(run: Run) -> str:
    """The chat template that was asked for, by the name of its file; nothing for the model's own."""
    return file_name(run.config.get("chat_template"))


def groups(run: Run, attack: str) -> list[list[Row]]:
    """The run's rows of the attack, by all but what the attack itself changes from row to row."""
    own = (*KNOBS, "setting", "suffix", "any_of", "settings")
    found: dict[str, list[Row]] = {}
    for row in run.rows or ():
        if row["attack"] == attack:
            shared = {name: value for name, value in row["params"].items() if name not in own}
            found.setdefault(key_of(row["model"], row["judge"], shared, attack), []).append(row)
    return list(found.values())


def best_of(rows: Sequence[Row]) -> Row | None:
    """The row of the highest rate, the first of several; None where nothing was scored."""
    return max((row for row in rows if row["n"]), key=lambda row: row["rate"], default=None)


def single(rows: Sequence[Row]) -> dict[str, Row]:
    """The rows of one decoding setting each, by its name."""
    return {str(row["params"]["setting"]): row for row in rows if "setting" in row["params"]}


def any_of(rows: Sequence[Row], knob: str) -> Row | None:
    """The row over all settings of a knob, or over all (`all`)."""
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
    heads = ["name", "attack", "suffixes", "best of them", f"best {BEST}: mean ± deviation", "all: mean ± deviation"]
    section.tables.append(Table("Not refused, with a suffix", heads, lines))
    return [section]


def _suffix_lines(run: Run) -> list[list[str]]:
    lines = []
    for rows in groups(run, "suffix"):
        judged = sorted((row for row in rows if row["n"]), key=lambda row: -row["rate"])
        if not judged:
            lines.append([_named(run, rows), suffix_words(run), str(len(rows)), "none scored", "-", "-"])
            continue
        rates = [row["rate"] for row in judged]
        lines.append([
            _named(run, rows), suffix_words(run), str(len(rows)), rate_of(judged[0]),
            _spread(rates[:BEST]) if len(rates) > BEST else "-",
            _spread(rates) if len(rates) > 1 else "-",
        ])  # fmt: skip
    return lines


def suffix_search(run: Run) -> tuple[str, float, str] | None:
    """Target, tokens of it (infinite: all) and model of the search; None for suffixes that come from elsewhere."""
    cost = run.cost("suffix")
    if "target" not in cost:
        return None
    return str(cost["target"]), cost.get("target_tokens") or math.inf, str(cost.get("found_on"))


def suffix_words(run: Run) -> str:
    """What the suffixes were searched for, and on which model where it is another one."""
    search = suffix_search(run)
    if search is None:
        return "suffix"
    target, tokens, origin = search
    words = "suffix away from refusals" if target == "refusal" else "suffix towards an opening"
    words += f" of {tokens} tokens" if target != "refusal" and tokens < math.inf else ""
    elsewhere = origin != run.config.get("model")
    return words + (f", found on {run.cost('suffix').get('label') or 'another model'}" if elsewhere else "")


def _spread(rates: Sequence[float]) -> str:
    return f"{percent(statistics.mean(rates))} ± {100 * statistics.stdev(rates):.1f}"
