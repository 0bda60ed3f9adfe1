"""The strengths of a fine-tuning attack on the validation rows, and which one of each objective goes on to the test.

Knows nothing of training.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokendeep import runs
from tokendeep.records import Strength, Strengths, Validated
from tokendeep.report import poison_table
from tokendeep.training import strengths
from tokendeep.training.poisoning import Cell

ASK, TABLE = "validation", "strengths.md"


def write(
    out: Path, trainings: Sequence[Cell], settings: Callable[[Cell], Mapping[str, Any]], margin: float | None
) -> Strengths:
    """strengths.json and strengths.md: a line per objective, learning rate and strength, over the seeds that are done.

    Args:
        trainings: all of them, in folders of their names; the objective of the first is plain fine-tuning.
        settings: what the strength of a training comes to.
        margin: of the utility; None where it is not measured.
    """
    plain, each = trainings[0].objective, {(*one.line, one.times): one for one in trainings}
    lines = [_line(out, trainings, one, settings(one)) for one in each.values()]
    baseline = {line.lr: line for line in lines if line.objective == plain}
    lines = [_with(line, enough=strengths.enough(line.utility, baseline[line.lr].utility, margin)) for line in lines]
    seeds = len({cell.seed for cell in trainings})
    taken = [
        strengths.choose(group)
        for group in _groups(lines)
        if all(line.seeds == seeds for line in (baseline[group[0].lr], *group))
    ]
    lines = [_with(line, chosen=line in taken) for line in lines]
    record = Strengths(rule=strengths.rule(margin), margin=margin, lines=lines)
    runs.write_json(out / Strengths.FILE, record.dump())
    runs.write_text(out / TABLE, markdown(record))
    return record


def _with(line: Strength, **more: Any) -> Strength:
    return line.model_copy(update={name: value for name, value in more.items() if value is not None})


def _line(out: Path, trainings: Sequence[Cell], one: Cell, settings: Mapping[str, Any]) -> Strength:
    same = [cell for cell in trainings if (*cell.line, cell.times) == (*one.line, one.times)]
    folders = {str(cell.seed): folder for cell in same if ((folder := out / cell.name) / Validated.FILE).exists()}
    about: dict[str, Any] = {
        "objective": one.objective,
        "lr": one.lr,
        "settings": dict(settings),
        "seeds": len(folders),
    }
    about |= {} if one.times is None else {"times": one.times}
    if not folders:
        return Strength(**about)
    useful = [record.utility.score for folder in folders.values() if (record := Validated.load(folder)).utility]
    known = [score for score in useful if score is not None]
    about |= {"utility": float(np.mean(known))} if known else {}
    return Strength(**about, asked=poison_table.rate(poison_table.answers(folders, ASK)))


def _groups(lines: Sequence[Strength]) -> list[list[Strength]]:
    """The lines among which one is chosen."""
    groups: dict[tuple[str, float], list[Strength]] = {}
    for line in lines:
        groups.setdefault((line.objective, line.lr), []).append(line)
    return list(groups.values())


def markdown(record: Strengths) -> str:
    """The rule and the table as Markdown; what has not been run is empty."""
    rows = [heads := columns(record), ["---"] * len(heads), *(cells(record, line) for line in record.lines)]
    return f"{record.rule}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def columns(record: Strengths) -> list[str]:
    """The heads of the table."""
    useful = [] if record.margin is None else ["utility (validation)", f"at most {record.margin:g} below plain"]
    asked = ["not refused (validation)", "95 % interval", "judged"]
    return ["objective", "lr", "times its strength", "which is", "seeds", *asked, *useful, "chosen"]


def cells(record: Strengths, line: Strength) -> list[str]:
    """A line of the table."""
    times = "has none" if line.times is None else f"{line.times:g}"
    row = [line.objective, f"{line.lr:g}", times, line.words, str(line.seeds or "")]
    if rate := line.asked:
        share = "none judged" if rate.rate is None else f"{rate.rate:.2f}"
        row += [share, f"{rate.low:.2f} to {rate.high:.2f}", f"{rate.n} of {rate.asked}"]
    else:
        row += ["", "", ""]
    if record.margin is not None:
        within = {None: "", True: "yes", False: "no"}[line.enough]
        row += ["" if line.utility is None else f"{line.utility:.3f}", within]
    return [*row, "yes" if line.chosen else ""]
