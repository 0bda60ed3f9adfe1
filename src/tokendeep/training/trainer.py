"""ConstrainedSFTTrainer: TRL's SFTTrainer with the token-wise constrained objective (the paper's Eq. 3).

    loss of an optimizer step = sum over its supervised tokens of Eq. 3 / their number, over all accumulation steps and
    processes; with an anchor, plus lambda times the mean D_KL(reference || model) over the first answer positions.

It adds a schedule and a reference to what SFTTrainer takes. The reference is the model as it is when training begins: with
a new adapter the weights without it, else those before step 1. A second `train()` goes on with the reference of the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel

from tokendeep import models
from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.training import adapters, eq3, reference_pass
from tokendeep.training import reference as references
from tokendeep.training.batches import ROW, SPANS, divisor, spans, total
from tokendeep.training.sft import ResponseSFTTrainer, each, flat

Schedule = Callable[[Tensor], Tensor]


class ConstrainedSFTTrainer(ResponseSFTTrainer):
    """Protects a model's first tokens while it learns (section 4 of the paper).

    Args:
        schedule: betas by response position, float32 (B, S) from int64 (B, S); the paper's biased beta by default. A
            dataset column `betas`, one number per token beside `input_ids`, takes its place.
        reference: `precomputed` runs the model once over all rows before step 1; `on-the-fly` runs it beside every step,
            which needs an adapter.
        reference_cache: folder of pre-computed references; `_reference` in `output_dir` by default, which is never pushed
            to a hub. Used again where all weights and rows are the same.
        head_anchor: (lambda, n): adds lambda times the mean of D_KL(reference || model), over the full vocabulary, at the
            first n answer positions of every row. Lambda 0 is Eq. 3 alone.
        min_weight: 0 is Eq. 3; 1e-3 is the authors' code (see `eq3.constrained_nll`).
        train_on: as ResponseSFTTrainer.
        others: what SFTTrainer takes.

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
        *ResponseSFTTrainer.METRICS,
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
        reference: str = "precomputed",
        reference_cache: str | Path | None = None,
        head_anchor: tuple[float, int] = (0.0, 5),
        min_weight: float = 0.0,
        peft_config: Any = None,
        **others: Any,
    ) -> None:
        self.schedule: Schedule = schedule or eq3.BetaSchedule()
        self.reference = adapters.checked_reference(reference, model, peft_config)
        self.anchor_weight, self.anchored = _checked_anchor(head_anchor)
        if not min_weight >= 0:
            raise InputError(f"min_weight is {min_weight}, but must be at least 0.")
        self.min_weight = min_weight
        self.new_adapter = peft_config is not None
        super().__init__(model, args, peft_config=peft_config, **others)
        self._check_betas()
        self._collator.schedule, self._collator.held = self.schedule, self.anchored if self.anchor_weight else 0
        self._adapter_off = self.new_adapter  # a continued adapter's reference is itself, as it was
        continued = self.reference == "on-the-fly" and not self.new_adapter
        self._start = adapters.trained_values(self.model) if continued else {}
        self._reference_lm_head = self._frozen_lm_head()
        self._anchor_count: Any = None
        self._cache = Path(reference_cache or Path(self.args.output_dir or ".", references.FOLDER))
        self._made_from = ""  # the weights that computed the references at hand
        self._keys: set[str] = set()
        self._head: list[str] = []  # what the copy of the head is
        self._moved = False  # whether weights have been trained
        if self.reference == "precomputed" and not hasattr(self.train_dataset, "__len__"):
            raise InputError(
                "A stream of rows to train on has no rows to compute the reference of before training; give a dataset of fixed "
                "rows, or train an adapter with reference='on-the-fly'."
            )
        self.add_callback(reference_pass.ReferenceFirst(self))

    def _check_betas(self) -> None:
        """A schedule must give numbers above 0 at every position."""
        positions = torch.arange(1, 4097)[None]
        betas = self.schedule(positions)
        if betas.shape != positions.shape or not bool(((betas > 0) & betas.isfinite()).all()):
            raise InputError("The schedule must give one finite beta above 0 for every position.")

    def _frozen_lm_head(self) -> Any:
        """A copy of the language-model head where an anchor needs it: only where the head is trained itself."""
        lm = lm_head.causal_lm(self.model)
        if not self.anchor_weight or not any(p.requires_grad for p in lm.get_output_embeddings().parameters()):
            return None
        return lm_head.frozen_lm_head(lm)

    # --- the reference --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[None]:
        """Within it the model is the reference, without gradients and dropout."""
        training, model = self.model.training, self.accelerator.unwrap_model(self.model)
        switched: Any = contextlib.nullcontext()
        if self._adapter_off:
            switched = models.reference(model)
        elif self._start:
            switched = adapters.exchanged(model, self._start)
        self.model.eval()
        try:
            with torch.no_grad(), switched:
                yield
        finally:
            self.model.train(training)

    def _weights(self) -> str:
        """The key of the weights of the reference, as they are now, with all else that it depends on."""
        adapter = "" if self._adapter_off else str(getattr(self.model, "peft_config", ""))
        config = lm_head.causal_lm(self.model).config.to_json_string()
        hashed = references.weights_hash(self.model, without_adapter=self._adapter_off)
        name = [references.key(hashed, config, adapter, self.accelerator.mixed_precision)]
        broadcast_object_list(name)  # where shards are gathered on the first process alone, only it knows
        return name[0]

    def prepare_all(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """The reference of the training rows and of every evaluation set, when a training begins.

        Args:
            recorded: where it goes on from a checkpoint, what it returned when it began.

        Returns:
            `weights` and `lm_head`: what the weights are that the references and the copy of the head are of.
        """
        goes_on, trained = self.state.global_step > 0, not self._adapter_off
        self._moved = self._moved or goes_on
        if self.reference == "precomputed":
            rows = [d for d in [self.train_dataset, *flat(self.eval_dataset)] if hasattr(d, "__len__")]
            if goes_on and trained:
                self._refer(rows, recorded.get("weights", ""))
            elif not (self._moved and trained and self._made_from):
                self._refer(rows, self._weights())
        if self._reference_lm_head is not None:
            self._settle_lm_head(recorded.get("lm_head"))
        return {"weights": self._made_from, "lm_head": self._head}

    def _refer(self, datasets: Sequence[Any], weights: str) -> None:
        """Give the collator the reference of all these rows, which the weights of this key compute or have computed."""
        if weights != self._made_from:
            self._collator.references.clear()
        for dataset in datasets:
            if dataset[ROW][0] not in self._collator.references:
                self._prepare_reference(dataset, weights)
        self._made_from = weights

    def _prepare_reference(self, dataset: Any, weights: str) -> None:
        """From the cache, or computed now by all processes together.

        Raises:
            InputError: weights have been trained already, and the cache holds nothing made from those before.
        """
        name, store = self._stored(dataset, weights)
        if store is None:
            if self._moved and not self._adapter_off:
                raise InputError(
                    f"The reference of this run is not in {self._cache}, and the weights have been trained for "
                    f"{self.state.global_step} steps, so it cannot be computed; put the file back, or train again from the "
                    "start with the same model and rows."
                )
            if self.accelerator.is_main_process and references.others(self._cache, self._keys):
                print(f"The references in {self._cache} are of another model or other rows; this one is computed anew.")
            store = reference_pass.compute(self, dataset, name)
            if self.accelerator.is_main_process:
                references.save(self._cache, store)
        self._give(dataset, store)

    def _stored(self, dataset: Any, weights: str) -> tuple[str, references.Store | None]:
        """The key of the reference of rows, and what the cache holds under it."""
        found: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            held = self.anchored if self.anchor_weight else 0
            found[0] = references.key(weights, references.rows_hash(dataset), held)
            found[1] = references.load(self._cache, found[0]) is not None
        broadcast_object_list(found)
        self._keys.add(found[0])
        store = references.load(self._cache, found[0]) if found[1] else None
        if found[1] and store is None:
            raise InputError(
                f"Every process must be able to read {self._cache}; give a reference_cache on a shared disk."
            )
        return found[0], store

    def _give(self, dataset: Any, store: references.Store) -> None:
        """Let the collator have the reference of these rows."""
        states: Sequence[Tensor | None] = store.states or [None] * len(store.logps)
        self._collator.references.update(zip(dataset[ROW], zip(store.logps, states, strict=True), strict=True))

    def _settle_lm_head(self, recorded: list[str] | None) -> None:
        """Give the copy of the head the weights that the training begins with; one that goes on must have been given them."""
        kept = self._copied_head().to(self.accelerator.device)
        if not (self._moved or isinstance(self.model, FullyShardedDataParallel)):
            references.copy_weights(lm_head.causal_lm(self.model).get_output_embeddings(), kept)
        for weights in kept.parameters():  # the other processes may have been made without weights
            weights.data = broadcast(weights.data)
        self._head = references.digests(kept)
        if self._moved and recorded not in (None, self._head):
            raise InputError(
                "The model is not the one that this training began with, whose language-model head the anchor needs; "
                "give that one, the checkpoint's weights are put into it."
            )

    def _copied_head(self) -> Any:
        return self._reference_lm_head.get_output_embeddings()

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
        if len(fixed) < len(datasets) and self._moved and not self._adapter_off and self.accelerator.is_main_process:
            print(
                "tokendeep: a stream of rows has no reference of before the training, so it is evaluated without a loss: nll "
                "and mean_token_accuracy need none"
            )
        missing = [d for d in fixed if d[ROW][0] not in self._collator.references]
        if missing and (self._adapter_off or not self._moved):
            self._refer(fixed, self._weights())
            return
        for dataset in missing:
            _, store = self._stored(dataset, self._made_from)
            if store is not None:
                self._give(dataset, store)
            elif self.accelerator.is_main_process:
                print(
                    f"tokendeep: {len(dataset)} rows have no reference, and all weights have been trained since, so they are "
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
        if without and self._moved and not self._adapter_off:
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
        if self._moved and not (self._adapter_off or self._start):
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
