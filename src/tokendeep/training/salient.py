"""STR-like: the logits of the tokens that refusals open with stay what they were.

After "Guardrails in Logit Space" (Bach and Tran, arXiv 2604.17210), of which is known that the logits of salient tokens of
refusal templates are constrained. Ours are the tokens (the first ones of the shipped refusal openings), the penalty (the
mean of the squared differences of their logits, without the softmax), the positions (all of an answer) and lambda.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokendeep.depth import openings

FIRST = 3  # tokens of every opening


def salient_ids(tokenizer: Any) -> Tensor:
    """The distinct tokens (K,) among the first ones of the shipped refusal openings, in every seam."""
    shipped = openings.opening_ids(tokenizer, openings.load_openings(None), FIRST)
    return torch.tensor(sorted({token for ids in shipped for token in ids}))


def value(salient: Tensor) -> Callable[..., Tensor]:
    """The mean over the salient tokens (K,) of the squared difference of the logits from the reference's, in nats squared."""

    def of_tokens(logits: Tensor, ref: Tensor, *beside: Tensor) -> Tensor:
        ids = salient.to(logits.device)
        return (logits[:, ids] - ref[:, ids]).square().mean(-1)

    return of_tokens
