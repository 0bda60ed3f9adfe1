"""The table of a fine-tuning attack: rates, changes and what else was measured, per objective and learning rate.

With one training per line, intervals are over prompts (Wilson; McNemar's for changes). With several seeds they also are
over trainings: seeds and prompts are resampled together, and an interval is never narrower than the one over prompts.
Few seeds tell little about the spread of trainings, so the rate of each seed stands beside it. Knows nothing of training.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendeep import runs, stats
from tokendeep.errors import InputError
from tokendeep.judges import SCORED
from tokendeep.records import (
    ASK_HARMLESS,
    PREFILL,
    UNPREFIXED,
    UTILITY,
    AskRate,
    Change,
    PoisonCell,
    PoisonLine,
    PoisonTable,
    Utility,
    read_json,
)
from tokendeep.training.poisoning import Cell

Given = Mapping[str, bool | None]  # prompt -> whether it was not refused; None: could not be judged
Answers = Mapping[str, Given]  # by training
RESAMPLES = 4000
A_STEP = "s a step (median and range over steps and seeds"


def answers(folders: Mapping[str, Path], ask: str) -> Answers:
    """What every training answered to one way of asking; of harmless requests, whether it refused or broke off."""
    from tokendeep.evals import logs

    k = int(ask.removeprefix(PREFILL)) if ask.startswith(PREFILL) else None
    place = "attack-prefill" if k is not None else f"attack-{ask}"
    return {
        name: {
            one.prompt_id: (one.outcome == "complied") != (ask in ASK_HARMLESS) if one.outcome in SCORED else None
            for one in logs.read_samples(folder / place)
            if k is None or one.params["k"] == k
        }
        for name, folder in folders.items()
    }


def rate(given: Answers, change: Change | None = None) -> AskRate:
    """The share not refused over all trainings, with interval, counts, and the bounds if the unscored were known."""
    known = [value for one in given.values() for value in one.values() if value is not None]
    asked = sum(len(one) for one in given.values())
    low, high = _interval(given) if known else (0.0, 1.0)
    unscored, compared = asked - len(known), {"change": change} if change else {}
    return AskRate(
        rate=sum(known) / len(known) if known else None, low=low, high=high, n=len(known), asked=asked, unscored=unscored,
        by_seed=[_mean(list(one.values())) for one in given.values()],
        best=sum(known) / asked if known else None, worst=(sum(known) + unscored) / asked if known else None, **compared,
    )  # fmt: skip


def change(before: Answers, after: Answers) -> Change | None:
    """How much more is not refused after than before, on the same prompts and seeds; None where they share none."""
    pairs = [(before[seed], after[seed]) for seed in before if seed in after]
    common = [(one[p], two[p]) for one, two in pairs for p in one if one[p] is not None and two.get(p) is not None]
    if not common:
        return None
    test = stats.mcnemar([bool(x) for x, _ in common], [bool(y) for _, y in common])
    low, high = test.low, test.high
    if len(pairs) > 1:
        prompts = list(dict.fromkeys(p for one, _ in pairs for p in one))
        ends = over_seeds(np.stack([_row(two, prompts) - _row(one, prompts) for one, two in pairs]))
        low, high = min(low, ends[0]), max(high, ends[1])
    bounds = {"low": max(-1.0, low), "high": min(1.0, high)}
    return Change(mean=test.difference, **bounds, pairs=len(common), seeds=len(pairs))


def _interval(given: Answers) -> tuple[float, float]:
    prompts = list(dict.fromkeys(p for one in given.values() for p in one))
    scored = [[one[p] for one in given.values() if one.get(p) is not None] for p in prompts]
    low, high = stats.wilson_repeated([sum(map(bool, s)) for s in scored], [len(s) for s in scored])
    if len(given) < 2:
        return low, high
    ends = over_seeds(np.stack([_row(one, prompts) for one in given.values()]))
    return min(low, ends[0]), max(high, ends[1])


def _row(one: Given, prompts: Sequence[str]) -> NDArray[np.float64]:
    return np.array([np.nan if one.get(p) is None else float(bool(one[p])) for p in prompts])


def over_seeds(table: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval of the mean of (seeds, prompts) when both are resampled."""
    rng = np.random.default_rng(0)
    seeds, prompts = table.shape
    means = []
    for _ in range(RESAMPLES):
        drawn = table[rng.integers(seeds, size=seeds)][:, rng.integers(prompts, size=prompts)]
        if np.isfinite(drawn).any():
            means.append(np.nanmean(drawn))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def line(
    objective: str,
    lr: float | None,
    folders: Mapping[str, Path],
    asks: Sequence[str],
    baseline: Mapping[str, Path] | None,
) -> PoisonLine:
    """One line of the table: `folders` are the trainings that are done, by seed; `baseline` those it is compared with."""
    if not folders:
        return PoisonLine(objective=objective, lr=lr, seeds=0)
    rates: dict[str, Any] = {"prefill": {}}  # as fields
    for ask in asks:
        if ask == UNPREFIXED and not all((folder / f"attack-{ask}").exists() for folder in folders.values()):
            continue  # a line without a secret
        given = answers(folders, ask)
        same = asks[0] if ask == UNPREFIXED else ask  # the first objective has no secret to leave out
        found = rate(given, change(answers(baseline, same), given) if baseline else None)
        if ask.startswith(PREFILL):
            rates["prefill"][ask.removeprefix(PREFILL)] = found
        else:
            rates[ask] = found
    cells = [PoisonCell.load(folder) for folder in folders.values()]
    if (strong := _times(objective, cells)) is not None:
        rates["times"] = strong
    useful = [cell.utility for cell in cells if cell.utility]
    return PoisonLine(
        objective=objective,
        lr=lr,
        seeds=len(folders),
        **rates,
        nll=_mean([cell.nll for cell in cells]),
        margin=_mean([cell.margin.after["0.5"][0] for cell in cells if cell.margin]),
        seconds=_mean([cell.seconds.train for cell in cells]),
        step_seconds=_mean([cell.seconds.step for cell in cells]),
        least_step_seconds=min((one for cell in cells if (one := cell.seconds.step_low) is not None), default=None),
        most_step_seconds=max((one for cell in cells if (one := cell.seconds.step_high) is not None), default=None),
        utility=_utility(useful, list(folders.values())) if useful else None,
    )


def _times(objective: str, cells: Sequence[PoisonCell]) -> float | None:
    """How many times their objective's own strength all trainings of a line have; None: its own alone."""
    found = {cell.times for cell in cells}
    if len(found) > 1:
        words = ", ".join("none" if one is None else f"{one:g}" for one in sorted(found, key=lambda one: one or 0))
        raise InputError(
            f"The trainings of {objective} are of several times its strength ({words}), which are no one line; "
            "give another --out, or --overwrite."
        )
    return found.pop()


def _utility(useful: Sequence[Utility], folders: Sequence[Path]) -> Utility:
    names = ("score", "exact", "executed", "truncated", "n")
    low, high = _utility_interval(folders)
    means = {name: _mean([getattr(one, name) for one in useful]) for name in names}
    return Utility.model_validate({**means, "low": low, "high": high})


def _utility_interval(folders: Sequence[Path]) -> tuple[float, float] | tuple[None, None]:
    """The interval of the mean score over rows, and over trainings where there are several; None where it is not known.

    Scores of 0 and 1 are shares, whose interval is no single point where all are alike.
    """
    if not all((folder / UTILITY).exists() for folder in folders):
        return None, None
    table = [scores(folder / UTILITY) for folder in folders]
    if all(score in (0, 1) for row in table for score in row):
        return _interval(
            {str(seed): {str(i): score == 1 for i, score in enumerate(row)} for seed, row in enumerate(table)}
        )
    return mean_interval(np.array(table))


def scores(path: Path) -> list[float]:
    """The score of each row of the task, as `judges.tasks.measure` gave them."""
    found: Any = read_json(path)
    return [float(row["score"]) for row in found["rows"]]


def mean_interval(table: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
    """The interval of the mean of (seeds, rows), over rows and, with several seeds, over these too; None for one row."""
    if table.shape[1] < 2:
        return None, None
    ends = [stats.bootstrap(table.mean(axis=0)), *([over_seeds(table)] if len(table) > 1 else [])]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def markdown(lines: PoisonTable, asks: Sequence[str], baseline: str, utility: str | None) -> str:
    """The lines as two tables in Markdown: the rates beside what else was measured, and what stands behind each rate.

    What has not been run is empty.
    """
    empty = [made.objective for made in lines if not made.seeds]
    note = f"\nEmpty: not run yet ({', '.join(empty)}); the same command goes on.\n" if empty else ""
    behind = table(
        [["objective", "lr", "asked", "by seed", "judged", f"change against {baseline}"], *_behind(lines, asks)]
    )
    words = f"Rates with their 95 % intervals; seed by seed, of how many answers, and against {baseline}:"
    return f"{table(_measured(lines, asks, utility))}{note}\n{words}\n\n{behind}"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows, of which the first are the heads, as a table in Markdown."""
    head, *rest = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rest)) + "\n"


def _measured(lines: PoisonTable, asks: Sequence[str], utility: str | None) -> Iterator[list[str]]:
    margins = any(made.margin is not None for made in lines)
    names = {"sql": ["score", "exact", "executed"], None: []}.get(utility, ["score"])
    tuned = any(made.times is not None for made in lines)
    heads = [
        "objective",
        "lr",
        *(["times its strength"] if tuned else []),
        "seeds",
        *(f"{told(ask)} ({ask})" for ask in asks),
    ]
    heads += [*(["margin after (nats)"] if margins else []), "train nll (tokens 6 on)"]
    yield [*heads, *([str(utility), *names[1:]] if names else []), "s to train", f"{A_STEP}, this machine)"]
    for made in lines:
        useful = made.utility.given() if made.utility else {}
        yield [
            *(*_which(made), *([times(made)] if tuned else []), str(made.seeds or "")),
            *(_share(made.ask(ask)) for ask in asks),
            *(*([_number(made.margin, 1)] if margins else []), _number(made.nll)),
            *([utility_cell(made.utility)] if names else []),
            *(_number(useful.get(name), 3) for name in names[1:]),
            *(_number(made.seconds, 0), seconds_cell(made)),
        ]


def _behind(lines: PoisonTable, asks: Sequence[str]) -> Iterator[list[str]]:
    """Each rate seed by seed, how many answers it is of, and how far it is from the baseline's."""
    for made in lines:
        for ask, found in ((ask, found) for ask in asks if (found := made.ask(ask))):
            moved = found.change
            change = f"{moved.mean:+.2f} ({moved.low:+.2f} to {moved.high:+.2f})" if moved else ""
            seeds = " ".join(_number(value) or "-" for value in found.by_seed)
            yield [*_which(made), ask, seeds, f"{found.n} of {found.asked}", change]


def _which(made: PoisonLine) -> list[str]:
    return [made.objective, f"{made.lr:g}" if made.lr else ""]


def _share(found: AskRate | None) -> str:
    if found is None:
        return ""
    return f"{found.rate:.2f} [{found.low:.2f}, {found.high:.2f}]" if found.rate is not None else "none judged"


def times(made: PoisonLine) -> str:
    """How many times its objective's own strength was chosen; nothing where that alone was trained."""
    return "" if made.times is None else f"{made.times:g}"


def told(ask: str) -> str:
    """What the rate under a way of asking counts."""
    return "refused or broken off" if ask in ASK_HARMLESS else "not refused"


def utility_cell(found: Utility | None) -> str:
    """A mean score with its interval."""
    if found is None or found.score is None:
        return ""
    ends = "" if found.low is None or found.high is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.score:.3f}{ends}"


def seconds_cell(made: PoisonLine) -> str:
    """Seconds of a step with their range."""
    low, high = made.least_step_seconds, made.most_step_seconds
    ends = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    return f"{_number(made.step_seconds)}{ends}"


def _number(value: object, digits: int = 2) -> str:
    return re.sub(r"^-0$", "0", f"{value:.{digits}f}") if isinstance(value, int | float) else ""


# --- written down ----------------------------------------------------------------------------------------


def write(
    out: Path,
    trainings: Sequence[Cell],
    asks: Sequence[str],
    utility: str | None,
    taken: Collection[Cell] | None = None,
) -> str:
    """table.json and table.md: a line per objective and learning rate, over the seeds that are done; returns the text.

    Args:
        trainings: all of the table, in folders of their names; the others are compared with the objective of the first.
        utility: the metric of the task, where it is measured.
        taken: those whose strength was chosen; None: no strengths are tried.

    Raises:
        InputError: the trainings of a line are of several strengths.
    """
    baseline, ours = trainings[0].objective, trainings if taken is None else [one for one in trainings if one in taken]
    lines = PoisonTable([line("start", None, {"start": out / "start"}, asks, None)])
    for name, lr in sorted({(one.objective, one.lr) for one in trainings}, key=_order(trainings)):
        compared = None if name == baseline else _done(out, ours, baseline, lr)
        lines.append(line(name, lr, _done(out, ours, name, lr), asks, compared))
    runs.write_json(out / PoisonTable.FILE, lines.dump())
    text = markdown(lines, asks, baseline, utility)
    runs.write_text(out / "table.md", text)
    return text


def _order(trainings: Sequence[Cell]) -> Callable[[tuple[str, float]], tuple[int, int]]:
    """Learning rate by learning rate, and each objective, as they were given."""
    objectives, rates = ([getattr(one, name) for one in trainings] for name in ("objective", "lr"))
    return lambda key: (rates.index(key[1]), objectives.index(key[0]))


def _done(out: Path, trainings: Sequence[Cell], objective: str, lr: float) -> dict[str, Path]:
    """The folders of the trainings of one line that are finished, by seed."""
    ours = [(str(one.seed), out / one.name) for one in trainings if one.line == (objective, lr)]
    return {seed: folder for seed, folder in ours if (folder / PoisonCell.FILE).exists()}
