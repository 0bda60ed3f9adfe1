"""The rows of an audit: read with their records, encoded as a training would see them, and put into audit.json.

Rows that hold nothing to train on, and rows cut by the longest length, are kept apart with the reason. Knows no score by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokendeep import data, runs
from tokendeep.attacks.prompts import overlap
from tokendeep.audits import detection, ranking
from tokendeep.audits.base import Anchor, Array, Score
from tokendeep.data.labels import WORDS
from tokendeep.data.row import Row, shown
from tokendeep.errors import InputError, Unusable
from tokendeep.records import Audit, AuditRow, AuditScore, Detection
from tokendeep.records.calibration import Estimate
from tokendeep.runs.files import user_path
from tokendeep.training.rows import answers_of
from tokendeep.types import Chat, Encoded, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Given:
    """A row as it was read: its number, its place for error sentences, its record, and its conversation, or why it holds none."""

    row: int
    where: str
    hash: str
    values: Mapping[str, Any]
    chat: Chat | None
    why: str = ""
    label: int | None = None


@dataclass(frozen=True)
class Answers:
    """What is scored: answers with the number of their row among those read, and the rows of which nothing can be.

    Args:
        shortened: numbers of rows with an answer that is longer than the longest length.
    """

    encoded: Sequence[Encoded]
    owners: Sequence[int]
    unscored: Mapping[int, str]
    shortened: frozenset[int]

    @property
    def scored(self) -> int:
        """How many rows have an answer to score."""
        return len(set(self.owners))


@dataclass(frozen=True)
class Values:
    """One score of all answers, what it was computed with, and the seconds that took."""

    score: Score
    values: Array
    about: str
    seconds: float


# --- reading -------------------------------------------------------------------------------------


def read(source: data.Source, columns: Sequence[str], limit: int | None, labels: str | None) -> list[Given]:
    """Every row of a source, in its order.

    Raises:
        InputError: the source cannot be read, a row is wrong, or a label is missing or not 0 or 1; all labels are the same.
    """
    empty: list[Given] = []

    def skip(row: Row, why: str) -> None:
        empty.append(_given(row, None, labels, why))

    pairs = data.read_whole_chats(
        data.choose(source, columns), limit, beside=[labels] if labels else [], skip=skip
    )  # fmt: skip
    found = sorted([*empty, *(_given(row, chat, labels) for row, chat in pairs)], key=lambda one: one.row)
    if labels and len({one.label for one in found}) < 2:
        raise InputError(
            f"{data.named(source)}: all {len(found)} rows have the label {found[0].label}, so no score can be evaluated; leave "
            "--labels out."
        )
    return found


def _given(row: Row, chat: Chat | None, labels: str | None, why: str = "") -> Given:
    return Given(row.number, row.where, runs.sha256_text(data.content(row)), row.values, chat, why, _label(row, labels))


def _label(row: Row, name: str | None) -> int | None:
    if name is None:
        return None
    if name not in row.values:
        have = ", ".join(map(shown, row.values))
        raise InputError(f"{row.where}: has no column {shown(name)} for --labels, but {have}.")
    value = WORDS.get(str(row.values[name]).strip().lower())
    if value is None:
        raise InputError(f"{row.where}: {shown(name)} must be 0 or 1 for --labels; mend it or leave the row out.")
    return value


def near(rows: Sequence[Given], anchors: Sequence[Anchor]) -> int:
    """How many requests of the probe are near-duplicates of rows."""
    chats = [one.chat for one in rows if one.chat is not None]
    return overlap(chats, [Prompt(one.id, one.messages) for one in anchors])


# --- encoding ------------------------------------------------------------------------------------


def encode(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Given], system: str, train_on: str, longest: int
) -> Answers:
    """The answers of all rows.

    Raises:
        InputError: naming the row, an answer that the chat template cannot hold.
    """
    encoded: list[Encoded] = []
    owners: list[int] = []
    unscored: dict[int, str] = {}
    shortened: set[int] = set()
    for number, given in enumerate(rows):
        usable, why = _answers(tokenizer, given, system, train_on, longest)
        if not usable:
            unscored[number] = why
        if any(len(row.input_ids) > longest for row in usable):
            shortened.add(number)
        encoded += [Encoded(row.input_ids[:longest], row.labels[:longest]) for row in usable]
        owners += [number] * len(usable)
    return Answers(encoded, owners, unscored, frozenset(shortened))


def _answers(
    tokenizer: PreTrainedTokenizerBase, given: Given, system: str, train_on: str, longest: int
) -> tuple[list[Encoded], str]:
    """The answers of a row that have a token to score, and why there is none."""
    usable: list[Encoded] = []
    why = given.why
    if given.chat is None:
        return usable, why
    try:
        for one in answers_of(given.chat, tokenizer, system=system, train_on=train_on):
            if isinstance(one, Unusable):
                why = str(one)
            elif one.start >= longest:
                why = f"its prompt takes {one.start} tokens and leaves no room in {longest}"
            else:
                usable.append(one)
    except Unusable as error:
        why = str(error)
    except InputError as error:
        raise InputError(f"{given.where} ({given.chat.id}): {error}") from error
    return usable, why


# --- results -------------------------------------------------------------------------------------


def record(rows: Sequence[Given], answers: Answers, scores: Sequence[Values], options: Any) -> Audit:
    """The ranking, of which the first score decides."""
    tables = {one.score.name: by_row(len(rows), answers.owners, one.values) for one in scores}
    first = tables[scores[0].score.name]
    scored = answers.scored
    flagged = ranking.cut_count(options.cut, scored)
    ranked = ranking.order(first)
    made = [
        _row(rows[number], number, rank, answers, scores[0].score, tables, flagged)
        for rank, number in enumerate(ranked, 1)
    ]
    labels = [one.label for one in rows]
    return Audit(
        model=options.model, name=user_path(options.data).name,
        data=runs.hash_input("data", data.identity(options.data)), by=scores[0].score.name, cut=options.cut,
        flagged=flagged, tied=ranking.tied(first, flagged), unscored=len(answers.unscored),
        shortened=len(answers.shortened),
        scores=[
            AuditScore(
                name=one.score.name, unit=one.score.unit, about=one.about, scored=scored, seconds=one.seconds,
                detection=detected(tables[one.score.name], labels),
            )
            for one in scores
        ],
        rows=made,
    )  # fmt: skip


def by_row(count: int, owners: Sequence[int], values: Array) -> list[float]:
    """The highest value of each row's answers; NaN where it has none."""
    highest = [math.nan] * count
    for owner, value in zip(owners, values.tolist(), strict=True):
        highest[owner] = value if math.isnan(highest[owner]) else max(highest[owner], value)
    return highest


def detected(values: Sequence[float], labels: Sequence[int | None]) -> Detection | None:
    """How well the scores tell the labels apart, over rows that have a score; None where there are not both labels."""
    pairs = [
        (value, label) for value, label in zip(values, labels, strict=True) if label is not None and value == value
    ]
    truth = [label for _, label in pairs]
    if len(set(truth)) < 2:
        return None
    found, positives = detection.figures([value for value, _ in pairs], truth), sum(truth)
    return Detection(
        positives=positives, negatives=len(pairs) - positives,
        **{name: Estimate(value=value, low=low, high=high) for name, (value, low, high) in found.items()},
    )  # fmt: skip


def _row(
    given: Given,
    number: int,
    rank: int,
    answers: Answers,
    first: Score,
    tables: Mapping[str, Sequence[float]],
    flagged: int,
) -> AuditRow:
    name = given.chat.id if given.chat else f"row {given.row}"
    common: dict[str, Any] = {"row": given.row, "id": name, "hash": given.hash, "label": given.label}
    if number in answers.unscored:
        why = answers.unscored[number]
        return AuditRow(**common, rank=None, flagged=False, shortened=False, scores={}, reason=f"not scored: {why}")
    value = tables[first.name][number]
    known = np.asarray(tables[first.name])
    share = float((known < value).sum() / max(1, (~np.isnan(known)).sum() - 1))
    return AuditRow(
        **common, rank=rank, flagged=rank <= flagged, shortened=number in answers.shortened,
        scores={score: values[number] for score, values in tables.items()},
        reason=f"{first.reason(value)}; above {share:.0%} of the other rows",
    )  # fmt: skip
