"""ReferencedSFTTrainer: answers only, with what the model said before it was trained at hand, and a safety anchor.

    loss of an optimizer step = sum over its supervised tokens of their cross-entropy / their number
                                + lambda * the mean over its safety tokens of D_KL(start || model)

The start is the model as it is when training begins: with a new adapter the weights without it, else those before step 1.
A second `train()` goes on with the start of the first.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list
from datasets import Dataset
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel

from tokendeep import models
from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.training import adapters, checks, cpu, reference_pass, rows
from tokendeep.training import reference as references
from tokendeep.training.batches import ROW, Collator
from tokendeep.training.safety import SAFETY, SafetyAnchor, SafetyBatches
from tokendeep.training.sft import ResponseSFTTrainer


class ReferencedSFTTrainer(ResponseSFTTrainer):
    """Plain training on answers, whose safety an anchor holds.

    Args:
        safety_anchor: the rows beside those of the task at which the model is held, and how; None is plain training.
        reference: `precomputed` or `on-the-fly`, for what needs the reference of task rows (see `ConstrainedSFTTrainer`);
            that of safety rows is always computed before step 1.
        start: a model of the same shape that takes the place of this one before training: what it says is held. `base` is
            that of the adapter which the model is. None is the model itself.
        reference_cache: folder of pre-computed references; `_reference` in `output_dir` by default, which is never pushed
            to a hub. Used again where all weights and rows are the same.
        others: what ResponseSFTTrainer takes.

    Raises:
        InputError: no reference can be had; a setting or a row that would not train what is meant.
    """

    METRICS = (*ResponseSFTTrainer.METRICS, "safety_kl", "safety_nll", "harmless_kl", "harmless_nll")

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *,
        safety_anchor: SafetyAnchor | None = None,
        start: Any = None,
        reference: str = "precomputed",
        reference_cache: str | Path | None = None,
        peft_config: Any = None,
        **others: Any,
    ) -> None:
        self.reference = adapters.checked_reference(reference, model, peft_config)
        self.new_adapter = peft_config is not None
        self._other = start is not None and start != "base"
        unlike = adapters.unlike(start, model) if self._other else []
        super().__init__(model, args, peft_config=peft_config, **others)
        self._adapter_off = self.new_adapter or start == "base"  # a continued adapter's reference is itself, as it was
        self.safety_anchor = safety_anchor if safety_anchor and safety_anchor.weight else None
        self._safety = self._safety_rows(self.safety_anchor) if self.safety_anchor else None
        self._start = self._start_values(unlike)
        self._reference_lm_head = self._frozen_lm_head()
        self._cache = Path(reference_cache or Path(self.args.output_dir or ".", references.FOLDER))
        self._made_from = ""  # the weights that computed the references at hand
        self._keys: set[str] = set()
        self._head: list[str] = []  # what the copy of the head is
        self._moved = False  # whether weights have been trained
        self.add_callback(reference_pass.ReferenceFirst(self))

    def _start_values(self, unlike: Sequence[tuple[Any, Tensor]]) -> dict[str, Tensor]:
        """What the reference has in the place of the model's weights, by name: those of the other model, and all that train."""
        names = {id(weights): name for name, weights in self.model.named_parameters()}  # an adapter changes them
        start = {names[id(weights)]: values for weights, values in unlike}
        if not self._adapter_off and (self._other or self.reference == "on-the-fly"):
            start = {**adapters.trained_values(self.model, start, on_cpu=self._other), **start}
        return start

    def _reachable(self) -> bool:
        """Whether the reference can be computed now: what it is made of is at hand."""
        return bool(self._start) or (not self._other and (self._adapter_off or not self._moved))

    def referred(self) -> list[Any]:
        """The task rows whose reference is computed before training: none, where the objective needs none."""
        return []

    def held(self) -> int:
        """How many first positions of every task answer are held at the whole distribution of the reference."""
        return 0

    # --- the safety anchor -----------------------------------------------------------------------------

    def _safety_rows(self, anchor: SafetyAnchor) -> SafetyBatches:
        """The rows of an anchor, encoded as those of the task are."""
        made = {}
        for name, (given, per_step) in anchor.groups().items():
            dataset = given if isinstance(given, Dataset) else Dataset.from_list([dict(row) for row in given])
            skipped: list[str] = []
            if own := [column for column in rows.OPTIONAL if column in dataset.column_names]:
                raise InputError(
                    f"The {name} rows of the safety anchor have the column {own[0]}, but every row of a step counts alike there; "
                    "leave it out."
                )
            encoded = rows.encode(dataset, **self._encoding, skipped=skipped)
            self._tell(skipped, dataset)
            checks.check_taken(self.model, encoded, f"the {name} ones of the safety anchor")
            made[name] = self._numbered(encoded), per_step
        return SafetyBatches(made, anchor.seed, self._collator.inner, self._collator.references)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Trainer's; the safety rows of the step stand beside its micro-batches."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._safety is not None and batches:
            rank = self.accelerator.process_index // self.get_tp_size()
            size = self.args.per_device_train_batch_size
            self._safety.attach(batches, self.state.global_step, rank, self._ranks(), size)
        return batches, count

    def _ranks(self) -> int:
        return int(self.accelerator.num_processes // self.get_tp_size())

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """That of the task rows, and the share of the safety rows beside them, times what averaging over ranks divides by."""
        safety = inputs.pop(SAFETY, None)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if safety is None:
            return loss
        beside = self._ranks() * self._safety_loss(model, safety)
        self._finite.append((torch.isfinite(beside.detach()), None))
        return (loss[0] + beside, loss[1]) if return_outputs else loss + beside

    def _safety_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Lambda times the weighted sum over the safety tokens of a micro-batch."""
        assert self.safety_anchor is not None
        tokens, positions = inputs.pop("tokens"), inputs.pop("positions")
        count = len(positions)
        weights, groups = (
            inputs.pop(name).repeat_interleave(tokens, output_size=count) for name in ("weight", "group")
        )
        known = {
            name: value for name, value in inputs.items() if name not in ("anchored", "ref_logps", "ref_states", ROW)
        }
        anchor = None
        if self.safety_anchor.loss == "kl":
            everywhere = torch.arange(len(positions), device=positions.device)
            anchor = lm_head.Anchor(everywhere, inputs["ref_states"], self._reference_lm_head)
        outputs = model(**known, supervised=True, anchor=anchor)
        values, meter = outputs.anchor_kl if anchor else -outputs.logps, self.meters["train"]
        for number, name in enumerate(("safety", "harmless")):
            inside = (groups == number) & (weights > 0)
            meter.add(f"{name}_nll", -outputs.logps, inside)
            if anchor:
                meter.add(f"{name}_kl", values, inside, peak=True)
        return self.safety_anchor.weight * (weights * values).sum()

    # --- the reference --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[None]:
        """Within it the model is the reference, without gradients and dropout."""
        training, model = self.model.training, self.accelerator.unwrap_model(self.model)
        self.model.eval()
        try:
            with torch.no_grad(), contextlib.ExitStack() as switched:
                if self._adapter_off:
                    switched.enter_context(models.reference(model))
                if self._start:
                    switched.enter_context(adapters.exchanged(model, self._start))
                yield
        finally:
            self.model.train(training)

    def _weights(self) -> str:
        """The key of the weights of the reference, as they are now, with all else that it depends on."""
        adapter = "" if self._adapter_off else str(getattr(self.model, "peft_config", ""))
        config = lm_head.causal_lm(self.model).config.to_json_string()
        with self._as_reference() if self._start and self._other else contextlib.nullcontext():
            hashed = references.weights_hash(self.model, without_adapter=self._adapter_off)
        name = [references.key(hashed, config, adapter, cpu.precision(self.accelerator, lm_head.causal_lm(self.model)))]
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
        needed = [*self.referred(), *self._held_rows()]
        if needed and goes_on and trained:
            self._refer(needed, recorded.get("weights", ""))
        elif needed and (self._reachable() or not self._made_from):
            self._refer(needed, self._weights())
        if self._reference_lm_head is not None:
            self._settle_lm_head(recorded.get("lm_head"))
        if self._other and self.reference == "precomputed":
            self._start = {}  # all that is wanted of the other model is there now
        return {"weights": self._made_from, "lm_head": self._head}

    def _held_rows(self) -> list[Any]:
        """The safety rows whose reference is needed."""
        return self._safety.datasets if self._safety and self.safety_anchor and self.safety_anchor.loss == "kl" else []

    def _how(self, dataset: Any) -> tuple[Collator, bool]:
        """What makes batches of rows, and whether the final states of the reference are kept of them."""
        if self._safety and any(dataset is rows for rows in self._safety.datasets):
            return self._safety.collator, True
        return self._collator, self.held() > 0

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
            if not self._reachable():
                raise InputError(
                    f"The reference of this run is not in {self._cache}, and the weights have been trained for "
                    f"{self.state.global_step} steps, so it cannot be computed; put the file back, or train again from the "
                    "start with the same model and rows."
                )
            if self.accelerator.is_main_process and references.others(self._cache, self._keys):
                print(f"The references in {self._cache} are of another model or other rows; this one is computed anew.")
            store = reference_pass.compute(self, dataset, name, *self._how(dataset))
            if self.accelerator.is_main_process:
                references.save(self._cache, store)
        self._give(dataset, store)

    def _stored(self, dataset: Any, weights: str) -> tuple[str, references.Store | None]:
        """The key of the reference of rows, and what the cache holds under it."""
        found: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            collator, states = self._how(dataset)
            found[0] = references.key(weights, references.rows_hash(dataset), collator.held if states else 0)
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
        lm = lm_head.causal_lm(self.model)
        spread = len(set((getattr(lm, "hf_device_map", None) or {}).values())) > 1  # layers on several devices
        own = next(lm.get_output_embeddings().parameters()).device
        kept = self._copied_head().to(own if spread else self.accelerator.device)
        other = self._other and bool(self._start)
        if other or not (self._other or self._moved or isinstance(self.model, FullyShardedDataParallel)):
            with self._as_reference() if other else contextlib.nullcontext():
                references.copy_weights(lm.get_output_embeddings(), kept)
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

    def _frozen_lm_head(self) -> Any:
        """A copy of the language-model head where an anchor needs it: where the head is trained, or was another before."""
        lm = lm_head.causal_lm(self.model)
        held = self.held() or (self.safety_anchor and self.safety_anchor.loss == "kl")
        head = list(lm.get_output_embeddings().parameters())
        names = {id(weights): name for name, weights in self.model.named_parameters()}
        if held and self._adapter_off and not self.new_adapter and any(weights.requires_grad for weights in head):
            raise InputError(
                "This adapter trains the language-model head, and that of its base is not at hand any more; merge the adapter, "
                "and name the model before it (mend: --aligned)."
            )
        same = not any(weights.requires_grad or names.get(id(weights)) in self._start for weights in head)
        if not held or same:
            return None
        return lm_head.frozen_lm_head(lm)
