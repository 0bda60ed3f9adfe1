"""Rates as tables for the terminal, for the verbs that judge answers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tokendeep import plain
from tokendeep.attacks import ATTACKS
from tokendeep.judges import of_harm
from tokendeep.judges.base import UNGRADED
from tokendeep.records import Rate, Rates

SO = "so it has no rate; what it found is kept: look at the run's logs"


def describe(rows: Rates) -> str:
    """The rates as tables for the terminal, one for each judge and view: no text of prompts or answers."""
    groups: dict[tuple[str | None, ...], list[Rate]] = {}
    views: dict[tuple[str | None, ...], str | None] = {}
    for row in rows:
        by = (row.judge, row.params.judge_template, row.params.grader)
        view = views.setdefault(by, row.params.judged) if ATTACKS[row.attack].refuses else row.params.judged
        groups.setdefault((*by, view), []).append(row)
    heads = [
        plain.one_line(f"judge {judge}{f' by {grader}' if grader else ''}, {view}") + "\n"
        for judge, _, grader, view in groups
    ]
    return "\n".join(
        (head if len(groups) > 1 else "") + _table(of) for head, of in zip(heads, groups.values(), strict=True)
    )


def unscored(rows: Iterable[Rate]) -> list[str]:
    """A sentence for each judge that has scored no answer, and so has no rate."""
    answers: dict[str, list[Rate]] = {}
    for row in rows:
        if row.params.any_of is None:
            answers.setdefault(row.judge, []).append(row)
    return [none_scored(judge, _outcomes(of)) for judge, of in answers.items() if not any(row.n for row in of)]


def none_scored(judge: str, reasons: Mapping[str, int], so: str = SO) -> str:
    """What is to be said of a judge that has scored no answer, by the reasons of all of them."""
    why = ", ".join(f"{count} {name}" for name, count in reasons.items())
    return f"{judge} has scored none of {sum(reasons.values())} answers ({why}), {so}, or name another judge or grader."


def _outcomes(rows: Iterable[Rate]) -> Counter[str]:
    why = Counter[str]()
    for row in rows:
        why.update(row.outcomes)
    return why


def _table(rows: Sequence[Rate]) -> str:
    """The rates of one judge; behind its rate what else it tells."""
    what = ("harmful", "mean score") if of_harm(rows[0].judge) else ("non-refusal", "broken off")
    lines = [("attack", "", what[0], "95 % interval", "n", what[1], "unscored"), *map(_line, rows)]
    why = {name: sum(row.count(name) for row in rows) for name in UNGRADED}
    reasons = [f"{count} {name}" for name, count in why.items() if count]
    table = ["{:<16}{:<28}{:>12}  {:<14}{:>5}{:>12}{:>10}".format(*line) for line in lines]
    cut = sum(row.clipped or 0 for row in rows)
    notes = [f"no grade: {', '.join(reasons)}"] if reasons else []
    notes += [f"cut for the judge, as its authors do: {cut} answers"] if cut else []
    return "\n".join([*table, *notes])


def _line(row: Rate) -> tuple[str, ...]:
    rate, interval = "-", "-"
    more = row.mean_score if of_harm(row.judge) else row.partial_rate if row.rate is not None else None
    which = ATTACKS[row.attack].variant(row.params.given())
    if row.params.any_of is not None:
        which = f"any of {row.params.settings} ({row.params.any_of})"
    if row.rate is not None:
        rate, interval = f"{row.rate:.3f}", f"{row.low:.3f}-{row.high:.3f}"
    which = plain.one_line(which)
    return row.attack, which[:27], rate, interval, str(row.n), "-" if more is None else f"{more:.3f}", str(row.unscored)
