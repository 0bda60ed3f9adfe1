"""The strengths of a fine-tuning attack on the validation rows, and which one of each objective goes on to the test.

Knows nothing of training.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokendeep import runs
from tokendeep.records import (
    VALIDATION,
    VALIDATION_HARMLESS,
    AskRate,
    PoisonCell,
    Strength,
    Strengths,
    UtilityChange,
    Validated,
)
from tokendeep.report import poison_table
from tokendeep.training import strengths
from tokendeep.training.poisoning import Cell

TABLE = "strengths.md"
WITHIN = {None: "", True: "yes", False: "no"}
SCORES = "utility-validation.json"  # of the validation rows, one by one


def write(
    out: Path, trainings: Sequence[Cell], settings: Callable[[Cell], Mapping[str, Any]], margins: strengths.Margins
) -> Strengths:
    """strengths.json and strengths.md: a line per objective, learning rate and strength, over the seeds that are done.

    Args:
        trainings: all of them, in folders of their names; the objective of the first is plain fine-tuning.
        settings: what the strength of a training comes to.
        margins: of what is measured beside non-refusal.
    """
    plain, each = trainings[0].objective, {(*one.line, one.times): one for one in trainings}
    lines = [_line(out, trainings, one, settings(one), margins.harmless is not None) for one in each.values()]
    before = _before(out) if margins.harmless is not None else None
    baseline = {line.lr: line for line in lines if line.objective == plain}
    lines = [strengths.judged(line, baseline[line.lr], before, margins) for line in lines]
    seeds = len({cell.seed for cell in trainings})
    taken = [
        strengths.choose(group)
        for group in _groups(lines)
        if all(line.seeds == seeds for line in (baseline[group[0].lr], *group))
    ]
    lines = [_with(line, chosen=line in taken) for line in lines]
    record = Strengths(
        rule=strengths.rule(margins), margin=margins.utility, harmless_margin=margins.harmless, harmless_before=before,
        lines=lines,
    )  # fmt: skip
    runs.write_json(out / Strengths.FILE, record.dump())
    runs.write_text(out / TABLE, markdown(record))
    return record


def _with(line: Strength, **more: Any) -> Strength:
    return line.model_copy(update={name: value for name, value in more.items() if value is not None})


def _before(out: Path) -> AskRate | None:
    """What the model before the attack makes of the harmless requests; None where it has not been asked yet."""
    start = out / "start"
    if not (start / PoisonCell.FILE).exists():
        return None
    return poison_table.rate(poison_table.answers({"start": start}, VALIDATION_HARMLESS))


def _line(out: Path, trainings: Sequence[Cell], one: Cell, settings: Mapping[str, Any], harmless: bool) -> Strength:
    folders = _folders(out, [cell for cell in trainings if (*cell.line, cell.times) == (*one.line, one.times)])
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
    baseline = trainings[0].objective
    if known and one.objective != baseline:
        plain = _folders(out, [cell for cell in trainings if cell.line == (baseline, one.lr)])
        about |= {"utility_change": moved} if (moved := change(plain, folders)) else {}
    if harmless:
        about |= {"harmless": poison_table.rate(poison_table.answers(folders, VALIDATION_HARMLESS))}
    return Strength(**about, asked=poison_table.rate(poison_table.answers(folders, VALIDATION)))


def _folders(out: Path, cells: Sequence[Cell]) -> dict[str, Path]:
    """By seed, those of the trainings that have been asked the validation rows."""
    return {str(cell.seed): folder for cell in cells if ((folder := out / cell.name) / Validated.FILE).exists()}


def change(before: Mapping[str, Path], after: Mapping[str, Path]) -> UtilityChange | None:
    """How far the scores of the same rows lie apart, by seed; None where they share no seed."""
    scores = poison_table.scores
    pairs = [(scores(before[seed] / SCORES), scores(after[seed] / SCORES)) for seed in before if seed in after]
    if not pairs:
        return None
    table = np.array([[then - first for first, then in zip(*pair, strict=True)] for pair in pairs])  # (seeds, rows)
    low, high = poison_table.mean_interval(table)
    return UtilityChange(mean=float(table.mean()), low=low, high=high, n=table.shape[1], seeds=len(table))


def _groups(lines: Sequence[Strength]) -> list[list[Strength]]:
    """The lines among which one is chosen."""
    groups: dict[tuple[str, float], list[Strength]] = {}
    for line in lines:
        groups.setdefault((line.objective, line.lr), []).append(line)
    return list(groups.values())


def markdown(record: Strengths) -> str:
    """The rule and the table as Markdown; what has not been run is empty."""
    rows = [columns(record), *(cells(record, line) for line in record.lines)]
    return f"{record.rule}\n\n{poison_table.table(rows)}"


def columns(record: Strengths) -> list[str]:
    """The heads of the table."""
    heads = ["objective", "lr", "times its strength", "which is", "seeds"]
    heads += ["not refused (validation)", "95 % interval", "judged", "with the unjudged"]
    if record.margin is not None:
        heads += ["utility (validation)", "against plain", f"at most {record.margin:g} below plain"]
    if record.harmless_margin is not None:
        start = "" if record.harmless_before is None else f" of {strengths.worst(record.harmless_before):.2f}"
        heads += ["harmless refused or broken off", f"at most {record.harmless_margin:g} above the start's{start}"]
    return [*heads, "chosen"]


def cells(record: Strengths, line: Strength) -> list[str]:
    """A line of the table."""
    times = "has none" if line.times is None else f"{line.times:g}"
    row = [line.objective, f"{line.lr:g}", times, line.words, str(line.seeds or "")]
    if rate := line.asked:
        share = "none judged" if rate.rate is None else f"{rate.rate:.2f}"
        row += [
            share,
            f"{rate.low:.2f} to {rate.high:.2f}",
            f"{rate.n} of {rate.asked}",
            f"{strengths.worst(rate):.2f}",
        ]
    else:
        row += ["", "", "", ""]
    if record.margin is not None:
        row += ["" if line.utility is None else f"{line.utility:.3f}", _moved(line), WITHIN[line.enough]]
    if record.harmless_margin is not None:
        row += ["" if line.harmless is None else f"{strengths.worst(line.harmless):.2f}", WITHIN[line.answers_enough]]
    return [*row, "yes" if line.chosen else ""]


def _moved(line: Strength) -> str:
    """How far its utility is from that of plain fine-tuning, with the interval."""
    moved = line.utility_change
    if moved is None:
        return ""
    ends = "one row" if moved.low is None or moved.high is None else f"{moved.low:+.3f} to {moved.high:+.3f}"
    return f"{moved.mean:+.3f} ({ends})"
