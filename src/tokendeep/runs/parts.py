"""Values of finished rows, kept on disk while a long run goes on, so that a run that was cut off does not redo them."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
        for line in whole_lines(path):
            self.done |= {int(row): values for row, values in line.items()}

    def add(self, values: Mapping[int, Sequence[float]]) -> None:
        """Keep the values of some rows; on disk before it returns.

        Raises:
            InputError: the disk is full or the folder may not be written.
        """
        self.done |= {row: list(numbers) for row, numbers in values.items()}
        append(self.path, {row: self.done[row] for row in values})


def whole_lines(path: Path) -> list[Any]:
    """The JSON lines of a file, none where it is not there; one that a killed run left half-written is cut off."""
    lines, whole = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith(b"\n"):
            break
        lines.append(json.loads(line))
        whole += len(line)
    if path.exists():
        os.truncate(path, whole)
    return lines


def append(path: Path, record: object) -> None:
    """Add a JSON line to a file that its owner alone can read; on disk before it returns.

    Raises:
        InputError: the disk is full or the folder may not be written.
    """
    with guarded(path), open(path, "a", encoding="utf-8", opener=partial(os.open, mode=0o600)) as file:
        file.write(json.dumps(record) + "\n")
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
