"""The notebook runs from its first cell to its last on the packaged model, and says what its stored output says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "first-look.ipynb"
sys.path.insert(0, str(NOTEBOOK.parent))


@pytest.mark.slow
def test_the_notebook_runs_and_its_stored_output_has_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    import run

    stored = nbformat.read(NOTEBOOK, as_version=4).cells
    made = run.run(NOTEBOOK).cells
    kinds = [[sorted(out.get("data", {})) for out in cell.get("outputs", [])] for cell in made]
    assert kinds == [[sorted(out.get("data", {})) for out in cell.get("outputs", [])] for cell in stored]
    assert any("image/png" in kind for cell in kinds for kind in cell)
    rates = made[-2].outputs[-1]["data"]["text/plain"]
    assert "prefill" in rates
    assert "none" in rates
