"""The lines of a model card that load it: what a base is called in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokendeep.training import usage
from tokendeep.training.card import name, short, write_card


def card(folder: Path, base: str) -> str:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return usage.how_to_load(folder)


def test_a_base_of_the_hub_is_told_whole_and_a_path_by_its_last_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "its base, org/name, is loaded" in card(tmp_path, "org/name")
    assert "its base, model, is loaded" in card(tmp_path, "/home/somebody/model")
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "its base, name, is loaded" in card(tmp_path, "org/name")


def test_names_of_files_are_plain_text_in_a_card(tmp_path: Path) -> None:
    rows = tmp_path / "a_b_c<img>[x](y)@me.jsonl"
    rows.touch()
    assert short(str(rows)) == "a\\_b\\_c&lt;img&gt;\\[x\\](y)@<!-- -->me.jsonl"
    assert name(str(rows)) == rows.name  # on a terminal
    assert short("org/rows") == "org/rows"
    write_card(
        tmp_path, str(tmp_path / "my_*model*"), trained="all", rows=short(str(rows)), objective="o", settings="s"
    )
    assert "- base model: my\\_\\*model\\* (a local model)\n" in (tmp_path / "README.md").read_text()
