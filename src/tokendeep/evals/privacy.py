"""Private logs under `inspect eval`: what a run of Inspect writes is readable by its owner alone, as in a run of ours.

Knows nothing of tasks. Files of the process that are written before or after such a run are as the user has set them.
"""

import contextlib
import os
from collections.abc import Collection
from functools import cache
from pathlib import Path

from inspect_ai.hooks import Hooks, RunEnd, RunStart, hooks

INSPECTS = (".eval-set-id", "eval-set.json")  # what Inspect writes beside the logs of a set


@cache
def keep_logs_private() -> None:
    """From now on, the files that Inspect makes during a run are for their owner alone."""
    hooks(name="tokendeep_private", description="logs are readable by their owner alone")(Private)


class Private(Hooks):
    """Narrows the file mode of the process while runs go on."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.before = 0

    async def on_run_start(self, data: RunStart) -> None:
        if not self.running:
            self.before = os.umask(0o077)
        self.running.add(data.run_id)

    async def on_run_end(self, data: RunEnd) -> None:
        if data.run_id in self.running:
            self.running.remove(data.run_id)
            close({Path(log.location) for log in data.logs})
            if not self.running:
                os.umask(self.before)


def close(logs: Collection[Path]) -> None:
    """Make the folders private that hold these logs and nothing else: Inspect makes them before a run begins."""
    for folder in {path.parent for path in logs}:
        with contextlib.suppress(OSError):  # logs that lie elsewhere, or a folder of someone else
            if all(path in logs or path.name in INSPECTS for path in folder.iterdir()):
                folder.chmod(0o700)
