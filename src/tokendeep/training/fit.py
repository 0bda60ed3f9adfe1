"""From rows of token ids to a checkpoint: the one way in which every verb trains.

Knows the settings of a training and what is done before and after it; the loss is the trainer's.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback

from tokendeep import runs
from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.training import launch
from tokendeep.training.options import OPTIMIZERS, SCHEDULES, TrainingOptions
from tokendeep.training.settings import ConstrainedSFTConfig
from tokendeep.training.sft import ResponseSFTTrainer
from tokendeep.types import Subject

Rows = Sequence[Mapping[str, Any]]
Build = Callable[..., ResponseSFTTrainer]  # a trainer class, or what makes one with its own settings


def train(
    subject: Subject,
    rows: Rows,
    out: Path,
    options: TrainingOptions,
    *,
    build: Build = ResponseSFTTrainer,
    eval_rows: Rows | None = None,
    callbacks: Sequence[Any] = (),
    after: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """Train the subject in place; writes `out`/checkpoint.

    A run that was cut off goes on from its last checkpoint (`save_steps`) under `out`/trainer.

    Args:
        rows: of token ids, as `rows.encode` takes them; with weights they are trained on in their order.
        build: makes the trainer from a model and what every trainer takes.
        eval_rows: evaluated after every epoch.
        after: changes the trained weights before they are saved.

    Returns:
        the log history and the number of steps.

    Raises:
        InputError: batches that cannot be cut; several GPUs and one process; nothing can be trained; the loss is not
            finite; the memory is too small; the weights cannot be saved.
    """
    launch.check_batches(options.batch_size, options.micro_batch)
    launch.check_gpus(subject)
    if options.train_layers:
        train_top_layers(subject.model, options.train_layers)
    if not options.lora and not any(parameter.requires_grad for parameter in subject.model.parameters()):
        raise InputError(
            f"All weights of {subject.name} are frozen, so nothing would be trained; load it as trainable."
        )
    folder = out / "trainer"
    evaluations = [launch.EvaluateByEpoch()] if eval_rows is not None else []
    with launch.memory(options.micro_batch):
        trainer = build(
            subject.model,
            args=_arguments(subject, folder, options),
            train_dataset=_dataset(rows),
            eval_dataset=_dataset(eval_rows) if eval_rows is not None else None,
            processing_class=subject.tokenizer,
            peft_config=launch.lora_config(options.lora) if options.lora else None,
            callbacks=[launch.ProgressBar(), *callbacks, *evaluations],
        )
        trainer.remove_callback(PrinterCallback)
        checkpoint = last_checkpoint(folder)
        if checkpoint and _is_done(checkpoint):  # in the middle of an epoch Trainer would take one more step
            trainer.args.max_steps, trainer.args.num_train_epochs = -1, 0
        trainer.train(resume_from_checkpoint=checkpoint)
        if after is not None:
            after(trainer.model)
    launch.save(trainer, subject, out / "checkpoint")
    return {"history": _history(trainer.state.log_history), "steps": trainer.state.global_step}


def _is_done(checkpoint: str) -> bool:
    """Whether a checkpoint is of the last step: the run was killed behind it."""
    state = json.loads(Path(checkpoint, "trainer_state.json").read_text(encoding="utf-8"))
    return bool(state["global_step"] >= state["max_steps"])


def _history(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The log with `train_loss` over all steps: Trainer counts those since the last start only."""
    losses = [line["loss"] for line in lines if "loss" in line]
    return [
        {**line, "train_loss": sum(losses) / len(losses)} if "train_loss" in line and losses else line for line in lines
    ]


def _dataset(rows: Rows) -> Dataset:
    return Dataset.from_list([dict(row) for row in rows])


def _arguments(subject: Subject, folder: Path, options: TrainingOptions) -> ConstrainedSFTConfig:
    first = next(subject.model.parameters())
    device = launch.device_of(subject.model)
    on_cpu = device.type == "cpu"
    same = ("warmup_steps", "adam_beta1", "adam_beta2", "packing", "max_length", "seed")  # ours and the library's
    return ConstrainedSFTConfig(
        output_dir=str(folder),
        num_train_epochs=options.epochs, max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.micro_batch, per_device_eval_batch_size=options.micro_batch,
        gradient_accumulation_steps=options.batch_size // (options.micro_batch * launch.processes()),
        learning_rate=options.lr, lr_scheduler_type=SCHEDULES[options.schedule],
        optim=OPTIMIZERS[options.optimizer], weight_decay=0.0,
        **launch.mixed_precision(options.precision, first, device),
        **{name: getattr(options, name) for name in same},
        use_cpu=on_cpu, activation_checkpointing=not on_cpu,
        save_strategy="steps" if options.save_steps else "no", save_steps=options.save_steps or 500, save_total_limit=1,
        logging_steps=1, report_to=[], disable_tqdm=True,
    )  # fmt: skip


def train_top_layers(model: Any, layers: int) -> None:
    """Freeze everything but the last `layers` decoder layers (embeddings and head stay as they are).

    Raises:
        InputError: the architecture keeps its layers elsewhere, or has fewer; they are quantised.
    """
    decoder = lm_head.decoder(lm_head.causal_lm(model))
    stack = getattr(decoder, "layers", None) or getattr(decoder, "h", None)
    if stack is None or layers > len(stack):
        raise InputError(f"train_layers is {layers}, but this model has {len(stack) if stack else 'no known'} layers.")
    if not all(weights.is_floating_point() for weights in stack[len(stack) - layers :].parameters()):
        raise InputError(
            "The last layers are quantised, so they cannot be trained themselves; train an adapter (--lora)."
        )
    model.requires_grad_(False)
    for layer in stack[len(stack) - layers :]:
        layer.requires_grad_(True)


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; those that a killed run left without their state, written last, are removed."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole[int(path.name.removeprefix("checkpoint-"))] = path
        except (OSError, ValueError):
            if runs.is_main_process():
                shutil.rmtree(path, ignore_errors=True)
    return str(whole[max(whole)]) if whole else None
