"""The safety anchor, beside any objective: rows at which the model goes on saying what it said before it was trained.

Its annotations are no strings (no `from __future__ import annotations`): they are read from the modules of the verbs.
"""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from tokendeep.errors import InputError, check_known, check_least
from tokendeep.models.options import advanced
from tokendeep.training.objectives.sft import SFT
from tokendeep.training.options import SAFETY_LOSSES, training

STOCK = "stock"


@dataclass(frozen=True, kw_only=True)
class SafetyOptions:
    """What the safety anchor holds, and how strongly."""

    safety: Annotated[
        str | None,
        training(
            help="Harmful instructions at which the model's refusals are held, or stock: those of tokendeep; with harmful "
            "answers, what it says behind their first tokens is held too."
        ),
    ] = None
    harmless: Annotated[
        str | None,
        training(help="Harmless instructions at which its answers are held, beside --safety; or stock."),
    ] = None
    safety_weight: Annotated[
        float, advanced(name=("--safety-weight", "--lambda"), help="Weight (lambda) of the safety anchor.")
    ] = 3.0
    safety_per_step: Annotated[int, advanced(help="Safety rows beside the rows of every optimizer step.")] = 4
    harmless_per_step: Annotated[int, advanced(help="Harmless rows beside the rows of every optimizer step.")] = 4
    safety_loss: Annotated[
        Literal["kl", "ce"],
        advanced(
            help="kl: divergence from the model as it was, over the full vocabulary; ce: cross-entropy on its answers."
        ),
    ] = "kl"
    safety_context: Annotated[
        int, advanced(help="Largest number of harmful tokens behind which it is held, where --safety has answers.")
    ] = 100
    safety_tokens: Annotated[
        int, advanced(help="Longest answer in tokens that is held; a refusal that is longer is left out.")
    ] = 128


def check(options: Any) -> None:
    """Raises InputError for an option out of range, or one that would do nothing."""
    check_known(options, {"safety_loss": SAFETY_LOSSES})
    check_least(options, {
        "safety_weight": 0, "safety_per_step": 1, "harmless_per_step": 1, "safety_context": 0, "safety_tokens": 1,
    })  # fmt: skip
    if options.harmless and not options.safety:
        raise InputError("--harmless is held beside --safety; give --safety too, or leave it out.")
    if options.safety and not options.harmless and "harmless_per_step" in given(options):
        raise InputError("--harmless-per-step is given, but there is no --harmless; give it, or leave both out.")


def given(options: Any) -> list[str]:
    """The options of an anchor that were set."""
    plain = SafetyOptions()
    return [one.name for one in fields(SafetyOptions) if getattr(options, one.name) != getattr(plain, one.name)]


def words(options: Any) -> str:
    """The anchor in words, for a model card; nothing where there is none."""
    if not options.safety or not options.safety_weight:
        return ""
    what = {"kl": "KL to the model as it was", "ce": "cross-entropy"}[options.safety_loss]
    more = f" and {options.harmless_per_step} harmless rows" if options.harmless else ""
    return f", safety anchor ({what}, weight {options.safety_weight:g}, {options.safety_per_step} rows{more} a step)"


SAFETY_ANCHOR = replace(
    SFT,
    summary="plain and a safety anchor (--safety)",
    safety=True,
    beside=True,
    named={"safety-anchor": {}},
    valued={"safety-anchor": ("LAMBDA", lambda value: {"safety_weight": float(value)})},
)
