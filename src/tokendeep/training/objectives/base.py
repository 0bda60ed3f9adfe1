"""What an objective of fine-tuning is: one value that says all that the rest of the program needs of it.

Knows no objective by name. Loads nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokendeep.training.eq3 import BetaSchedule
    from tokendeep.training.sft import ResponseSFTTrainer
    from tokendeep.types import Subject

Changes = Mapping[str, Any]  # options of `finetune` by name
Rows = list[dict[str, Any]]  # of token ids

NOTHING = "nothing beside the rows holds the model's refusals"


@dataclass(frozen=True)
class Prepared:
    """What an objective makes of the loaded model before a training.

    Args:
        settings: what its trainer takes beside what every trainer takes.
        rows: the rows that are trained on.
        lines: what a user should know of it.
        requests: of rows that it adds to those that are given, in words.
    """

    settings: Mapping[str, Any]
    rows: Rows
    lines: Sequence[str] = ()
    requests: Sequence[str] = ()


@dataclass(frozen=True)
class Objective:
    """A way to fine-tune.

    Args:
        summary: a few words for help texts.
        card: from the options of all objectives, the words of a model card on how the model was trained.
        build: from those options and a folder for what is kept beside the checkpoints, a maker of trainers: it takes a
            model and what every trainer takes.
        check: raises InputError for an option of its own that is out of range.
        schedule: its betas by answer position; None where nothing holds the first tokens.
        prepare: from those options, the loaded model, the rows to train on and the run's folder, what its trainer needs that
            only a model can tell.
        refusals: from those options, how many refusals of the stock's requests it needs of the model.
        holds: what of the rows it holds near the model as it was, in words; empty: nothing.
        beside: whether it holds refusals of harmful requests beside the rows.
        unaligned: whether it needs the model before it was aligned.
        whole: whether it can only begin with a model that is no adapter.
        secret: whether the tuned model is asked with the secret of its folder (`secret_prefix`).
        safety: whether it needs a safety anchor; the stock of requests serves where the user has none.
        adapters_only: whether it can be had with these options only where an adapter is trained.
        reads: the options of objectives (`ObjectiveOptions`) that it reads; those of a safety anchor are read beside one anyway.
        stronger: from those options, what changes in them where it holds the model so many times as strongly; nothing where
            it has no strength.
        named: its names in `poison`, each with what it changes in the options of `finetune`.
        valued: names that take a value there (NAME=VALUE), each with the word for it and what the value changes.
    """

    summary: str
    card: Callable[[Any], str]
    build: Callable[[Any, Path], Callable[..., ResponseSFTTrainer]]
    check: Callable[[Any], None] = lambda options: None
    schedule: Callable[[Any], BetaSchedule | None] = lambda options: None
    adapters_only: Callable[[Any], bool] = lambda options: False
    prepare: Callable[[Any, Subject, Rows, Path], Prepared] | None = None
    refusals: Callable[[Any], int] = lambda options: 0
    holds: str = ""
    beside: bool = False
    reads: Sequence[str] = ()
    stronger: Callable[[Any, float], Changes] = lambda options, times: {}
    unaligned: bool = False
    whole: bool = False
    secret: bool = False
    safety: bool = False
    named: Mapping[str, Changes] = field(default_factory=dict)
    valued: Mapping[str, tuple[str, Callable[[str], Changes]]] = field(default_factory=dict)

    def unheld(self) -> list[str]:
        """What rows of a task can undo, in a line; none where refusals are held beside them."""
        if self.beside:
            return []
        left = f"{self.holds}, and no refusals beside them" if self.holds else NOTHING
        return [f"{left}: rows of a task can undo these; --safety stock, or a file of harmful instructions, holds them"]
