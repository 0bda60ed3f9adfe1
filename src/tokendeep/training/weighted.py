"""Training on rows that carry their own weight, in a given order, on TRL's SFTTrainer: what `deepen` needs.

Knows nothing of safety. A row is `input_ids`, `labels` and `weight`; the loss of an optimizer step
is the sum over its rows and supervised tokens of weight * NLL. Because the weights already hold
the normalisation over the whole step, nothing depends on how the step is cut into micro-batches,
accumulation steps and processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.training import launch
from tokendeep.types import IGNORE, Subject


@dataclass(frozen=True)
class WeightedRow:
    """One training row. `group` names the mean it is reported under (for example safety)."""

    input_ids: list[int]
    labels: list[int]
    weight: float
    group: str


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Right-padded `input_ids` and `labels` (B, S), `weight` (B,) and `group` (B,) of a micro-batch.

    No attention mask: padding stands to the right, where causal attention never looks.
    """
    width = max(len(row["input_ids"]) for row in rows)

    def pad(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

    return {
        "input_ids": pad("input_ids", 0),
        "labels": pad("labels", IGNORE),
        "weight": torch.tensor([row["weight"] for row in rows], dtype=torch.float32),
        "group": torch.tensor([row["group"] for row in rows]),
    }


class WeightedSFTTrainer(SFTTrainer):
    """SFTTrainer whose loss is sum(weight * NLL), over rows taken in the order given.

    The dataset must hold whole optimizer steps one after the other (see `train`). Logged beside the
    loss: the mean NLL per supervised token of each group since the last log.
    """

    def __init__(self, *args: Any, groups: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "data_collator": collate})
        self.loss_is_scaled_for_ga: Any = True  # the weights are: Trainer must not divide again
        self.groups = list(groups)
        self._group_sums = torch.zeros(len(groups), 2, dtype=torch.float64)  # (G, [NLL, tokens])
        lm_head.add_supervised_forward(lm_head.causal_lm(self.model))

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)  # type: ignore[arg-type]

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["input_ids", "labels", "weight", "group"]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Sum over the micro-batch of weight * NLL, times the world size since gradients are averaged over ranks."""
        del return_outputs, num_items_in_batch
        labels = inputs["labels"]
        logps = model(input_ids=inputs["input_ids"], labels=labels, supervised=True).logps  # (N,)
        supervised = labels[:, 1:] != IGNORE

        def per_token(values: Tensor) -> Tensor:
            return values[:, None].expand_as(supervised)[supervised]

        loss = -(per_token(inputs["weight"]) * logps).sum()
        if not torch.isfinite(loss):
            raise InputError(
                f"The loss became NaN or infinite at step {self.state.global_step + 1}; "
                "lower the learning rate (--lr) or train in float32, then run the same command to go on."
            )
        self._count(logps.detach(), per_token(inputs["group"]))
        return loss * self.accelerator.num_processes

    def _count(self, logps: Tensor, groups: Tensor) -> None:
        one_hot = torch.nn.functional.one_hot(groups, len(self.groups)).double()  # (N, G)
        sums = torch.stack([-(one_hot * logps.double()[:, None]).sum(0), one_hot.sum(0)], dim=-1)
        self._group_sums += sums.cpu()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        sums = self.accelerator.reduce(self._group_sums.to(self.accelerator.device), reduction="sum")
        logs |= {f"nll_{g}": (nll / n).item() for g, (nll, n) in zip(self.groups, sums, strict=True) if n > 0}
        self._group_sums.zero_()
        super().log(logs, start_time)


def train_top_layers(model: Any, layers: int) -> None:
    """Freeze everything but the last `layers` decoder layers (embeddings and head stay as they are).

    Raises:
        InputError: the architecture keeps its layers elsewhere, or has fewer.
    """
    decoder = lm_head.causal_lm(model).base_model
    stack = getattr(decoder, "layers", None) or getattr(decoder, "h", None)
    if stack is None or layers > len(stack):
        raise InputError(f"train_layers is {layers}, but this model has {len(stack) if stack else 'no known'} layers.")
    model.requires_grad_(False)
    for layer in stack[len(stack) - layers :]:
        layer.requires_grad_(True)


def train(
    subject: Subject,
    rows: Sequence[WeightedRow],
    out: Path,
    *,
    rows_per_step: int,
    micro_batch: int,
    lr: float,
    schedule: str,
    warmup_steps: int,
    lora: int = 0,
    train_layers: int = 0,
    save_steps: int = 0,
    seed: int = 0,
    max_grad_norm: float = 1.0,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    precision: str = "auto",
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train on `rows`, `rows_per_step` of them per optimizer step and in this order; write `out`/checkpoint.

    A run that was cut off goes on from its last checkpoint (`save_steps`) under `out`/trainer.

    Returns:
        the log history and the number of steps.

    Raises:
        InputError: rows_per_step is no multiple of micro_batch times the processes; several GPUs and one process;
            nothing can be trained; the loss is not finite; the memory is too small; the weights cannot be saved.
    """
    from datasets import Dataset

    launch.check_batches(rows_per_step, micro_batch)
    launch.check_gpus(subject)
    groups = sorted({row.group for row in rows})
    dataset = Dataset.from_list(
        [
            {"input_ids": r.input_ids, "labels": r.labels, "weight": r.weight, "group": groups.index(r.group)}
            for r in rows
        ]
    )
    model = subject.model
    model.train()
    if train_layers:
        train_top_layers(model, train_layers)
    if not lora and not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            f"All weights of {subject.name} are frozen, so nothing would be trained; load it as trainable."
        )
    first = next(model.parameters())
    folder = out / "trainer"
    args = SFTConfig(
        output_dir=str(folder),
        max_steps=len(rows) // rows_per_step,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=rows_per_step // (micro_batch * launch.processes()),
        learning_rate=lr,
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
        warmup_steps=warmup_steps,
        adam_beta1=adam_betas[0],
        adam_beta2=adam_betas[1],
        max_grad_norm=max_grad_norm,
        weight_decay=0.0,
        **launch.mixed_precision(precision, first),
        use_cpu=first.device.type == "cpu",
        activation_checkpointing=first.device.type != "cpu",
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        save_total_limit=1,
        logging_steps=1,
        report_to=[],
        seed=seed,
        disable_tqdm=True,
        max_length=None,
    )
    with launch.memory(micro_batch):
        trainer = WeightedSFTTrainer(
            model=model,
            args=args,
            train_dataset=dataset,
            processing_class=subject.tokenizer,
            peft_config=launch.lora_config(lora) if lora else None,
            groups=groups,
            callbacks=[launch.ProgressBar(), *callbacks],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=launch.last_checkpoint(folder))
    launch.save(trainer, subject, out / "checkpoint")
    return {"history": trainer.state.log_history, "steps": trainer.state.global_step}
