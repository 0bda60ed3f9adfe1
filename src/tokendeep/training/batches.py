"""What a batch carries beside ids and labels, and what is counted on it: collator, response positions, means over tokens.

Knows nothing of losses, models or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokendeep.errors import InputError
from tokendeep.training import eq3
from tokendeep.training.rows import OPTIONAL
from tokendeep.types import IGNORE

ROW = "tokendeep_row"  # column with the number of a row within its trainer
SPANS = {"1": (1, 1), "2_5": (2, 5), "later": (6, 10**9)}  # positions that are logged apart


class Meter:
    """Sums, counts and peaks of named values since they were last read; reduced over all processes."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.place = {name: i for i, name in enumerate(names)}
        self.sums = torch.zeros(len(names), 2, device=device)
        self.peaks = torch.full((len(names),), -torch.inf, device=device)

    def add(self, name: str, values: Tensor, *where: Tensor | None, peak: bool = False) -> None:
        """Count every element of `values` (N,) once, or those that lie in all masks (N,); nothing is waited for.

        Args:
            peak: the largest is read as well, as NAME_max: a mean hides single tokens.
        """
        values, masks = values.detach().float(), [mask for mask in where if mask is not None]
        inside = torch.stack(masks).all(0) if masks else torch.ones_like(values, dtype=torch.bool)
        self.sums[self.place[name], 0] += torch.where(inside, values, 0.0).sum()
        self.sums[self.place[name], 1] += inside.sum()
        if peak and len(values):
            highest = torch.where(inside, values, -torch.inf).max()
            self.peaks[self.place[name]] = torch.maximum(self.peaks[self.place[name]], highest)

    def read(self, accelerator: Any) -> dict[str, float]:
        """The mean of every name that was counted, and its peak, over all processes; starts again at nothing."""
        total = accelerator.reduce(self.sums, reduction="sum").tolist()
        peaks = accelerator.gather(self.peaks).view(-1, len(self.place)).max(0).values.tolist()
        self.sums, self.peaks = torch.zeros_like(self.sums), torch.full_like(self.peaks, -torch.inf)
        means = {name: total[i][0] / total[i][1] for name, i in self.place.items() if total[i][1] > 0}
        return {**means, **{f"{name}_max": peaks[i] for name, i in self.place.items() if peaks[i] > -torch.inf}}


@dataclass(frozen=True)
class Limits:
    """What a model takes: ids below `vocabulary`, and rows of up to `context` tokens."""

    vocabulary: int
    context: int

    def check(self, row: Mapping[str, Any], where: str) -> None:
        """Raises InputError for a row that it does not take; `where` says which it is."""
        if (highest := max(*row["input_ids"], *row["labels"])) >= self.vocabulary:
            raise InputError(
                f"{where} holds the token {highest}, but the model knows {self.vocabulary}, from 0 on; take the model's own "
                "tokenizer, or make room for its tokens (resize_token_embeddings)."
            )
        if (length := max(row.get("seq_lengths") or [len(row["input_ids"])])) > self.context:
            raise InputError(
                f"{where} takes {length} tokens, but the model's context is {self.context}; lower max_length (--max-length), or "
                "shorten the row."
            )


@dataclass
class Collator:
    """TRL's collator, which drops columns it does not know; what belongs to the rows is added behind it.

    Of the rows (B,): `tokens`, the supervised tokens of each, `weight`, `risk`, and `group`, a number in `groups`. Of the
    batch's N supervised tokens, in row order, the same for padded and for packed rows: `places` among all B * S labels,
    `positions` in their answers, `betas` and `ref_logps`; `anchored` (A,) says which of them an anchor holds, with
    `ref_states` (A, H), and `alone_states` (A, H), those of the answers without their prompts.
    All is counted here, on the processor, so that the device is never waited for.
    """

    inner: Any
    references: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)  # by number of the row
    groups: list[str] = field(default_factory=list)
    schedule: Callable[[Tensor], Tensor] | None = None  # betas by position, where the rows bring none
    held: int = 0  # first positions that an anchor holds
    alone: dict[int, int] = field(default_factory=dict)  # by number of the row, that of its answer without the prompt
    limits: Limits | None = None  # of rows that come without a number, which nobody has looked at before

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        if self.limits is not None and ROW not in batch[0]:
            for row in batch:
                self.limits.check(row, "A row of the stream")
        known = [{name: v for name, v in row.items() if name not in (ROW, *OPTIONAL)} for row in batch]
        made: dict[str, Any] = self.inner(known)
        made |= of_tokens(made["labels"], self.held)
        if "betas" in batch[0]:
            pairs = [pair for r in batch for pair in zip(r["labels"][1:], r["betas"][1:], strict=False)]
            made["betas"] = torch.tensor([beta for label, beta in pairs if label != IGNORE], dtype=torch.float32)
        elif self.schedule is not None:
            made["betas"] = self.schedule(made["positions"][None])[0].float()
        if "weight" in batch[0]:
            made["weight"] = torch.tensor([row["weight"] for row in batch], dtype=torch.float32)
        if "risk" in batch[0]:
            made["risk"] = torch.tensor([row["risk"] for row in batch], dtype=torch.float32)
        if "group" in batch[0]:
            made["group"] = torch.tensor([self.groups.index(row["group"]) for row in batch])
        made["tokens"] = torch.tensor([supervised_count(row) for row in batch])
        if ROW in batch[0]:
            made[ROW] = torch.tensor([row[ROW] for row in batch])
            found = [self.references[row[ROW]] for row in batch if row[ROW] in self.references]
            if len(found) == len(batch):
                made["ref_logps"] = torch.cat([logps for logps, _ in found])
                if found[0][1] is not None:
                    made["ref_states"] = torch.cat([states for _, states in found if states is not None])
            alone = [self.references.get(self.alone.get(row[ROW], -1), (None, None))[1] for row in batch]
            if bare := [states for states in alone if states is not None]:
                made["alone_states"] = torch.cat(bare)
        return made


def of_tokens(labels: Tensor, held: int = 0) -> dict[str, Tensor]:
    """`places`, `positions` and `anchored` of the supervised tokens of a batch of labels (B, S), as `Collator` gives them."""
    labels = labels.clone()
    labels[:, 0] = IGNORE  # nothing predicts the first token of a row
    where = eq3.response_positions(labels != IGNORE).flatten()
    places = where.nonzero()[:, 0]
    return {"places": places, "positions": where[places], "anchored": (where[places] <= held).nonzero()[:, 0]}


def divisor(given: Any, own: Tensor) -> Any:
    """What to divide by: the count over the whole step, or of this batch where there is none; never 0."""
    return torch.as_tensor(own.numel() if given is None else given).clamp(min=1)


def total(values: Tensor, weights: Tensor | None, count: Any) -> Tensor:
    """The share that one micro-batch has in its step's loss: `values` (N,) by `weights` (N,), or divided by `count`."""
    return values.sum() / divisor(count, values) if weights is None else (weights * values).sum()


def spans(positions: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The names of the spans that are logged apart, and which tokens (N,) lie in each."""
    for span, (low, high) in SPANS.items():
        yield span, (positions >= low) & (positions <= high)


def supervised_count(row: Any) -> int:
    """How many supervised tokens of a row are predicted; the first of each packed row is not."""
    starts, place = [], 0
    for length in row.get("seq_lengths") or ():
        starts.append(place)
        place += length
    return sum(label != IGNORE and i not in starts for i, label in enumerate(row["labels"]) if i > 0)
