"""What every training shares: devices, batches, memory, checkpoints that a killed run goes on from, the progress bar.

Knows nothing of losses or rows.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from tokendeep import models
from tokendeep.compute import lm_head
from tokendeep.errors import InputError, enough_memory, flag
from tokendeep.models.adapters import same_trainable
from tokendeep.records import Manifest
from tokendeep.training.options import SharedTraining
from tokendeep.types import Subject


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (elsewhere it is slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a training computes: where its model lies, or its shards will, if the first process alone has read it."""
    if models.first_reads():
        from accelerate import PartialState

        return PartialState().device
    return next(model.parameters()).device


def mixed_precision(precision: str, weights: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """In what a training multiplies, as the training library's `bf16` and `fp16`.

    Args:
        precision: float32, bfloat16, or auto: bfloat16 where the device has it, else float16 for half weights on a GPU,
            else float32.
        weights: any weights of the model.
        device: where it computes.
    """
    bf16 = has_bf16(device) if precision == "auto" else precision == "bfloat16"
    half = weights.dtype.itemsize == 2 and device.type == "cuda"
    return {"bf16": bf16, "fp16": precision == "auto" and half and not bf16}


def processes() -> int:
    """How many processes train together (accelerate launch and torchrun say so)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_for_everyone(subject: Subject, out: Path) -> None:
    """Go on when every process has come here; for waits of minutes, not for work that one process does for all.

    Raises:
        InputError: what the first process has opened is not seen by this one.
    """
    if processes() > 1:
        from accelerate import PartialState

        cpu = device_of(subject.model).type == "cpu"
        PartialState(cpu=cpu, timeout=timedelta(minutes=30)).wait_for_everyone()
        if not (out / Manifest.FILE).exists():
            raise InputError(
                f"The first process has opened {out}, but this one (rank {os.environ.get('RANK', '?')}) does not see it there; "
                "give an --out on a disk that all machines share."
            )


def wait_for(paths: Sequence[Path]) -> None:
    """Until the first process has written these files; however long that takes, as a barrier would not."""
    while not all(path.exists() for path in paths):
        time.sleep(0.5)


def check_whole(what: str, model: torch.nn.Module | None = None) -> None:
    """Refuse to measure a model in memory where its weights lie in shards (FSDP, DeepSpeed ZeRO-3).

    Args:
        what: the setting that would measure it.
        model: judged by its weights; without one, by what the launcher says it will do.
    """
    if model is not None:
        shards = any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())
        shards = shards or any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    else:
        shards = parse_flag_from_env("ACCELERATE_USE_FSDP") or _zero_stage() == 3
    if shards:
        raise InputError(
            f"{what} measures the model in memory, but the launcher keeps its weights in shards (FSDP, ZeRO-3), where that "
            "is not possible; leave it out and use tokendeep measure on the checkpoint, or train without shards."
        )


def _zero_stage() -> int:
    """The stage of DeepSpeed that the launcher asks for, as accelerate reads it; 0 without DeepSpeed."""
    if not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return 0
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if path == "none":
        return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    try:
        return int(json.loads(Path(path).read_text(encoding="utf-8"))["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: no zero_optimization.stage can be read from this DeepSpeed configuration."
        ) from error


def keep_float32_results(trainer: Trainer) -> None:
    """Let what a forward pass gives stay as it is: accelerate has FSDP2 round it to bfloat16, log-probabilities too."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if plugin is not None and isinstance(policy, MixedPrecisionPolicy):
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)


def check_batches(rows_per_step: int, micro_batch: int) -> None:
    """Raise InputError where a step cannot be cut into equal parts for all processes."""
    if rows_per_step % (micro_batch * processes()):
        raise InputError(
            f"{rows_per_step} rows per step cannot be cut into micro-batches of {micro_batch} on {processes()} "
            f"process(es); choose --micro-batch so that {rows_per_step} is a multiple of micro_batch x processes."
        )


def check_trained(model: str, options: SharedTraining, *, adapter: bool, dtype: str) -> None:
    """Raise InputError for settings about other weights than those that are trained; `adapter`: the model is one."""
    other = next((name for name in ("lora", "train_layers") if getattr(options, name)), None)
    if adapter and other:
        raise InputError(f"{model} is an adapter, which goes on being trained; leave {flag(other)} out.")
    if not (adapter or options.lora) and dtype not in {"auto", "float32"}:
        raise InputError(
            f"--dtype is {dtype}, in which small steps of training all weights are lost; leave it out, or train "
            "an adapter with --lora."
        )


def warm_up_remarks(warm_up: int, steps: int, rate: float, name: str) -> list[str]:
    """What to say of a warm-up that is longer than the training; `name` is how the user sets it."""
    if warm_up < max(steps, 1):
        return []
    return [
        f"{warm_up} warm-up steps but only {steps} step(s): the learning rate never reaches {rate:g}; lower {name}, or "
        "train longer"
    ]


def check_gpus(subject: Subject) -> None:
    """Refuse what the training library cannot do: one process with several GPUs in sight and a model on one of them.

    Raises:
        InputError: saying how to start one process per GPU, or how to hide the others.
    """
    devices = {parameter.device for parameter in subject.model.parameters()}
    count = torch.cuda.device_count()
    if "WORLD_SIZE" in os.environ or count < 2 or len(devices) > 1 or devices.pop().type != "cuda":
        return
    raise InputError(
        f"There are {count} GPUs and one process; start one process per GPU with `accelerate launch --num-processes "
        f"{count} -m tokendeep ...`, or choose one GPU by setting CUDA_VISIBLE_DEVICES=0."
    )


def memory(micro_batch: int) -> contextlib.AbstractContextManager[None]:
    """Say what to do where the memory is too small."""
    way = f"lower --micro-batch (now {micro_batch}) and run it again"
    way = way if micro_batch > 1 else "lower --max-length (or --safety-tokens), or train an adapter with --lora"
    return enough_memory(
        f"The memory of the device does not hold the training of a micro-batch of {micro_batch} row(s): {way}."
    )


def lora_config(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def save(trainer: Trainer, subject: Subject, folder: Path) -> None:
    """Write the weights into a temporary folder and rename it, so that a killed run leaves no half checkpoint.

    Raises:
        InputError: the launcher's settings keep the weights in shards; the training's own checkpoints are left.
    """
    part = folder.with_name(folder.name + ".part")
    if trainer.is_world_process_zero():
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed while it saved
    sharding = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if sharding is not None:  # Trainer saves nothing but whole weights in one place
        sharding.set_state_dict_type("FULL_STATE_DICT")
    with same_trainable(lm_head.causal_lm(trainer.model)) as flags:
        for parameter, _ in flags:
            parameter.requires_grad_(parameter.is_floating_point())  # quantised ones (integers) cannot have a gradient
        trainer.save_model(str(part))
    if trainer.is_world_process_zero():
        if not list(part.glob("*.safetensors")):
            raise InputError(
                f"The trained weights were not saved whole to {part}; make the launcher's settings gather them "
                "(FULL_STATE_DICT, stage3_gather_16bit_weights_on_model_save) and run it again: it goes on from "
                f"{trainer.args.output_dir}."
            )
        subject.tokenizer.save_pretrained(part)
        (part / "training_args.bin").unlink(missing_ok=True)  # a pickle: nothing here needs it
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        shutil.rmtree(trainer.args.output_dir or "", ignore_errors=True)  # checkpoints of a run that is done
    trainer.accelerator.wait_for_everyone()


class EvaluateByEpoch(TrainerCallback):
    """Evaluates after every epoch, and at the end, before the checkpoint of that step is written.

    Trainer itself does so afterwards: a training killed in between goes on behind the evaluation, which is lost.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps or control.should_training_stop
        control.should_evaluate |= last or float(state.epoch).is_integer()


class ProgressBar(TrainerCallback):
    """One line on the terminal: steps, time left and the last losses."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tokendeep.progress import Bar

        self.bar = Bar(
            state.max_steps, "training", "step", initial=state.global_step, disable=not state.is_world_process_zero
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.bar.set_postfix({k: f"{v:.2f}" for k, v in (logs or {}).items() if k.startswith(("nll_", "safety_kl"))})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()
