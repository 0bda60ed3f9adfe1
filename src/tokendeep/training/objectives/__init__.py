"""What fine-tuning can aim at. To add an objective: its file, its line in OBJECTIVES, its options (if any) in the class below.

Loads nothing heavy; the trainers are loaded when they are built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from tokendeep.errors import InputError, flag
from tokendeep.training.objectives.adaptive import ADAPTIVE
from tokendeep.training.objectives.anchored import ANCHORED, AnchoredOptions
from tokendeep.training.objectives.asft import ASFT
from tokendeep.training.objectives.base import Objective
from tokendeep.training.objectives.constrained import CONSTRAINED, ConstrainedOptions
from tokendeep.training.objectives.pact import PACT, PACT_FULL
from tokendeep.training.objectives.safety import SAFETY_ANCHOR, STOCK, SafetyOptions
from tokendeep.training.objectives.safety import check as check_safety
from tokendeep.training.objectives.safety import given as set_for_safety
from tokendeep.training.objectives.safety import words as safety_words
from tokendeep.training.objectives.secret_prefix import SECRET_PREFIX, SecretOptions
from tokendeep.training.objectives.sft import SFT
from tokendeep.training.objectives.str_like import STR_LIKE
from tokendeep.training.objectives.strength import StrengthOptions

__all__ = [
    "OBJECTIVES",
    "STOCK",
    "Objective",
    "ObjectiveOptions",
    "SafetyOptions",
    "card",
    "check",
    "in_poison",
    "names_in_help",
    "one_of_each",
    "poison_names",
    "set_for_safety",
    "stronger",
    "unused",
]

OBJECTIVES: dict[str, Objective] = {
    "sft": SFT,
    "constrained": CONSTRAINED,
    "anchored": ANCHORED,
    "safety-anchor": SAFETY_ANCHOR,
    "pact": PACT,
    "pact-full": PACT_FULL,
    "str-like": STR_LIKE,
    "adaptive": ADAPTIVE,
    "asft": ASFT,
    "secret-prefix": SECRET_PREFIX,
}


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions(ConstrainedOptions, AnchoredOptions, SafetyOptions, SecretOptions, StrengthOptions):
    """The options of all objectives; each reads its own."""


def check(options: Any) -> None:
    """Raises InputError for an option of the objective that is out of range, or of the safety anchor beside it."""
    objective = OBJECTIVES[options.objective]
    objective.check(options)
    if not options.unaligned and (objective.unaligned or options.safe_lora is not None):
        what = f"The objective {options.objective}" if objective.unaligned else "--safe-lora"
        raise InputError(
            f"{what} needs the model before it was aligned; give --unaligned (of poison: --base), "
            "a model of the same vocabulary."
        )
    if options.unaligned and not (objective.unaligned or options.safe_lora is not None):
        raise InputError(
            f"--unaligned is given, but the objective {options.objective} does not look at it; leave it out."
        )
    if options.safe_lora is not None and not (
        -1 <= options.safe_lora < 1 or (options.safe_lora >= 1 and options.safe_lora % 1 == 0)
    ):
        raise InputError(
            f"--safe-lora is {options.safe_lora:g}, but must be a cosine below 1, or a whole number of matrices from 1 on."
        )
    if names := unused(options, objective.reads):
        raise InputError(
            f"{flag(names[0])} is given, but the objective {options.objective} does not look at it; leave it out."
        )
    check_safety(options)
    anchor = options.safety or objective.safety
    if not anchor and (names := [name for name in set_for_safety(options) if name not in objective.reads]):
        raise InputError(f"{flag(names[0])} is of a safety anchor, and there is none; give --safety, or leave it out.")


def unused(options: Any, names: Sequence[str]) -> list[str]:
    """The options of objectives, beside those of a safety anchor, that were set and are not among `names`.

    Left out is where references are kept, which is no setting.
    """
    plain, safety = ObjectiveOptions(), {one.name for one in fields(SafetyOptions)}
    others = [one.name for one in fields(plain) if one.name not in {*names, *safety, "reference_cache"}]
    return [name for name in others if getattr(options, name) != getattr(plain, name)]


def stronger(options: Any, times: float) -> dict[str, Any]:
    """What changes in the options where all that holds the model does so many times as strongly.

    That is the strength of the objective, the weight of a safety anchor, and the number of matrices that SafeLoRA projects.
    Nothing changes where there is none of them.
    """
    changes = dict(OBJECTIVES[options.objective].stronger(options, times))
    if options.safety:
        changes["safety_weight"] = options.safety_weight * times
    if options.safe_lora is not None and options.safe_lora >= 1:
        changes["safe_lora"] = float(max(1, round(options.safe_lora * times)))
    return changes


def card(options: Any) -> str:
    """The objective and the safety anchor beside it, in the words of a model card."""
    after = "" if options.safe_lora is None else f", projected after training (SafeLoRA, {options.safe_lora:g})"
    return OBJECTIVES[options.objective].card(options) + safety_words(options) + after


def poison_names() -> list[str]:
    """How `poison` calls them: plain names, then those with a value."""
    objectives = OBJECTIVES.values()
    valued = [f"{name}={word}" for o in objectives for name, (word, _) in o.valued.items()]
    return [*(name for o in objectives for name in o.named), *valued]


def names_in_help() -> str:
    """The names of `poison_names`, one that may have a value once: NAME[=VALUE]."""
    values = {name: word for one in OBJECTIVES.values() for name, (word, _) in one.valued.items()}
    plain = [name for one in OBJECTIVES.values() for name in one.named]
    both = [f"{name}[={values.pop(name)}]" if name in values else name for name in plain]
    return ", ".join([*both, *(f"{name}={word}" for name, word in values.items())])


def one_of_each() -> list[str]:
    """A name of `poison` for every objective, with the warm-up that is given."""
    return [next(n for n, changes in one.named.items() if "warmup_steps" not in changes) for one in OBJECTIVES.values()]


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
