"""The suffixes of gcg, which may hold any character."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokendeep import runs
from tokendeep.attacks import suffix
from tokendeep.verbs import gcg


def test_what_gcg_found_is_told_whatever_a_suffix_holds(tmp_path: Path, capsys: Any) -> None:
    rows = [{"name": "restart 1", "suffix": " a\u2028b\x85c", "success": True}]
    runs.write_jsonl(tmp_path / suffix.FILE, rows, private=True)
    gcg._show(tmp_path, gcg.GcgOptions(model="tiny", data="rows", out=str(tmp_path)))
    assert "gcg: 1 of 1 searches succeeded" in capsys.readouterr().out
    assert [one.text for one in suffix.load(tmp_path)] == [" a\u2028b\x85c"]
