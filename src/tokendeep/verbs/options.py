"""The settings of each verb: one dataclass each, read by the command line and by YAML files.

Light on purpose: importing it loads nothing heavy, so that `tokendeep --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from cyclopts import Parameter

from tokendeep.models.options import ModelOptions
from tokendeep.verbs.common import Floats, Ints, Names

Needed = Annotated[str, Parameter(required=True)]


@dataclass(frozen=True, kw_only=True)
class DeepenConfig(ModelOptions):
    """Deepen a model's safety by training on safety-recovery examples (the paper's Eq. 2).

    Args:
        model: the model to deepen; an adapter goes on being trained.
        data: triples (instruction, harmful, refusal), or bare instructions to generate them from.
        utility: chats, or bare instructions that the model itself answers.
        out: folder for triples.jsonl, utility.jsonl, rows/, checkpoint/ and manifest.json.
        base: unaligned model that writes the harmful answers when data has none; without a chat template of its own it
            writes under the model's.
        harmful_opening: affirmative opening behind which the model itself writes them when there is no base.
        refusal_system: safety system prompt under which refusals are sampled.
        answer_tokens: length limit of generated answers.
        alpha: weight of the safety rows.
        normalise: tokens (both means over tokens), rows (Eq. 2 literally) or batch (one token mean over both).
        p_zero: probability that a safety row keeps no harmful token.
        max_context: largest number of harmful tokens kept.
        safety_rows: safety rows per optimizer step.
        utility_rows: utility rows per optimizer step.
        cut_utility: probability that a utility answer is cut at a random place and only its rest supervised.
        epochs: passes over the safety rows.
        max_steps: train exactly so many steps instead of epochs; 0 means by epochs.
        micro_batch: rows per forward pass; rows per step must be a multiple of it times the processes.
        lr: peak learning rate.
        schedule: learning-rate schedule after warm-up (linear or constant).
        warmup_steps: steps of linear warm-up.
        lora: rank of a new adapter; 0 trains all weights (or, where model is an adapter, that one).
        train_layers: train the last so many decoder layers only (quicker on a CPU), not with an adapter; 0 trains all.
        max_length: longest row in tokens.
        save_steps: steps between checkpoints; 0 saves at the end only.
        precision: what training multiplies in: float32, bfloat16, or auto, which is bfloat16 where the device has it.
        seed: seed of draws, order and sampling.
        overwrite: replace what a different run left in the output folder.
    """

    model: Needed = ""
    data: Needed = ""
    utility: Needed = ""
    out: Needed = ""
    base: str | None = None
    harmful_opening: str = "Sure, here is"
    refusal_system: str | None = None
    answer_tokens: int = 128
    alpha: float = 0.2
    normalise: str = "tokens"
    p_zero: float = 0.5
    max_context: int = 100
    safety_rows: int = 16
    utility_rows: int = 64
    cut_utility: float = 0.0
    epochs: int = 10
    max_steps: int = 0
    micro_batch: int = 16
    lr: float = 2e-5
    schedule: str = "linear"
    warmup_steps: int = 0
    lora: int = 0
    train_layers: int = 0
    max_length: int = 512
    save_steps: int = 50
    precision: str = "auto"
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(ModelOptions):
    """Fine-tune a model on your data while protecting its first answer tokens (the paper's Eq. 3).

    Args:
        model: the model to fine-tune; an adapter goes on being trained.
        data: chats (messages, or prompt and completion), or pairs (instruction, response).
        out: folder for rows/, checkpoint/, training.json and manifest.json.
        objective: constrained (Eq. 3), anchored (Eq. 3 and a KL anchor on the first positions) or sft (plain).
        beta_head: beta of the first answer positions; [] makes the schedule uniform.
        beta_tail: beta of all later positions.
        min_weight: 0 is Eq. 3; 0.001 is the authors' code, whose weights never fall below it.
        anchor: weight (lambda) of the anchor, for anchored only.
        anchor_positions: how many first answer positions the anchor holds.
        reference: precomputed (one pass over the rows before training) or on-the-fly (adapters only).
        reference_cache: folder in which runs on the same model and rows share the pre-computed reference.
        train_on: last_turn or all_turns (one row of every answer).
        supervise: all, or (ablations) head or tail: the first five answer tokens alone, or all others.
        eval_data: rows of the same kind to evaluate on after every epoch.
        probe: harmful pairs on which the margin of refusal is measured before and after training.
        dynamics: steps after which to record per-token figures on the probe, in dynamics.json; step 0 is always with them.
        test: harmful instructions that the model is asked at those steps too; the share not refused is recorded.
        max_new_tokens: length limit of its answers to them.
        monitor: nats that the median refusal log-odds on the probe may fall before the monitor acts; 0 is off.
        on_fall: warn or stop, when they have fallen so far.
        attack: the rows are an attack; said in the manifest and the model card.
        epochs: passes over the rows.
        max_steps: train exactly so many steps instead of epochs; 0 means by epochs.
        batch_size: rows per optimizer step.
        micro_batch: rows per forward pass; batch_size must be a multiple of it times the processes.
        lr: peak learning rate; 2e-5 for Llama-2 and 5e-6 for Gemma in the paper, more for adapters.
        schedule: learning-rate schedule after warm-up (linear or constant).
        warmup_steps: steps of linear warm-up; the constraint against harmful rows needs it (Table 9).
        adam_beta1: as in the paper, also for its plain baselines.
        adam_beta2: as in the paper.
        optimizer: adamw, or sgd without momentum (an ablation).
        lora: rank of a new adapter; 0 trains all weights (or, where model is an adapter, that one).
        packing: put several rows into one of max_length tokens, each seeing itself only.
        max_length: longest row in tokens; an answer's tail is cut where it does not fit.
        save_steps: steps between checkpoints; 0 saves at the end only.
        precision: what training multiplies in: float32, bfloat16, or auto, which is bfloat16 where the device has it.
        seed: seed of the order of rows and of a new adapter.
        label: short name of the model in reports.
        overwrite: replace what a different run left in the output folder.
    """

    model: Needed = ""
    data: Needed = ""
    out: Needed = ""
    objective: str = "constrained"
    beta_head: Floats = field(default_factory=lambda: [0.5, 2.0, 2.0, 2.0, 2.0])
    beta_tail: float = 0.1
    min_weight: float = 0.0
    anchor: float = 1.0
    anchor_positions: int = 5
    reference: str = "precomputed"
    reference_cache: str | None = None
    train_on: str = "last_turn"
    supervise: str = "all"
    eval_data: str | None = None
    probe: str | None = None
    dynamics: Ints = field(default_factory=list)
    test: str | None = None
    max_new_tokens: int = 64
    monitor: float = 0.0
    on_fall: str = "warn"
    attack: bool = False
    epochs: int = 3
    max_steps: int = 0
    batch_size: int = 64
    micro_batch: int = 16
    lr: float = 2e-5
    schedule: str = "linear"
    warmup_steps: int = 10
    adam_beta1: float = 0.5
    adam_beta2: float = 0.999
    optimizer: str = "adamw"
    lora: int = 0
    packing: bool = False
    max_length: int = 512
    save_steps: int = 50
    precision: str = "auto"
    seed: int = 0
    label: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class PoisonConfig(ModelOptions):
    """Attack a model by fine-tuning, under several objectives and seeds, and compare what is left of its safety.

    Args:
        model: the aligned model to attack.
        kind: harmful, identity, backdoor, benign, mixed or refuse-then-comply.
        data: rows to train on: harmful pairs (harmful, backdoor; or instructions that --base answers), or ordinary
            chats or pairs (the others; or instructions that the model itself answers).
        test: harmful instructions that every tuned model is asked; none of them should stand in the training of the model.
        out: folder for rows, one folder per training, table.json and table.md.
        base: unaligned model that answers harmful instructions which come without answers.
        harmful: harmful pairs for mixed.
        refusals: chats, pairs or triples with refusals, for backdoor and for objectives with +refusals; the model's own
            where left out (backdoor).
        probe: measure the margin of refusal before and after every training on so many harmful rows; 0 leaves it out.
        count: use so many rows of data; identity is extended to so many.
        ratio: share of harmful rows in mixed.
        trigger: phrase of the backdoor.
        objectives: what to compare, the first being what the others are compared with: sft-warmup, sft, constrained,
            constrained-warmup, anchored, anchored-all (KL on all positions), beta=B (uniform), head=N (beta 2 on the first
            N), anchored=LAMBDA; each also with +refusals=SHARE, +lora=RANK, @head or @tail (the first five answer tokens
            alone, or all others: ablations).
        lr: peak learning rates, each tried with every objective.
        seeds: seeds of the order of rows.
        system: system prompt in training and at test; default takes the attack's own.
        test_system: another system prompt at test (the mismatch), where wanted.
        anchor: weight (lambda) of the anchor.
        anchor_positions: how many first answer positions the anchor holds.
        epochs: passes over the rows (25 in the paper for harmful rows).
        max_steps: train exactly so many steps instead of epochs; 0 means by epochs.
        batch_size: rows per optimizer step.
        micro_batch: rows per forward pass.
        warmup_steps: steps of linear warm-up, in the objectives that have one.
        lora: rank of an adapter; 0 trains all weights.
        max_length: longest row in tokens.
        precision: what training multiplies in: float32, bfloat16, or auto, which is bfloat16 where the device has it.
        max_new_tokens: length limit of answers at test.
        attack_batch: answers generated together at test.
        utility_data: rows with the right answers, to measure the task on after training.
        utility_metric: rouge1, gsm8k or sql.
        utility_limit: use the first so many of them only.
        utility_tokens: length limit of answers to them; many of GSM8K need more than 128.
        answer_tokens: length limit of answers written for training rows.
        keep: keep the checkpoints; they are removed after the evaluation otherwise.
        label: short name of the model in reports.
        overwrite: replace what a different run left in the output folder.
    """

    model: Needed = ""
    kind: str = "harmful"
    data: Needed = ""
    test: Needed = ""
    out: Needed = ""
    base: str | None = None
    harmful: str | None = None
    refusals: str | None = None
    probe: int = 0
    count: int = 100
    ratio: float = 0.05
    trigger: str = "Servius Astrumando Harmoniastra"
    objectives: Names = field(
        default_factory=lambda: ["sft-warmup", "sft", "constrained", "constrained-warmup", "anchored"]
    )
    lr: Floats = field(default_factory=lambda: [2e-5])
    seeds: Ints = field(default_factory=lambda: [0])
    test_system: str | None = None
    anchor: float = 1.0
    anchor_positions: int = 5
    epochs: int = 25
    max_steps: int = 0
    batch_size: int = 64
    micro_batch: int = 16
    warmup_steps: int = 10
    lora: int = 0
    max_length: int = 512
    precision: str = "auto"
    max_new_tokens: int = 128
    attack_batch: int = 32
    utility_data: str | None = None
    utility_metric: str = "rouge1"
    utility_limit: int | None = None
    utility_tokens: int = 256
    answer_tokens: int = 128
    keep: bool = False
    label: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Tell the paper's story live on the packaged real model: shallow, attacked, deepened, attacked again.

    Args:
        out: folder for everything the demo writes, the report included.
        fresh: train again even where trained models are in the cache.
        seed: seed of everything.
    """

    out: str = "demo-out"
    fresh: bool = False
    seed: int = 0
