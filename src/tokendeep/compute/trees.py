"""Many short continuations of one row of tokens, scored in one forward pass as a tree; row by row where that cannot be."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokendeep.compute import lm_head, scoring
from tokendeep.types import IGNORE, Encoded, Subject

Branches = Sequence[tuple[int, tuple[int, ...]]]


def branch_logps(subject: Subject, ids: Sequence[int], branches: Branches) -> Tensor:
    """Log-probability in nats of many short continuations that leave one row of tokens at different places.

    All of them run in one forward pass: the branches stand behind the row as a tree, each token
    attending to the part of the row before its branch and to its own ancestors only.

    Args:
        ids: the row, L tokens.
        branches: (at, tokens): `tokens` is scored as what follows `ids[:at]`, 1 <= at <= L.

    Returns:
        float32 (len(branches),): for each branch the sum over its tokens.
    """
    if not _fits(subject.model, ids, branches):
        return _branch_logps_by_rows(subject, ids, branches)
    with torch.inference_mode():
        return _in_one_row(subject.model, ids, branches).cpu()


def differentiable_logps(model: Any, ids: Sequence[int], branches: Branches) -> Tensor:
    """As `branch_logps`, with the gradient of the model's weights."""
    if _fits(model, ids, branches):
        return _in_one_row(model, ids, branches)
    rows = [[*ids[:at], *tokens] for at, tokens in branches]
    labels = lm_head.padded(model, [[*[IGNORE] * at, *tokens] for at, tokens in branches], IGNORE)
    states = lm_head.hidden_states(model, lm_head.padded(model, rows))
    logps = lm_head.label_logps(model, *lm_head.select(states, labels))
    return torch.stack([piece.sum() for piece in logps.split([len(tokens) for _, tokens in branches])])


def _fits(model: Any, ids: Sequence[int], branches: Branches) -> bool:
    return fits(model, max(len(ids), *(at + len(tokens) for at, tokens in branches)))


def _in_one_row(model: Any, ids: Sequence[int], branches: Branches) -> Tensor:
    """The branches as a tree behind the row, float32 (len(branches),)."""
    tree = Tree(list(ids))
    wanted = [
        [(tree.node(at, tokens[:depth]), tokens[depth]) for depth in range(len(tokens))] for at, tokens in branches
    ]
    parents = sorted({node for branch in wanted for node, _ in branch})
    place = {node: i for i, node in enumerate(parents)}
    device = lm_head.causal_lm(model).get_input_embeddings().weight.device
    states = lm_head.hidden_states(
        model,
        torch.tensor([tree.tokens], device=device),
        attention_mask=tree.mask(lm_head.causal_lm(model).dtype).to(device),
        position_ids=torch.tensor([tree.positions], device=device),
    )[0, parents]
    logps = torch.cat([lm_head.project(model, x).log_softmax(-1) for x in states.split(lm_head.chunk_rows(model))])
    values = [sum(logps[place[node], token] for node, token in branch) for branch in wanted]
    return torch.stack(values).float()  # type: ignore[arg-type]


class Tree:
    """A row of tokens and the branches that leave it, laid out as one sequence with its own attention mask."""

    def __init__(self, ids: list[int]) -> None:
        self.length = len(ids)
        self.tokens = list(ids)
        self.positions = list(range(len(ids)))
        self.paths: list[tuple[int, list[int]]] = []  # per branch token: tokens of the row it sees, its ancestors
        self.nodes: dict[tuple[int, tuple[int, ...]], int] = {}

    def node(self, at: int, path: tuple[int, ...]) -> int:
        """Index of the token that ends `path` behind `ids[:at]`; of `ids[at - 1]` for an empty path."""
        if not path:
            return at - 1
        if (at, path) not in self.nodes:
            parent = self.node(at, path[:-1])
            ancestors = self.paths[parent - self.length][1] if parent >= self.length else []
            index = len(self.tokens)
            self.tokens.append(path[-1])
            self.positions.append(at + len(path) - 1)
            self.paths.append((at, [*ancestors, index]))
            self.nodes[at, path] = index
        return self.nodes[at, path]

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Additive attention mask (1, 1, T, T): 0 where a token may look, the dtype's lowest value elsewhere."""
        size = len(self.tokens)
        seen = torch.zeros(size, size, dtype=torch.bool)
        seen[: self.length, : self.length] = torch.ones(self.length, self.length, dtype=torch.bool).tril()
        for index, (at, ancestors) in enumerate(self.paths, self.length):
            seen[index, :at] = True
            seen[index, ancestors] = True
        return torch.zeros(size, size, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[None, None]


def fits(model: Any, length: int) -> bool:
    """Whether the model takes its own positions and mask: rotary positions, attention in every layer.

    `length` is that of the longest path, which a sliding window must hold.
    """
    lm = lm_head.causal_lm(model)
    config = lm.config.get_text_config()
    alibi = getattr(config, "alibi", False)  # Falcon has either, and says rope_parameters of both
    rotary = getattr(config, "rope_parameters", None) is not None and not alibi
    return rotary and scoring.plain_cache(model, length) and config._attn_implementation in {"sdpa", "eager"}


def _branch_logps_by_rows(subject: Subject, ids: Sequence[int], branches: Branches) -> Tensor:
    rows = [Encoded([*ids[:at], *tokens], [IGNORE] * at + list(tokens)) for at, tokens in branches]
    return torch.stack([logps.sum() for logps in scoring.token_logps(subject, rows)])
