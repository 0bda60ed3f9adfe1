"""How often the log of an evaluation is written while it runs.

Inspect writes a log whole each time, which costs more the more is in it. Knows nothing of what is in a log.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from inspect_ai._eval.task import log as inspect_log

FLUSHES = 2000  # times that a log is written at most: beyond so many samples, not after each of them
PARTS = 20  # the same where a server answers, which can be faster than the writing
SECONDS = 5.0  # how long an answer of a server waits to be written at most, in a log of up to 10,000 samples
TIMER = "_STALE_FLUSH_INTERVAL"  # Inspect's own word for that, which it has no setting for


def pause(largest: int) -> float:
    """Seconds that an answer of a server waits to be written at most: a larger log takes longer to write."""
    return max(SECONDS, SECONDS * largest / 10_000)


@contextmanager
def rhythm(largest: int, served: bool) -> Iterator[int]:
    """Yields how many samples of a task are written at once, for the time that its log is begun in.

    A run that is killed loses no more than these, and asks them again.

    Args:
        largest: samples of the largest task.
        served: whether a server answers.
    """
    often = max(1, largest // FLUSHES)
    if not served or not hasattr(inspect_log, TIMER):
        yield often
        return
    before = getattr(inspect_log, TIMER)
    setattr(inspect_log, TIMER, pause(largest))
    try:
        yield max(often, largest // PARTS)
    finally:
        setattr(inspect_log, TIMER, before)
