"""Labelled answers under a judge that asks a language model. No verdict is asked for twice, and each is kept as it comes.

Knows nothing of what the labels say.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inspect_ai.model import Model, ModelOutput

from tokendeep.data.labels import Labelled
from tokendeep.evals import grading, judging, stored
from tokendeep.evals.judging import Answer, Judging
from tokendeep.evals.stored import Store
from tokendeep.judges.base import Seen
from tokendeep.records import Verdict


@dataclass(frozen=True)
class Asking:
    """Who is asked, where what is found is kept, and which texts the grader is being asked about."""

    judge: Judging
    grader: Model
    store: Store
    done: Callable[[], object]
    under_way: dict[Seen, "asyncio.Future[Verdict]"] = field(default_factory=dict)


def verdicts(
    rows: Sequence[Labelled], judge: Judging, grader: Model, folder: Path, done: Callable[[], object]
) -> list[Verdict]:
    """What the grader says of each answer.

    Args:
        folder: where verdicts are kept, by hash and without text, so that a run goes on where it was cut off.
        done: called after each answer.

    Raises:
        InputError: the grader cannot be reached; what it has graded is kept.
    """
    asking = Asking(judge, grader, stored.read(folder), done)
    with stored.writing(asking.store):
        return grading.together(grader, (_verdict(answer, asking) for answer in answers(rows)))


def answers(rows: Sequence[Labelled]) -> list[Answer]:
    """The labelled answers as those of an evaluation."""
    return [Answer(row.request, ModelOutput.from_content("labelled", row.answer), _told(row)) for row in rows]


def _told(row: Labelled) -> dict[str, Any]:
    """What a behaviour of HarmBench says of a row, as the log of an evaluation has it."""
    return {"context": row.context, judging.KIND: row.values.get("FunctionalCategory")}


async def _verdict(answer: Answer, asking: Asking) -> Verdict:
    """What is known of this answer, else what the grader says now."""
    seen, signed = judging.seen_by(asking.judge, answer), judging.signed(asking.judge, answer, asking.grader)
    if seen is None:
        found = judging.unseen(asking.judge, answer)
    else:
        known = asking.store.find((asking.judge.judge, signed["template"], signed["grader"]), seen)
        found = known or await _asked(seen, asking)
        asking.store.append(found.model_copy(update=signed), seen)
    asking.done()
    return found


async def _asked(seen: Seen, asking: Asking) -> Verdict:
    """What the grader says of a text; rows that hold the same one share it."""
    if seen not in asking.under_way:
        asking.under_way[seen] = asyncio.ensure_future(grading.grade(asking.judge.by, seen, asking.grader))
    return await asking.under_way[seen]
