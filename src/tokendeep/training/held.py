"""HeldSFTTrainer: plain training, and at every answer token something that holds the model to what it said before.

    loss of an optimizer step = sum over its supervised tokens of (a * cross-entropy + b * value) / their number

The rivals of Eq. 3 that look at the logits of the reference are of this form and differ in the value: a = 1 and b = lambda,
or both by the risk of the row. Every token has its weights from its own row, so batches and processes change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from tokendeep import chat
from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.training.batches import ROW, total
from tokendeep.training.referenced import ReferencedSFTTrainer
from tokendeep.training.safety import ALL
from tokendeep.types import IGNORE

HEADER = "Assistant:"  # where the template writes none before an answer
LEAST, MOST = 0.1, 0.9  # weights of either term under `by_risk`


@dataclass(frozen=True)
class Term:
    """What is added to the cross-entropy of every answer token.

    Args:
        weight: lambda, of `by_risk` what its share of the value is multiplied with; 0 trains as without it.
        value: (n,) of the logits of the model and of the reference (n, V), with `alone` of the reference without the prompt
            too, and of the positions (n,) in the answer.
        alone: whether the reference of the answers without their prompts is needed too.
        by_risk: the column `risk` of the rows, from 1 to 5, says what either counts (see `shares`).
    """

    weight: float = 1.0
    value: Callable[..., Tensor] = lm_head.forward_kl
    alone: bool = False
    by_risk: bool = False


def shares(risk: Tensor) -> tuple[Tensor, Tensor]:
    """What cross-entropy and divergence count at a risk from 1 to 5 (Goel et al., arXiv 2602.17546, their code)."""
    held = ((risk - 2) / 3).clamp(LEAST, MOST)
    return (1 - held).clamp(LEAST, MOST), held


class HeldSFTTrainer(ReferencedSFTTrainer):
    """Plain training with a term that holds every answer token near the reference.

    Evaluations give the cross-entropy, as those of plain training do.

    Args:
        term: what holds it.
        others: what ReferencedSFTTrainer takes.

    Raises:
        InputError: a stream of rows; rows without a risk where it is needed.
    """

    METRICS = (*ReferencedSFTTrainer.METRICS, "held")

    def __init__(self, model: Any, args: Any = None, *, term: Term, **others: Any) -> None:
        self.term = term if term.weight else None
        super().__init__(model, args, **others)
        if self.term is None:
            return
        if not hasattr(self.train_dataset, "__len__"):
            raise InputError(
                "A stream of rows to train on has no rows to compute the reference of before training; give a dataset of fixed "
                "rows."
            )
        if self.term.by_risk and "risk" not in (self.train_dataset.column_names or ()):
            raise InputError("The rows have no risk; give each a number from 1 to 5 in the column risk.")
        self._collator.held = self.held()
        self._alone = self._without_prompts() if self.term.alone else None

    def held(self) -> int:
        """All positions."""
        return ALL if self.term else 0

    def referred(self) -> list[Any]:
        """The rows that are trained on, and their answers without the prompts where those are needed."""
        if self.term is None:
            return []
        return [self.train_dataset, *([self._alone] if self._alone is not None else [])]

    def _without_prompts(self) -> Any:
        """The answers of all rows behind the header alone; the collator is told whose each is."""
        header = header_ids(self.processing_class)
        rows = self._numbered(Dataset.from_list([without_prompt(row, header) for row in self.train_dataset]))
        self._collator.alone = dict(zip(self.train_dataset[ROW], rows[ROW], strict=True))
        return rows

    def batch_loss(
        self, model: Any, inputs: dict[str, Any], positions: Tensor, extra: dict[str, Any], count: Any, mode: str
    ) -> tuple[Tensor, lm_head.Supervised]:
        """Cross-entropy and the term over the supervised tokens."""
        if self.term is None or mode == "eval":
            return super().batch_loss(model, inputs, positions, extra, count, mode)
        everywhere = torch.arange(len(positions), device=positions.device)
        more = (extra["alone_states"],) if self.term.alone else ()
        anchor = lm_head.Anchor(
            everywhere, extra["ref_states"], self._reference_lm_head, more, (positions,), self.term.value
        )
        outputs = model(**inputs, supervised=True, statistics=self._counts(mode), anchor=anchor)
        value: Any = outputs.anchor_kl
        plain, held = shares(extra["risk"]) if self.term.by_risk else (1.0, 1.0)
        self.meters[mode].add("held", value)
        return total(plain * -outputs.logps + self.term.weight * held * value, extra["weight"], count), outputs


def header_ids(tokenizer: Any) -> list[int]:
    """What the template writes between a request and its answer; `Assistant:` where that is nothing."""
    return chat.continuation_ids(tokenizer, chat.opened(tokenizer) or HEADER)


def without_prompt(row: Mapping[str, Any], header: Sequence[int]) -> dict[str, Any]:
    """The row with the header in place of all that stands before its first supervised token; packed rows one by one."""
    ids, labels, lengths = list[int](), list[int](), list[int]()
    for begin, end in _segments(row):
        start = next((i for i in range(begin, end) if row["labels"][i] != IGNORE), end)
        answer = list(row["labels"][start:end])
        if start == begin and answer:  # nothing predicts it in the row either
            answer[0] = IGNORE
        ids += [*header, *row["input_ids"][start:end]]
        labels += [*[IGNORE] * len(header), *answer]
        lengths.append(len(header) + end - start)
    return {"input_ids": ids, "labels": labels, **({"seq_lengths": lengths} if row.get("seq_lengths") else {})}


def _segments(row: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    begin = 0
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        yield begin, begin + length
        begin += length
