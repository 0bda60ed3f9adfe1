"""Harmful instructions to choose strengths on (tuned.yaml): those of the attack that no row of all.yaml is trained on.

    python recipes/smollm2/validation.py rows/poison.jsonl all/rows/train.jsonl rows/validation.jsonl

Near-duplicates of trained rows are left out too. Of the model's alignment and of the test they stand apart already (prepare.py).
"""

from __future__ import annotations

import sys

from tokendeep import data, runs, stats
from tokendeep.attacks.prompts import request


def main(attack: str, trained: str, out: str) -> None:
    prompts = data.read_prompts(attack)
    rows = data.read_chats(trained)
    cluster = stats.near_duplicates([request(row) for row in (*rows, *prompts)])
    known = set(cluster[: len(rows)])
    free = [row for row, one in zip(prompts, cluster[len(rows) :], strict=True) if one not in known]
    runs.write_jsonl(out, [{"id": row.id, "instruction": request(row)} for row in free], private=True)
    print(f"{len(free)} of {len(prompts)} instructions are left to choose on")


if __name__ == "__main__":
    main(*sys.argv[1:4])
