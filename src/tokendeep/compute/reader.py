"""The next-token logits behind a growing row of tokens, without computing again what it shares with the row before.

Knows nothing of what is done with them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokendeep.compute import lm_head, scoring
from tokendeep.types import Subject


class Reader:
    """Next-token logits (V,) behind a row of tokens; what it shares with the row before is not computed again."""

    def __init__(self, subject: Subject) -> None:
        self.lm = lm_head.causal_lm(subject.model)
        self.held: list[int] = []
        self.cache: Any = None

    @torch.no_grad()
    def __call__(self, ids: Sequence[int]) -> Tensor:
        row, device = list(ids), self.lm.get_input_embeddings().weight.device
        if not scoring.plain_cache(self.lm, len(row)):
            states = lm_head.hidden_states(self.lm, torch.tensor([row], device=device))
            return lm_head.project(self.lm, states[0, -1:])[0]
        same = scoring.shared_prefix([row, [*self.held, -1]])
        if self.cache is None or same == 0:
            self.cache, same = None, 0
        elif same < len(self.held):
            self.cache.crop(same - len(self.held))
        out = lm_head.decoder(self.lm)(
            input_ids=torch.tensor([row[same:]], device=device), past_key_values=self.cache, use_cache=True
        )
        self.cache, self.held = out.past_key_values, row
        return lm_head.project(self.lm, out.last_hidden_state[0, -1:])[0]

    def likeliest(self, ids: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest tokens behind the row, best first; all where there are fewer."""
        logits = self(ids)
        return logits.topk(min(count, len(logits))).indices.tolist()
