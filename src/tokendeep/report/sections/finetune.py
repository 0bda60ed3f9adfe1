"""Section: fine-tunings, what their rows taught and what their first tokens gained."""

from tokendeep.records import LogEntry, Margin, Training
from tokendeep.report.load import Run
from tokendeep.report.report import Report
from tokendeep.report.section import Section, Table
from tokendeep.report.words import number

WHAT = (
    "The gain of the first tokens is over the model before training, in nats; in brackets the share of plain "
    "fine-tuning's gradient that Eq. 3 still lets through (1 throughout for plain fine-tuning, which records no gain). "
    "The margin is the median refusal log-odds on the probe before any answer token: below 0 the harmful answer's own "
    "tokens have become likelier than a refusal."
)
COLUMNS = ("name", "objective", "rows", "steps", "train nll, tokens 6 on", "first token gained", "tokens 2 to 5 gained",
           "held-out nll", "margin (nats)")  # fmt: skip


def build(report: Report) -> Section:
    """A line per fine-tuning; nothing where there was none."""
    section = Section("Fine-tuning")
    if rows := [_row(run, run.training) for run in report.runs if run.training]:
        section.text.append(WHAT)
        section.tables.append(Table("Fine-tunings", COLUMNS, rows))
    return section


def _row(run: Run, training: Training) -> list[str]:
    steps = [entry for entry in training.history if "nll_later" in entry.model_fields_set]
    first, last = (steps[0], steps[-1]) if steps else (LogEntry(), LogEntry())
    held_out = next((e.eval_nll for e in reversed(training.history) if e.eval_nll is not None), None)
    rows = "-" if run.manifest.rows is None else str(run.manifest.rows)
    return [
        run.label, run.config.objective or "-", rows, str(training.steps),
        f"{number(first.nll_later)} to {number(last.nll_later)}", _gain(last.log_ratio_1, last.weight_1),
        _gain(last.log_ratio_2_5, last.weight_2_5), number(held_out), _margin(run.manifest.margin),
    ]  # fmt: skip


def _gain(nats: float | None, weight: float | None) -> str:
    return "-" if nats is None or weight is None else f"{nats:+.2f} ({weight:.2f})"


def _margin(margin: Margin | None) -> str:
    if margin is None:
        return "-"
    before, after = margin.before["0.5"][0], margin.after["0.5"][0]
    return f"{before:+.1f} to {after:+.1f}"
