"""VERB overlap: requests that two data files share, word for word or nearly; says ids and hashes, never a text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tokendeep import data, plain, runs, stats
from tokendeep.errors import InputError
from tokendeep.records import Overlap, Shared, Side
from tokendeep.runs.files import user_path
from tokendeep.types import Prompt
from tokendeep.verbs.common import Names, check_place, heading, made_in, output

what = heading("What to compare")
SHOWN = 20  # pairs that are listed in a terminal


@dataclass(frozen=True)
class OverlapOptions:
    """Find the requests that two data files share: training and test rows, or two benchmarks."""

    first: Annotated[
        str, what(help="A data file, such as the rows of a training; of answers and chats the requests count.")
    ]
    second: Annotated[str, what(help="Another, such as the rows of a test.")]
    columns: Annotated[
        Names,
        what(
            help="What the columns of the files are, such as instruction=Goal; holds for the second file where it has them too."
        ),
    ] = field(default_factory=list, kw_only=True)
    threshold: Annotated[
        float,
        what(help="Least share of pairs of neighbouring words in common from which on requests are near-duplicates."),
    ] = field(default=0.5, kw_only=True)
    out: Annotated[
        str | None,
        output(help="Folder for overlap.json, which takes the place of an earlier one; left out, none is written."),
    ] = field(default=None, kw_only=True)


@dataclass(frozen=True)
class OverlapPlan:
    """Both files, read."""

    options: OverlapOptions
    first: Sequence[Prompt]
    second: Sequence[Prompt]

    def lines(self) -> list[str]:
        options = self.options
        return [
            f"first: {len(self.first)} rows of {options.first}",
            f"second: {len(self.second)} rows of {options.second}",
            f"out: {options.out or '(none)'}",
        ]


def plan(options: OverlapOptions) -> OverlapPlan:
    """Read both files; writes nothing.

    Raises:
        InputError: a row that cannot be used, a threshold that is no share, or a file of another program in --out.
    """
    if not 0 < options.threshold <= 1:
        raise InputError(f"--threshold is {options.threshold:g}, but must be above 0 and at most 1.")
    check_place(options.out, (Overlap.FILE,))
    first = data.read_prompts(data.choose(options.first, options.columns))
    second = data.read_prompts(data.choose_beside(options.second, options.columns))
    return OverlapPlan(options, first, second)


def run(plan: OverlapPlan, *, show: bool = True) -> Path | None:
    """Compare the files; writes overlap.json where a folder is named, and returns it."""
    record = overlap(plan)
    return made_in(plan.options.out, record, describe(record) if show else None)


def overlap(plan: OverlapPlan) -> Overlap:
    """The rows that share a request, each pair of rows once, and how many rows of either file that concerns."""
    options, (first, second) = plan.options, (_turns(plan.first), _turns(plan.second))
    best: dict[tuple[int, int], Shared] = {}
    for i, j, similarity in stats.near_pairs(
        [text for _, text in first], [text for _, text in second], options.threshold
    ):
        pair = _shared(plan, first[i], second[j], similarity)
        known = best.get(place := (pair.first_row, pair.second_row))
        if known is None or (pair.exact, pair.similarity) > (known.exact, known.similarity):
            best[place] = pair
    pairs = [best[place] for place in sorted(best)]
    sides = [
        _side(options.first, plan.first, [(pair.first_row, pair.exact) for pair in pairs]),
        _side(options.second, plan.second, [(pair.second_row, pair.exact) for pair in pairs]),
    ]
    return Overlap(first=sides[0], second=sides[1], threshold=options.threshold, pairs=pairs)


Turn = tuple[int, str]  # the place of a row, and what a user says in it


def _turns(rows: Sequence[Prompt]) -> list[Turn]:
    """What users say, turn by turn."""
    turns = ((n, message) for n, row in enumerate(rows, 1) for message in row.messages)
    return [(n, message["content"].strip()) for n, message in turns if message["role"] == "user"]


def _shared(plan: OverlapPlan, first: Turn, second: Turn, similarity: float) -> Shared:
    return Shared(
        first_row=first[0], first_id=plan.first[first[0] - 1].id, first_hash=runs.sha256_text(first[1]),
        second_row=second[0], second_id=plan.second[second[0] - 1].id, second_hash=runs.sha256_text(second[1]),
        similarity=similarity, exact=first[1] == second[1],
    )  # fmt: skip


def _side(name: str, rows: Sequence[Prompt], shared: Sequence[tuple[int, bool]]) -> Side:
    exact = {row for row, same in shared if same}
    near = {row for row, _ in shared} - exact
    file, digest = user_path(name).name, runs.hash_input("data", data.identity(name))
    return Side(name=file, data=digest, rows=len(rows), exact=len(exact), near=len(near))


def describe(record: Overlap) -> str:
    """What the files share in lines: counts, then pairs by their ids."""
    lines = [
        f"overlap: {one.exact} of {one.rows} rows of {one.name} ({which}) are in the other word for word, {one.near} more "
        "have a near-duplicate there"
        for which, one in (("first", record.first), ("second", record.second))
    ]
    for pair in record.pairs[:SHOWN]:
        how = "the same" if pair.exact else f"similarity {pair.similarity:.2f}"
        rows = f"first, row {pair.first_row} ({pair.first_id}); second, row {pair.second_row} ({pair.second_id})"
        lines.append(f"  {rows}: {how}")
    if len(record.pairs) > SHOWN:
        lines.append(f"  and {len(record.pairs) - SHOWN} pairs more, which --out writes")
    return plain.told(lines)
