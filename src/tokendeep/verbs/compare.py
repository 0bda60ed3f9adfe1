"""VERB compare: two sides of one or several runs each, paired by prompt."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tokendeep import plain, stats
from tokendeep.errors import InputError, did_you_mean
from tokendeep.judges import of_harm
from tokendeep.pairing import conditions, sides
from tokendeep.pairing.conditions import FIELDS, Alone, Condition, Source
from tokendeep.pairing.sides import Tested
from tokendeep.records import Compared, ComparedRow
from tokendeep.report import load
from tokendeep.report.words import p_value
from tokendeep.runs.files import user_path
from tokendeep.verbs import scored
from tokendeep.verbs.common import Names, check_place, heading, made_in, output
from tokendeep.verbs.proven import OURS, engine, proven

what = heading("What to compare")


@dataclass(frozen=True)
class CompareOptions:
    """Compare two models on the same prompts, each by its runs of attack: paired tests, intervals, what could be found."""

    before: Annotated[
        str,
        what(
            help="A run folder of attack, a folder above several, or several with commas between, such as seeds of one."
        ),
    ]
    after: Annotated[str, what(help="The same of the other side; differences are after minus before.")]
    allow: Annotated[
        Names, what(help=f"What may differ between the runs, and then stands in the result: {', '.join(FIELDS)}.")
    ] = field(default_factory=list, kw_only=True)
    parity: Annotated[
        str | None,
        what(
            help="parity.json of the two engines that answered: where it says that they answer alike, they may differ. Left "
            "out, it is looked for in the runs' folders and those above."
        ),
    ] = field(default=None, kw_only=True)
    out: Annotated[
        str | None,
        output(help="Folder for compare.json, which takes the place of an earlier one; left out, none is written."),
    ] = field(default=None, kw_only=True)


@dataclass(frozen=True)
class ComparePlan:
    """The conditions that both sides have, with their tests, and what was said of the sides."""

    options: CompareOptions
    before: Sequence[str]
    after: Sequence[str]
    tests: Sequence[Tested]
    allowed: dict[str, tuple[str, str]]
    alone: Sequence[Alone]
    parity: str | None = None
    unknown_dtype: Sequence[str] = ()

    def lines(self) -> list[str]:
        return [
            f"before: {', '.join(self.before)}",
            f"after: {', '.join(self.after)}",
            *(f"  {plain.one_line(one.row.name)}: {one.row.n} prompts" for one in self.tests),
            f"out: {self.options.out or '(none)'}",
        ]

    def record(self) -> Compared:
        """What is written."""
        adjusted = stats.holm([one.row.p for one in self.tests])
        rows = [one.row.model_copy(update={"p_holm": p}) for one, p in zip(self.tests, adjusted, strict=True)]
        allowed = {name: list(values) for name, values in self.allowed.items()}
        return Compared(
            before=list(self.before), after=list(self.after), rows=rows, allowed=allowed, one_side=list(map(str, self.alone)),
            parity=self.parity, unknown_dtype=list(self.unknown_dtype),
        )  # fmt: skip


def plan(options: CompareOptions) -> ComparePlan:
    """Read both sides and test them; writes nothing.

    Raises:
        InputError: a folder without judged answers, runs that cannot be compared, an unknown field in `allow`, or no scored
            prompt in common.
    """
    for name in options.allow:
        if name not in FIELDS:
            raise InputError(f"--allow does not know {name!r}; {did_you_mean(name, FIELDS)}.")
    check_place(options.out, (Compared.FILE,))
    before, after = _folders(options.before), _folders(options.after)
    _check_sides(before, after)
    sources = [[_source(run) for run in side if run.samples] for side in (before, after)]
    scores = [scored.scores(side) for side in (before, after)]
    tasks = [metric for metric in scores[0] if metric in scores[1]]
    for name, source in zip((options.before, options.after), sources, strict=True):
        if not source and not tasks:
            raise InputError(
                f"{name} holds no judged answers; name folders that tokendeep attack wrote, of poison those of its trainings."
            )
    found, alone = _told(*conditions.conditions(*sources))
    alone += [_alone(metric, metric in scores[0]) for one in scores for metric in one if metric not in tasks]
    engines = {one.facts["engine"] for side in sources for one in side}
    engines |= {one.facts["engine"] for side in scores for metric in tasks for one in side[metric]}
    alike = proven(options.parity, engines, (before, after)) if len(engines) > 1 or options.parity else None
    allow = [*options.allow, "engine"] if alike else options.allow
    allowed = conditions.check(found, allow)
    tests = [sides.tested(one) for one in found]
    tests += [scored.tested(scores[0][metric], scores[1][metric], allow, allowed) for metric in tasks]
    names = [[str(run.folder) for run in side] for side in (before, after)]
    every: list[Source | scored.Task] = [source for side in sources for source in side]
    every += [one for side in scores for metric in tasks for one in side[metric]]
    unknown = [one.name for one in every if one.facts["dtype"] is None and one.facts["engine"] in (OURS, None)]
    return ComparePlan(options, names[0], names[1], tests, allowed, alone, alike, list(dict.fromkeys(unknown)))


def run(plan: ComparePlan, *, show: bool = True) -> Path | None:
    """Write compare.json where a folder is named, print the table, and return the file."""
    record = plan.record()
    return made_in(plan.options.out, record, describe(record) if show else None)


def _told(found: Sequence[Condition], alone: Sequence[Alone]) -> tuple[list[Condition], list[Alone]]:
    """The conditions of which the judge tells what is counted, and the others. Raises InputError: it tells it of none."""
    mute = [one for one in found if one.role != "harmful" and of_harm(one.judge)]
    told = [one for one in found if one not in mute]
    asked = {one.key for one in told}
    silent = [
        Alone(one.role, str(one), f"the judge {one.judge} tells harm, nothing of refusals", one.key in asked)
        for one in mute
    ]
    if mute and not told:
        raise InputError(f"There is nothing to compare: {'; '.join(map(str, silent))}; judge by refusal too.")
    return told, [*alone, *silent]


def _alone(metric: str, before: bool) -> Alone:
    return Alone("task", f"{metric} of a task", f"{'before' if before else 'after'} only")


# --- reading ------------------------------------------------------------------------------------


def _folders(side: str) -> list[load.Run]:
    return load.runs(_names(side))


def _names(side: str) -> list[str]:
    """The folders of a side."""
    return (
        [side]
        if side.strip() and os.path.exists(user_path(side))
        else [name.strip() for name in side.split(",") if name.strip()]
    )


def _check_sides(before: Sequence[load.Run], after: Sequence[load.Run]) -> None:
    """Raises InputError for a run on both sides, one that has not finished, and rates without answers."""
    if twice := {run.folder.resolve() for run in before} & {run.folder.resolve() for run in after}:
        raise InputError(f"{min(twice)} is on both sides; name one run before and another after.")
    for one in (*before, *after):
        if not one.finished:
            raise InputError(f"{one.folder} holds a run that has not finished; call its command again first.")
        if one.rates and not one.samples:
            raise InputError(
                f"{one.folder} holds rates but no evaluation logs, so its answers cannot be paired; run attack again."
            )


def _source(run: load.Run) -> Source:
    """A run as compare knows it."""
    manifest, config = run.manifest.given(), run.config.given()
    template, date = manifest.get("template"), config.get("date")
    facts = {
        "template": str(template)[:8] if template else None,
        "date": str(date) if date else None,
        "engine": engine(run),
        "dtype": run.manifest.model.dtype if run.manifest.model else None,
    }
    return Source(str(run.folder), run.role, run.samples or (), facts)


# --- the table ----------------------------------------------------------------------------------

LINE = "{:<{width}}{:>7}{:>9}{:>9}  {:<24}{:>9}{:>9}{:>12}"


def describe(record: Compared) -> str:
    """The comparison for the terminal: no text of prompts or answers."""
    heads = ("condition", "n", "before", "after", "points [95 %]", "p", "p (Holm)", "detectable")
    events = dict.fromkeys(f"{row.requests}: {row.event}" for row in record.rows)
    width = max(len(heads[0]), *(len(plain.one_line(row.name)) for row in record.rows))
    lines = [
        LINE.format(*heads, width=width),
        *(_line(row, width) for row in record.rows),
        f"Shares of {'; '.join(events)}.",
    ]
    lines += [note for row in record.rows for note in notes(row)]
    lines += [f"Allowed to differ: {name} ({one} before, {two} after)." for name, (one, two) in record.allowed.items()]
    if record.parity:
        lines.append(f"Parity of the engines: {record.parity}.")
    lines += unknown(record)
    if record.one_side:
        lines.append(f"Not compared: {'; '.join(record.one_side)}.")
    return plain.told(lines)


def unknown(record: Compared) -> list[str]:
    """What was taken for the same because older runs do not tell it."""
    runs = record.unknown_dtype
    whose = "their number formats are" if len(runs) > 1 else "its number format is"
    return [f"{', '.join(runs)}: {whose} not known, and taken for the same."] if runs else []


def _line(row: ComparedRow, width: int) -> str:
    change = f"{100 * row.difference:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    found = "-" if row.detectable is None else f"{100 * row.detectable:.1f}"
    cells = (
        plain.one_line(row.name),
        row.n,
        f"{row.before:.3f}",
        f"{row.after:.3f}",
        change,
        p_value(row.p),
        p_value(row.p_holm),
        found,
    )
    return LINE.format(*cells, width=width)


def notes(row: ComparedRow) -> list[str]:
    """What has to be known beside the numbers of a row."""
    said = []
    if row.left_out:
        said.append(f"{row.left_out} of {row.n + row.left_out} prompts left out, unscored on either side")
    if row.unscored_before or row.unscored_after:
        shares = f"{100 * row.unscored_before:.1f} % of the answers before and {100 * row.unscored_after:.1f} % after"
        said.append(f"{shares} are unscored")
    if row.clusters and row.clusters < row.n:
        said.append(f"{row.clusters} groups of near-duplicates; design effect {row.effect:.1f}")
    if row.runs_before + row.runs_after > 2:
        few = " (one run: its spread is not known)" if 1 in (row.runs_before, row.runs_after) else ""
        said.append(f"{row.runs_before} and {row.runs_after} runs{few}")
    for side, models in (("before", row.models_before), ("after", row.models_after)):
        if len(models) > 1:
            said.append(f"{side} is the mean of {len(models)} models ({', '.join(map(plain.one_line, models))})")
    return [f"{row.name}: {'; '.join(said)}."] if said else []
