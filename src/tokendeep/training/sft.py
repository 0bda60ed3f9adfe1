"""ResponseSFTTrainer: TRL's SFTTrainer on answers only, with the output head on supervised positions.

    loss of an optimizer step = sum over its supervised tokens of their cross-entropy / their number, over all accumulation
    steps and processes

It is the fair baseline of `trainer.ConstrainedSFTTrainer`, which changes the loss and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.training import launch, objective, rows
from tokendeep.types import IGNORE

ROW = "tokendeep_row"  # column with the number of a row within its trainer
SPANS = {"1": (1, 1), "2_5": (2, 5), "later": (6, 10**9)}  # positions that are logged apart


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
            eval_dataset=each(eval_dataset, self._encoded),
            processing_class=processing_class,
            peft_config=peft_config,
            **others,
        )
        if self._is_vlm or self.aux_loss_enabled:
            what = "images" if self._is_vlm else "a router loss (set router_aux_loss_coef=0.0 to train without it)"
            raise InputError(f"{type(self).__name__} trains text models without {what}.")
        launch.keep_float32_results(self)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the whole step
        lm_head.add_supervised_forward(lm_head.causal_lm(self.model))
        self._kept: Any = slice(None)
        self.meters = {mode: Meter(self.METRICS, self.accelerator.device) for mode in ("train", "eval")}
        self.train_dataset = self._numbered(self.train_dataset)
        self.eval_dataset = each(self.eval_dataset, self._numbered)
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
            eval_dataset = each(eval_dataset, self._prepared)
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
        positions = positions_of(inputs["labels"])  # (N,), in row order, as all that follows
        self._kept = self._not_repeated(tokens) if mode == "eval" else slice(None)
        loss, outputs = self.batch_loss(model, inputs, positions, extra, num_items_in_batch, mode)
        if not torch.isfinite(loss):
            self._stop(numbers)
        meter, kept = self.meters[mode], self._kept
        nll = -outputs.logps[kept]
        meter.add("nll", nll)
        for span, inside in spans(positions[kept]):
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
    ) -> tuple[Tensor, lm_head.Supervised]:
        """The loss of one micro-batch, already divided by `count`, the supervised tokens of the whole step."""
        outputs = model(**inputs, supervised=True, statistics=self._counts(mode))
        return -outputs.logps.sum() / divisor(count, positions), outputs

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
        made["tokens"] = torch.tensor([supervised_count(row) for row in batch])
        if ROW in batch[0]:
            made[ROW] = torch.tensor([row[ROW] for row in batch])
            found = [self.references[row[ROW]] for row in batch if row[ROW] in self.references]
            if len(found) == len(batch):
                made["ref_logps"] = torch.cat([logps for logps, _ in found])
                if found[0][1] is not None:
                    made["ref_states"] = torch.cat([states for _, states in found if states is not None])
        return made


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


# --- small parts ---------------------------------------------------------------------------------


def each(data: Any, do: Callable[[Any], Any]) -> Any:
    """`do` with a data set, with each of a dictionary of them, or with none."""
    if isinstance(data, dict):
        return {name: do(one) for name, one in data.items()}
    return do(data) if data is not None else None


def flat(data: Any) -> list[Any]:
    return list(data.values()) if isinstance(data, dict) else [data] if data is not None else []


def divisor(given: Any, own: Tensor) -> Any:
    """What to divide by: the count over the whole step, or of this batch where there is none; never 0."""
    return torch.as_tensor(own.numel() if given is None else given).clamp(min=1)


def positions_of(labels: Tensor) -> Tensor:
    """Response positions (N,) of the supervised tokens of a batch of labels (B, S)."""
    positions = objective.response_positions(labels[:, 1:] != IGNORE)
    return positions[positions > 0]


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


def _shown(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if not name.startswith("_")}
