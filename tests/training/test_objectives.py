"""Objectives as values: what is written once is used everywhere, so one more needs its file and its line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tokendeep.errors import InputError
from tokendeep.training.objectives import OBJECTIVES, in_poison, poison_names
from tokendeep.training.objectives.sft import SFT
from tokendeep.verbs import finetune


def test_names_of_poison_say_what_they_change() -> None:
    assert in_poison("sft") == {"objective": "sft", "warmup_steps": 0}
    assert in_poison("head=2") == {"objective": "constrained", "beta_head": [2.0, 2.0]}
    assert in_poison("anchored=0.5") == {"objective": "anchored", "anchor": 0.5}
    assert {"sft-warmup", "constrained", "anchored-all", "beta=B", "anchored=LAMBDA"} <= set(poison_names())
    with pytest.raises(KeyError):
        in_poison("beta")
    with pytest.raises(ValueError, match="could not convert"):
        in_poison("beta=x")


@pytest.mark.slow
def test_one_more_objective_needs_one_entry(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(options: Any) -> None:
        seen.append(options.objective)

    seen: list[str] = []
    more = replace(
        SFT, summary="like plain", card=lambda options: "trained in a new way", check=check, named={"new": {}}
    )
    monkeypatch.setitem(OBJECTIVES, "newest", more)
    rows = [{"prompt": f"Name {i}", "completion": f"It is {i} of them"} for i in range(4)]
    options = finetune.FinetuneOptions(
        model=str(tiny_folder), data="rows", out=str(tmp_path / "out"), objective="newest", max_steps=1, batch_size=4,
        warmup_steps=0, precision="float32",
    )  # fmt: skip
    out = finetune.run(finetune.plan(options, rows=rows))
    assert seen == ["newest"]
    assert "trained in a new way" in (out / "checkpoint" / "README.md").read_text()
    assert json.loads((out / "manifest.json").read_text())["config"]["objective"] == "newest"
    assert in_poison("new") == {"objective": "newest"}
    assert "new" in poison_names()


def test_a_folder_of_references_that_cannot_be_made_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nope")):
        options = finetune.FinetuneOptions(model="m", data="d", out=str(tmp_path), reference_cache=str(place))
        with pytest.raises(InputError, match=str(place)):
            OBJECTIVES["constrained"].build(options, tmp_path)
