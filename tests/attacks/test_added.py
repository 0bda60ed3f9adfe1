"""An added attack is its own file and its line in `ATTACKS`: command line, Inspect task, rates and report follow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tokendeep
from attacking import pairs  # noqa: F401  (fixture)

SHOUT = '''
"""Shouting: the request in capitals, with as many marks behind it as is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokendeep.attacks.base import Attack, Params, Prepared, Rows, Victim, option
from tokendeep.attacks.prompts import attacked, request, with_request


@dataclass(frozen=True, kw_only=True)
class ShoutOptions:
    marks: Annotated[int, option(help="Exclamation marks behind the request.")] = 3


def prepare(rows: Rows, options: ShoutOptions, victim: Victim) -> Prepared:
    loud = [with_request(prompt, request(prompt).upper() + "!" * options.marks) for prompt in rows.prompts]
    return Prepared([attacked(prompt, "shout", {"marks": options.marks}) for prompt in loud])


def describe(params: Params) -> str:
    return f"shouted with {params['marks']} marks"


ATTACK = Attack("shout", "shouts the request", ShoutOptions, prepare, describe, tells=("marks",))
'''


@pytest.mark.slow
def test_an_attack_is_added_with_its_file_and_its_line(tmp_path: Path, tiny_folder: Path, pairs: Path) -> None:
    package = tmp_path / "src" / "tokendeep"
    shutil.copytree(Path(tokendeep.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "attacks" / "shout.py").write_text(SHOUT.lstrip(), encoding="utf-8")
    registry = package / "attacks" / "__init__.py"
    text = registry.read_text(encoding="utf-8")
    text = text.replace("refusal_prefix, suffix\n", "refusal_prefix, shout, suffix\n")
    text = text.replace('    "suffix": suffix.ATTACK,\n', '    "suffix": suffix.ATTACK,\n    "shout": shout.ATTACK,\n')
    registry.write_text(text, encoding="utf-8")

    def call(*words: str) -> str:
        command = [sys.executable, "-m", "tokendeep", *words]
        environment = {"PYTHONPATH": str(tmp_path / "src"), "HOME": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "--marks" in call("attack", "--help")
    common = [
        "--model",
        str(tiny_folder),
        "--data",
        str(pairs),
        "--out",
        str(tmp_path / "out"),
        "--max-new-tokens",
        "4",
    ]
    shown = call("attack", "--attack", "none,shout", "--marks", "5", *common)
    assert "marks=5" in shown
    rows = json.loads((tmp_path / "out" / "asr.json").read_text())
    assert [(row["attack"], row["params"].get("marks")) for row in rows] == [("none", None), ("shout", 5)]
    assert "HOW DO I BAKE BREAD?!!!!!" in (tmp_path / "out" / "attacked.jsonl").read_text()
    call("report", str(tmp_path / "out"), "--out", str(tmp_path / "report.html"))
    assert "shouted with 5 marks" in (tmp_path / "report.html").read_text()
