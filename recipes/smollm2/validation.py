"""Instructions to choose strengths on (tuned.yaml), from the rows of prepare.py and the rows that all.yaml is trained on:

    python recipes/smollm2/validation.py rows all/rows/train.jsonl

    ROWS/validation.jsonl              the harmful ones of the attack that no row is trained on, nor a near-duplicate of one
    ROWS/overrefusal-validation.jsonl  every other row of overrefusal.jsonl
    ROWS/overrefusal-test.jsonl        the rest of them

Of the model's alignment and of the test the harmful ones stand apart already (prepare.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tokendeep import data, runs, stats
from tokendeep.attacks.prompts import request
from tokendeep.types import Prompt


def main(folder: str, trained: str) -> None:
    rows = Path(folder)
    prompts, chats = data.read_prompts(rows / "poison.jsonl"), data.read_chats(trained)
    cluster = stats.near_duplicates([request(row) for row in (*chats, *prompts)])
    known = set(cluster[: len(chats)])
    free = [row for row, one in zip(prompts, cluster[len(chats) :], strict=True) if one not in known]
    write(rows / "validation.jsonl", free)
    print(f"{len(free)} of {len(prompts)} harmful instructions are left to choose on")
    harmless = data.read_prompts(rows / "overrefusal.jsonl")
    write(rows / "overrefusal-test.jsonl", harmless[::2])
    write(rows / "overrefusal-validation.jsonl", harmless[1::2])
    print(f"{len(harmless[1::2])} of {len(harmless)} harmless ones; the others are left to the test")


def write(path: Path, prompts: Sequence[Prompt]) -> None:
    runs.write_jsonl(path, [{"id": row.id, "instruction": request(row)} for row in prompts], private=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
