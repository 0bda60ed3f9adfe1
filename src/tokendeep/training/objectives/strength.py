"""How strongly a rival of Eq. 3 holds the model, and what two of them need beside it.

Its annotations are no strings (no `from __future__ import annotations`): they are read from the modules of the verbs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tokendeep.errors import InputError, check_least
from tokendeep.models.locate import plain
from tokendeep.models.options import ModelOptions, advanced
from tokendeep.training import harmful

if TYPE_CHECKING:
    from tokendeep.types import Subject


@dataclass(frozen=True, kw_only=True)
class StrengthOptions:
    """The weight that a rival gives what holds the model."""

    strength: Annotated[
        float | None,
        advanced(help="Weight (lambda) of pact, str-like, adaptive or asft; each has one of its own where left out."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class AlignmentOptions:
    """What alignment did to the model, for rivals that look at it."""

    unaligned: Annotated[
        str | None,
        advanced(help="The model before it was aligned, of the same vocabulary, for pact, asft and safe-lora."),
    ] = None
    safe_lora: Annotated[
        float | None,
        advanced(
            help="SafeLoRA: project training's changes onto alignment's where their cosine is at most this; from 1 on, in so "
            "many matrices."
        ),
    ] = None


def how_unaligned(options: Any) -> ModelOptions:
    """How the model before its alignment is loaded: of the model's options, what holds for another one too."""
    return harmful.loading(plain(options))


def unaligned(options: Any, **more: Any) -> "Subject":
    """That model. Raises InputError where it cannot be loaded."""
    from tokendeep import models

    return models.load(options.unaligned, options=how_unaligned(options), needs_template=False, **more)


def check_another(model: str, base: str, same: bool) -> None:
    """Raises InputError where the model before its alignment has the same weights."""
    if same:
        raise InputError(f"{base} has the weights of {model} itself; give the model before it was aligned.")


def check(options: Any) -> None:
    """Raises InputError for a weight below 0."""
    if options.strength is not None:
        check_least(options, {"strength": 0})


def strength(options: Any, default: float) -> float:
    """The weight that is meant."""
    return default if options.strength is None else float(options.strength)


def stronger(default: float) -> Callable[[Any, float], Mapping[str, Any]]:
    """What makes the weight so many times as large."""
    return lambda options, times: {"strength": strength(options, default) * times}


def valued(name: str, **changes: Any) -> Mapping[str, tuple[str, Callable[[str], Mapping[str, Any]]]]:
    """The name with a weight, in `poison`."""
    return {name: ("LAMBDA", lambda value: {"strength": float(value), **changes})}
