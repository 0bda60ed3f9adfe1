"""Strengths of `poison`: each objective trained at several, asked validation rows, and one of them asked the test.

The rule by which one is chosen stands in `training.strengths`. A line is chosen once all its trainings are done, so that
no more checkpoints lie there than one line has.

Its annotations are no strings (no `from __future__ import annotations`): they are read from the module of the verb.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tokendeep import data, runs
from tokendeep.attacks.poison import Poison
from tokendeep.attacks.prompts import request
from tokendeep.errors import InputError, check_least, flag
from tokendeep.records import VALIDATION, VALIDATION_HARMLESS, PoisonCell, Seconds, Strengths, Validated
from tokendeep.report import strength_table
from tokendeep.training import objectives, safety_rows, strengths
from tokendeep.training.poisoning import Cell
from tokendeep.types import Chat, Pair, Prompt
from tokendeep.verbs import poisoned
from tokendeep.verbs.common import Floats, advanced

TABLE = strength_table.TABLE


@dataclass(frozen=True, kw_only=True)
class StrengthsOptions:
    """How strong each objective is made."""

    strengths: Annotated[
        Floats,
        advanced(
            help="Train every objective at so many times its own strength, such as 0.3,1,3, and ask the test of one: of those "
            "within --utility-margin and --harmless-margin, the one with the lowest non-refusal on --validation (of equal ones "
            "the smallest)."
        ),
    ] = field(default_factory=list)
    validation: Annotated[
        str | None, advanced(help="Harmful instructions on which --strengths are chosen; none of them of --test.")
    ] = None
    validation_utility: Annotated[
        int,
        advanced(help="So many rows at the end of --utility-data are kept from the test, to choose --strengths on."),
    ] = 0
    utility_margin: Annotated[
        float, advanced(help="How far the utility of a strength may lie below plain fine-tuning's, 0 to 1.")
    ] = 0.02
    validation_harmless: Annotated[
        str | None,
        advanced(help="Harmless instructions, none of --harmless-test, by whose refusals --strengths are chosen too."),
    ] = None
    harmless_margin: Annotated[
        float,
        advanced(help="How far a strength's share of them refused or broken off may lie above that before the attack."),
    ] = 0.05


@dataclass(frozen=True)
class Held:
    """What is kept from the test, to choose strengths on.

    Args:
        prompts: harmful ones.
        task: rows of the task with the right answers.
        harmless: requests that should be answered.
    """

    prompts: Sequence[Prompt]
    task: Sequence[Pair]
    harmless: Sequence[Prompt] = ()


def check(options: Any) -> None:
    """Raises InputError for an option that is out of range, missing, or of no use."""
    if not options.strengths:
        plain = StrengthsOptions()
        given = [one.name for one in fields(plain) if getattr(options, one.name) != getattr(plain, one.name)]
        if name := next(iter(given), None):
            raise InputError(
                f"{flag(name)} is there to choose --strengths by; give them, such as 0.3,1,3, or leave it out."
            )
        return
    times = options.strengths
    if any(one <= 0 for one in times) or len(set(times)) < len(times):
        raise InputError(f"--strengths is {', '.join(f'{one:g}' for one in times)}, but must be above 0, each once.")
    if not options.validation:
        raise InputError(
            "--strengths are chosen on --validation, a file of harmful instructions that --test does not hold."
        )
    check_least(options, {"validation_utility": 0, "utility_margin": 0, "harmless_margin": 0})
    if options.harmless_margin != StrengthsOptions().harmless_margin and not options.validation_harmless:
        raise InputError(
            "--harmless-margin is of the harmless requests of --validation-harmless; give them, or leave it out."
        )
    if bool(options.utility_data) != bool(options.validation_utility):
        missing = "utility_data" if options.validation_utility else "validation_utility"
        raise InputError(
            "--utility-data and --validation-utility go together, for a strength is chosen by what it leaves of the task too; "
            f"give {flag(missing)}."
        )
    if (first := options.objectives[0]) not in (allowed := objectives.OBJECTIVES["sft"].named):
        raise InputError(
            f"The first of --objectives is {first}, but --strengths are compared with plain fine-tuning; begin with "
            f"{' or '.join(allowed)}."
        )


def trainings(options: Any) -> list[Cell]:
    """All trainings, line by line: the strengths of an objective that come to different settings; of one without, one.

    None where no strengths are given.
    """
    if not options.strengths:
        return []
    by_name = {name: _strengths(options, name) for name in options.objectives}
    return [
        Cell(name, lr, seed, times)
        for lr in options.lr
        for name in options.objectives
        for seed in options.seeds
        for times in by_name[name]
    ]


def _strengths(options: Any, name: str) -> list[float | None]:
    cell, found = Cell(name, options.lr[0], options.seeds[0]), dict[str, float | None]()
    for times in sorted(options.strengths):
        changes = settings(options, cell, times)
        if not 0 <= changes.get("refusals", 0) < 1:
            raise InputError(
                f"{name} at {times:g} times its strength is a share of refusals of {changes['refusals']:g}, but it must be "
                "below 1; give smaller --strengths."
            )
        found.setdefault(str(changes), times if changes else None)
    return list(found.values())


def settings(options: Any, cell: Cell, times: float | None = None) -> dict[str, Any]:
    """What the strength of a training (or another one) comes to, by option; nothing where it has none."""
    times = cell.times if times is None else times
    if times is None:
        return {}
    made = poisoned.settings(options, Cell(cell.objective, cell.lr, cell.seed), Path("checked"), "checked")
    share = cell.named.refusals * times
    return {**objectives.stronger(made, times), **({"refusals": share} if share else {})}


def read(
    options: Any, task: Sequence[Pair], prompts: Sequence[Prompt], harmless: Sequence[Prompt | Pair]
) -> tuple[Held | None, Sequence[Pair]]:
    """What is kept from the test, and the rows of the task that are left for it.

    Args:
        task: all rows of --utility-data.
        prompts: those of the test.
        harmless: harmless ones of the test.

    Raises:
        InputError: a row that is wrong; prompts that the test holds too; no row of the task is left.
    """
    if not options.strengths:
        return None, task
    held, spared = _read(options, "validation", "harmful", "test", prompts), list[Prompt]()
    if options.validation_harmless:
        spared = _read(options, "validation_harmless", "harmless", "harmless_test", harmless)
    count = options.validation_utility
    if count >= len(task) > 0:
        raise InputError(
            f"--validation-utility is {count}, but --utility-data holds {len(task)} rows; leave some of them for the test."
        )
    return Held(held, task[len(task) - count :], spared), task[: len(task) - count]


def _read(
    options: Any, name: str, role: Literal["harmful", "harmless"], test: str, asked: Sequence[Prompt | Pair]
) -> list[Prompt]:
    held = data.read_prompts(data.choose_beside(getattr(options, name), options.columns, role))
    tested = {runs.trained.key(request(row)) for row in asked}
    if same := sum(runs.trained.key(request(row)) in tested for row in held):
        raise InputError(
            f"{same} of the {len(held)} prompts of {flag(name)} stand in {flag(test)} too, which would be chosen on what it "
            "measures; leave them out of one of the two."
        )
    return held


def asks(plan: Any, made: Poison) -> dict[str, Iterable[Prompt]]:
    """The rows of the ways of asking on which strengths are chosen; none where no strengths are tried."""
    if plan.held is None:
        return {}
    first = next(iter(made.asks.values()))
    harmless = {VALIDATION_HARMLESS: plan.held.harmless} if plan.held.harmless else {}
    return {VALIDATION: map(first, plan.held.prompts), **harmless}


def lines(plan: Any) -> list[str]:
    """What is chosen, on what and how, for a plan."""
    held, options = plan.held, plan.options
    if held is None:
        return []
    none = list(dict.fromkeys(cell.objective for cell in plan.cells if cell.times is None))
    harmless = f", {len(held.harmless)} harmless ones" if held.harmless else ""
    task = f"{harmless} and {len(held.task)} rows of the task" if held.task else harmless
    return [
        f"strengths: {', '.join(f'{one:g}' for one in sorted(options.strengths))} times each objective's own, chosen on "
        f"{len(held.prompts)} validation prompts{task}, over all seeds; trained once, without a strength: {', '.join(none)}",
        strengths.rule(margins(plan)),
        *near(plan, {"prompts of the test": plan.asked(), **plan.trained()}),
    ]


def overlaps(plan: Any, trained: Mapping[str, Sequence[Chat]]) -> list[str]:
    """How many validation prompts are near-duplicates of what is trained on, held or asked, in lines."""
    safety = [*plan.safety.harmful, *plan.safety.harmless] if plan.safety else []
    held = {"requests of the safety anchor, which then looks better than it is": safety}
    return near(plan, {"prompts of the test": plan.asked(), **trained, **held})


def near(plan: Any, others: Mapping[str, Sequence[Chat | Prompt | Pair]]) -> list[str]:
    """How many validation prompts are near-duplicates of other rows, by what these are; a line where there are any."""
    if plan.held is None:
        return []
    held = {"validation prompts": plan.held.prompts, "harmless validation prompts": plan.held.harmless}
    return [line for name, given in held.items() for line in safety_rows.overlaps(given, name, others)]


def margins(plan: Any) -> strengths.Margins:
    """Those of what is measured."""
    utility = float(plan.options.utility_margin) if plan.held.task else None
    return strengths.Margins(utility, float(plan.options.harmless_margin) if plan.held.harmless else None)


def train_and_choose(plan: Any, model: str, made: Poison, out: Path, cell: Cell) -> None:
    """Train and ask the validation rows; behind the last training of a line choose its strength and ask the test of it."""
    if (out / cell.name / Validated.FILE).exists():
        print(f"      done before: {cell.name}")
    else:
        _validate(plan, model, made, out, cell)
    line = [one for one in plan.cells if one.line == cell.line]
    if cell != line[-1]:
        return
    record = write(plan, out)
    best = next(one for one in record.lines if (one.objective, one.lr) == cell.line and one.chosen)
    chosen = [one for one in line if one.times == best.times]
    if best.times is not None:
        print(f"      {cell.objective}: {best.times:g} times its strength is chosen ({best.words})", flush=True)
    for one in chosen:
        if not (out / one.name / PoisonCell.FILE).exists():
            print(f"      the test, seed {one.seed}:")
            poisoned.ask(plan, model, made, out, one, Validated.load(out / one.name).seconds.train)
    for one in line if not plan.options.keep else ():
        poisoned.drop(out, one)


def taken(plan: Any, out: Path) -> list[Cell] | None:
    """The trainings whose strength was chosen so far; None where no strengths are tried."""
    if plan.held is None:
        return None
    lines = Strengths.load(out).lines if (out / Strengths.FILE).exists() else []
    chosen = {(one.objective, one.lr, one.times) for one in lines if one.chosen}
    return [cell for cell in plan.cells if (*cell.line, cell.times) in chosen]


def write(plan: Any, out: Path) -> Strengths:
    """strengths.json and strengths.md, of what is done."""
    return strength_table.write(out, plan.cells, lambda cell: settings(plan.options, cell), margins(plan))


def _validate(plan: Any, model: str, made: Poison, out: Path, cell: Cell) -> None:
    seconds, folder = poisoned.train(plan, model, made, out, cell), out / cell.name
    asked = poisoned.load(plan, model, made, out, cell)
    for name in [VALIDATION, *([VALIDATION_HARMLESS] if plan.held.harmless else [])]:
        poisoned.put(plan, asked, out, cell.name, name)
        poisoned.told(folder, name)
    useful = poisoned.utility(plan, asked, folder / strength_table.SCORES, plan.held.task)
    record = Validated(**poisoned.of(cell), utility=useful, seconds=Seconds(train=round(seconds, 1)))
    runs.write_json(folder / Validated.FILE, record.dump())
    write(plan, out)
