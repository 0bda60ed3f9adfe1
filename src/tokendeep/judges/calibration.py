"""Labelled answers -> how far a judge agrees with the people who labelled them.

What a judge does not score is counted as undecided and never taken for a verdict. Knows nothing of files.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tokendeep import chat, runs
from tokendeep.data import labels
from tokendeep.data.labels import Labelled, Labels
from tokendeep.data.row import shown
from tokendeep.errors import InputError, did_you_mean
from tokendeep.judges import JUDGED, JUDGES, classifiers
from tokendeep.judges.agreement import Case, agreement
from tokendeep.records import Calibration

COLUMN = "column:"  # before the name of a column with the verdicts of another judge
KINDS, LONGEST = 50, 64  # most kinds of answers, and letters in the name of one: a column of texts has more of both


@dataclass(frozen=True)
class Said:
    """A judge's verdict on one answer: 1, 0, or None and why."""

    value: int | None
    reason: str | None = None


def check(judge: str, rows: Sequence[Labelled], by: str | None = None, threshold: float | None = None) -> None:
    """Refuse what cannot be calibrated, before any answer is judged.

    Raises:
        InputError: an unknown judge, a column that is not there, holds no verdicts, or names too many kinds.
    """
    if judge.startswith(COLUMN):
        labels.verdicts(rows, judge.removeprefix(COLUMN), threshold)
    elif threshold is not None:
        raise InputError(f"--threshold is for a column of scores; leave it out, or give --judge {COLUMN}NAME.")
    elif judge not in JUDGES:
        classifiers.check_name(judge)
        known = f"{did_you_mean(judge, JUDGES)}; {COLUMN}NAME is a column of verdicts beside the labels"
        raise InputError(f"Unknown judge '{judge}'; {known}.")
    if by:
        _kinds(rows, by)


def calibration(
    labelled: Labels, judge: str, said: Sequence[Said], by: str | None = None, threshold: float | None = None,
    judged: str = JUDGED[0],
) -> Calibration:  # fmt: skip
    """The agreement of what a judge has said with labels, as a whole and by the values of a column."""
    rows = labelled.rows
    cases = [Case(row.group, row.label, one.value) for row, one in zip(rows, said, strict=True)]
    kinds: dict[str, list[Case]] = defaultdict(list)
    for kind, case in zip(_kinds(rows, by) if by else (), cases, strict=False):
        kinds[kind].append(case)
    return Calibration(
        **dict(agreement(cases)),
        judge=judge if threshold is None else f"{judge}>={threshold:g}",
        judge_template=JUDGES[judge].template if judge in JUDGES else None,
        judged=None if judge.startswith(COLUMN) else judged,
        labels=labelled.name,
        label=labelled.label,
        data=runs.sha256(json.dumps([row.request, row.answer, row.label]).encode() for row in rows),
        by=by,
        kinds={kind: agreement(kinds[kind]) for kind in sorted(kinds)},
        reasons=dict(Counter(one.reason for one in said if one.reason)),
        notes=list(labelled.notes),
    )


def verdicts(rows: Sequence[Labelled], judge: str, threshold: float | None = None) -> list[Said]:
    """What a judge that asks no language model says of each answer."""
    if judge.startswith(COLUMN):
        column = judge.removeprefix(COLUMN)
        values = labels.verdicts(rows, column, threshold)
        return [Said(value, "no verdict" if value is None else None) for value in values]
    return [_judged(row, judge) for row in rows]


def _judged(row: Labelled, judge: str) -> Said:
    """The verdict of a rule on an answer without its thinking."""
    rule, answer = JUDGES[judge].rule, chat.answer(row.answer)
    assert rule is not None
    if answer is None:
        return Said(None, "thought")
    try:
        verdict = rule(answer, truncated=False)
    except Exception:  # a judge that breaks is a result of its own, not a zero
        return Said(None, "judge-error")
    return Said(verdict.value, verdict.reason)


def _kinds(rows: Sequence[Labelled], by: str) -> list[str]:
    """The kind of each answer. Raises InputError for a column that is not there, or that holds texts and no kinds."""
    for row in rows:
        if by not in row.values:
            raise InputError(f"{row.where}: has no column {shown(by)} for --by; {did_you_mean(by, row.values)}.")
    kinds = ["none" if row.values[by] in (None, "") else str(row.values[by]) for row in rows]
    texts = any(kind in (row.request, row.answer) for kind, row in zip(kinds, rows, strict=True))
    if texts or len(set(kinds)) > KINDS or max(map(len, kinds)) > LONGEST:
        raise InputError(
            f"--by names {shown(by)}, whose values are no kinds of answers (texts, or over {KINDS}); name another column."
        )
    return kinds
