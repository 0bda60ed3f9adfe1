"""Log-probabilities of many short continuations of rows, by a model behind an engine of servers.

What is asked goes out in the order of a walk over the tree of all of them, so that a server that keeps what it has read finds
each beginning again. Where it tells the log-probabilities of chosen next tokens, each fork of the tree is asked once; else
each path is scored whole, and one that begins another with it. Knows nothing of refusals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tokendeep.engines.server.handshake import CHOSEN

if TYPE_CHECKING:
    from concurrent.futures import Future

    from tokendeep.engines.server.engine import ServerEngine

Path = tuple[int, ...]
Branch = tuple[int, Path]
AHEAD = 4  # rows that are asked before the first of them is there, so that servers do not wait for us


def branch_logps(engine: ServerEngine, jobs: Iterable[tuple[Sequence[int], Sequence[Branch]]]) -> Iterator[list[float]]:
    """For each row its branches' log-probabilities in nats, each summed over its tokens.

    Args:
        jobs: (ids, branches): each branch (at, tokens) is scored as what follows `ids[:at]`.

    Raises:
        InputError: as the engine's `score`.
    """
    ask = _forks if engine.about.picks else _paths
    waiting: deque[Callable[[], list[float]]] = deque()
    for ids, branches in jobs:
        waiting.append(ask(engine, ids, branches))
        if len(waiting) > AHEAD:
            yield waiting.popleft()()
    for answer in waiting:
        yield answer()


def _forks(engine: ServerEngine, ids: Sequence[int], branches: Sequence[Branch]) -> Callable[[], list[float]]:
    """Ask what comes next behind every beginning of a branch."""
    steps = [[((*ids[:at], *tokens[:n]), token) for n, token in enumerate(tokens)] for at, tokens in branches]
    wanted: dict[Path, set[int]] = {}
    for fork, token in (step for branch in steps for step in branch):
        wanted.setdefault(fork, set()).add(token)
    scores: dict[tuple[Path, int], tuple[Future[tuple[float, ...]], int]] = {}
    for fork, tokens in sorted(wanted.items()):
        chosen = sorted(tokens)
        for some in (chosen[i : i + CHOSEN] for i in range(0, len(chosen), CHOSEN)):
            future = engine.score_next(fork, some)
            scores |= {(fork, token): (future, place) for place, token in enumerate(some)}

    def read() -> list[float]:
        values = {step: future.result()[place] for step, (future, place) in scores.items()}
        return [sum(values[step] for step in branch) for branch in steps]

    return read


def _paths(engine: ServerEngine, ids: Sequence[int], branches: Sequence[Branch]) -> Callable[[], list[float]]:
    """Score every branch behind its whole beginning."""
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
