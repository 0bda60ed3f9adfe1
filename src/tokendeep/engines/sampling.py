"""Which token comes next, from logits: the largest, or a draw from what temperature, top_k and top_p leave."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tokendeep.engines.rows import Row


def pick(logits: Tensor, rows: Sequence[Row]) -> list[int | None]:
    """The next token of every row from its logits (n, V); None where they are NaN or infinite."""
    top, best = logits.max(dim=-1)  # NaN and +inf show in the maximum
    picked: list[int | None] = [
        token if math.isfinite(value) else None for value, token in zip(top.tolist(), best.tolist(), strict=True)
    ]
    groups: dict[tuple[float, float, int], list[int]] = {}
    for i, row in enumerate(rows):
        if row.request.choices and not row.chances:  # those of its first token
            row.chances = tuple(logits[i, list(row.request.choices)].float().softmax(-1).tolist())
        decoding = row.request.decoding
        if row.generator is not None and picked[i] is not None:
            groups.setdefault((decoding.temperature, decoding.top_p, decoding.top_k), []).append(i)
    for (temperature, top_p, top_k), members in groups.items():
        draws = torch.stack([torch.rand((), generator=rows[i].generator, dtype=torch.float64) for i in members])
        for i, token in zip(members, sample(logits[members] / temperature, top_p, top_k, draws), strict=True):
            picked[i] = token
    return picked


def sample(logits: Tensor, top_p: float, top_k: int, draws: Tensor) -> list[int]:
    """Tokens at the `draws` (n,), uniform in [0, 1), of the distributions that `logits` (n, V) and the cuts leave.

    First the `top_k` largest are kept, then the fewest of them that hold `top_p` of their probability.
    """
    size = logits.shape[-1]
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    logits = logits.to(wide)
    tokens = None
    if 0 < top_k < size or top_p < 1:
        total = logits.logsumexp(-1, keepdim=True)
        count = min(top_k or 256, size)
        values, tokens = logits.topk(count)
        while not top_k and count < size and float((values - total).exp().sum(-1).min()) < top_p:
            count = min(8 * count, size)
            values, tokens = logits.topk(count)
        probs = (values - total).exp() if not top_k else values.softmax(-1)
        probs = probs * (probs.cumsum(-1) - probs < top_p)
    else:
        probs = logits.softmax(-1)
    heights = probs.cumsum(-1)  # (n, V or kept)
    targets = draws.to(heights.device, wide)[:, None] * heights[:, -1:]
    index = torch.searchsorted(heights, targets, right=True).clamp_(max=heights.shape[-1] - 1)
    return (index if tokens is None else tokens.gather(-1, index)).squeeze(-1).tolist()
