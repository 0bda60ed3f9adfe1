"""ConstrainedSFTTrainer: TRL's SFTTrainer with the token-wise constrained objective (the paper's Eq. 3).

    loss of an optimizer step = sum over its supervised tokens of Eq. 3 / their number, over all accumulation steps and
    processes; with an anchor, plus lambda times the mean D_KL(reference || model) over the first answer positions.

It adds a schedule and a reference to what SFTTrainer takes. The reference is the model as it is handed over: with a new
adapter the weights without it, else those before step 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback

from tokendeep import models
from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.training import adapters, eq3
from tokendeep.training import reference as references
from tokendeep.training.batches import ROW, SPANS, divisor, positions_of, spans, supervised_count, total
from tokendeep.training.sft import ResponseSFTTrainer, each, flat

Schedule = Callable[[Tensor], Tensor]


class ConstrainedSFTTrainer(ResponseSFTTrainer):
    """Protects a model's first tokens while it learns (section 4 of the paper).

    Args:
        schedule: betas by response position, float32 (B, S) from int64 (B, S); the paper's biased beta by default. A
            dataset column `betas`, one number per token beside `input_ids`, takes its place.
        reference: `precomputed` runs the model once over all rows before step 1; `on-the-fly` runs it beside every step,
            which needs an adapter.
        reference_cache: folder of pre-computed references; `output_dir` by default. Used again where model and rows are
            the same.
        head_anchor: (lambda, n): adds lambda times the mean of D_KL(reference || model), over the full vocabulary, at the
            first n answer positions of every row. Lambda 0 is Eq. 3 alone.
        min_weight: 0 is Eq. 3; 1e-3 is the authors' code (see `eq3.constrained_nll`).
        train_on: as ResponseSFTTrainer.
        others: what SFTTrainer takes.

    Raises:
        InputError: no reference can be had; a setting or a row that would not train what is meant.
    """

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
        self.head_length = len(getattr(self.schedule, "head", ()))
        self.new_adapter = peft_config is not None
        super().__init__(model, args, peft_config=peft_config, **others)
        self._check_betas()
        self._adapter_off = self.new_adapter  # a continued adapter's reference is itself, as it was
        if self.reference == "on-the-fly" and not self.new_adapter:
            adapters.keep(self.model)
        self._reference_lm_head = self._frozen_lm_head()
        self._anchor_count: Any = None
        self._cache = Path(reference_cache or self.args.output_dir or ".")
        self._weights = ""
        if self.accelerator.is_main_process:  # the other processes may hold no weights yet
            kept = references.frozen_weights(self.model, without_adapter=self._adapter_off)
            adapter = "" if self._adapter_off else str(getattr(self.model, "peft_config", ""))
            config = lm_head.causal_lm(self.model).config.to_json_string()
            self._weights = references.key(
                references.fingerprint(kept), config, adapter, self.accelerator.mixed_precision
            )
        self._keys: set[str] = set()
        if self.reference == "precomputed":
            if not all(hasattr(d, "__len__") for d in [self.train_dataset, *flat(self.eval_dataset)]):
                raise InputError(
                    "A stream of rows has no rows to compute the reference of before training; give a dataset of fixed "
                    "rows, or train an adapter with reference='on-the-fly'."
                )
            self.add_callback(_ReferenceFirst(self))

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
        elif self.reference == "on-the-fly":
            switched = adapters.switched(model, "ref")
        self.model.eval()
        try:
            with torch.no_grad(), switched:
                yield
        finally:
            self.model.train(training)

    def prepare_reference(self, dataset: Any) -> None:
        """Give the collator the reference of these rows: from the cache, or computed now by all processes together.

        Raises:
            InputError: weights have been trained already, and the cache holds nothing made from those before.
        """
        main, step = self.accelerator.is_main_process, self.state.global_step
        name: list[Any] = [None, None]
        if main:
            kept = self.anchored if self.anchor_weight else 0
            name[0] = references.key(self._weights, references.rows_hash(dataset), kept)
            name[1] = references.load(self._cache, name[0]) is not None
            if not name[1] and references.others(self._cache, {*self._keys, name[0]}):
                print(f"The references in {self._cache} are of another model or other rows; this one is computed anew.")
        broadcast_object_list(name)
        self._keys.add(name[0])
        store = references.load(self._cache, name[0]) if name[1] else None
        if name[1] and store is None:
            raise InputError(
                f"Every process must be able to read {self._cache}; give a reference_cache on a shared disk."
            )
        if store is None:
            if step and not self._adapter_off:
                raise InputError(
                    f"The reference of this run is not in {self._cache}, and the weights have been trained for {step} "
                    "steps, so it cannot be computed; put the file back, or train again from the start with the same "
                    "model and rows."
                )
            store = self._compute_reference(dataset, name[0])
            if main:
                references.save(self._cache, store)
        states: Sequence[Tensor | None] = store.states or [None] * len(store.logps)
        self._collator.references.update(zip(dataset[ROW], zip(store.logps, states, strict=True), strict=True))

    def _compute_reference(self, dataset: Any, name: str) -> references.Store:
        """One forward pass over the rows, shared among the processes; longest rows first, so that memory fails at once."""
        size, rank, world = (
            self.args.per_device_eval_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        given = dataset.select_columns([c for c in ("input_ids", "labels", "seq_lengths") if c in dataset.column_names])
        tokens = [len(ids) for ids in given["input_ids"]]
        order = sorted(range(len(given)), key=lambda i: -tokens[i])
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        own = [batches[min(i + rank, len(batches) - 1)] for i in range(0, len(batches), world)]  # the same number each
        logps: dict[int, Tensor] = {}
        states: dict[int, Tensor] = {}
        with self._as_reference(), tqdm(own, desc="reference", disable=rank > 0 or len(own) < 4) as bar:
            for batch in bar:
                picked = [given[i] for i in batch]
                inputs = self._prepare_inputs(self._collator.inner(picked))
                with self.accelerator.autocast():  # before training the model is not wrapped in it yet
                    out = self.model_wrapped(**inputs, supervised=True, keep_states=bool(self.anchor_weight))
                lengths = [supervised_count(row) for row in picked]
                for i, values in zip(batch, out.logps.float().cpu().split(lengths), strict=True):
                    logps[i] = values
                if self.anchor_weight:
                    where = positions_of(inputs["labels"]) <= self.anchored
                    counts = [int(part.sum()) for part in where.cpu().split(lengths)]
                    kept = out.states[where].cpu().split(counts)
                    states.update(zip(batch, kept, strict=True))
        pieces = gather_object([(logps, states)])
        count = len(dataset)
        kept_states = references.ordered(count, [s for _, s in pieces]) if self.anchor_weight else None
        return references.Store(name, references.ordered(count, [x for x, _ in pieces]), kept_states)

    def prepare_all(self) -> None:
        """The reference of the training rows and of every evaluation set."""
        self.prepare_reference(self.train_dataset)
        each(self.eval_dataset, self.prepare_reference)
        if self._reference_lm_head is not None:
            self._reference_lm_head.get_output_embeddings().to(self.accelerator.device)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As ResponseSFTTrainer's, on rows whose reference can be had."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = each(eval_dataset, self._prepared)
        if self.reference == "precomputed":
            chosen = self.eval_dataset if eval_dataset is None or isinstance(eval_dataset, str) else eval_dataset
            missing = [d for d in flat(chosen) if d[ROW][0] not in self._collator.references]
            for dataset in missing:
                self.prepare_reference(dataset)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """As Trainer's, on rows whose reference can be had."""
        prepared = self._prepared(test_dataset)
        if self.reference == "precomputed" and prepared[ROW][0] not in self._collator.references:
            self.prepare_reference(prepared)
        return super().predict(prepared, ignore_keys, metric_key_prefix)

    # --- the loss ----------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Trainer's, which counts the step's supervised tokens; here its anchored positions are counted as well."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.anchor_weight:
            anchored = sum(int((positions_of(batch["labels"]) <= self.anchored).sum()) for batch in batches)
            total = torch.tensor(anchored, device=device)
            if self.args.average_tokens_across_devices:
                total = self.accelerator.gather(total).sum() // self.get_tp_size()
            self._anchor_count = total
        return batches, count

    def batch_loss(
        self, model: Any, inputs: dict[str, Any], positions: Tensor, extra: dict[str, Any], count: Any, mode: str
    ) -> tuple[Tensor, lm_head.Supervised]:
        """Eq. 3 over the supervised tokens, and the anchor over the first ones."""
        at = positions <= self.anchored
        ref_logps, ref_states = extra["ref_logps"], extra["ref_states"]
        if ref_logps is None:
            ref_logps, ref_states = self._on_the_fly(model, inputs, at)
        anchor = lm_head.Anchor(at, ref_states, self._reference_lm_head) if self.anchor_weight else None
        outputs = model(**inputs, supervised=True, statistics=self._counts(mode), anchor=anchor)
        ref_logps = ref_logps.to(outputs.logps.device)
        betas = extra["betas"] if extra["betas"] is not None else self.schedule(positions[None])[0]
        betas = betas.to(outputs.logps)
        tokens = eq3.constrained_nll(outputs.logps, ref_logps, positions, betas, min_weight=self.min_weight)
        loss = total(tokens, extra["weight"], count)
        if anchor is not None:
            anchored = self._anchor_count if mode == "train" and count is not None else None
            loss = loss + self.anchor_weight * outputs.anchor_kl.sum() / divisor(anchored, outputs.anchor_kl)
        self._measure(mode, outputs, ref_logps, positions, betas)
        return loss, outputs

    def _on_the_fly(self, model: Any, inputs: dict[str, Any], at: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.reference != "on-the-fly":
            raise InputError("The reference of these rows was not computed; train or evaluate through this trainer.")
        with self._as_reference():
            out = model(**inputs, supervised=True, keep_states=bool(self.anchor_weight))
        return out.logps, out.states[at] if self.anchor_weight else None

    @torch.no_grad()
    def _measure(self, mode: str, outputs: lm_head.Supervised, ref: Tensor, positions: Tensor, betas: Tensor) -> None:
        kept, meter = self._kept, self.meters[mode]
        if outputs.anchor_kl is not None:
            at = positions <= self.anchored
            meter.add("anchor_kl", outputs.anchor_kl if mode == "train" else outputs.anchor_kl[kept[at]])
        logps, ref, positions, betas = outputs.logps[kept], ref[kept], positions[kept], betas[kept]
        weights = eq3.constraint_weights(logps, ref, betas)
        meter.add("constrained", eq3.constrained_nll(logps, ref, positions, betas))
        meter.add("_objective", eq3.constrained_nll(logps, ref, positions, betas, min_weight=self.min_weight))
        meter.add("constrained_excess", eq3.constrained_excess(logps, ref, betas))
        meter.add("stopped", weights < eq3.STOPPED)
        for span, inside in spans(positions):
            meter.add(f"weight_{span}", weights[inside])
            meter.add(f"log_ratio_{span}", (logps - ref)[inside])

    def evaluation_loss(self, found: dict[str, float]) -> float:
        """Eq. 3 (or the form with a floor), and the anchor's term."""
        return found["_objective"] + self.anchor_weight * found.get("anchor_kl", 0.0)


class _ReferenceFirst(TrainerCallback):
    """Has the reference computed when the model stands as it will be trained, and before any step."""

    def __init__(self, trainer: ConstrainedSFTTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.prepare_all()


def _checked_anchor(anchor: tuple[float, int]) -> tuple[float, int]:
    weight, count = float(anchor[0]), int(anchor[1])
    if not (weight >= 0 and weight < float("inf")) or count < 1:
        raise InputError(
            f"head_anchor is ({weight}, {count}), but must be a weight of at least 0 and 1 or more positions."
        )
    return weight, count
