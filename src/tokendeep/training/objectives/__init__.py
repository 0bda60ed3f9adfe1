"""What fine-tuning can aim at. To add an objective: its file, its line in OBJECTIVES, its options (if any) in the class below.

Loads nothing heavy; the trainers are loaded when they are built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokendeep.errors import InputError, flag
from tokendeep.training.objectives.anchored import ANCHORED, AnchoredOptions
from tokendeep.training.objectives.base import Objective
from tokendeep.training.objectives.constrained import CONSTRAINED, ConstrainedOptions
from tokendeep.training.objectives.safety import SAFETY_ANCHOR, STOCK, SafetyOptions
from tokendeep.training.objectives.safety import check as check_safety
from tokendeep.training.objectives.safety import unused as unused_safety
from tokendeep.training.objectives.safety import words as safety_words
from tokendeep.training.objectives.sft import SFT

__all__ = [
    "OBJECTIVES",
    "STOCK",
    "Objective",
    "ObjectiveOptions",
    "SafetyOptions",
    "card",
    "check",
    "in_poison",
    "poison_names",
]

OBJECTIVES: dict[str, Objective] = {
    "sft": SFT,
    "constrained": CONSTRAINED,
    "anchored": ANCHORED,
    "safety-anchor": SAFETY_ANCHOR,
}


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(ConstrainedOptions, AnchoredOptions, SafetyOptions):
    """The options of all objectives; each reads its own."""


def check(options: Any) -> None:
    """Raises InputError for an option of the objective that is out of range, or of the safety anchor beside it."""
    objective = OBJECTIVES[options.objective]
    objective.check(options)
    check_safety(options)
    if not (options.safety or objective.safety) and (names := unused_safety(options)):
        raise InputError(f"{flag(names[0])} is of a safety anchor, and there is none; give --safety, or leave it out.")


def card(options: Any) -> str:
    """The objective and the safety anchor beside it, in the words of a model card."""
    return OBJECTIVES[options.objective].card(options) + safety_words(options)


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
