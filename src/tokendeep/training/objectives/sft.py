"""Plain fine-tuning on answers: the baseline, without a reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep.training.objectives.base import Objective
from tokendeep.training.objectives.constrained import cache

if TYPE_CHECKING:
    from tokendeep.training.sft import ResponseSFTTrainer


def _build(options: Any, folder: Path) -> Callable[..., ResponseSFTTrainer]:
    if options.safety:
        from tokendeep.training.referenced import ReferencedSFTTrainer

        return partial(ReferencedSFTTrainer, reference_cache=cache(options, folder))
    from tokendeep.training.sft import ResponseSFTTrainer

    return ResponseSFTTrainer


SFT = Objective(
    summary="plain",
    card=lambda options: "plain fine-tuning",
    build=_build,
    named={"sft-warmup": {}, "sft": {"warmup_steps": 0}},
)
