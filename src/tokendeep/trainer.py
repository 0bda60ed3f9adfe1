"""ConstrainedSFTTrainer: TRL's SFTTrainer with the token-wise constrained objective (the paper's Eq. 3).

    loss of an optimizer step = sum over its supervised tokens of Eq. 3 / their number, over all accumulation steps and
    processes; with an anchor, plus lambda times the mean D_KL(reference || model) over the first answer positions.

It adds a schedule and a reference to what SFTTrainer takes, and applies the output head to supervised positions only.
The reference is the model as it is handed over: with a new adapter the weights without it, else those before step 1.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from . import head, models, objective, rows
from . import reference as references
from .types import IGNORE, InputError

Schedule = Callable[[Tensor], Tensor]
REFERENCES = ("precomputed", "on-the-fly")
ROW = "tokendeep_row"  # column with the number of a row within its trainer
SPANS = {"1": (1, 1), "2_5": (2, 5), "later": (6, 10**9)}  # positions that are logged apart
BASE_CHANGING = (
    "pissa",
    "olora",
    "corda",
    "loftq",
    "lora_ga",
    "eva",
)  # ways to begin an adapter that change the weights beneath it


@dataclass
class ConstrainedSFTConfig(SFTConfig):
    """SFTConfig with the paper's optimizer settings as defaults (section 4, appendix B.5); any SFTConfig works as well."""

    learning_rate: float = field(default=2e-5, metadata={"help": "2e-5 for Llama-2, 5e-6 for Gemma in the paper."})
    warmup_steps: float = field(default=10, metadata={"help": "Without it the constraint is much weaker (Table 9)."})
    adam_beta1: float = field(default=0.5, metadata={"help": "As in the paper, also for its plain baselines."})
    adam_beta2: float = field(default=0.999, metadata={"help": "As in the paper."})


class Meter:
    """Sums and counts of named values since they were last read; one reduction over all processes."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.place = {name: i for i, name in enumerate(names)}
        self.sums = torch.zeros(len(names), 2, device=device)

    def add(self, name: str, values: Tensor) -> None:
        """Count every element of `values` once; nothing is waited for."""
        self.sums[self.place[name], 0] += values.detach().float().sum()
        self.sums[self.place[name], 1] += values.numel()

    def read(self, accelerator: Any) -> dict[str, float]:
        """The mean of every name that was counted, over all processes; starts again at nothing."""
        total = accelerator.reduce(self.sums, reduction="sum").tolist()
        self.sums = torch.zeros_like(self.sums)
        return {name: total[i][0] / total[i][1] for name, i in self.place.items() if total[i][1] > 0}


class ResponseSFTTrainer(SFTTrainer):
    """SFTTrainer on answers only, with the head on supervised positions: the fair baseline of the constrained one.

    Rows as `rows.encode` takes them. Beside TRL's metrics it logs `nll`, and evaluates to `eval_nll`, both means over
    all supervised tokens.

    Args:
        train_on: `last_turn` or `all_turns`, for rows that are conversations.
        others: what SFTTrainer takes.

    Raises:
        InputError: a setting or a row that would train something else than answers.
    """

    METRICS: tuple[str, ...] = ("nll", *(f"nll_{span}" for span in SPANS), "entropy", "mean_token_accuracy")
    head_length = 0
    args: Any
    model: Any
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        train_on: str = "last_turn",
        **others: Any,
    ) -> None:
        args = _settings(args)
        _check_settings(args, others, peft_config)
        if args.load_best_model_at_end and args.metric_for_best_model in (None, "loss"):
            if isinstance(eval_dataset, dict):
                raise InputError(
                    "With several evaluation sets say which one chooses the best model: metric_for_best_model="
                    f"'eval_{next(iter(eval_dataset))}_nll', greater_is_better=False."
                )
            args.metric_for_best_model, args.greater_is_better = "eval_nll", False
        if train_dataset is None:
            raise InputError("There is no train_dataset; give the rows to train on.")
        if processing_class is None:
            from transformers import AutoTokenizer

            name = model if isinstance(model, str) else model.config._name_or_path
            processing_class = AutoTokenizer.from_pretrained(name)
        self._columns: set[str] | None = None
        self._row_count = 0
        self._own: set[str] = set()  # data sets that have been prepared here
        self._packs = args.packing
        self._encoding = {"tokenizer": processing_class, "max_length": args.max_length, "train_on": train_on}
        train_dataset = self._encoded(train_dataset)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=_each(eval_dataset, self._encoded),
            processing_class=processing_class,
            peft_config=peft_config,
            **others,
        )
        if self._is_vlm or self.aux_loss_enabled:
            what = "images" if self._is_vlm else "a router loss (set router_aux_loss_coef=0.0 to train without it)"
            raise InputError(f"{type(self).__name__} trains text models without {what}.")
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the whole step
        head.add_supervised_forward(head.causal_lm(self.model))
        self._kept: Any = slice(None)
        self.meters = {mode: Meter(self.METRICS, self.accelerator.device) for mode in ("train", "eval")}
        self.train_dataset = self._numbered(self.train_dataset)
        self.eval_dataset = _each(self.eval_dataset, self._numbered)
        self.data_collator = self._collator = Collator(self.data_collator)
        self._signature_columns: Any = ["input_ids", "labels", "seq_lengths", ROW, "betas"]

    def _encoded(self, dataset: Any) -> Any:
        """The rows with labels, each of them checked."""
        made = rows.encode(dataset, **self._encoding)
        if not hasattr(made, "__len__"):
            return made
        columns = set(made.column_names)
        if "betas" in columns and self._packs:
            raise InputError("Packing would lose the column betas; set packing=False.")
        if self._columns is not None and ("betas" in columns) != ("betas" in self._columns):
            raise InputError("Training and evaluation rows must both have the column betas, or neither.")
        self._columns = columns
        if "betas" not in columns:
            rows.check_head(made, self.head_length)
        return made

    def _numbered(self, dataset: Any) -> Any:
        """The prepared rows, each with a number of its own in this trainer."""
        if not hasattr(dataset, "__len__"):
            return dataset  # a stream has no numbers; its rows are seen once
        first, self._row_count = self._row_count, self._row_count + len(dataset)
        numbered = dataset.add_column(ROW, list(range(first, self._row_count)))
        self._own.add(numbered._fingerprint)
        return numbered

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As Trainer's; rows that come now are encoded as those of the constructor were."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = _each(eval_dataset, self._prepared)
        return Trainer.evaluate(
            self, eval_dataset, ignore_keys, metric_key_prefix
        )  # SFTTrainer's would prepare the rows once more

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """As Trainer's, on rows that are encoded as those of the constructor were."""
        return super().predict(self._prepared(test_dataset), ignore_keys, metric_key_prefix)

    def _prepared(self, dataset: Any) -> Any:
        if getattr(dataset, "_fingerprint", None) in self._own:
            return dataset
        if ROW in (dataset.column_names or ()):  # of another trainer
            dataset = dataset.remove_columns(ROW)
        encoded = self._encoded(dataset)
        made = self._prepare_dataset(encoded, self.processing_class, self.args, self._packs, None, "eval")
        return self._numbered(made)

    # --- the loss ----------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the optimizer step's supervised tokens of `token_loss`, times what averaging over ranks divides by."""
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs)
        numbers, tokens = inputs.pop(ROW, None), inputs.pop("tokens")
        extra = {name: inputs.pop(name, None) for name in ("ref_logps", "ref_states", "betas")}
        positions = _positions(inputs["labels"])  # (N,), in row order, as all that follows
        self._kept = self._not_repeated(tokens) if mode == "eval" else slice(None)
        loss, outputs = self.batch_loss(model, inputs, positions, extra, num_items_in_batch, mode)
        if not torch.isfinite(loss):
            self._stop(numbers)
        meter, kept = self.meters[mode], self._kept
        nll = -outputs.logps[kept]
        meter.add("nll", nll)
        for span, inside in _spans(positions[kept]):
            meter.add(f"nll_{span}", nll[inside])
        if outputs.entropy is not None and outputs.is_top1 is not None:
            meter.add("entropy", outputs.entropy[kept])
            meter.add("mean_token_accuracy", outputs.is_top1[kept])
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**{name: value for name, value in inputs.items() if name != "labels"})

    def batch_loss(
        self, model: Any, inputs: dict[str, Any], positions: Tensor, extra: dict[str, Any], count: Any, mode: str
    ) -> tuple[Tensor, head.Supervised]:
        """The loss of one micro-batch, already divided by `count`, the supervised tokens of the whole step."""
        outputs = model(**inputs, supervised=True, statistics=self._counts(mode))
        return -outputs.logps.sum() / _count(count, positions), outputs

    def _not_repeated(self, tokens: Tensor) -> Tensor:
        """Which supervised tokens (N,) of an evaluation batch count: accelerate repeats rows so that all ranks get as many.

        Of the last batch, put together in the order of the ranks, only the first `remainder` rows are new.
        """
        state, size = self.accelerator.gradient_state, len(tokens)
        new = torch.ones(size, dtype=torch.bool, device=tokens.device)
        if state.end_of_dataloader and state.remainder > 0:
            new = torch.arange(size, device=tokens.device) + self.accelerator.process_index * size < state.remainder
        return new.repeat_interleave(tokens)

    def _counts(self, mode: str) -> bool:
        """Whether entropy and accuracy are taken now: always in evaluation, in training at steps that are logged."""
        every = max(1, int(self.state.logging_steps or self.args.logging_steps or 1))
        return mode == "eval" or (self.state.global_step + 1) % every == 0

    def _stop(self, numbers: Any) -> None:
        named = "" if numbers is None else f" (rows {', '.join(str(n + 1) for n in numbers.tolist())})"
        raise InputError(
            f"The loss became NaN or infinite at step {self.state.global_step + 1}{named}; lower the learning rate, train "
            "in float32, or look at those rows. Checkpoints written before are kept, and training can go on from them."
        )

    # --- what is logged -------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log."""
        if self.model.training and "loss" in logs:
            logs.update(_shown(self.meters["train"].read(self.accelerator)))
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Trainer's, with metrics that are means over tokens instead of means over batches."""
        meter = self.meters["eval"]
        meter.read(self.accelerator)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        found = meter.read(self.accelerator)
        metrics: Any = output.metrics
        metrics.update({f"{metric_key_prefix}_{name}": value for name, value in _shown(found).items()})
        metrics[f"{metric_key_prefix}_loss"] = self.evaluation_loss(found)
        return output

    def evaluation_loss(self, found: dict[str, float]) -> float:
        """The trained objective, from the means over all tokens of an evaluation."""
        return found["nll"]


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
        min_weight: 0 is Eq. 3; 1e-3 is the authors' code (see `objective.constrained_nll`).
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
        self.schedule: Schedule = schedule or objective.BetaSchedule()
        self.reference = _checked_reference(reference, model, peft_config)
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
            _keep_adapter(self.model)
        self._ref_head = self._frozen_head()
        self._anchor_count: Any = None
        self._cache = Path(reference_cache or self.args.output_dir or ".")
        self._weights = ""
        if self.accelerator.is_main_process:  # the other processes may hold no weights yet
            kept = references.frozen_weights(self.model, without_adapter=self._adapter_off)
            adapter = "" if self._adapter_off else str(getattr(self.model, "peft_config", ""))
            config = head.causal_lm(self.model).config.to_json_string()
            self._weights = references.key(
                references.fingerprint(kept), config, adapter, self.accelerator.mixed_precision
            )
        self._keys: set[str] = set()
        if self.reference == "precomputed":
            if not all(hasattr(d, "__len__") for d in [self.train_dataset, *_flat(self.eval_dataset)]):
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

    def _frozen_head(self) -> Any:
        """A copy of the output head where an anchor needs it: only where the head is trained itself."""
        lm = head.causal_lm(self.model)
        if not self.anchor_weight or not any(p.requires_grad for p in lm.get_output_embeddings().parameters()):
            return None
        return head.frozen_head(lm)

    # --- the reference --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _as_reference(self) -> Iterator[None]:
        """Within it the model is the reference, without gradients and dropout."""
        training, model = self.model.training, self.accelerator.unwrap_model(self.model)
        switched: Any = contextlib.nullcontext()
        if self._adapter_off:
            switched = models.reference(model)
        elif self.reference == "on-the-fly":
            switched = _adapter(model, "ref")
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
                lengths = [_supervised(row) for row in picked]
                for i, values in zip(batch, out.logps.float().cpu().split(lengths), strict=True):
                    logps[i] = values
                if self.anchor_weight:
                    where = _positions(inputs["labels"]) <= self.anchored
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
        _each(self.eval_dataset, self.prepare_reference)
        if self._ref_head is not None:
            self._ref_head.get_output_embeddings().to(self.accelerator.device)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As ResponseSFTTrainer's, on rows whose reference can be had."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = _each(eval_dataset, self._prepared)
        if self.reference == "precomputed":
            chosen = self.eval_dataset if eval_dataset is None or isinstance(eval_dataset, str) else eval_dataset
            missing = [d for d in _flat(chosen) if d[ROW][0] not in self._collator.references]
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
            anchored = sum(int((_positions(batch["labels"]) <= self.anchored).sum()) for batch in batches)
            total = torch.tensor(anchored, device=device)
            if self.args.average_tokens_across_devices:
                total = self.accelerator.gather(total).sum() // self.get_tp_size()
            self._anchor_count = total
        return batches, count

    def batch_loss(
        self, model: Any, inputs: dict[str, Any], positions: Tensor, extra: dict[str, Any], count: Any, mode: str
    ) -> tuple[Tensor, head.Supervised]:
        """Eq. 3 over the supervised tokens, and the anchor over the first ones."""
        at = positions <= self.anchored
        ref_logps, ref_states = extra["ref_logps"], extra["ref_states"]
        if ref_logps is None:
            ref_logps, ref_states = self._on_the_fly(model, inputs, at)
        anchor = head.Anchor(at, ref_states, self._ref_head) if self.anchor_weight else None
        outputs = model(**inputs, supervised=True, statistics=self._counts(mode), anchor=anchor)
        ref_logps = ref_logps.to(outputs.logps.device)
        betas = extra["betas"] if extra["betas"] is not None else self.schedule(positions[None])[0]
        betas = betas.to(outputs.logps)
        tokens = objective.constrained_nll(outputs.logps, ref_logps, positions, betas, min_weight=self.min_weight)
        loss = tokens.sum() / _count(count, positions)
        if anchor is not None:
            anchored = self._anchor_count if mode == "train" and count is not None else None
            loss = loss + self.anchor_weight * outputs.anchor_kl.sum() / _count(anchored, outputs.anchor_kl)
        self._measure(mode, outputs, ref_logps, positions, betas)
        return loss, outputs

    def _on_the_fly(self, model: Any, inputs: dict[str, Any], at: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.reference != "on-the-fly":
            raise InputError("The reference of these rows was not computed; train or evaluate through this trainer.")
        with self._as_reference():
            out = model(**inputs, supervised=True, keep_states=bool(self.anchor_weight))
        return out.logps, out.states[at] if self.anchor_weight else None

    @torch.no_grad()
    def _measure(self, mode: str, outputs: head.Supervised, ref: Tensor, positions: Tensor, betas: Tensor) -> None:
        kept, meter = self._kept, self.meters[mode]
        if outputs.anchor_kl is not None:
            at = positions <= self.anchored
            meter.add("anchor_kl", outputs.anchor_kl if mode == "train" else outputs.anchor_kl[kept[at]])
        logps, ref, positions, betas = outputs.logps[kept], ref[kept], positions[kept], betas[kept]
        weights = objective.constraint_weights(logps, ref, betas)
        meter.add("constrained", objective.constrained_nll(logps, ref, positions, betas))
        meter.add("_objective", objective.constrained_nll(logps, ref, positions, betas, min_weight=self.min_weight))
        meter.add("constrained_excess", objective.constrained_excess(logps, ref, betas))
        meter.add("stopped", weights < objective.STOPPED)
        for span, inside in _spans(positions):
            meter.add(f"weight_{span}", weights[inside])
            meter.add(f"log_ratio_{span}", (logps - ref)[inside])

    def evaluation_loss(self, found: dict[str, float]) -> float:
        """Eq. 3 (or the form with a floor), and the anchor's term."""
        return found["_objective"] + self.anchor_weight * found.get("anchor_kl", 0.0)


@dataclass
class Collator:
    """TRL's collator, which drops columns it does not know; what belongs to the rows is added behind it.

    `tokens` (B,) counts the supervised tokens of each row. `betas` and `ref_logps` (N,) stand in the order of the
    batch's supervised tokens, `ref_states` (A, H) in that of its anchored ones: the same for padded and for packed rows.
    """

    inner: Any
    references: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)  # by number of the row

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        known = [{name: v for name, v in row.items() if name not in (ROW, "betas")} for row in batch]
        made: dict[str, Any] = self.inner(known)
        if "betas" in batch[0]:
            pairs = [pair for r in batch for pair in zip(r["labels"][1:], r["betas"][1:], strict=False)]
            made["betas"] = torch.tensor([beta for label, beta in pairs if label != IGNORE], dtype=torch.float32)
        made["tokens"] = torch.tensor([_supervised(row) for row in batch])
        if ROW in batch[0]:
            made[ROW] = torch.tensor([row[ROW] for row in batch])
            found = [self.references[row[ROW]] for row in batch if row[ROW] in self.references]
            if len(found) == len(batch):
                made["ref_logps"] = torch.cat([logps for logps, _ in found])
                if found[0][1] is not None:
                    made["ref_states"] = torch.cat([states for _, states in found if states is not None])
        return made


class _ReferenceFirst(TrainerCallback):
    """Has the reference computed when the model stands as it will be trained, and before any step."""

    def __init__(self, trainer: ConstrainedSFTTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.prepare_all()


# --- settings ------------------------------------------------------------------------------------


def _settings(args: Any) -> Any:
    """A copy of the settings, as SFTConfig; by default with the paper's optimizer."""
    if args is None:
        return ConstrainedSFTConfig("trainer_output")
    if isinstance(args, TrainingArguments) and not isinstance(args, SFTConfig):
        return SFTConfig(**{**args.to_dict(), "hub_token": args.hub_token})
    args = copy.copy(args)
    args.assistant_only_loss = False  # conversations are encoded here, answers only
    return args


def _check_settings(args: Any, others: dict[str, Any], peft_config: Any) -> None:
    """Refuse what would supervise other tokens than answers, count positions wrongly, or go unused."""
    given = {name for name, value in others.items() if value is not None}
    targets = getattr(peft_config, "target_modules", None) or ()
    wrong = {
        "completion_only_loss=False supervises the prompt": args.completion_only_loss is False,
        "formatting_func makes plain text, in which prompt and answer cannot be told apart": "formatting_func" in given,
        "a data_collator may pad on the left, where rows are not looked for": "data_collator" in given,
        "compute_loss_func is another loss": "compute_loss_func" in given,
        f"loss_type={args.loss_type!r} is another loss": args.loss_type != "nll",
        "label_smoothing_factor is another loss": args.label_smoothing_factor > 0,
        "chat_template_path comes too late for the rows; set the tokenizer's chat_template": args.chat_template_path,
        "eos_token comes too late for the rows; set the tokenizer's eos_token": args.eos_token,
        f"packing_strategy={args.packing_strategy!r} cuts answers, whose rest would count from position 1 again; use "
        "'bfd'": args.packing and args.packing_strategy != "bfd",
        "eval_packing must be as packing": args.eval_packing not in (None, args.packing),
        "truncation_mode='keep_end' cuts the beginning, where positions count from": args.truncation_mode == "keep_end",
        "an lm_head in the LoRA targets would not be trained; take it out": "lm_head" in targets,
    }
    for what, found in wrong.items():
        if found:
            raise InputError(f"{what}; leave that setting out." if ";" not in what else f"{what}.")


def _checked_reference(name: str, model: Any, peft_config: Any) -> str:
    """The kind of reference, where this model can have it."""
    if name not in REFERENCES:
        raise InputError(f"reference is {name!r}, but must be one of {', '.join(REFERENCES)}.")
    adapted = peft_config is not None or hasattr(model, "peft_config")
    if name == "on-the-fly" and not adapted:
        raise InputError(
            "reference='on-the-fly' takes the adapter off, but all weights are trained and no second copy is kept; use "
            "reference='precomputed', or train an adapter."
        )
    configs = [peft_config] if peft_config is not None else list(getattr(model, "peft_config", {}).values())
    if name == "on-the-fly" or peft_config is not None:
        for config in configs:
            if getattr(config, "bias", "none") != "none":
                raise InputError(
                    f"bias={config.bias!r} trains biases beneath the adapter, which stay when it is taken off; use "
                    "bias='none'."
                )
    begin = getattr(peft_config, "init_lora_weights", True)
    if isinstance(begin, str) and begin.lower().startswith(BASE_CHANGING):
        raise InputError(
            f"init_lora_weights={begin!r} changes the weights beneath the adapter, so without it they are not the model "
            "you gave; use the default."
        )
    return name


def _checked_anchor(anchor: tuple[float, int]) -> tuple[float, int]:
    weight, count = float(anchor[0]), int(anchor[1])
    if not (weight >= 0 and weight < float("inf")) or count < 1:
        raise InputError(
            f"head_anchor is ({weight}, {count}), but must be a weight of at least 0 and 1 or more positions."
        )
    return weight, count


# --- small parts ---------------------------------------------------------------------------------


def _each(data: Any, do: Callable[[Any], Any]) -> Any:
    """`do` with a data set, with each of a dictionary of them, or with none."""
    if isinstance(data, dict):
        return {name: do(one) for name, one in data.items()}
    return do(data) if data is not None else None


def _flat(data: Any) -> list[Any]:
    return list(data.values()) if isinstance(data, dict) else [data] if data is not None else []


def _count(given: Any, own: Tensor) -> Any:
    """What to divide by: the count over the whole step, or of this batch where there is none; never 0."""
    return torch.as_tensor(own.numel() if given is None else given).clamp(min=1)


def _positions(labels: Tensor) -> Tensor:
    """Response positions (N,) of the supervised tokens of a batch of labels (B, S)."""
    positions = objective.response_positions(labels[:, 1:] != IGNORE)
    return positions[positions > 0]


def _spans(positions: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The names of the spans that are logged apart, and which tokens (N,) lie in each."""
    for span, (low, high) in SPANS.items():
        yield span, (positions >= low) & (positions <= high)


def _supervised(row: Any) -> int:
    """How many supervised tokens of a row are predicted; the first of each packed row is not."""
    starts, place = [], 0
    for length in row.get("seq_lengths") or ():
        starts.append(place)
        place += length
    return sum(label != IGNORE and i not in starts for i, label in enumerate(row["labels"]) if i > 0)


def _shown(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if not name.startswith("_")}


def _keep_adapter(model: Any) -> None:
    """Give the model a frozen copy of its active adapter, named ref."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    active = model.active_adapter
    config = copy.deepcopy(model.peft_config[active])
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # its weights are copied; other ways to begin would change the base
    model.add_adapter("ref", config)
    set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name=active), adapter_name="ref")
    model.set_adapter(active)
    for name, parameter in model.named_parameters():
        if ".ref." in name:
            parameter.requires_grad_(False)


@contextlib.contextmanager
def _adapter(model: Any, name: str) -> Iterator[None]:
    """Within it another adapter is active; what is trained stays the same."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    before = model.active_adapter
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(before)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
