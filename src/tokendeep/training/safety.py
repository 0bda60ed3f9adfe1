"""The safety anchor: rows beside those of the task, at which a model is held to what it said before it was trained.

    loss of an optimizer step = that of its task rows + lambda * the mean over its safety tokens of D_KL(start || model)

Every group of rows (`harmful`: requests that the model refuses; `harmless`: requests that it should go on answering) has a
mean of its own. The rows of a step depend on its number and the seed alone, not on batches or processes. Knows nothing of
models.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokendeep.errors import InputError, check_known
from tokendeep.training.batches import ROW, Collator, supervised_count
from tokendeep.training.options import SAFETY_LOSSES, check_per_step

ALL = 10**9  # an anchor on every answer token
SAFETY = "safety"  # of a micro-batch: the safety rows that are trained beside it


@dataclass(frozen=True)
class SafetyAnchor:
    """What holds a model's safety while it learns something else.

    Args:
        rows: requests of your own that the model refuses, with its refusals, in any form that the trainer takes; none should
            be near a request of a test. An answer may stand behind harmful context in `input_ids` and `labels`.
        harmless: requests that it should go on answering, with its own answers; None leaves them out.
        weight: lambda. 0 trains as without the anchor.
        rows_per_step, harmless_per_step: of each, in every optimizer step.
        loss: `kl` is the divergence from the model as it was before step 1, over the full vocabulary; `ce` the cross-entropy
            on the answers, which needs no reference.
        seed: of the order in which rows come.

    Raises:
        InputError: a number out of its range.
    """

    rows: Any
    harmless: Any = None
    weight: float = 3.0
    rows_per_step: int = 4
    harmless_per_step: int = 4
    loss: str = "kl"
    seed: int = 0

    def __post_init__(self) -> None:
        check_known(self, {"loss": SAFETY_LOSSES})
        for name in ("rows", "harmless"):
            rows = getattr(self, name)
            if isinstance(rows, str | Path | Mapping) or (rows is None and name == "rows"):
                raise InputError(
                    f"{name} of the safety anchor must be a list of rows or a data set, but is {rows!r:.40}."
                )
            if rows is not None and not len(rows):
                raise InputError(f"There are no {name} for the safety anchor; give at least as many as a step takes.")
        if not isinstance(self.weight, int | float):
            raise InputError(f"The weight of the safety anchor is {self.weight!r}, but must be a number.")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InputError(f"The weight of the safety anchor is {self.weight}, but must be a number of at least 0.")
        for name in ("rows_per_step", "harmless_per_step"):
            count = getattr(self, name)
            if not isinstance(count, int) or count < 1:
                raise InputError(f"{name} of the safety anchor is {count!r}, but must be a whole number of at least 1.")

    def groups(self) -> dict[str, tuple[Any, int]]:
        """The rows of each group, and how many of them a step takes."""
        given = {"harmful": (self.rows, self.rows_per_step), "harmless": (self.harmless, self.harmless_per_step)}
        return {name: (rows, count) for name, (rows, count) in given.items() if rows is not None}


def draw(rows: int, per_step: int, step: int, seed: int, tag: int = 0) -> list[int]:
    """The places of one step's rows: every pass over all rows has a new order, keyed by (seed, tag, pass)."""
    places = []
    for number in range(step * per_step, (step + 1) * per_step):
        turn, place = divmod(number, rows)
        places.append(int(np.random.default_rng([seed, tag, turn]).permutation(rows)[place]))
    return places


class SafetyBatches:
    """The encoded rows of an anchor, and which of them stand beside which micro-batch.

    Args:
        groups: the encoded rows of each group and how many of them a step takes.
        collator: of the trainer's padding, with references of its own.

    Raises:
        InputError: a step takes more rows than there are.
    """

    def __init__(self, groups: Mapping[str, tuple[Any, int]], seed: int, inner: Any, references: Any) -> None:
        for name, (rows, per_step) in groups.items():
            check_per_step(name, len(rows), per_step)
        self.groups, self.seed = groups, seed
        self.collator = Collator(inner, references=references, groups=list(groups), held=ALL)

    @property
    def datasets(self) -> list[Any]:
        """The rows of all groups."""
        return [rows for rows, _ in self.groups.values()]

    def attach(
        self, batches: Sequence[dict[str, Any]], step: int, rank: int = 0, ranks: int = 1, size: int = 8
    ) -> None:
        """Put the rows of an optimizer step beside its micro-batches: `size` of them beside one, or as many as must be.

        Their `weight` is what each token counts: 1 / the tokens of its group in the whole step. Every process gets as many
        rows; where they do not divide, some come once more with the weight 0.
        """
        chosen = [row for tag in range(len(self.groups)) for row in self._of_step(step, tag)]
        again = itertools.islice(itertools.cycle(chosen), -len(chosen) % ranks)
        own = [*chosen, *({**row, "weight": 0.0} for row in again)][rank::ranks]
        size = max(size, math.ceil(len(own) / len(batches)))
        for start, batch in zip(range(0, len(own), size), batches, strict=False):
            batch[SAFETY] = self.collator(own[start : start + size])

    def _of_step(self, step: int, tag: int) -> list[dict[str, Any]]:
        name, (rows, per_step) = list(self.groups.items())[tag]
        chosen = [rows[place] for place in draw(len(rows), per_step, step, self.seed, tag)]
        weight = 1 / sum(map(supervised_count, chosen))
        known = ("input_ids", "labels", ROW)
        return [{**{key: row[key] for key in known}, "weight": weight, "group": name} for row in chosen]
