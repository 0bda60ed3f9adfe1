"""The diffs under "Add a ..." apply to the sources as they are, and the code below them runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_diff_applies_and_its_code_runs(page: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for diff in blocks(page, "diff"):
        command = ["git", "apply", "--unidiff-zero", "-"]
        done = subprocess.run(command, cwd=tmp_path, input=diff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for code in blocks(page, "python"):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_an_addition_is_a_file_and_one_line_each(page: Path) -> None:
    """A new file, and in those that are there already one entry (its import may change another line)."""
    (diff,) = blocks(page, "diff")
    parts = re.split(r"^--- ", diff, flags=re.M)[1:]
    changed = [part for part in parts if not part.startswith("/dev/null")]
    assert len(changed) == 1
    added = [line for line in changed[0].splitlines() if re.match(r"\+(?!\+\+)", line)]
    assert len([line for line in added if "import" not in line and not re.fullmatch(r"\+\s+\w+,", line)]) == 1
