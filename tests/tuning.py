"""Shared by tests that train: rows of token ids, settings, comparisons, and ways to cut a training off."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn import functional as F
from transformers import TrainerCallback
from trl import SFTConfig

from tokendeep import models
from tokendeep.training import fit
from tokendeep.training.options import TrainingOptions
from tokendeep.training.trainer import ConstrainedSFTTrainer
from tokendeep.types import IGNORE, Chat, Decoding, Subject, Triple

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def token_rows(count: int = 8, seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of unequal prompts and answers, so that ranks and micro-batches get unequal token counts."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        prompt, answer = 3 + i % 5, 1 + (5 * i) % 9
        ids = torch.randint(4, 300, (prompt + answer,), generator=draw).tolist()
        made.append({"input_ids": ids, "labels": [IGNORE] * prompt + ids[prompt:]})
    return made


def settings(out: Path, **more: Any) -> SFTConfig:
    """A trainer's settings for a tiny model: float32, on the CPU, four steps, whatever the machine can do."""
    chosen = {
        "output_dir": str(out),
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 1,
        **more,
    }
    return SFTConfig(**chosen)


def trained(
    model: Any, tokenizer: Any, out: Path, rows: Any = None, args: dict[str, Any] | None = None, **more: Any
) -> ConstrainedSFTTrainer:
    """A constrained trainer that has trained."""
    made = ConstrainedSFTTrainer(
        model,
        settings(out, **(args or {})),
        train_dataset=Dataset.from_list(rows or token_rows()),
        processing_class=tokenizer,
        **more,
    )
    made.train()
    return made


def history(trainer: Any, name: str) -> list[float]:
    """What was logged under a name at every step."""
    return [entry[name] for entry in trainer.state.log_history if name in entry and "loss" in entry]


def assert_same_weights(one: Any, two: Any, tolerance: float = 1e-5) -> None:
    for (name, left), right in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, msg=name)


class Killed(Exception):
    """Stands for a process that is killed."""


class KillAtEnd(TrainerCallback):
    """Ends a training after its last step, before the checkpoint is written."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise Killed


class Kill(TrainerCallback):
    """Ends a training before its fourth step."""

    def __init__(self, error: type[Exception] = Killed) -> None:
        self.error = error

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise self.error


def by_hand(
    model: Any, ref: Any, rows: list[dict[str, list[int]]], betas: dict[int, float], tail: float, anchor: float = 0.0
) -> torch.Tensor:
    """Eq. 3 as the mean over all supervised tokens, and the anchor over the first 5 of every row; float32 full logits."""
    total, count, kls = torch.zeros(()), 0, []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        logps = model(input_ids=ids).logits[0].log_softmax(-1)
        with torch.no_grad():
            ref_logps = ref(input_ids=ids).logits[0].log_softmax(-1)
        start = next(i for i, label in enumerate(row["labels"]) if label != IGNORE)
        for place in range(start, len(row["labels"])):
            position = place - start + 1
            beta = betas.get(position, tail)
            ours, theirs = logps[place - 1, row["labels"][place]], ref_logps[place - 1, row["labels"][place]]
            total = total - 2 / beta * F.logsigmoid(beta * (ours - theirs))
            count += 1
            if position <= 5:
                kls.append((ref_logps[place - 1].exp() * (ref_logps[place - 1] - logps[place - 1])).sum())
    return total / count + anchor * torch.stack(kls).mean()


PAPER = {1: 0.5, 2: 2.0, 3: 2.0, 4: 2.0, 5: 2.0}


SHARDS = {  # the settings of a launcher that keeps weights in shards
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}  # fmt: skip


def two_processes(script: str, folder: Path, *words: object, **environment: str) -> None:
    """Run a script in two processes that train together on the CPU; what tests share can be imported in it.

    accelerate 1.15 starts a single process for `accelerate launch --cpu --num_processes 2`; torchrun starts both.
    """
    tests = Path(__file__).parent
    path = folder / "two_processes.py"
    path.write_text(
        f"import sys; sys.path[:0] = [{str(tests)!r}, {str(tests / 'training')!r}, {str(tests / 'verbs')!r}]\n{script}\n"
        "import os, torch.distributed as group; group.barrier(); group.destroy_process_group()\n"
        "sys.stdout.flush(); sys.stderr.flush(); os._exit(0)  # as Python ends, threads of torch may abort the process\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(path)]
    done = subprocess.run(
        [*launch, *map(str, words)], capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONFAULTHANDLER": "1", **environment},
    )  # fmt: skip
    if done.returncode:
        pytest.fail(done.stderr[-9000:])


Call = tuple[Subject, Decoding, list[str]]


def writer(say: Callable[[Subject, str, str], str], calls: list[Call] | None = None) -> Callable[..., Any]:
    """A stand-in for `answers.write_answers`: says what `say(subject, request, opening)` gives.

    Args:
        calls: takes (subject, decoding, openings) of every call.
    """

    def write(
        subject: Subject,
        messages: Sequence[Any],
        decoding: Decoding,
        opening: str | list[str] = "",
        *,
        title: str = "",
        on_done: Callable[[int, str, bool], object] = lambda index, text, truncated: None,
    ) -> list[tuple[str, bool]]:
        openings = [opening] * len(messages) if isinstance(opening, str) else opening
        if calls is not None:
            calls.append((subject, decoding, openings))
        texts = [say(subject, turns[-1]["content"], first) for turns, first in zip(messages, openings, strict=True)]
        for index, text in enumerate(texts):
            on_done(index, text, False)
        return [(text, False) for text in texts]

    return write


# --- rows with weights, as `deepen` trains on them -----------------------------------------------------

STEPS, PER_STEP = 4, 8


def weighted_rows(steps: int = STEPS) -> list[dict[str, Any]]:
    """Whole steps of rows of unequal lengths, each with a weight and a group."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for step in range(steps):
        for i in range(PER_STEP):
            prompt, answer = 3 + i, 1 + (5 * i + step) % 7
            ids = torch.randint(4, 300, (prompt + answer,), generator=generator).tolist()
            labels = [IGNORE] * prompt + ids[prompt:]
            group = "safety" if i % 4 else "utility"
            rows.append({"input_ids": ids, "labels": labels, "weight": 0.05 * (1 + i % 3), "group": group})
    return rows


def options(**more: Any) -> TrainingOptions:
    """Float32, whatever the machine can do."""
    given = {"batch_size": PER_STEP, "micro_batch": 8, "lr": 1e-3, "warmup_steps": 1, "adam_beta1": 0.9,
             "precision": "float32", "max_steps": STEPS}  # fmt: skip
    return TrainingOptions(**{**given, **more})


def fitted(
    out: Path, folder: Path, rows: list[dict[str, Any]] | None = None, callbacks: Sequence[Any] = (), **more: Any
) -> tuple[Any, dict[str, Any]]:
    """The model that was trained from a folder, as it was saved, and what the training says."""
    rows = rows or weighted_rows()
    chosen = options(**{"max_steps": len(rows) // PER_STEP, **more})
    result = fit.train(models.load(str(folder), dtype="float32"), rows, out, chosen, callbacks=callbacks)
    return models.load(str(out / "checkpoint"), dtype="float32").model, result


def losses(result: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in result["history"] if "loss" in entry]


# --- recovery rows -------------------------------------------------------------------------------------

HARMFUL = "Mix the flour with water, add salt and let the dough rest for an hour."
REFUSAL = "I cannot help with that."


def triple(number: int = 0) -> Triple:
    return Triple(f"t{number}", ({"role": "user", "content": f"How do I bake bread {number}?"},), HARMFUL, REFUSAL)


def ordinary(number: int = 0) -> Chat:
    turns = (
        {"role": "user", "content": f"Where is Rome {number}?"},
        {"role": "assistant", "content": "Rome is in Italy."},
    )
    return Chat(f"u{number}", turns)  # type: ignore[arg-type]
