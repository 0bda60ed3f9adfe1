"""The requests of battery.sh, with answers of the unaligned SmolLM2 to take prefills from.

    python recipes/smollm2/battery_rows.py DATA OUT

DATA holds advbench_harmful_behaviors.csv. The demo trains on none of AdvBench; of each cluster of near-duplicates there,
and of those shared with the demo's training instructions none, one row is taken:

    OUT/demo.jsonl       the demo's 80 test instructions, drawn in another order
    OUT/advbench.jsonl   so many rows of AdvBench
    OUT/deep.jsonl       the first few of both whose answer is long enough for the deepest prefill
    OUT/search.jsonl     rows of AdvBench that are in neither, for suffixes to be searched on
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tokendeep import chat, data, models, runs, stats
from tokendeep.data import stock
from tokendeep.engines import local as generation
from tokendeep.types import Decoding, Prompt, Subject

ADVBENCH, SEARCH, ANSWER, DEEP, DEEP_ANSWER = 80, 3, 64, 24, 512


def main(source: Path, out: Path, seed: int = 0) -> None:
    if (out / "search.jsonl").exists():
        return
    draw = random.Random(seed)
    harmful = stock.rows("harmful.jsonl")
    asked = [(r["id"], r["instruction"]) for r in harmful if r["split"] == "test"]
    trained = [r["instruction"] for r in harmful if r["split"] == "train"]
    advbench = [(p.id, p.messages[-1]["content"]) for p in data.read_prompts(source / "advbench_harmful_behaviors.csv")]
    clusters = stats.near_duplicates([*trained, *(t for _, t in asked), *(t for _, t in advbench)])
    taken = set(clusters[: len(trained) + len(asked)])
    fresh: dict[int, tuple[str, str]] = {}
    for cluster, row in zip(clusters[len(trained) + len(asked) :], advbench, strict=True):
        if cluster not in taken:
            fresh.setdefault(cluster, row)
    others = list(fresh.values())
    draw.shuffle(others)
    draw.shuffle(asked)
    sets = {"demo": asked, "advbench": others[:ADVBENCH]}

    base = models.load("smollm2")
    for name, rows in sets.items():
        runs.write_jsonl(out / f"{name}.jsonl", [row for row, _ in answered(base, rows, ANSWER)], private=True)
    both = [row for two in zip(sets["demo"], sets["advbench"], strict=False) for row in two][:DEEP]
    long = [row for row, tokens in answered(base, both, DEEP_ANSWER) if tokens >= DEEP_ANSWER]
    runs.write_jsonl(out / "deep.jsonl", long, private=True)
    print(f"{len(long)} of {len(both)} answers have {DEEP_ANSWER} tokens")
    rows = [{"id": i, "instruction": t} for i, t in others[ADVBENCH : ADVBENCH + SEARCH]]
    runs.write_jsonl(out / "search.jsonl", rows, private=True)


def answered(base: Subject, rows: list[tuple[str, str]], tokens: int) -> list[tuple[dict[str, str], int]]:
    """The rows with the greedy answers of the unaligned model, and how many tokens these have."""
    prompts = [Prompt(i, ({"role": "user", "content": text},)) for i, text in rows]
    requests = [
        generation.Request(
            tuple(chat.prompt_ids(base.tokenizer, chat.with_system(p.messages, "none"))),
            Decoding(max_new_tokens=tokens),
        )
        for p in prompts
    ]
    answers = generation.generate(base, requests, batch_size=32)
    return [
        ({"id": i, "instruction": text, "response": answer.text}, len(answer.ids))
        for (i, text), answer in zip(rows, answers, strict=True)
        if answer.text.strip()
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
