"""Eq. 3 and an anchor: the whole distribution of the first answer tokens is held at that of the aligned model.

Its annotations are no strings (no `from __future__ import annotations`): they are read from the modules of the verbs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tokendeep.errors import check_least
from tokendeep.models.options import advanced
from tokendeep.training.objectives import constrained
from tokendeep.training.objectives.constrained import CONSTRAINED

if TYPE_CHECKING:
    from tokendeep.training.sft import ResponseSFTTrainer


@dataclass(frozen=True, kw_only=True)
class AnchoredOptions:
    """How strongly the first positions are held."""

    anchor: Annotated[float, advanced(help="Weight (lambda) of the anchor, for the objective anchored.")] = 1.0
    anchor_positions: Annotated[int, advanced(help="How many first answer positions the anchor holds.")] = 5


def _check(options: Any) -> None:
    constrained.check(options)
    check_least(options, {"anchor": 0, "anchor_positions": 1})


def _build(options: Any, folder: Path) -> Callable[..., "ResponseSFTTrainer"]:
    return constrained.build(options, folder, anchor=(options.anchor, options.anchor_positions))


ANCHORED = replace(
    CONSTRAINED,
    summary="Eq. 3 and a KL anchor on the first positions",
    card=lambda options: (
        f"token-wise constrained with a KL anchor of weight {options.anchor} on the first {options.anchor_positions} "
        f"positions, {constrained.betas(options)}"
    ),
    build=_build,
    check=_check,
    reads=(*CONSTRAINED.reads, "anchor", "anchor_positions"),
    stronger=lambda options, times: {**CONSTRAINED.stronger(options, times), "anchor": options.anchor * times},
    named={"anchored": {}, "anchored-all": {"anchor_positions": 10**6}},
    valued={"anchored": ("LAMBDA", lambda value: {"anchor": float(value)})},
)
