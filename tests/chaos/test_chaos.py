"""A short fault campaign: see `__main__.py` beside this file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from tokendeep import records

sys.path.append(str(Path(__file__).parent))
import compare


def test_every_time_that_a_result_holds_is_no_difference() -> None:
    # a new one that the campaign does not know makes each killed training differ from one that was not
    kinds = [kind for kind in vars(records).values() if isinstance(kind, type) and issubclass(kind, BaseModel)]
    times = {name for kind in kinds for name in kind.model_fields if "seconds" in name or "runtime" in name}
    assert {"step_seconds", "seconds"} <= times
    assert [name for name in sorted(times) if not compare.CLOCK.fullmatch(name)] == []


def test_a_table_of_trainings_differs_by_its_last_columns_alone_where_only_the_clock_does() -> None:
    ends = ("| 3 |", "| 12 | 0.12 |", "| 12 | 0.12 (0.10 to 0.55) |", "| 12 |  |")
    assert {compare.SECONDS.sub("| - |", f"| sft | 0.50 {end}") for end in ends} == {"| sft | 0.50 | - |"}


@pytest.mark.slow
def test_a_short_campaign_finds_no_fault(tmp_path: Path) -> None:
    script = [sys.executable, str(Path(__file__).parent), "--kills", "6", "--inputs", "60", "--places", "10"]
    done = subprocess.run([*script, "--work", str(tmp_path)], capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "0 faults" in done.stdout
