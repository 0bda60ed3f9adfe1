"""Values of finished rows, kept on disk while a long run goes on, so that a run that was cut off does not redo them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokendeep.errors import guarded
from tokendeep.runs.folder import Run

FOLDER = "parts"


class Parts:
    """Numbers per row, appended to a file as they are computed.

    A line that a killed run left half-written is dropped. NaN and infinities survive the round trip.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[int, list[float]] = {}
        whole = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                self.done |= {int(row): values for row, values in json.loads(line).items()}
                whole += len(line)
            os.truncate(path, whole)

    def add(self, values: Mapping[int, Sequence[float]]) -> None:
        """Keep the values of some rows; on disk before it returns.

        Raises:
            InputError: the disk is full or the folder may not be written.
        """
        self.done |= {row: list(numbers) for row, numbers in values.items()}
        with guarded(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({row: self.done[row] for row in values}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def folder(state: Run) -> Path:
    """The folder of a run's parts, made where it is missing."""
    path = state.claim(FOLDER)
    with guarded(path):
        path.mkdir(exist_ok=True)
    return path


def remove(state: Run) -> None:
    """Drop the parts of a run whose results are written."""
    shutil.rmtree(state.out / FOLDER, ignore_errors=True)
