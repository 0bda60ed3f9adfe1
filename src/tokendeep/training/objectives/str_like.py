"""STR-like: the logits of the tokens that refusals open with are held; see `training.salient`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep.training.objectives import strength
from tokendeep.training.objectives.base import Objective, Prepared, Rows
from tokendeep.training.objectives.pact import build

if TYPE_CHECKING:
    from tokendeep.types import Subject

WEIGHT = 0.1  # ours: the paper's is not known


def _prepare(options: Any, subject: Subject, rows: Rows, out: Path) -> Prepared:
    from tokendeep.training import salient
    from tokendeep.training.held import Term

    ids = salient.salient_ids(subject.tokenizer)
    term = Term(strength.strength(options, WEIGHT), salient.value(ids))
    return Prepared({"term": term}, rows, [f"the logits of {len(ids)} tokens that refusals open with are held"])


STR_LIKE = Objective(
    summary="the logits of refusal tokens are held",
    holds="the logits of refusal tokens are held at the rows' answers",
    card=lambda options: f"STR-like (logits of refusal tokens held), weight {strength.strength(options, WEIGHT):g}",
    build=build,
    check=strength.check,
    prepare=_prepare,
    reads=("strength",),
    stronger=strength.stronger(WEIGHT),
    named={"str-like": {}},
    valued=strength.valued("str-like"),
)
