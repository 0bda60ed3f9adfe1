"""The options that every training shares, with their help, and what values they can have. Loads nothing heavy.

Its annotations are no strings (no `from __future__ import annotations`): they are read from the modules of the verbs.
"""

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from tokendeep.errors import InputError, check_known, check_least, flag
from tokendeep.models.options import advanced

training = partial(Parameter, group=Group("Training", sort_key=2.5))
SCHEDULES = {"linear": "linear", "constant": "constant_with_warmup"}  # ours: the training library's
OPTIMIZERS = {"adamw": "adamw_torch", "sgd": "sgd"}
REFERENCES = ("precomputed", "on-the-fly")  # when the aligned model is asked what it would have said
SAFETY_LOSSES = ("kl", "ce")  # what a safety anchor puts on its rows
PER_STEP = {  # what sets how many rows of a safety anchor a step takes
    "harmful": "--safety-per-step, in poison +per-step, in Python rows_per_step",
    "harmless": "--harmless-per-step, in Python harmless_per_step",
}
PRECISIONS = ("auto", "float32", "bfloat16")

Epochs = Annotated[int, training(help="Passes over the rows.")]
Warmup = Annotated[
    int, training(help="Steps of linear warm-up; the constraint against harmful rows needs it (Table 9).")
]
AdamBeta1 = Annotated[
    float, advanced(help="Adam's beta 1; 0.5 in the paper's section 4, also for its plain baselines.")
]
LearningRate = Annotated[
    float, training(help="Peak learning rate; 2e-5 for Llama-2 and 5e-6 for Gemma in the paper, more for adapters.")
]
BatchSize = Annotated[int, training(help="Rows per optimizer step.")]
MaxSkipped = Annotated[
    float, advanced(help="Largest share of rows left out since nothing of them can be trained: empty or too long ones.")
]
SaveSteps = Annotated[int, advanced(help="Steps between checkpoints to resume from; 0 saves at the end only.")]
Seed = Annotated[int, advanced(help="Seed of the order of rows, of draws and of a new adapter.")]


@dataclass(frozen=True, kw_only=True)
class SharedTraining:
    """How to train, as far as every verb that trains lets a user choose it."""

    epochs: Epochs = 3
    max_steps: Annotated[int, training(help="Train exactly so many steps in place of epochs; 0 means by epochs.")] = 0
    micro_batch: Annotated[
        int, training(help="Rows per forward pass; rows per step must be a multiple of it times the processes.")
    ] = 16
    warmup_steps: Warmup = 0
    lora: Annotated[
        int, training(help="Rank of a new adapter; 0 trains all weights, or the adapter that the model is.")
    ] = 0
    max_length: Annotated[int, advanced(help="Longest row in tokens; the end of a longer answer is cut off.")] = 512
    train_layers: Annotated[
        int, advanced(help="Train the last so many decoder layers only (quicker on a CPU); 0 trains all.")
    ] = 0
    schedule: Annotated[
        Literal["linear", "constant"], advanced(help="How the learning rate goes on after the warm-up.")
    ] = "linear"
    optimizer: Annotated[Literal["adamw", "sgd"], advanced(help="AdamW, or SGD without momentum (an ablation).")] = (
        "adamw"
    )
    adam_beta1: AdamBeta1 = 0.5
    adam_beta2: Annotated[float, advanced(help="Adam's beta 2.")] = 0.999
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        advanced(help="Number format of the products; auto is bfloat16 where the device multiplies it."),
    ] = "auto"

    def check(self) -> None:
        """Raises InputError for the first option out of its range."""
        check_known(self, {"schedule": tuple(SCHEDULES), "optimizer": tuple(OPTIMIZERS), "precision": PRECISIONS})
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{flag(name)} is {getattr(self, name)}, but must be at least 0 and below 1.")
        check_least(self, {
            "max_steps": 0, "micro_batch": 1, "warmup_steps": 0, "lora": 0, "train_layers": 0, "max_length": 8,
        })  # fmt: skip
        if self.epochs < 1 and self.max_steps < 1:
            raise InputError("Neither --epochs nor --max-steps asks for any training; set one to at least 1.")
        if self.lora and self.train_layers:
            raise InputError("--lora and --train-layers exclude each other; an adapter is trained in all layers.")

    def what(self, adapter: bool) -> str:
        """What is trained, in words; `adapter`: the model is one."""
        if adapter:
            return "the adapter, which goes on"
        if self.lora:
            return f"a new adapter of rank {self.lora}"
        return f"the last {self.train_layers} layers" if self.train_layers else "all weights"


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(SharedTraining):
    """All that one training needs to be told."""

    batch_size: BatchSize = 64
    lr: LearningRate = 2e-5
    packing: Annotated[
        bool, advanced(help="Put several rows into one of max_length tokens, each of which sees itself only.")
    ] = False
    save_steps: SaveSteps = 0
    seed: Seed = 0

    def check(self) -> None:
        """Raises InputError for the first option out of its range."""
        super().check()
        if not self.lr > 0:
            raise InputError(f"--lr is {self.lr}, but must be above 0.")
        check_least(self, {"batch_size": 1, "save_steps": 0, "seed": 0})

    def steps(self, rows: int) -> int:
        """Optimizer steps on so many rows."""
        return self.max_steps or self.epochs * math.ceil(rows / self.batch_size)

    def how(self) -> str:
        """The settings of the optimizer in words."""
        return f"learning rate {self.lr:g} ({self.schedule}, {self.warmup_steps} warm-up steps), {self.optimizer}"


def training_options(given: object, **changes: Any) -> TrainingOptions:
    """One training's options, taken from an object that has some of them under the same names, with changes."""
    names = [field.name for field in fields(TrainingOptions)]
    values = {name: getattr(given, name) for name in names if hasattr(given, name)}
    return TrainingOptions(**{**values, **changes})


def check_per_step(group: str, rows: int, per_step: int, most: str = "") -> None:
    """Raises InputError where a step takes more rows of a safety anchor than there are; `most` is put before their number."""
    if per_step > rows:
        raise InputError(
            f"A step takes {per_step} {group} rows of the safety anchor, but there are {most}{rows}; give more requests, or take "
            f"fewer a step ({PER_STEP[group]})."
        )


@dataclass(frozen=True, kw_only=True)
class RecoveryOptions:
    """What the rows of a step of safety-recovery training are, and what each counts (the paper's Eq. 2)."""

    alpha: Annotated[float, training(help="Weight of the safety rows, 0 to 1; the utility rows have the rest.")] = 0.2
    safety_rows: Annotated[int, training(help="Safety rows per optimizer step.")] = 16
    utility_rows: Annotated[int, training(help="Utility rows per optimizer step.")] = 64
    max_context: Annotated[int, training(help="Largest number of harmful tokens that a safety row keeps.")] = 100
    p_zero: Annotated[float, training(help="Probability that a safety row keeps no harmful token.")] = 0.5
    cut_utility: Annotated[
        float, advanced(help="Probability that only the rest of a utility answer, from a random place, is supervised.")
    ] = 0.0
    normalise: Annotated[
        Literal["tokens", "rows", "batch"],
        advanced(help="tokens: a mean over each kind's tokens; rows: over rows (Eq. 2); batch: over all tokens."),
    ] = "tokens"

    def check(self) -> None:
        """Raises InputError for the first option out of its range."""
        check_known(self, {"normalise": ("tokens", "rows", "batch")})
        for name in ("alpha", "p_zero", "cut_utility"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{flag(name)} is {getattr(self, name)}, but must lie between 0 and 1.")
        check_least(self, {"max_context": 1, "safety_rows": 1, "utility_rows": 0})
