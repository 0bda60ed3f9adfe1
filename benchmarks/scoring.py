"""KL per answer position: tokendeep against the plain way (both models' full float32 logits, log_softmax).

Workload: SmolLM2-135M-Instruct against a perturbed copy, 64 prompts of the demo under the model's own system prompt,
answers of 50 tokens, batches of 16. Prints tokens per second, peak memory above the models, and their ratios; and how
much there was to win: the time that the matrix products alone would take at the speed of one large product.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import resources

import torch
from torch.utils.flop_counter import FlopCounterMode

from shared import in_a_process, large_product, peak_memory
from tokendeep import chat, models
from tokendeep.compute import scoring
from tokendeep.types import IGNORE, Encoded, Subject

ROWS, ANSWER, BATCH = 64, 50, 16


def workload(tokenizer: object) -> list[Encoded]:
    lines = resources.files("tokendeep").joinpath("assets/demo/benign.jsonl").read_text(encoding="utf-8").splitlines()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for line in lines[:ROWS]:
        prompt = chat.prompt_ids(tokenizer, [{"role": "user", "content": json.loads(line)["instruction"]}])  # type: ignore[arg-type]
        answer = torch.randint(100, 40000, (ANSWER,), generator=generator).tolist()
        rows.append(Encoded(prompt + answer, [IGNORE] * len(prompt) + answer))
    return rows


def plain(p: Subject, q: Subject, rows: list[Encoded]) -> list[torch.Tensor]:
    out = []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            width = max(len(r.input_ids) for r in batch)
            ids = torch.tensor([r.input_ids + [0] * (width - len(r.input_ids)) for r in batch])
            mask = torch.tensor([[1] * len(r.input_ids) + [0] * (width - len(r.input_ids)) for r in batch])
            log_p, log_q = (s.model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1) for s in (p, q))
            kl = (log_p.exp() * (log_p - log_q)).sum(-1)
            for row, values in zip(batch, kl, strict=True):
                keep = torch.tensor([label != IGNORE for label in row.labels[1:]])
                out.append(values[: len(keep)][keep])
    return out


def measure(way: str) -> None:
    p, q = models.load("smollm2"), models.load("smollm2")
    for parameter in q.model.parameters():
        parameter.data.mul_(1.01)
    rows = workload(p.tokenizer)
    warm = rows[:2]  # libraries and threads start up outside the timing
    _ = plain(p, q, warm) if way == "plain" else scoring.token_kl(p, q, warm, BATCH)
    before = peak_memory()
    start = time.perf_counter()
    values = plain(p, q, rows) if way == "plain" else scoring.token_kl(p, q, rows, BATCH)
    seconds = time.perf_counter() - start
    peak = peak_memory() - before
    with FlopCounterMode(display=False) as counter:
        _ = plain(p, q, rows) if way == "plain" else scoring.token_kl(p, q, rows, BATCH)
    figures = {"seconds": seconds, "mib": peak * 1e3 / 1024, "mean": torch.cat(values).mean().item()}
    print(json.dumps({**figures, "gflop": counter.get_total_flops() / 1e9}))


def main() -> None:
    """Each way in a process of its own, so that peak memory is its own."""
    models.smollm2_folder()
    got = {way: in_a_process(__file__, way) for way in ("plain", "tokendeep")}
    for way, figures in got.items():
        rate = ROWS * ANSWER / figures["seconds"]
        print(
            f"KL, {way:9}: {rate:6.0f} answer tokens/s, {figures['mib']:6.0f} MiB above the models, mean KL {figures['mean']:.4f}"
        )
    a, b = got["plain"], got["tokendeep"]
    print(
        f"KL: {a['seconds'] / b['seconds']:.2f} times as fast (aim 2), {b['mib'] / a['mib']:.2f} of the memory (aim 0.25)"
    )
    peak = large_product()
    bound = a["seconds"] / (b["gflop"] / peak)
    print(
        f"KL: {a['gflop']:.0f} and {b['gflop']:.0f} GFLOP in products; one large product passes at {peak:.0f} GFLOP/s,"
    )
    print(f"so that nothing with these products could be more than {bound:.2f} times as fast as the plain way here")


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
