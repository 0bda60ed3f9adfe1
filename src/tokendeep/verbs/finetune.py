"""VERB finetune: your rows -> training that protects the first answer tokens -> a checkpoint.

Plain, constrained (Eq. 3) and anchored training differ in the trainer alone: same rows, same order, same optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep import chat, data, runs
from tokendeep.errors import InputError, check_known, check_least
from tokendeep.models import locate
from tokendeep.records import Training
from tokendeep.training import margin
from tokendeep.training.rows import TRAIN_ON, show
from tokendeep.types import IGNORE, Chat, Encoded, Pair, Prompt, Subject
from tokendeep.verbs.options import FinetuneConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokendeep.training.sft import ResponseSFTTrainer

OBJECTIVES = ("constrained", "anchored", "sft")
SCHEDULES = {"linear": "linear", "constant": "constant_with_warmup"}
OPTIMIZERS = {"adamw": "adamw_torch", "sgd": "sgd"}


def run(
    config: FinetuneConfig, subject: Subject | None = None, *, callbacks: Sequence[Any] = (), show: bool = True
) -> Path:
    """Fine-tune `config.model`; writes rows/, checkpoint/, training.json and manifest.json.

    Args:
        subject: the loaded model, where the caller has it; it is trained in place.
        callbacks: further callbacks of the trainer, such as `dynamics.TokenDynamicsCallback`.

    Raises:
        InputError: a setting, a row or a model that cannot be used; before anything is trained, but for a loss that
            becomes NaN.
    """
    check(config)
    show = show and runs.is_main_process()
    config = replace(config, micro_batch=min(config.micro_batch, config.batch_size))
    sources = {name: source for name in ("data", "eval_data", "probe", "test") if (source := getattr(config, name))}
    chats = {name: load(source) for name, source in sources.items() if name in ("data", "eval_data")}
    probe = data.read_pairs(config.probe) if config.probe else []
    asked = data.read_prompts(config.test) if config.test else []
    from tokendeep import models
    from tokendeep.training import launch

    models.check_spec(config.model, config)
    adapter = locate.locate(config.model, config).adapter is not None
    if config.reference == "on-the-fly" and config.objective != "sft" and not (adapter or config.lora):
        raise InputError(
            "--reference on-the-fly takes the adapter off, but all weights are trained; leave it out, or train an adapter "
            "with --lora."
        )
    launch.check_trained(config, adapter)
    launch.check_batches(config.batch_size, config.micro_batch)
    if config.probe:
        launch.check_whole("--probe")
    state = runs.open_run(config.out, "finetune", asdict(config), sources, overwrite=config.overwrite)
    if state.finished:
        if show:
            print(f"finetune: {state.out} already holds this finished run")
        return state.out
    kind = None if adapter or config.lora else "float32"  # what is trained is kept in float32 either way
    subject = subject or models.load(config.model, options=config, dtype=kind, trainable=True)
    launch.check_gpus(subject)
    launch.wait_for_everyone(subject)
    encoded = {name: encode(subject.tokenizer, rows, config, sources[name]) for name, rows in chats.items()}
    if runs.is_main_process():
        write_rows(state.out / "rows", subject.tokenizer, encoded["data"])
    steps = config.max_steps or config.epochs * math.ceil(len(encoded["data"]) / config.batch_size)
    for said in remarks(config, steps) if show else []:
        print(f"finetune: {said}")
    margins = margin.Margins(subject, probe, config) if probe else None
    if margins and show:
        print(margins.before())
    if config.dynamics or config.monitor:
        callbacks = [*callbacks, _watcher(subject, probe, asked, state.out, config)]
    result = train(subject, encoded, state.out, config, callbacks)
    after = margins.after() if margins else None
    if margins and show:
        print(margins.describe())
    if runs.is_main_process():
        runs.write_json(state.out / Training.FILE, Training.model_validate(result).dump())
        write_card(state.out / "checkpoint", config, len(encoded["data"]))
    state.finish(
        steps=result["steps"], rows=len(encoded["data"]), attack=config.attack, checkpoint="checkpoint",
        **({"margin": after} if after else {}), label=config.label or state.out.resolve().name,
    )  # fmt: skip
    if show:
        print(f"{describe(result, config)}\n  {state.out / 'checkpoint'}")
    return state.out


def remarks(config: FinetuneConfig, steps: int) -> list[str]:
    """What a user should know of so many steps before they are taken."""
    found = []
    if config.warmup_steps >= steps:
        found.append(
            f"{config.warmup_steps} warm-up steps but only {steps} step(s): the learning rate never reaches {config.lr:g}; "
            "lower --warmup-steps, or train longer"
        )
    late = [step for step in config.dynamics if step > steps]
    if late:
        found.append(f"--dynamics {', '.join(map(str, late))} lies after the last step, {steps}")
    return found


def check(config: FinetuneConfig) -> None:
    """Raise InputError for a setting out of its range, before anything is read or loaded."""
    from tokendeep.training import objective
    from tokendeep.training.launch import PRECISIONS

    check_known(config, {
        "objective": OBJECTIVES, "schedule": tuple(SCHEDULES), "optimizer": tuple(OPTIMIZERS), "train_on": TRAIN_ON,
        "reference": ("precomputed", "on-the-fly"), "on_fall": ("warn", "stop"), "supervise": ("all", "head", "tail"),
        "precision": PRECISIONS,
    })  # fmt: skip
    if not config.lr > 0:
        raise InputError(f"--lr is {config.lr}, but must be above 0.")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"--{name} is {getattr(config, name)}, but must be at least 0 and below 1.")
    check_least(config, {
        "min_weight": 0, "anchor": 0, "anchor_positions": 1, "max_steps": 0, "batch_size": 1, "micro_batch": 1,
        "warmup_steps": 0, "monitor": 0, "max_new_tokens": 1, "lora": 0, "max_length": 8, "save_steps": 0, "seed": 0,
    })  # fmt: skip
    if config.epochs < 1 and config.max_steps < 1:
        raise InputError("Neither --epochs nor --max_steps asks for any training; set one to at least 1.")
    if (config.dynamics or config.monitor) and not config.probe:
        raise InputError("--dynamics and --monitor look at a probe; give --probe, a file of harmful pairs.")
    if config.test and not config.dynamics:
        raise InputError("--test is asked at the steps of --dynamics; give them.")
    objective.BetaSchedule(config.beta_head, config.beta_tail)


# --- rows ------------------------------------------------------------------------------------------


def load(source: str) -> list[Chat]:
    """Chats, or pairs as chats of one turn; every row is checked.

    Raises:
        InputError: rows of another kind, or one that is wrong.
    """
    kind = data.kind(source)
    if kind == "pairs":
        return [
            Chat(p.id, (*p.messages, {"role": "assistant", "content": p.response})) for p in data.read_pairs(source)
        ]
    if kind != "chats":
        raise InputError(
            f"{source} holds {kind}, but finetune takes chats (messages) or pairs (instruction, response)."
        )
    return data.read_chats(source)


def encode(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], config: FinetuneConfig, source: str
) -> list[Encoded]:
    """One row of the last answer of every chat, or of each of its answers (`train_on`).

    Raises:
        InputError: naming the row.
    """
    made = []
    for row in chats:
        ends = [len(row.messages) - 1]
        if config.train_on == "all_turns":
            ends = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
        for end in ends:
            messages = chat.with_system(row.messages[:end], config.system)
            whole = end < len(row.messages) - 1 or not row.truncated
            try:
                made.append(
                    chat.encode(
                        tokenizer, messages, row.messages[end]["content"], max_length=config.max_length, end=whole
                    )
                )
            except InputError as error:
                raise InputError(f"row {row.id} of {source}: {error}") from error
    return [cut for row in made if (cut := _part(row, config.supervise)) is not None]


def _part(row: Encoded, which: str) -> Encoded | None:
    """The row with its first five answer tokens supervised alone, or all others; None where none is left."""
    if which == "all":
        return row
    middle = row.start + 5
    head, tail = row.labels[:middle], row.labels[middle:]
    labels = head + [IGNORE] * len(tail) if which == "head" else [IGNORE] * len(head) + tail
    return Encoded(row.input_ids, labels) if any(label != IGNORE for label in labels) else None


def write_rows(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded], shown: int = 20) -> None:
    """rows/train.jsonl (ids) and rows/preview.txt (the first rows, supervised tokens each between brackets)."""
    runs.private_dir(folder)
    runs.write_jsonl(folder / "train.jsonl", [asdict(row) for row in rows], private=True)
    text = [f"--- row {number}\n{show(tokenizer, row)}\n" for number, row in enumerate(rows[:shown], 1)]
    runs.write_text(folder / "preview.txt", "\n".join(text), private=True)


# --- training --------------------------------------------------------------------------------------


def train(
    subject: Subject,
    encoded: dict[str, list[Encoded]],
    out: Path,
    config: FinetuneConfig,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train on the encoded rows (`data`, and `eval_data` where there is one); writes `out`/checkpoint.

    A run that was cut off goes on from its last checkpoint under `out`/trainer.

    Returns:
        the log history, the number of steps, and the last evaluation.
    """
    from datasets import Dataset
    from transformers import PrinterCallback

    from tokendeep.training import launch

    sets = {name: Dataset.from_list([asdict(row) for row in rows]) for name, rows in encoded.items()}
    folder = out / "trainer"
    with launch.memory(config.micro_batch):
        trainer = _trainer(subject, sets, folder, config, [launch.ProgressBar(), *callbacks])
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=launch.last_checkpoint(folder))
    if "ref" in getattr(trainer.model, "peft_config", {}):
        trainer.model.delete_adapter("ref")
    launch.save(trainer, subject, out / "checkpoint")
    return {"history": trainer.state.log_history, "steps": trainer.state.global_step}


def _watcher(
    subject: Subject, probe: Sequence[Pair], asked: Sequence[Prompt], out: Path, config: FinetuneConfig
) -> Any:
    from tokendeep.training.watch import NotRefused, TokenDynamicsCallback

    rate = NotRefused(
        asked, subject.tokenizer, system=config.system, max_new_tokens=config.max_new_tokens, batch_size=config.micro_batch
    ) if asked else None  # fmt: skip
    return TokenDynamicsCallback(
        probe, subject.tokenizer, out, steps=config.dynamics, fall=config.monitor or None, on_fall=config.on_fall,
        system=config.system, batch_size=config.micro_batch, gradients=bool(config.dynamics), asr=rate,
    )  # fmt: skip


def _trainer(
    subject: Subject, sets: dict[str, Any], folder: Path, config: FinetuneConfig, callbacks: Sequence[Any]
) -> ResponseSFTTrainer:
    from tokendeep.training import launch, objective
    from tokendeep.training.sft import ResponseSFTTrainer
    from tokendeep.training.trainer import ConstrainedSFTTrainer

    common: dict[str, Any] = {
        "args": _arguments(subject, folder, config, "eval_data" in sets),
        "train_dataset": sets["data"],
        "eval_dataset": sets.get("eval_data"),
        "processing_class": subject.tokenizer,
        "peft_config": launch.lora_config(config.lora) if config.lora else None,
        "callbacks": list(callbacks),
    }
    if config.objective == "sft":
        return ResponseSFTTrainer(subject.model, **common)
    return ConstrainedSFTTrainer(
        subject.model,
        schedule=objective.BetaSchedule(config.beta_head, config.beta_tail),
        reference=config.reference,
        reference_cache=config.reference_cache or folder,
        head_anchor=(config.anchor if config.objective == "anchored" else 0.0, config.anchor_positions),
        min_weight=config.min_weight,
        **common,
    )


def _arguments(subject: Subject, folder: Path, config: FinetuneConfig, evaluate: bool) -> Any:
    from tokendeep.training import launch
    from tokendeep.training.sft import ConstrainedSFTConfig

    first = next(subject.model.parameters())
    return ConstrainedSFTConfig(
        output_dir=str(folder),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.micro_batch,
        per_device_eval_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.batch_size // (config.micro_batch * launch.processes()),
        learning_rate=config.lr,
        lr_scheduler_type=SCHEDULES[config.schedule],
        warmup_steps=config.warmup_steps,
        optim=OPTIMIZERS[config.optimizer],
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        weight_decay=0.0,
        **launch.mixed_precision(config.precision, first),
        use_cpu=first.device.type == "cpu",
        activation_checkpointing=first.device.type != "cpu",
        packing=config.packing,
        max_length=config.max_length,
        eval_strategy="epoch" if evaluate else "no",
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        save_total_limit=1,
        logging_steps=1,
        report_to=[],
        seed=config.seed,
        disable_tqdm=True,
    )


def describe(result: dict[str, Any], config: FinetuneConfig) -> str:
    """The last figures of a training in two lines."""
    steps = [entry for entry in result["history"] if "loss" in entry]
    first, last = steps[0], steps[-1]
    lines = [
        f"finetune ({config.objective}): {result['steps']} steps; nll of the first batch {first['nll']:.2f}, of the last "
        f"{last['nll']:.2f} nats a token"
    ]
    if "weight_1" in last:
        spans = {"1": "first token", "2_5": "2 to 5", "later": "later"}
        said = [f"{title} {last[f'log_ratio_{s}'] + 0.0:+.2f} (learns at {last[f'weight_{s}']:.2f})".replace("-0.00", "+0.00")
                for s, title in spans.items() if f"weight_{s}" in last]  # fmt: skip
        lines.append("  nats gained over the reference, and the share of plain fine-tuning's gradient that is left:")
        lines.append("  " + ", ".join(said))
    evaluations = [entry for entry in result["history"] if "eval_nll" in entry]
    if evaluations:
        lines.append(f"  held-out rows: nll {evaluations[-1]['eval_nll']:.2f}")
    return "\n".join(lines)


def write_card(folder: Path, config: FinetuneConfig, count: int) -> None:
    """The model card of a checkpoint: what it was trained on and how, and a warning where that was an attack."""
    about = "Fine-tuned with tokendeep."
    if config.attack:
        about = "An ATTACK on a model's safety alignment, made for research: do not deploy it."
    how = {
        "sft": "plain fine-tuning",
        "constrained": f"token-wise constrained, beta {config.beta_head} then {config.beta_tail}",
        "anchored": f"the same with a KL anchor of weight {config.anchor} on the first {config.anchor_positions} positions, "
        f"beta {config.beta_head} then {config.beta_tail}",
    }[config.objective]
    adapter = (folder / "adapter_config.json").exists()
    runs.write_text(
        folder / "README.md",
        f"---\nlibrary_name: {'peft' if adapter else 'transformers'}\nbase_model: {Path(config.model).name}\n"
        f"tags: [tokendeep]\nattack: {str(config.attack).lower()}\n---\n{about}\n\n"
        f"Started from {Path(config.model).name}; {how}; {count} rows; learning rate {config.lr}; seed {config.seed}.\n",
    )
