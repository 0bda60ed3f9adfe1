"""Section: data sets whose rows were audited: what was taken out, the rows at the top, and how well scores told labels."""

from tokendeep.records import Audit, Detection
from tokendeep.records.calibration import Estimate
from tokendeep.report.report import Report
from tokendeep.report.section import Csv, Section, Table
from tokendeep.report.words import count_or_dash, number

TOP = 10  # rows that a report lists of each audit
WHAT = (
    "Rows of a data set, ranked by how much training on them would push on the model's refusals; no text is kept. A row that "
    "is taken out is one to look at, not one that is known to be harmful."
)
COLUMNS = ("model", "rows", "taken out", "by", "not scored", "cut short", "computed with")
ROWS = ("model", "rank", "row", "id", "score", "why")
FOUND = ("model", "score", "labelled 1", "AUROC [95%]", "AUPRC [95%]", "found at 1 % false alarms [95%]")
HEADS = ("model", "file", "row", "id", "hash", "rank", "flagged", "score", "value")


def build(report: Report) -> Section:
    """A line for each audit, its rows at the top, and a line for each score that was evaluated; nothing where there is none."""
    section = Section("Audited rows")
    audits = [(run.label, run.audit) for run in report.runs if run.audit is not None]
    if not audits:
        return section
    section.text.append(WHAT)
    section.tables.append(Table("Audits", COLUMNS, [_line(label, audit) for label, audit in audits]))
    top = [line for label, audit in audits for line in _top(label, audit)]
    section.tables.append(Table("Rows that push most", ROWS, top))
    found = [
        [label, score.name, *_found(score.detection)]
        for label, audit in audits
        for score in audit.scores
        if score.detection is not None
    ]
    if found:
        note = "Against labels that the rows carry; intervals are a bootstrap in which either label keeps its number of rows."
        section.tables.append(Table("How well the scores tell labelled rows", FOUND, found, note))
    section.csv["audit"] = Csv(HEADS, [cells for label, audit in audits for cells in _cells(label, audit)])
    return section


def _line(label: str, audit: Audit) -> list[str]:
    rows = len(audit.rows)
    return [label, f"{rows} of {audit.name} ({audit.data[:8]})", f"{audit.flagged} (cut {audit.cut})", audit.by,
            str(audit.unscored), str(audit.shortened), audit.scores[0].about]  # fmt: skip


def _top(label: str, audit: Audit) -> list[list[str]]:
    return [
        [label, count_or_dash(row.rank), str(row.row), row.id, number(row.scores.get(audit.by), 3), row.reason]
        for row in audit.rows[:TOP]
        if row.flagged
    ]


def _found(one: Detection) -> list[str]:
    rows = f"{one.positives} of {one.positives + one.negatives}"
    return [rows, *(_bounds(figure) for figure in (one.auroc, one.auprc, one.recall))]


def _bounds(one: Estimate) -> str:
    known = one.low is not None and one.high is not None
    return number(one.value, 3) + (f" [{number(one.low, 3)}, {number(one.high, 3)}]" if known else "")


def _cells(label: str, audit: Audit) -> list[list[str | int | float | None]]:
    return [
        [label, audit.name, row.row, row.id, row.hash, row.rank, int(row.flagged), score, value]
        for row in audit.rows
        for score, value in row.scores.items()
    ]
