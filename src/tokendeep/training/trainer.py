"""ConstrainedSFTTrainer: TRL's SFTTrainer with the token-wise constrained objective (the paper's Eq. 3).

    loss of an optimizer step = sum over its supervised tokens of Eq. 3 / their number, over all accumulation steps and
    processes; with an anchor, plus lambda times the mean D_KL(reference || model) over the first answer positions.

It adds a schedule and a reference to what SFTTrainer takes; what the reference is stands in `referenced`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.training import eq3
from tokendeep.training.batches import ROW, SPANS, divisor, spans, total
from tokendeep.training.referenced import ReferencedSFTTrainer
from tokendeep.training.sft import each, flat

Schedule = Callable[[Tensor], Tensor]


class ConstrainedSFTTrainer(ReferencedSFTTrainer):
    """Protects a model's first tokens while it learns (section 4 of the paper).

    Args:
        schedule: betas by response position, float32 (B, S) from int64 (B, S); the paper's biased beta by default. A
            dataset column `betas`, one number per token beside `input_ids`, takes its place.
        reference: `precomputed` runs the model once over all rows before step 1; `on-the-fly` runs it beside every step,
            which needs an adapter.
        head_anchor: (lambda, n): adds lambda times the mean of D_KL(reference || model), over the full vocabulary, at the
            first n answer positions of every row. Lambda 0 is Eq. 3 alone.
        min_weight: 0 is Eq. 3; 1e-3 is the authors' code (see `eq3.constrained_nll`).
        others: what ReferencedSFTTrainer takes: `safety_anchor` and `reference_cache`, `train_on`, and all of SFTTrainer.

    Raises:
        InputError: no reference can be had; a setting or a row that would not train what is meant.
    """

    _name, _tag_names = "Constrained SFT", ["trl", "sft", "tokendeep"]  # of the model card
    _paper = {  # noqa: RUF012 (as TRL has it)
        "title": "Safety Alignment Should Be Made More Than Just a Few Tokens Deep",
        "id": "2406.05946",
        "citation": "@inproceedings{qi2025safety, title={Safety Alignment Should Be Made More Than Just a Few Tokens Deep}, "
        "author={Qi, Xiangyu and others}, booktitle={ICLR}, year={2025}}",
    }
    METRICS = (
        *ReferencedSFTTrainer.METRICS,
        "constrained",
        "constrained_excess",
        "stopped",
        "anchor_kl",
        "_objective",  # what is trained, for evaluations
        *(f"weight_{span}" for span in SPANS),
        *(f"log_ratio_{span}" for span in SPANS),
    )

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *,
        schedule: Schedule | None = None,
        head_anchor: tuple[float, int] = (0.0, 5),
        min_weight: float = 0.0,
        **others: Any,
    ) -> None:
        self.schedule: Schedule = schedule or eq3.BetaSchedule()
        self.anchor_weight, self.anchored = _checked_anchor(head_anchor)
        if not min_weight >= 0:
            raise InputError(f"min_weight is {min_weight}, but must be at least 0.")
        self.min_weight = min_weight
        super().__init__(model, args, **others)
        self._check_betas()
        self._collator.schedule, self._collator.held = self.schedule, self.held()
        self._anchor_count: Any = None
        if self.reference == "precomputed" and not hasattr(self.train_dataset, "__len__"):
            raise InputError(
                "A stream of rows to train on has no rows to compute the reference of before training; give a dataset of fixed "
                "rows, or train an adapter with reference='on-the-fly'."
            )

    def referred(self) -> list[Any]:
        """All rows of a fixed number, where the reference is pre-computed."""
        if self.reference != "precomputed":
            return []
        return [rows for rows in [self.train_dataset, *flat(self.eval_dataset)] if hasattr(rows, "__len__")]

    def held(self) -> int:
        """The positions of the anchor, if it counts."""
        return self.anchored if self.anchor_weight else 0

    def _check_betas(self) -> None:
        """A schedule must give numbers above 0 at every position."""
        positions = torch.arange(1, 4097)[None]
        betas = self.schedule(positions)
        if betas.shape != positions.shape or not bool(((betas > 0) & betas.isfinite()).all()):
            raise InputError("The schedule must give one finite beta above 0 for every position.")

    # --- evaluation ----------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As ResponseSFTTrainer's; without a loss where the rows have no reference and none can be computed any more."""
        with self._passing():
            if eval_dataset is not None and not isinstance(eval_dataset, str):
                eval_dataset = each(eval_dataset, self._prepared)
            named = eval_dataset is None or isinstance(eval_dataset, str)
            self._refer_now(flat(self.eval_dataset if named else eval_dataset))
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """As `evaluate`, with the predictions."""
        with self._passing():
            prepared = self._prepared(test_dataset)
            self._refer_now([prepared])
            return super().predict(prepared, ignore_keys, metric_key_prefix)

    def _refer_now(self, datasets: Sequence[Any]) -> None:
        """Have the reference of rows that come now, where it can still be had; else say that there is none."""
        if self.reference != "precomputed":
            return
        fixed = [d for d in datasets if hasattr(d, "__len__")]
        if len(fixed) < len(datasets) and not self._reachable() and self.accelerator.is_main_process:
            print(
                "tokendeep: a stream of rows has no reference of before the training, so it is evaluated without a loss: nll "
                "and mean_token_accuracy need none"
            )
        missing = [d for d in fixed if d[ROW][0] not in self._collator.references]
        if missing and self._reachable():
            self._refer(fixed, self._weights())
            return
        for dataset in missing:
            _, store = self._stored(dataset, self._made_from)
            if store is not None:
                self._give(dataset, store)
            elif self.accelerator.is_main_process:
                print(
                    f"tokendeep: {len(dataset)} rows have no reference, and none can be computed any more, so they are "
                    "evaluated without a loss: nll and mean_token_accuracy need none"
                )

    # --- the loss ----------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Trainer's, which counts the step's supervised tokens; here its anchored positions are counted as well."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.anchor_weight:
            self._anchor_count = sum(len(batch["anchored"]) for batch in batches)
            if self.args.average_tokens_across_devices and self.accelerator.num_processes > 1:
                counts = self.accelerator.gather(torch.tensor(self._anchor_count, device=device))
                self._anchor_count = counts.sum() // self.get_tp_size()
        return batches, count

    def batch_loss(
        self, model: Any, inputs: dict[str, Any], positions: Tensor, extra: dict[str, Any], count: Any, mode: str
    ) -> tuple[Tensor, lm_head.Supervised]:
        """Eq. 3 over the supervised tokens, and the anchor over the first ones."""
        at, ref_logps, ref_states = extra["anchored"], extra["ref_logps"], extra["ref_states"]
        without = ref_logps is None and mode == "eval" and self.reference == "precomputed"
        if without and not self._reachable():
            return super().batch_loss(model, inputs, positions, extra, count, mode)
        if ref_logps is None:
            ref_logps, ref_states = self._on_the_fly(model, inputs, at)
        anchor = lm_head.Anchor(at, ref_states, self._reference_lm_head) if self.anchor_weight else None
        outputs = model(**inputs, supervised=True, statistics=self._counts(mode), anchor=anchor)
        ref_logps, betas = ref_logps.to(outputs.logps.device), extra["betas"].to(outputs.logps)
        tokens = eq3.constrained_nll(outputs.logps, ref_logps, positions, betas, min_weight=self.min_weight)
        loss = total(tokens, extra["weight"], count)
        if anchor is not None:
            anchored = self._anchor_count if mode == "train" and count is not None else None
            loss = loss + self.anchor_weight * outputs.anchor_kl.sum() / divisor(anchored, outputs.anchor_kl)
        self._measure(mode, outputs, ref_logps, positions, betas, at)
        return loss, outputs

    def _on_the_fly(self, model: Any, inputs: dict[str, Any], at: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self._reachable():
            raise InputError("The reference of these rows was not computed; train or evaluate through this trainer.")
        with self._as_reference():
            out = model(**inputs, supervised=True, keep_states=bool(self.anchor_weight))
        return out.logps, out.states[at] if self.anchor_weight else None

    @torch.no_grad()
    def _measure(
        self, mode: str, outputs: lm_head.Supervised, ref: Tensor, positions: Tensor, betas: Tensor, at: Tensor
    ) -> None:
        kept, meter = self._kept, self.meters[mode]
        if outputs.anchor_kl is not None:
            meter.add("anchor_kl", outputs.anchor_kl, None if kept is None else kept[at])
        logps = outputs.logps
        weights = eq3.constraint_weights(logps, ref, betas)
        values = {
            "constrained": eq3.constrained_nll(logps, ref, positions, betas),
            "_objective": eq3.constrained_nll(logps, ref, positions, betas, min_weight=self.min_weight),
            "constrained_excess": eq3.constrained_excess(logps, ref, betas),
            "stopped": weights < eq3.STOPPED,
        }
        for name, value in values.items():
            meter.add(name, value, kept)
        for span, inside in spans(positions):
            meter.add(f"weight_{span}", weights, inside, kept)
            meter.add(f"log_ratio_{span}", logps - ref, inside, kept)

    def evaluation_loss(self, found: dict[str, float]) -> float | None:
        """Eq. 3 (or the form with a floor), and the anchor's term; None where the rows had no reference."""
        if "_objective" not in found:
            return None
        return found["_objective"] + self.anchor_weight * found.get("anchor_kl", 0.0)

    def remarks(self) -> list[str]:
        """Those of every trainer, and how to read the loss."""
        lines = super().remarks()
        if self.min_weight == 0:
            tail = getattr(self.schedule, "tail", None)
            example = f" ({2 * eq3.LN2 / tail:.1f} at beta {tail:g})" if tail else ""
            lines.append(
                f"loss is Eq. 3, in which (2 / beta) ln 2 nats of every token are a constant{example}; constrained_excess "
                "is the loss without it, and nll compares with plain fine-tuning"
            )
        return lines


def _checked_anchor(anchor: tuple[float, int]) -> tuple[float, int]:
    weight, count = float(anchor[0]), int(anchor[1])
    if not (weight >= 0 and weight < float("inf")) or count < 1:
        raise InputError(
            f"head_anchor is ({weight}, {count}), but must be a weight of at least 0 and 1 or more positions."
        )
    return weight, count
