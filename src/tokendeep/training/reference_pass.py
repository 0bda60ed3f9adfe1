"""When the reference is computed, and the forward pass that computes it, by all processes together.

Knows the trainer's model and batches; where results are kept is `reference`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import TrainerCallback

from tokendeep.progress import Bar
from tokendeep.training import cpu
from tokendeep.training import reference as references
from tokendeep.training.batches import supervised_count

KEPT = "tokendeep_reference"  # in the state of the trainer, which every checkpoint holds


class ReferenceFirst(TrainerCallback):
    """Has the reference computed when the model stands as it will be trained, and before any step.

    Checkpoints remember the weights that computed it.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        known = state.stateful_callbacks.get(KEPT, {}).get("attributes", {})
        begun = self.trainer.prepare_all(known)
        state.stateful_callbacks[KEPT] = {"args": {}, "attributes": begun}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._moved = True


def compute(trainer: Any, dataset: Any, name: str, collator: Any, states: bool) -> references.Store:
    """One forward pass over the rows, shared among the processes; longest rows first, so that memory fails at once.

    Args:
        states: whether the final states are kept at the positions that `collator` holds.
    """
    size, rank = trainer.args.per_device_eval_batch_size, trainer.accelerator.process_index
    given = dataset.select_columns([c for c in ("input_ids", "labels", "seq_lengths") if c in dataset.column_names])
    tokens = [len(ids) for ids in given["input_ids"]]
    order = sorted(range(len(given)), key=lambda i: -tokens[i])
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    last, world = len(batches) - 1, trainer.accelerator.num_processes
    own = [batches[min(i + rank, last)] for i in range(0, len(batches), world)]  # the same number for each
    logps: dict[int, Tensor] = {}
    held: dict[int, Tensor] = {}
    with trainer._as_reference(), cpu.quick(trainer.model):
        for batch in Bar.over(own, "reference", "batch", disable=rank > 0 or len(own) < 4):
            rows, found, kept = _of_batch(trainer, given, batch, collator, states)
            logps.update(zip(rows, found, strict=True))
            held.update(zip(rows, kept, strict=True) if kept else ())
    count = range(len(given))
    return references.Store(name, [logps[i] for i in count], [held[i] for i in count] if held else None)


def _of_batch(
    trainer: Any, given: Any, batch: Sequence[int], collator: Any, anchored: bool
) -> tuple[list[int], list[Tensor], list[Tensor]]:
    """Numbers, log-probabilities and anchored states of these rows, and of those that the other processes have."""
    picked, accelerator = [given[i] for i in batch], trainer.accelerator
    made = collator(picked)
    at = made["anchored"]
    inputs = {name: made[name] for name in made if name not in ("positions", "anchored", "tokens", "betas")}
    with accelerator.autocast():  # before training the model is not wrapped in it yet
        out = trainer.model_wrapped(**send_to_device(inputs, accelerator.device), supervised=True, keep_states=anchored)
    lengths = [supervised_count(row) for row in picked]
    held = torch.zeros(sum(lengths), dtype=torch.long).index_fill(0, at, 1)
    counts = [int(part.sum()) for part in held.split(lengths)]
    rows, lengths, counts = (from_all(accelerator, torch.tensor(one)).tolist() for one in (batch, lengths, counts))
    logps = from_all(accelerator, out.logps.float()).split(lengths)
    states = from_all(accelerator, out.states[at.to(out.states.device)]).split(counts) if anchored else ()
    return rows, list(logps), list(states)


def from_all(accelerator: Accelerator, own: Tensor) -> Tensor:
    """A tensor (N, ...) and those of all other processes, of whatever length, one behind another on the CPU."""
    own = own.to(accelerator.device)
    lengths = accelerator.gather(torch.tensor([len(own)], device=own.device)).tolist()
    padded = accelerator.gather(accelerator.pad_across_processes(own))
    return torch.cat([part[:n] for part, n in zip(padded.split(max(lengths)), lengths, strict=True)]).cpu()
