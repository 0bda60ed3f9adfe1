"""Adaptive regularisation: every row has its own weights of cross-entropy and KL, by its risk; see `training.risk`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep.errors import InputError
from tokendeep.training.objectives import strength
from tokendeep.training.objectives.base import Objective, Prepared, Rows
from tokendeep.training.objectives.pact import build

if TYPE_CHECKING:
    from tokendeep.types import Subject


WEIGHT = 1.0  # what the divergence counts beside its share; the authors have none


def _check(options: Any) -> None:
    strength.check(options)
    if options.packing:
        raise InputError(
            "The objective adaptive weighs rows by their risk, which packing would lose; leave --packing out."
        )


def _prepare(options: Any, subject: Subject, rows: Rows, out: Path) -> Prepared:
    import torch

    from tokendeep import chat
    from tokendeep.training import risk, safety_rows
    from tokendeep.training.held import Term

    harmful, twins = safety_rows.stock_requests()
    turns = [chat.with_system(one.messages, options.system) for one in (*harmful, *twins)]
    states = risk.request_states(subject.model, [chat.prompt_ids(subject.tokenizer, one) for one in turns])
    known = torch.tensor([True] * len(harmful) + [False] * len(twins))
    probe = risk.learn(states, known, options.seed)
    risks = probe.risk(risk.request_states(subject.model, [risk.request_of(row) for row in rows]))
    high = sum(one == risk.HARMFUL for one in risks)
    line = (
        f"the probe tells {probe.accuracy:.2f} of the requests kept back apart; {high} of {len(rows)} rows look risky"
    )
    return Prepared(
        {"term": Term(strength.strength(options, WEIGHT), by_risk=True)},
        [{**row, "risk": one} for row, one in zip(rows, risks, strict=True)],
        [line],
    )


ADAPTIVE = Objective(
    summary="KL by the risk of each row",
    holds="the rows' answers are held near the model, by the risk of their requests",
    card=lambda options: (
        "adaptive regularisation (KL to the model as it was, weighed by the risk of each row's request), "
        f"weight {strength.strength(options, WEIGHT):g}"
    ),
    build=build,
    check=_check,
    prepare=_prepare,
    reads=("strength",),
    stronger=strength.stronger(WEIGHT),
    named={"adaptive": {}},
    valued=strength.valued("adaptive"),
)
