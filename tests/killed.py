"""A process that ends in the middle of a run, played within one process."""

from __future__ import annotations

from tokendeep.runs import files, lock


def forget_runs() -> None:
    """What ends with a process: its open runs, the folders it knows it made, and its locks."""
    files.CLAIMS.clear()
    files.MADE.clear()
    for folder in list(lock.HELD):
        lock.release(folder)
