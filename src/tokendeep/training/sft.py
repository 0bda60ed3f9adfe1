"""ResponseSFTTrainer: TRL's SFTTrainer on answers only, with the output head on supervised positions.

    loss of an optimizer step = sum over its supervised tokens of their cross-entropy / their number, over all accumulation
    steps and processes

Rows that bring a `weight` are counted by it instead: the loss of a step is the sum over its rows and supervised tokens of
weight * cross-entropy. The weights then hold the normalisation over a whole step, so such rows are taken in their order.

It is the fair baseline of `trainer.ConstrainedSFTTrainer`, which changes the loss and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin, Trainer
from trl import SFTTrainer

from tokendeep import runs
from tokendeep.compute import lm_head
from tokendeep.compute.gradients import check_differentiable
from tokendeep.errors import InputError
from tokendeep.training import checks, cpu, launch, rows, settings
from tokendeep.training.batches import ROW, SPANS, Collator, Meter, spans, total
from tokendeep.training.rows import OPTIONAL

log = logging.getLogger(__name__)


class ResponseSFTTrainer(SFTTrainer):
    """SFTTrainer on answers only, with the head on supervised positions: the fair baseline of the constrained one.

    Rows as `rows.encode` takes them; of rows of token ids, `weight` is what each token of a row counts in the loss of its
    step, and `group` names the mean that the row is logged under. Beside TRL's metrics it logs `nll`, and evaluates to
    `eval_nll`, both means over all supervised tokens.

    Args:
        train_on: `last_turn` (the default) or `all_turns`, for rows that are conversations; `assistant_only_loss=True` of
            the settings is `all_turns`.
        others: what SFTTrainer takes.

    Raises:
        InputError: a setting or a row that would train something else than answers.
    """

    METRICS: tuple[str, ...] = ("nll", *(f"nll_{span}" for span in SPANS), "entropy", "mean_token_accuracy")
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
        train_on: str | None = None,
        **others: Any,
    ) -> None:
        train_on = settings.answers(args, train_on)
        args = settings.copied(args)
        settings.check(args, others, peft_config)
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
            processing_class = settings.tokenizer_of(model, args)
        if isinstance(processing_class, ProcessorMixin):
            raise InputError(f"{type(self).__name__} trains text models without images.")
        settings.dress(processing_class, args)
        self._columns: set[str] | None = None
        self._row_count = 0
        self._own: list[Any] = []  # data sets that have been prepared here
        self._packs, self._packs_unseen = args.packing, True
        self.skipped: list[str] = []  # why rows were left out, a line each
        self._encoding = {
            "tokenizer": processing_class, "max_length": args.max_length, "train_on": train_on,
            "processes": args.dataset_num_proc,
        }  # fmt: skip
        train_dataset = self._encoded(train_dataset)
        self._take_weights(train_dataset, args)
        eval_dataset = each(eval_dataset, self._unweighted)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            **others,
        )
        check_differentiable(self.model)
        checks.check_taken(self.model, train_dataset, "those to train on")
        for rows_given in flat(eval_dataset):
            checks.check_taken(self.model, rows_given, "those to evaluate on")
        checks.leave_router_loss_out(self)
        checks.end_where_answers_end(self.model, train_dataset, processing_class)
        launch.keep_float32_results(self)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the whole step
        lm_head.add_supervised_forward(lm_head.causal_lm(self.model))
        self._kept: Tensor | None = None
        self.step_seconds = 0.0  # of the last step
        self._finite: list[tuple[Tensor, Any]] = []  # of each micro-batch since the last look, with its rows
        self.add_callback(checks.StepChecks(self))
        names = [*self.METRICS, *(f"nll_{group}" for group in self.groups)]
        self.meters = {mode: Meter(names, self.accelerator.device) for mode in ("train", "eval")}
        self.train_dataset = self._numbered(self.train_dataset)
        self.eval_dataset = each(self.eval_dataset, self._numbered)
        self.data_collator = self._collator = Collator(
            self.data_collator, groups=self.groups, limits=checks.limits(self.model)
        )
        self._signature_columns: Any = ["input_ids", "labels", "seq_lengths", ROW, *OPTIONAL]

    def train(self, *given: Any, **settings: Any) -> Any:
        with cpu.memory_kept(self.accelerator.device):
            return super().train(*given, **settings)

    def training_step(self, model: Any, *given: Any, **settings: Any) -> Tensor:
        with cpu.quick(self.model):  # around the backward pass too, in which checkpointed layers run again
            loss: Tensor = super().training_step(model, *given, **settings)
            return loss

    def _encoded(self, dataset: Any) -> Any:
        """The rows with labels, each of them checked."""
        skipped: list[str] = []
        made = rows.encode(dataset, **self._encoding, skipped=skipped)
        self._tell(skipped, dataset)
        if not hasattr(made, "__len__"):
            return made
        columns = set(made.column_names)
        lost = [name for name in OPTIONAL if name in columns]
        if lost and self._packs:
            raise InputError(f"Packing would lose the column {lost[0]}; set packing=False.")
        if self._columns is not None and ("betas" in columns) != ("betas" in self._columns):
            raise InputError("Training and evaluation rows must both have the column betas, or neither.")
        self._columns = columns
        return made

    def _tell(self, skipped: list[str], dataset: Any) -> None:
        """Say which rows are left out."""
        self.skipped += skipped
        if skipped and runs.is_main_process():
            log.warning("%s", rows.left_out(skipped, str(len(dataset))))

    def _take_weights(self, dataset: Any, args: Any) -> None:
        """Note the groups of the rows; weighted ones are taken in their order, and must fill whole optimizer steps."""
        columns = set(getattr(dataset, "column_names", None) or ()) & set(OPTIONAL)
        self.weighted = "weight" in columns
        self.groups = sorted(set(dataset["group"])) if "group" in columns else []
        if not self.weighted:
            return
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * launch.processes()
        if not hasattr(dataset, "__len__") or len(dataset) % per_step:
            raise InputError(
                f"Rows with weights must fill whole optimizer steps of {per_step}, since weights hold the normalisation of "
                "a step; give as many rows, in a dataset of fixed rows."
            )
        args.train_sampling_strategy = "sequential"

    def _unweighted(self, dataset: Any) -> Any:
        """Rows to evaluate on, encoded.

        Raises:
            InputError: weights; a group that no training row has; a stream on several processes, of which the last batches are
                filled with rows of the first ones, which cannot be told from it.
        """
        if launch.processes() > 1 and hasattr(dataset, "map") and not hasattr(dataset, "__len__"):
            raise InputError(
                f"A stream of rows cannot be evaluated in {launch.processes()} processes, where some of its rows would count "
                "twice; give a dataset of fixed rows."
            )
        made = self._encoded(dataset)
        if "weight" in (made.column_names or ()):
            raise InputError("An evaluation gives means over tokens and takes no weights; leave the column weight out.")
        if "group" in (made.column_names or ()) and (unknown := set(made["group"]) - set(self.groups)):
            raise InputError(f"No training row is of the group {min(unknown)}; leave the column group out.")
        return made

    def _numbered(self, dataset: Any) -> Any:
        """The prepared rows, each with a number of its own in this trainer."""
        if hasattr(dataset, "__len__"):  # a stream has no numbers; its rows are seen once
            first, self._row_count = self._row_count, self._row_count + len(dataset)
            dataset = dataset.add_column(ROW, list(range(first, self._row_count)))
        self._own.append(dataset)
        return dataset

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As Trainer's; rows that come now are encoded as those of the constructor were."""
        with self._passing():
            if eval_dataset is not None and not isinstance(eval_dataset, str):
                eval_dataset = each(eval_dataset, self._prepared)
            return Trainer.evaluate(
                self, eval_dataset, ignore_keys, metric_key_prefix
            )  # SFTTrainer's would prepare the rows once more

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """As Trainer's, on rows that are encoded as those of the constructor were."""
        with self._passing():
            return super().predict(self._prepared(test_dataset), ignore_keys, metric_key_prefix)

    @contextlib.contextmanager
    def _passing(self) -> Iterator[None]:
        """Rows that come within it, and their references, are forgotten after it; their numbers are not given again."""
        self.check_rows_apart()
        own, first = len(self._own), self._row_count
        try:
            yield
        finally:
            del self._own[own:]
            for number in range(first, self._row_count):
                self._collator.references.pop(number, None)

    def _prepared(self, dataset: Any) -> Any:
        if any(dataset is own for own in self._own):
            return dataset
        if ROW in (dataset.column_names or ()):  # of another trainer
            dataset = dataset.remove_columns(ROW)
        encoded = self._unweighted(dataset)
        checks.check_taken(self.model, encoded, "those to evaluate on")
        made = self._prepare_dataset(encoded, self.processing_class, self.args, self._packs, None, "eval")
        return self._numbered(made)

    # --- the loss ----------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's share in its step's loss, times what averaging over ranks divides by."""
        mode = "train" if self.model.training else "eval"
        inputs = dict(inputs)
        numbers, tokens = inputs.pop(ROW, None), inputs.pop("tokens")
        extra = {
            name: inputs.pop(name, None) for name in ("anchored", "ref_logps", "ref_states", "alone_states", *OPTIONAL)
        }
        positions = inputs.pop("positions")  # (N,), in row order, as all that follows
        for name in ("weight", "group", "risk"):
            if extra[name] is not None:
                extra[name] = extra[name].repeat_interleave(tokens, output_size=len(positions))
        self._kept = self._not_repeated(tokens, len(positions)) if mode == "eval" else None
        loss, outputs = self.batch_loss(model, inputs, positions, extra, num_items_in_batch, mode)
        self._finite.append((torch.isfinite(loss.detach()), numbers))
        meter, nll = self.meters[mode], -outputs.logps
        meter.add("nll", nll, self._kept)
        for part, inside in self._parts(positions, extra["group"]):
            meter.add(f"nll_{part}", nll, inside, self._kept)
        if outputs.entropy is not None and outputs.is_top1 is not None:
            meter.add("entropy", outputs.entropy, self._kept)
            meter.add("mean_token_accuracy", outputs.is_top1, self._kept)
        if self.weighted or (self.args.average_tokens_across_devices and num_items_in_batch is not None):
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**{name: value for name, value in inputs.items() if name not in ("labels", "places")})

    def batch_loss(
        self, model: Any, inputs: dict[str, Any], positions: Tensor, extra: dict[str, Any], count: Any, mode: str
    ) -> tuple[Tensor, lm_head.Supervised]:
        """The loss of one micro-batch; `count` are the supervised tokens of the whole step."""
        outputs = model(**inputs, supervised=True, statistics=self._counts(mode))
        return total(-outputs.logps, extra["weight"], count), outputs

    def _parts(self, positions: Tensor, groups: Tensor | None) -> Iterator[tuple[str, Tensor]]:
        """What the cross-entropy is logged by, and which tokens (N,) lie in each: the rows' groups, else positions."""
        if groups is None:
            yield from spans(positions)
        else:
            yield from ((name, groups == number) for number, name in enumerate(self.groups))

    def _not_repeated(self, tokens: Tensor, count: int) -> Tensor:
        """Which supervised tokens (N,) of an evaluation batch count: accelerate repeats rows so that all ranks get as many.

        Of the last batch, put together in the order of the ranks, only the first `remainder` rows are new.
        """
        state, size = self.accelerator.gradient_state, len(tokens)
        new = torch.ones(size, dtype=torch.bool, device=tokens.device)
        if state.end_of_dataloader and state.remainder > 0:
            new = torch.arange(size, device=tokens.device) + self.accelerator.process_index * size < state.remainder
        return new.repeat_interleave(tokens, output_size=count)

    def _counts(self, mode: str) -> bool:
        """Whether entropy and accuracy are taken now: always in evaluation, in training at steps that are logged.

        Never of weighted rows, whose tokens count differently.
        """
        if self.weighted:
            return False
        every = max(1, int(self.state.logging_steps or self.args.logging_steps or 1))
        return mode == "eval" or (self.state.global_step + 1) % every == 0

    def check_losses(self) -> None:
        """Wait for the device, once a step, and stop where a loss since the last look is no number."""
        seen, self._finite = self._finite, []
        flags = torch.stack([finite for finite, _ in seen]).tolist() if seen else []
        for (_, numbers), finite in zip(seen, flags, strict=True):
            if not finite:
                self._stop(numbers)

    def _stop(self, numbers: Any) -> None:
        named = "" if numbers is None else f" (rows {', '.join(str(n + 1) for n in numbers.tolist())})"
        raise InputError(
            f"The loss became NaN or infinite at step {self.state.global_step + 1}{named}; lower the learning rate, train "
            "in float32, or look at those rows. Checkpoints written before are kept, and training can go on from them."
        )

    def check_rows_apart(self) -> None:
        """Once, where rows are put into one: whether the model keeps them apart."""
        if self._packs_unseen and self.padding_free:
            checks.check_apart(self)
        self._packs_unseen = False

    # --- what is logged -------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log."""
        if self.model.training and "loss" in logs:
            logs.update(_shown(self.meters["train"].read(self.accelerator)))
            logs["step_seconds"] = self.step_seconds
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
        with cpu.quick(self.model):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        self.check_losses()
        found = meter.read(self.accelerator)
        metrics: Any = output.metrics
        metrics.update({f"{metric_key_prefix}_{name}": value for name, value in _shown(found).items()})
        metrics[f"{metric_key_prefix}_loss"] = self.evaluation_loss(found)
        if metrics[f"{metric_key_prefix}_loss"] is None:
            del metrics[f"{metric_key_prefix}_loss"]
        return output

    def evaluation_loss(self, found: dict[str, float]) -> float | None:
        """The trained objective, from the means over all tokens of an evaluation; None where it is not known."""
        return found["nll"]

    def remarks(self) -> list[str]:
        """What a user should know before the first step."""
        warm_up = self.args.get_warmup_steps(self.state.max_steps)
        return launch.warm_up_remarks(warm_up, self.state.max_steps, self.args.learning_rate, "warmup_steps")


def each(data: Any, do: Callable[[Any], Any]) -> Any:
    """`do` with a data set, with each of a dictionary of them, or with none."""
    if isinstance(data, dict):
        return {name: do(one) for name, one in data.items()}
    return do(data) if data is not None else None


def flat(data: Any) -> list[Any]:
    return list(data.values()) if isinstance(data, dict) else [data] if data is not None else []


def _shown(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if not name.startswith("_")}
