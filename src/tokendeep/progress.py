"""What a user sees while waiting: a line when a model is loaded, a bar for every long work, with an estimate once it is sound.

Knows nothing of what is waited for.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from tokendeep.runs import is_main_process

T = TypeVar("T")
EARLY = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} [{elapsed}{postfix}]"
SETTLED = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Bar(tqdm):
    """A bar that tells the time left only when `settle` units are done.

    Rows that are worked on together end together: by the first of them alone the estimate would be off by tens.
    """

    def __init__(self, total: float, title: str, unit: str, *, settle: float = 1, **more: Any) -> None:
        self.settle = settle
        columns = shutil.get_terminal_size().columns  # tqdm takes a terminal that does not know its size for one of 0
        super().__init__(total=total, desc=title, unit=unit, smoothing=0, ncols=columns, **more)

    @classmethod
    def over(cls, rows: Sequence[T], title: str, unit: str, **more: Any) -> Iterator[T]:
        """The rows one after another, under a bar."""
        with cls(len(rows), title, unit, **more) as bar:
            for row in rows:
                yield row
                bar.update()

    def reach(self, place: float) -> None:
        """Go on to a place, which may lie between two units."""
        self.update(min(place, self.total) - self.n)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the line is made of."""
        values: dict[str, Any] = super().format_dict
        settled = values["n"] - values["initial"] >= self.settle
        return {**values, "bar_format": SETTLED if settled else EARLY}


def loading(name: str) -> None:
    """Say that a model is being loaded, on a line of its own, before any bar begins."""
    if is_main_process():
        print(f"loading {name}", file=sys.stderr, flush=True)
