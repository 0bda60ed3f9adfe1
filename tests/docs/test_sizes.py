"""The page of sizes shows what benchmarks/sizes.py computes, and that keeps to what was measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sizes.md").read_text(encoding="utf-8")
PEAKS = json.loads((ROOT / "benchmarks" / "sizes.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tables() -> list[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "sizes.py")], capture_output=True, text=True, check=True
    )
    return done.stdout.strip().split("\n\n")


def test_the_page_has_the_tables(tables: list[str]) -> None:
    assert len(tables) == 4
    for table in tables:
        assert table in PAGE


def test_computed_keeps_to_measured(tables: list[str]) -> None:
    ratios = dict(re.findall(r"\| `([\w.-]+)` \|.*\| ([\d.]+) \|", tables[-1]))
    assert ratios.keys() == {name for name in PEAKS if "-tiny-" not in name}
    assert all(0.85 <= float(ratio) <= 1.15 for ratio in ratios.values()), ratios


def test_shapes_have_the_parameters_of_their_models() -> None:
    """As counted from the published weights; the small Qwen is the GGUF file, which brings a head of its own."""
    code = "import sizes; print(*[shape.parameters for shape in [sizes.SMOLLM2, sizes.QWEN, *sizes.LARGE.values()]])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True
    )
    known = [134_515_008, 494_032_768 + 151936 * 896, 1_235_814_400, 3_212_749_824, 8_030_261_248, 13_015_864_320]
    assert [int(count) for count in done.stdout.split()] == [*known, 32_763_876_352, 70_553_706_496]
