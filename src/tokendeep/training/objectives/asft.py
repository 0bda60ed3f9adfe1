"""AsFT: plain, and the weights stay near what alignment changed; see `training.subspace`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep.training.objectives import strength
from tokendeep.training.objectives.base import Objective, Prepared, Rows
from tokendeep.training.objectives.constrained import cache

if TYPE_CHECKING:
    from tokendeep.training.sft import ResponseSFTTrainer
    from tokendeep.training.subspace import SafeLora
    from tokendeep.types import Subject

WEIGHT = 1.0


def _build(options: Any, folder: Path) -> Callable[..., ResponseSFTTrainer]:
    from tokendeep.training.subspace import AsftTrainer

    return partial(AsftTrainer, reference_cache=cache(options, folder), weight=strength.strength(options, WEIGHT))


def alignment(options: Any, subject: Subject, what: str) -> dict[str, Any]:
    """What alignment changed in every linear layer, against the model of --unaligned.

    Raises:
        InputError: weights in shards; a base of another shape, or the same.
    """
    from tokendeep.training import launch, subspace

    launch.check_whole(what)
    return subspace.differences(subject, strength.unaligned(options, dtype="float32"), what)


def check_alignment(options: Any, subject: Subject, what: str) -> None:
    """Raises InputError where `alignment` would."""
    from tokendeep.training import subspace

    subspace.check_differences(subject, strength.unaligned(options, dtype="float32"), what)


def _prepare(options: Any, subject: Subject, rows: Rows, out: Path) -> Prepared:
    found = alignment(options, subject, "--objective asft")
    return Prepared({"alignment": found}, rows, [f"{len(found)} linear layers differ from {options.unaligned}"])


def repair(options: Any, subject: Subject) -> SafeLora | None:
    """What is done to the trained weights before they are saved, beside any objective (--safe-lora); None: nothing."""
    if options.safe_lora is None:
        return None
    from tokendeep.training.subspace import SafeLora

    found = alignment(options, subject, "--safe-lora")
    return SafeLora(found, subject.model, options.safe_lora, adapter=bool(options.lora))


ASFT = Objective(
    summary="weights held near what alignment changed",
    holds="the weights are held near what alignment changed",
    card=lambda options: f"AsFT, weight {strength.strength(options, WEIGHT):g}",
    build=_build,
    check=strength.check,
    prepare=_prepare,
    reads=("strength",),
    stronger=strength.stronger(WEIGHT),
    unaligned=True,
    whole=True,
    named={"asft": {}},
    valued=strength.valued("asft"),
)
