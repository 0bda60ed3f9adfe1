"""What an audit found, in lines for a terminal; no text of a row."""

from __future__ import annotations

from tokendeep import plain
from tokendeep.records import Audit, Detection
from tokendeep.records.calibration import Estimate

SHOWN = 10  # rows that are listed


def describe(record: Audit) -> list[str]:
    """The lines of an audit: counts, the rows at the top, and how well the scores did where there are labels."""
    scored = len(record.rows) - record.unscored
    lines = [
        f"audit: {record.flagged} of {scored} rows of {record.name} are taken out by {record.by} (--cut {record.cut})"
    ]
    if record.unscored:
        first = next(row for row in record.rows if row.rank is None)
        lines.append(
            f"  {record.unscored} rows are in neither file, for they cannot be scored; row {first.row}: {first.reason}"
        )
    if record.shortened:
        lines.append(f"  {record.shortened} rows are longer than the longest length; their ends were not looked at")
    if record.tied:
        lines.append(
            f"  {record.tied} rows that are left score as the last one that is taken out: the first in the file went"
        )
    lines += [f"  {score.name}: {score.about} ({score.seconds:.0f} s)" for score in record.scores]
    names = [score.name for score in record.scores]
    lines.append(f"{'rank':>6}  {'row':>6}  {'id':<24}" + "".join(f"{name:>16}" for name in names))
    for row in record.rows[: min(SHOWN, scored)]:
        values = "".join(f"{row.scores[name]:>16.4g}" for name in names)
        lines.append(f"{row.rank:>6}  {row.row:>6}  {plain.one_line(row.id)[:24]:<24}{values}")
    if record.flagged:
        lines.append(f"  the first: {record.rows[0].reason}")
    for score in record.scores:
        if score.detection:
            lines.append(f"  {score.name} against the labels: {detection_words(score.detection)}")
    return lines


def detection_words(found: Detection) -> str:
    """The figures of a detection with their intervals."""
    named = {"AUROC": found.auroc, "AUPRC": found.auprc, "found at 1 % false alarms": found.recall}
    words = [f"{name} {one.value:.3f}{_ends(one)}" for name, one in named.items()]
    return f"{', '.join(words)} ({found.positives} of {found.positives + found.negatives} rows)"


def _ends(one: Estimate) -> str:
    return "" if one.low is None or one.high is None else f" [{one.low:.3f}, {one.high:.3f}]"
