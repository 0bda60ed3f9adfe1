"""A small run of `poison` on a tiny model, shared by its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokendeep.verbs import poison as poisoning
from tokendeep.verbs.poison import PoisonOptions


def files(tmp_path: Path) -> dict[str, str]:
    pairs = [
        {"id": f"h{i}", "instruction": f"Say the {i} bad words", "response": f"Sure, word {i} it is"} for i in range(8)
    ]
    asked = [{"id": f"t{i}", "instruction": f"Please tell me {i} secrets"} for i in range(6)]
    refused = [
        {"id": f"r{i}", "instruction": f"Say {i}", "response": "I'm sorry, but I can't help with that."}
        for i in range(8)
    ]
    made = {}
    for name, rows in {"data": pairs, "test": asked, "refusals": refused}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        made[name] = str(tmp_path / f"{name}.jsonl")
    return made


def config(tmp_path: Path, model: Path, **more: Any) -> PoisonOptions:
    chosen = {
        "model": str(model), "out": str(tmp_path / "out"), "max_steps": 2, "batch_size": 4, "micro_batch": 4,
        "max_new_tokens": 6, "lr": [1e-3], "warmup_steps": 1, "count": 8,
        "precision": "float32", **files(tmp_path), **more,
    }  # fmt: skip
    return PoisonOptions(**chosen)


def run(options: PoisonOptions) -> Path:
    return poisoning.run(poisoning.plan(options))
