"""Continuations scored by an engine elsewhere: the same values as in memory, and how few are asked in which order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from tokendeep.compute import scoring, trees
from tokendeep.engines.server import branches
from tokendeep.types import IGNORE, Encoded, Subject

ROW = [5, 6, 7, 8, 9, 10, 11, 12]
BRANCHES = [
    (3, (8, 9)), (3, (20, 21)), (3, (20, 22)), (3, (8, 30)), (5, (10, 11)), (5, (20, 21)), (6, (11, 12)), (6, (20, 21)),
]  # fmt: skip


class Engine:
    """Scores with a model in memory, and remembers what it was asked."""

    def __init__(self, subject: Any) -> None:
        self.subject, self.asked = subject, list[tuple[tuple[int, ...], int]]()

    def score(self, ids: Sequence[int], start: int) -> Future[tuple[float, ...]]:
        self.asked.append((tuple(ids), start))
        row = Encoded(list(ids), [IGNORE] * start + list(ids[start:]))
        done: Future[tuple[float, ...]] = Future()
        done.set_result(tuple(scoring.token_logps(self.subject, [row])[0].tolist()))
        return done


def test_the_values_are_those_in_memory(tiny_subject: Subject) -> None:
    jobs = [(ROW, BRANCHES), (ROW[:4], BRANCHES[:4])] * 4  # more rows than are asked ahead
    found = list(branches.branch_logps(Engine(tiny_subject), jobs))
    for (ids, some), values in zip(jobs, found, strict=True):
        assert values == pytest.approx(trees.branch_logps(tiny_subject, ids, some).tolist(), abs=1e-4)


def test_what_begins_another_path_is_not_asked_again_and_shared_beginnings_stand_together(tiny_subject: Subject) -> None:
    engine = Engine(tiny_subject)
    list(branches.branch_logps(engine, [(ROW, BRANCHES)]))
    paths = [path for path, _ in engine.asked]
    # the answer's own next tokens are asked once: those at 3 begin the path of those at 6, and those at 5 do
    assert (tuple(ROW), 3) in engine.asked
    assert len(paths) == 6
    assert paths == sorted(paths)
