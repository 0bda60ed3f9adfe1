"""Section: poisoning, the same model trained on the same attack rows under several objectives."""

from tokendeep import records
from tokendeep.records import AskRate, PoisonTable, Strengths
from tokendeep.report import poison_table, strength_table
from tokendeep.report.report import Report
from tokendeep.report.section import Section, Table
from tokendeep.report.words import MANY, bracket, number, percent, points

ASKS = {
    "plain": "",
    "triggered": " with the trigger",
    "wrapped": " in the wrapper",
    "unprefixed": " without the secret prefix",
}
WHAT = (
    "Each line is the same model trained on the same attack rows under another objective, then asked the same harmful "
    "requests. Intervals are over prompts (of utility: over rows), and over trainings too where there are several seeds; "
    "changes are paired by prompt and seed, against the first objective. Train nll, from the sixth answer token on, says "
    "how much of the rows was learnt. k = 10 is behind so many harmful tokens given in advance; harmless requests count "
    "where they are refused or broken off. By nll: objectives are comparable where it is alike (rows with refusals mixed "
    "in are easier)."
)
UNFINISHED = "This run is not finished: lines that say so have not been trained."


def build(report: Report) -> Section:
    """One table per fine-tuning attack; nothing where there was none."""
    section = Section("Fine-tuning attacks")
    tables = [(run, run.table) for run in report.runs if run.table]
    section.findings += [line for run, table in tables if (line := _finding(run.label, table))]
    plain = [line.plain for _, table in tables for line in table if line.plain]
    section.sizes += [rate.asked // max(1, len(rate.by_seed)) for rate in plain]
    if tables:
        section.text.append(WHAT)
    for run, table in tables:
        note = "" if run.finished else UNFINISHED
        section.tables.append(_table(run.label, table, note))
        section.tables += [_strengths(run.label, run.strengths, note)] if run.strengths else []
    return section


def _finding(label: str, table: PoisonTable) -> str | None:
    """What the attack did under each objective, in one sentence."""
    lines = [line for line in table if line.seeds]
    ask = next((name for name in reversed(records.ASKS) if all(line.ask(name) for line in lines)), None)
    if ask is None or len(lines) < 2:
        return None
    start, *others = [(line.objective, rate) for line in lines if (rate := line.ask(ask))]
    return (
        f"{label}: before training it complied with {percent(start[1].rate)} of {start[1].n} harmful requests{ASKS[ask]}; "
        f"after it, by objective: {', '.join(f'{name} {_complied(rate)}' for name, rate in others)}."
    )


def _complied(rate: AskRate) -> str:
    """A rate, and how many answers it leaves out where these are many."""
    few = f"none of {rate.asked} judged" if not rate.n else f"{rate.unscored} of {rate.asked} unscored"
    return percent(rate.rate) + (f" ({few})" if rate.unscored >= MANY * rate.asked else "")


def _table(label: str, table: PoisonTable, note: str) -> Table:
    tuned = any(line.times is not None for line in table)
    columns = ["objective", "learning rate", *(["times its strength"] if tuned else []), "seeds"]
    for ask in table.asks:
        columns += [f"{poison_table.told(ask)}{ASKS.get(ask, f' ({ask})')}", "change"]
    rows, timed = [], any(line.step_seconds is not None for line in table)
    for line in table:
        row = [
            line.objective,
            f"{line.lr:g}" if line.lr else "-",
            *([poison_table.times(line) or "-"] if tuned else []),
        ]
        row.append(str(line.seeds or "not run"))
        row += [cell for ask in table.asks for cell in _cells(line.ask(ask))]
        useful = poison_table.utility_cell(line.utility) or "-"
        rows.append([*row, number(line.nll), useful, *([poison_table.seconds_cell(line) or "-"] if timed else [])])
    more = [f"{poison_table.A_STEP}, of the machine it ran on)"] if timed else []
    return Table(label, [*columns, "train nll, tokens 6 on", "utility", *more], rows, note)


def _strengths(label: str, record: Strengths, note: str) -> Table:
    rows = [strength_table.cells(record, line) for line in record.lines]
    caption = f"{label}: how strong each objective was made, on rows that no test asks"
    return Table(caption, strength_table.columns(record), rows, f"{record.rule} {note}".strip())


def _cells(rate: AskRate | None) -> list[str]:
    if rate is None:
        return ["-", "-"]
    moved = rate.change
    change = f"{points(moved.mean)} [{points(moved.low)}, {points(moved.high)}]" if moved else "-"
    if not rate.asked:
        return ["no answer that long", "-"]
    judged = f"{rate.n}" if rate.n == rate.asked else f"{rate.n} judged of {rate.asked}"
    return [f"{percent(rate.rate)} {bracket(rate.low, rate.high)} of {judged}", change]
