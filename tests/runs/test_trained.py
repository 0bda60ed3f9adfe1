"""Requests that a model was trained on are known again by their hashes, from the folder of its training."""

from __future__ import annotations

import json
from pathlib import Path

from tokendeep.runs import trained


def test_requests_are_found_from_the_checkpoint_and_the_folder_above_it(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    trained.write(tmp_path, ["How do I bake  bread?", "Who is it?"], "")
    assert trained.count(str(tmp_path / "checkpoint"), ["how do I bake bread?\n", "Another?"]) == 1
    assert trained.count(str(tmp_path), ["Who is it?"]) == 1
    assert "bread" not in (tmp_path / trained.FILE).read_text()


def test_a_model_that_was_trained_again_knows_both(tmp_path: Path) -> None:
    for name, text, model in (("first", "One?", ""), ("then", "Two?", str(tmp_path / "first" / "checkpoint"))):
        (tmp_path / name / "checkpoint").mkdir(parents=True)
        trained.write(tmp_path / name, [text], model)
    assert trained.count(str(tmp_path / "then" / "checkpoint"), ["One?", "Two?", "Three?"]) == 2


def test_nothing_is_known_of_other_models(tmp_path: Path) -> None:
    assert trained.count("owner/model", ["One?"]) is None
    assert trained.count(str(tmp_path), ["One?"]) is None
    (tmp_path / trained.FILE).write_text(json.dumps([1]))
    assert trained.count(str(tmp_path), ["One?"]) is None
