"""Log-probabilities of many short continuations of rows, by a model behind an engine of servers.

What is asked goes out in the order of a walk over the tree of all of them, so that a server that keeps what it has read finds
each beginning again; a path that begins another is scored with it. Knows nothing of refusals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol

Path = tuple[int, ...]
AHEAD = 4  # rows that are asked before the first of them is there, so that servers do not wait for us


class Scorer(Protocol):
    """An engine that tells the log-probabilities of given tokens."""

    def score(self, ids: Sequence[int], start: int) -> Future[tuple[float, ...]]:
        """Those of `ids[start:]`, in nats."""


def branch_logps(
    engine: Scorer, jobs: Iterable[tuple[Sequence[int], Sequence[tuple[int, Path]]]]
) -> Iterator[list[float]]:
    """For each row its branches' log-probabilities in nats, each summed over its tokens.

    Args:
        jobs: (ids, branches): each branch (at, tokens) is scored as what follows `ids[:at]`.

    Raises:
        InputError: as the engine's `score`.
    """
    waiting: deque[Callable[[], list[float]]] = deque()
    for ids, branches in jobs:
        waiting.append(_ask(engine, ids, branches))
        if len(waiting) > AHEAD:
            yield waiting.popleft()()
    for answer in waiting:
        yield answer()


def _ask(engine: Scorer, ids: Sequence[int], branches: Sequence[tuple[int, Path]]) -> Callable[[], list[float]]:
    paths = [(at, (*ids[:at], *tokens)) for at, tokens in branches]
    whole = longest({path for _, path in paths})
    starts: dict[Path, int] = {}
    for at, path in paths:
        starts[whole[path]] = min(at, starts.get(whole[path], at))
    scores = {path: engine.score(path, start) for path, start in sorted(starts.items())}

    def read() -> list[float]:
        return [
            sum(scores[whole[path]].result()[at - starts[whole[path]] : len(path) - starts[whole[path]]])
            for at, path in paths
        ]

    return read


def longest(paths: Iterable[Path]) -> dict[Path, Path]:
    """For each path one that it begins and that begins no other; itself where it begins none."""
    found: dict[Path, Path] = {}
    following: Path = ()
    for path in sorted(paths, reverse=True):  # what a path begins stands right behind it in sorted order
        found[path] = found[following] if following[: len(path)] == path else path
        following = path
    return found
