"""A short fault campaign: see `__main__.py` beside this file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_short_campaign_finds_no_fault(tmp_path: Path) -> None:
    script = [sys.executable, str(Path(__file__).parent), "--kills", "6", "--inputs", "60", "--places", "10"]
    done = subprocess.run([*script, "--work", str(tmp_path)], capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "0 faults" in done.stdout
