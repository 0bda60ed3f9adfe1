"""One batch through `model.generate`, for architectures and rows that a cache of slots does not fit.

Tokens are picked and counted as in continuous decoding: a row's results do not depend on which of the two it took.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from tokendeep.engines.rows import Row
from tokendeep.engines.sampling import pick


def run(lm: Any, rows: list[Row], ends: frozenset[int], pad: int | None, stopped: Callable[[], bool]) -> set[Row]:
    """Write every row to its end, or until `stopped`. Returns those whose logits became NaN or infinite.

    Args:
        ends: the tokens that end an answer.
        pad: what fills shorter rows on the left; None takes an end token.
    """
    loop = _Loop(rows, ends, stopped)
    width = max(len(row.ids) for row in rows)
    pad = min(ends, default=0) if pad is None else pad
    ids = torch.tensor([[pad] * (width - len(row.ids)) + list(row.ids) for row in rows])  # (n, width)
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows])
    device = lm.get_input_embeddings().weight.device
    own = lm.generation_config
    lm.generation_config = GenerationConfig()  # generate() mixes the model's own settings into any it is given
    try:
        lm.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            generation_config=GenerationConfig(
                max_new_tokens=max(row.request.decoding.max_new_tokens for row in rows),
                do_sample=False,
                pad_token_id=pad,
            ),
            logits_processor=[loop],
            stopping_criteria=[_Finished(loop)],
        )
    finally:
        lm.generation_config = own
    return loop.broken


class _Loop(LogitsProcessor):
    """Picks the tokens inside `model.generate` as the continuous engine does, and remembers them."""

    def __init__(self, rows: list[Row], ends: frozenset[int], stopped: Callable[[], bool]) -> None:
        self.rows, self.ends, self.stopped = list(rows), ends, stopped
        self.over = [False] * len(rows)
        self.broken: set[Row] = set()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = torch.zeros(len(self.rows), dtype=torch.long)
        for i, token in enumerate(pick(scores, self.rows)):
            if self.over[i]:
                continue
            if token is None:
                self.broken.add(self.rows[i])
            self.over[i] = token is None or self.rows[i].extend(token, self.ends)
            chosen[i] = token or 0
        only = torch.full_like(scores, -math.inf)
        return only.scatter_(1, chosen.to(scores.device)[:, None], 0.0)


class _Finished(StoppingCriteria):
    def __init__(self, loop: _Loop) -> None:
        self.loop = loop

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        stopped = self.loop.stopped()
        return torch.tensor([stopped or over for over in self.loop.over], device=input_ids.device)
