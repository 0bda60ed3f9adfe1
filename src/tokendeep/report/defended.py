"""How often a defence at inference time stopped an answer: both ways in which such rates are published, beside each other."""

from collections.abc import Sequence

from tokendeep.records import Rate
from tokendeep.report.section import Table
from tokendeep.report.series import Series
from tokendeep.report.words import condition_name

NOTE = (
    "Answers that the defence stopped right behind the tokens given in advance (the refusals at exactly that depth) / at any "
    "depth of the answer / of all. A canned refusal takes the place of a stopped answer, and that is what the judges see; who "
    "streams an answer has shown its beginning by then."
)


def tables(series: Sequence[Series]) -> list[Table]:
    """A table of what the defences of these series stopped; none where there is none."""
    chosen = [one for one in series if any(rate.stopped is not None for rate in one.rows.values())]
    if not chosen:
        return []
    conditions = dict.fromkeys(which for one in chosen for which in one.rows)
    rows = [[condition_name(which), *(_cell(one.rows.get(which)) for one in chosen)] for which in conditions]
    return [Table("Stopped by the defence", ["attack", *(one.name for one in chosen)], rows, NOTE)]


def _cell(rate: Rate | None) -> str:
    if rate is None or rate.stopped is None:
        return "-"
    return f"{rate.stopped_at_once} / {rate.stopped} / {rate.n + rate.unscored}"
