"""PACT: 50 safety tokens of the model, held inside their set at every answer token; see `training.pact`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep.training.objectives import strength
from tokendeep.training.objectives.base import Objective, Prepared, Rows
from tokendeep.training.objectives.constrained import cache

if TYPE_CHECKING:
    from tokendeep.training.sft import ResponseSFTTrainer
    from tokendeep.types import Subject

WEIGHT = 1.0


def build(options: Any, folder: Path) -> Callable[..., ResponseSFTTrainer]:
    """A maker of trainers that hold every answer token by a term."""
    from tokendeep.training.held import HeldSFTTrainer

    return partial(HeldSFTTrainer, reference_cache=cache(options, folder))


def _prepare(options: Any, subject: Subject, rows: Rows, out: Path, full: bool = False) -> Prepared:
    from tokendeep.training import pact, safety_rows
    from tokendeep.training.held import Term

    base = strength.unaligned(options)
    same = bool(subject.revision) and (subject.revision, subject.adapter) == (base.revision, base.adapter)
    strength.check_another(subject.name, base.name, same)
    refusals, asked = safety_rows.stock_refusals(subject, options, out)
    tokens = pact.safety_tokens(subject, base, asked, refusals)
    helped = int((tokens.direction > 0).sum())
    line = f"{len(tokens.ids)} safety tokens of {len(refusals)} refusals by the model; {helped} of them lie along the direction"
    term = Term(strength.strength(options, WEIGHT), pact.value(tokens, full=full), alone=True)
    return Prepared({"term": term}, rows, [line])


PACT = Objective(
    summary="KL inside 50 safety tokens",
    holds="safety tokens are held at the rows' answers",
    card=lambda options: f"PACT, weight {strength.strength(options, WEIGHT):g}",
    build=build,
    check=strength.check,
    prepare=_prepare,
    refusals=lambda options: 1,
    reads=("strength", "safety_tokens"),
    stronger=strength.stronger(WEIGHT),
    unaligned=True,
    named={"pact": {}},
    valued=strength.valued("pact"),
)
PACT_FULL = replace(
    PACT,
    summary="the same over the full vocabulary",
    holds="all tokens are held at the rows' answers",
    card=lambda options: f"PACT over the full vocabulary (an ablation), weight {strength.strength(options, WEIGHT):g}",
    prepare=partial(_prepare, full=True),
    named={"pact-full": {}},
    valued=strength.valued("pact-full"),
)
