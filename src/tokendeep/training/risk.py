"""How risky a row of a task is, from what the model makes of its request alone: a probe on its hidden states.

After the adaptive regularisation of Goel et al. (arXiv 2602.17546, their code, risk source b): the mean over the tokens of a
request and over all layers, an MLP of one hidden layer of 512, AdamW at 1e-3, 100 passes in batches of 32 of which the one
is kept that does best on a fifth of the requests, a risk of 5 or 1. Ours: the requests that teach it (those of the stock,
each with its harmless twin), gradients that start at nothing in every step, and a weight for each row, where theirs is one
for a batch. It cannot see a harmful answer to an innocuous request.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokendeep.compute import lm_head
from tokendeep.types import IGNORE

HARMFUL, HARMLESS = 5.0, 1.0
WIDTH, PASSES, BATCH, RATE, HELD_OUT = 512, 100, 32, 1e-3, 0.2


@dataclass(frozen=True)
class Probe:
    """A trained probe, and the share of the requests kept back that it tells apart: a little high, for they chose the pass."""

    layers: nn.Module
    accuracy: float

    @torch.no_grad()
    def risk(self, states: Tensor) -> list[float]:
        """The risk of requests, of their states (N, H)."""
        return [HARMFUL if harmful else HARMLESS for harmful in self.layers(states).argmax(-1).tolist()]


@torch.no_grad()
def request_states(model: Any, requests: Sequence[Sequence[int]]) -> Tensor:
    """The mean (N, H) over tokens and all layers, embeddings included, of the hidden states of requests; on the CPU."""
    decoder = lm_head.decoder(lm_head.causal_lm(model))
    device = next(model.parameters()).device
    made = []
    for ids in requests:
        out = decoder(input_ids=torch.tensor([list(ids)], device=device), use_cache=False, output_hidden_states=True)
        made.append(torch.stack([states.float().mean(1)[0].cpu() for states in out.hidden_states]).mean(0))
    return torch.stack(made)


def request_of(row: Any) -> list[int]:
    """What stands before the first supervised token of a row."""
    start = next((i for i, label in enumerate(row["labels"]) if label != IGNORE), len(row["labels"]))
    return list(row["input_ids"][: max(1, start)])


def learn(states: Tensor, harmful: Tensor, seed: int = 0) -> Probe:
    """Train a probe on states (N, H) of requests that are harmful or not (N,); the same for one seed. The best pass is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(len(states))
        back = max(1, round(HELD_OUT * len(states)))
        test, train = order[:back], order[back:]
        layers = nn.Sequential(nn.Linear(states.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))
        optimizer = torch.optim.AdamW(layers.parameters(), lr=RATE)
        best, kept = -1.0, layers.state_dict()
        with torch.enable_grad():
            for _ in range(PASSES):
                for batch in train[torch.randperm(len(train))].split(BATCH):
                    optimizer.zero_grad()
                    F.cross_entropy(layers(states[batch]), harmful[batch].long()).backward()
                    optimizer.step()
                right = float((layers(states[test]).argmax(-1) == harmful[test].long()).float().mean())
                if right > best:
                    best, kept = right, copy.deepcopy(layers.state_dict())
    layers.load_state_dict(kept)
    return Probe(layers.requires_grad_(False), best)
