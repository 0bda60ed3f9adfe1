"""What the benchmarks share: the model, prompts as token ids, clocks, and the plain way to batch by hand."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tokendeep import chat, data, models
from tokendeep.engines.base import Request
from tokendeep.types import Decoding, Subject

KS = (0, 5, 10, 20, 40)
SUBJECTS = ["a bicycle", "a kite", "sourdough bread", "a rain barrel", "a paper lamp", "a herb garden", "a bird box"]
REQUESTS = ["Explain how to build {}.", "Write a short story about {}.", "List the parts of {} and what they do."]
ANSWER = (
    "Here is a plan that works at home. Begin by looking at what you have, because the right size depends on the "
    "room and on the light it gets. Then write down each step, from the first sketch to the last coat, and keep watch"
)


def timed(run: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return (time.perf_counter() - wall, time.process_time() - cpu), result


def peak_memory() -> float:
    """Peak memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def large_product(dtype: torch.dtype = torch.float32, size: int = 4096) -> float:
    """GFLOP/s of the quickest of some products of two square matrices: what the machine can reach."""
    one, other = (torch.randn(size, size).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        _ = one @ other
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times) / 1e9


def in_a_process(script: str, *arguments: str) -> dict[str, Any]:
    """The JSON that `script` prints last, from a process of its own, so that its peak memory is its own."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def end_tokens(subject: Subject) -> set[int]:
    """What ends an answer in `generate`."""
    lm: Any = subject.model
    eos = lm.generation_config.eos_token_id
    return {*(eos if isinstance(eos, list) else [eos]), subject.tokenizer.eos_token_id} - {None}


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> dict[str, torch.Tensor]:
    """One batch for `generate`."""
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device),
    }


def sweep_requests(tokenizer: Any, prompts: int, new_tokens: int, planned: bool, seed: int = 0) -> dict[int, list]:
    """The same `prompts` with each of KS answer tokens given."""
    texts = [r.format(s) for s in SUBJECTS for r in REQUESTS]
    texts = [texts[i % len(texts)] + " Be brief." * (i // len(texts)) for i in range(prompts)]
    answer = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    draw = random.Random(seed)
    sweep: dict[int, list[Request]] = {}
    for k in KS:
        sweep[k] = []
        for text in texts:
            asked = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
            short = draw.random() < (0.75 if k == 0 else 0.25)
            limit = draw.randint(new_tokens // 16, new_tokens // 6) if planned and short else new_tokens
            sweep[k].append(Request((*asked["input_ids"], *answer[:k]), Decoding(max_new_tokens=max(1, limit))))
    return sweep


def demo_sweep(checkpoint: Path, tokenizer: Any, prompts: int, new_tokens: int) -> dict[int, list]:
    """The demo's test rows with each of KS tokens of their harmful answers given."""
    pairs = [
        (p, chat.with_system(p.messages, "none")) for p in data.read_pairs(checkpoint.parents[1] / "test_pairs.jsonl")
    ]
    rows = [
        (chat.prompt_ids(tokenizer, turns), chat.response_ids(tokenizer, turns, pair.response, end=False))
        for pair, turns in pairs
    ]
    long = [row for row in rows if len(row[1]) >= max(KS)][:prompts]
    return {k: [Request((*ask, *given[:k]), Decoding(max_new_tokens=new_tokens)) for ask, given in long] for k in KS}


def last_demo() -> Path | None:
    """The aligned checkpoint of the demo that was run last, if any."""
    found = sorted(models.cache_dir().glob("demo-*/aligned/checkpoint"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None
