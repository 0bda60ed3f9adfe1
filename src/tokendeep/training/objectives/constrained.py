"""Token-wise constrained fine-tuning (the paper's Eq. 3): the first answer tokens are held near the aligned model.

Its annotations are no strings (no `from __future__ import annotations`): they are read from the modules of the verbs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tokendeep.errors import check_known, check_least
from tokendeep.models.options import Floats, advanced
from tokendeep.runs.files import make_folder, user_path
from tokendeep.training.objectives.base import Objective
from tokendeep.training.options import REFERENCES, training

if TYPE_CHECKING:
    from tokendeep.training.eq3 import BetaSchedule
    from tokendeep.training.sft import ResponseSFTTrainer


@dataclass(frozen=True, kw_only=True)
class ConstrainedOptions:
    """How near the reference every token is held."""

    beta_head: Annotated[
        Floats, training(help="Betas of the first answer positions; [] makes the schedule uniform.")
    ] = field(default_factory=lambda: [0.5, 2.0, 2.0, 2.0, 2.0])
    beta_tail: Annotated[float, training(help="Beta of all later answer positions.")] = 0.1
    min_weight: Annotated[float, advanced(help="Least weight of a token; 0 is Eq. 3, 0.001 the authors' code.")] = 0.0
    reference: Annotated[
        Literal["precomputed", "on-the-fly"],
        advanced(help="One pass over the rows before training, or one beside every step (adapters only)."),
    ] = "precomputed"
    reference_cache: Annotated[
        str | None, advanced(help="Folder in which runs on the same model and rows share the pre-computed reference.")
    ] = None


def schedule(options: Any) -> "BetaSchedule":
    """The betas by answer position."""
    from tokendeep.training.eq3 import BetaSchedule

    return BetaSchedule(options.beta_head, options.beta_tail)


def check(options: Any) -> None:
    """Raises InputError for an option out of range."""
    check_known(options, {"reference": REFERENCES})
    check_least(options, {"min_weight": 0})
    schedule(options)


def betas(options: Any) -> str:
    """The schedule in words."""
    return f"beta {list(options.beta_head)} then {options.beta_tail}"


def cache(options: Any, folder: Path) -> Path:
    """Where references are kept; a folder of the user's is made now, and not when they have been computed."""
    if options.reference_cache:
        make_folder(user_path(options.reference_cache))
    return user_path(options.reference_cache or folder / "_reference")


def build(options: Any, folder: Path, anchor: tuple[float, int] = (0.0, 5)) -> Callable[..., "ResponseSFTTrainer"]:
    """A maker of trainers of Eq. 3, with or without an anchor."""
    from tokendeep.training.trainer import ConstrainedSFTTrainer

    return partial(
        ConstrainedSFTTrainer,
        schedule=schedule(options),
        reference=options.reference,
        reference_cache=cache(options, folder),
        head_anchor=anchor,
        min_weight=options.min_weight,
    )


def _stronger(options: Any, times: float) -> Mapping[str, Any]:
    return {"beta_head": [beta * times for beta in options.beta_head], "beta_tail": options.beta_tail * times}


def _count(value: str) -> int:
    """A number of positions. Raises ValueError for none."""
    if (count := int(value)) < 0:
        raise ValueError(value)
    return count


CONSTRAINED = Objective(
    summary="Eq. 3",
    holds="the first tokens of the rows' answers are held near the model",
    card=lambda options: f"token-wise constrained, {betas(options)}",
    build=build,
    check=check,
    reads=("beta_head", "beta_tail", "min_weight", "reference"),
    stronger=_stronger,
    schedule=schedule,
    adapters_only=lambda options: options.reference == "on-the-fly",
    named={"constrained": {"warmup_steps": 0}, "constrained-warmup": {}},
    valued={
        "beta": ("B", lambda value: {"beta_head": [], "beta_tail": float(value)}),
        "head": ("N", lambda value: {"beta_head": [2.0] * _count(value)}),
    },
)
