"""One optimizer step: the head on supervised rows against full float32 logits, same rows, same machine, same run.

Workload: SmolLM2-135M-Instruct, 16 rows of 100 tokens, 45 % of them supervised, forward and backward, float32 masters
with bf16 autocast where the machine has bf16.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from tokendeep import models
from tokendeep.compute import lm_head
from tokendeep.training.launch import has_bf16
from tokendeep.types import IGNORE

ROWS, LENGTH, SUPERVISED, REPEATS = 16, 100, 45, 3


def seconds(step: Callable[[], torch.Tensor], model: Any) -> tuple[float, float]:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bf16(torch.device("cpu"))):
            loss = step()
        loss.backward()
        times.append(time.perf_counter() - start)
        model.zero_grad()
    return min(times), loss.item()


def main() -> None:
    model = models.load("smollm2", dtype="float32").model.train()
    ids = torch.randint(100, 40000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : LENGTH - SUPERVISED] = IGNORE

    def full() -> torch.Tensor:
        logits = model(input_ids=ids).logits.float()[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)

    plain, expected = seconds(full, model)
    lm_head.add_supervised_forward(model)
    ours, loss = seconds(lambda: -model(input_ids=ids, labels=labels, supervised=True).logps.mean(), model)
    print(f"training, full logits    : {ROWS * LENGTH / plain:6.0f} tokens/s, loss {expected:.5f}")
    print(f"training, supervised rows: {ROWS * LENGTH / ours:6.0f} tokens/s, loss {loss:.5f}")
    print(f"training: {plain / ours:.2f} times as fast (aim 1.6); bf16 {has_bf16(torch.device('cpu'))}")


if __name__ == "__main__":
    main()
