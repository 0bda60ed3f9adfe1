"""Before and after on the same prompts: tests by prompt. Knows nothing of words or tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokendeep import stats
from tokendeep.judges import SCORED
from tokendeep.pairing.pairs import Event, by_prompt
from tokendeep.records import Rate
from tokendeep.report import views
from tokendeep.report.section import Cell, Csv
from tokendeep.report.series import Condition, Series, pairs
from tokendeep.stats import PairedTest

CSV = ("before", "after", "requests", "attack", "parameter", "event", "n", "true_before", "true_after",
       "became_false", "became_true", "difference", "low", "high", "p", "p_holm")  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One row of a table of tests; `p` is adjusted for all of its rows."""

    before: Series
    after: Series
    condition: Condition
    test: PairedTest
    p: float


def paired(before: Series, after: Series, condition: Condition, event: Event) -> PairedTest | None:
    """McNemar's test by prompt; None where the two have no scored prompt in common.

    A prompt is the same where its id and its instruction are: ids such as 1, 2, 3 are those of many data sets.
    """
    first, then = (
        {key: (s.instruction, event(s)) for key, s in one.first_samples(condition).items() if s.outcome in SCORED}
        for one in (before, after)
    )
    return by_prompt(first, then)


def comparisons(series: Sequence[Series], event: Event) -> list[Comparison]:
    """The tests of all pairs among `series`, as one table holds them, with Holm's p."""
    tested = [
        (before, after, c, test)
        for before, after in pairs(series)
        for c in after.rows
        if c in before.rows and _judged_alike(before, after, c) and (test := paired(before, after, c, event))
    ]
    adjusted = stats.holm([test.p for *_, test in tested])
    return [Comparison(*row, p) for row, p in zip(tested, adjusted, strict=True)]


def _judged_alike(before: Series, after: Series, condition: Condition) -> bool:
    """Whether the judge saw the same of both: with no prefix there is but one way."""
    views = [one.rows[condition].params.judged for one in (before, after)]
    return condition[0] == "none" or views[0] == views[1]


def test_of(
    tests: Sequence[Comparison], before: Series, after: Series, condition: Condition | None
) -> Comparison | None:
    """The one of these tests that is about two series and a condition."""
    return next((t for t in tests if t.before is before and t.after is after and t.condition == condition), None)


def csv(tests: Sequence[Comparison], event: str | None = None) -> Csv:
    """The tests as rows for other programs; `event` is what was counted, where it is not what the judge counts."""
    return Csv(CSV, [_csv_row(one, event) for one in tests])


def _csv_row(one: Comparison, event: str | None) -> list[Cell]:
    t, after = one.test, one.after
    event = event or views.counted([after.judge])
    what = attack_cells(after.rows[one.condition], one.condition)
    return [one.before.name, after.name, after.role, *what, event, t.n, t.before, t.after, t.lost, t.gained,
            t.difference, t.low, t.high, t.p, one.p]  # fmt: skip


def attack_cells(rate: Rate, condition: Condition) -> list[Cell]:
    """For a CSV file: the attack's own name, and its parameter, a value or the words that tell it from others."""
    words, value = condition
    return [rate.attack, words if value is None and words != rate.attack else value]
