"""Section: adversarial suffixes, the best of several searches and what one can be expected to give."""

import statistics
from collections.abc import Sequence

from tokendeep.records import Rate
from tokendeep.report import attacked, views
from tokendeep.report.load import Run
from tokendeep.report.report import Report
from tokendeep.report.section import Section, Table
from tokendeep.report.words import percent, rate_of

BEST = 3  # of the searches, in the paper's way of reporting
WHAT = (
    "Requests with a text behind them that was found by search. The paper reports mean and deviation of the most "
    f"successful {BEST} of its searches; the mean over all of them is what one search can be expected to give. "
    "A suffix of its own for each request counts as one series."
)
COLUMNS = ("name", "attack", "suffixes", "best of them", f"best {BEST}: mean ± deviation", "all: mean ± deviation")


def build(report: Report) -> Section:
    """A line per model; nothing where no suffix was tried."""
    section = Section("Adversarial suffixes")
    batches = [(run, rates) for run in report.runs for rates in run.batches.get("suffix", ())]
    if batches:
        section.text.append(WHAT)
        every = [rates[0] for _, rates in batches]
        rows = [_row(run, rates, views.told(rates[0], every)) for run, rates in batches]
        event = views.counted(one.judge for one in every).capitalize()
        section.tables.append(Table(f"{event}, with a suffix", COLUMNS, rows))
    return section


def _row(run: Run, rates: Sequence[Rate], by: str) -> list[str]:
    judged = sorted((rate for rate in rates if rate.n), key=lambda rate: -(rate.rate or 0.0))
    name = [attacked.named(run, rates) + by, attacked.suffix_words(run), str(len(rates))]
    if not judged:
        return [*name, "none scored", "-", "-"]
    shares = [rate.rate or 0.0 for rate in judged]
    best = _spread(shares[:BEST]) if len(shares) > BEST else "-"
    return [*name, rate_of(judged[0]), best, _spread(shares) if len(shares) > 1 else "-"]


def _spread(shares: Sequence[float]) -> str:
    return f"{percent(statistics.mean(shares))} ± {100 * statistics.stdev(shares):.1f}"
