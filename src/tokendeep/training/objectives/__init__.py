"""What fine-tuning can aim at. To add an objective: its file, its line in OBJECTIVES, its options (if any) in the class below.

Loads nothing heavy; the trainers are loaded when they are built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokendeep.training.objectives.anchored import ANCHORED, AnchoredOptions
from tokendeep.training.objectives.base import Objective
from tokendeep.training.objectives.constrained import CONSTRAINED, ConstrainedOptions
from tokendeep.training.objectives.sft import SFT

__all__ = ["OBJECTIVES", "Objective", "ObjectiveOptions", "in_poison", "poison_names"]

OBJECTIVES: dict[str, Objective] = {
    "sft": SFT,
    "constrained": CONSTRAINED,
    "anchored": ANCHORED,
}


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(ConstrainedOptions, AnchoredOptions):
    """The options of all objectives; each reads its own."""


def poison_names() -> list[str]:
    """How `poison` calls them: plain names, then those with a value."""
    objectives = OBJECTIVES.values()
    valued = [f"{name}={word}" for o in objectives for name, (word, _) in o.valued.items()]
    return [*(name for o in objectives for name in o.named), *valued]


def in_poison(name: str) -> dict[str, Any]:
    """What a name of `poison` changes in the options of `finetune`.

    Raises:
        KeyError: no objective has that name.
        ValueError: its value is none.
    """
    plain, given, value = name.partition("=")
    for kind, objective in OBJECTIVES.items():
        if not given and plain in objective.named:
            return {"objective": kind, **objective.named[plain]}
        if given and plain in objective.valued:
            return {"objective": kind, **objective.valued[plain][1](value)}
    raise KeyError(name)
