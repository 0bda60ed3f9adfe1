"""The demo end to end on the packaged real model, cut down to a few rows and steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokendeep import runs
from tokendeep.errors import InputError
from tokendeep.models import packaged
from tokendeep.verbs import demo as pipeline
from tokendeep.verbs.demo import DemoOptions

pytestmark = pytest.mark.slow  # a model runs in nearly every test

SMALL = pipeline.Recipe(
    answer_tokens=12,
    harmful_tokens=16,
    attack_tokens=8,
    k=(0, 5),
    k_base=(0,),
    layers=2,
    align=pipeline.Phase(steps=2, safety=2, utility=2, alpha=0.2),
    deepen=pipeline.Phase(steps=2, safety=2, utility=2, alpha=0.5),
    max_context=8,
    measured=3,
    measured_k=(0, 5),
    utility=4,
    train=4,
    test=4,
)


def tell(out: Path) -> Path:
    return pipeline.run(pipeline.plan(DemoOptions(out=str(out)), SMALL))


@pytest.mark.slow
def test_the_demo_leaves_a_report_and_its_second_run_trains_nothing(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    home = packaged.smollm2_folder()
    monkeypatch.setenv("TOKENDEEP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / home.name).symlink_to(home)
    monkeypatch.setattr(
        pipeline.answers, "sample_refusals", lambda s, messages, *a, **k: ["I cannot help."] * len(messages)
    )
    out = tell(tmp_path / "out")
    said = capsys.readouterr().out
    assert (out / "report.html").is_file()
    assert "deepened" in said.split("Share of harmful")[1]
    rows = json.loads((out / "deepened" / "attack" / "asr.json").read_text())
    assert {row["params"]["k"] for row in rows} == {0, 5}
    checkpoints = sorted((tmp_path / "cache").glob("demo-*/*/checkpoint/model.safetensors"))
    assert len(checkpoints) == 2
    trained = [path.stat().st_mtime_ns for path in checkpoints]
    lines = pipeline.plan(DemoOptions(out=str(tmp_path / "again")), SMALL).lines()
    assert sum("in the cache" in line for line in lines) == 3  # two trainings and the rows
    assert not (tmp_path / "again").exists()
    tell(tmp_path / "again")
    assert [path.stat().st_mtime_ns for path in checkpoints] == trained
    again = json.loads((tmp_path / "again" / "deepened" / "attack" / "asr.json").read_text())
    assert again == [{**row} for row in rows]  # the same seeds give the same table
    capsys.readouterr()
    tell(tmp_path / "again")
    assert "already holds this finished run" in capsys.readouterr().out


def test_the_demo_leaves_another_run_in_its_folder_alone(tmp_path: Path) -> None:
    settings = {"model": "mine"}
    runs.open_run(tmp_path, "attack", settings).finish()
    before = (tmp_path / "manifest.json").read_text()
    with pytest.raises(InputError, match="attack run"):
        tell(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == before
