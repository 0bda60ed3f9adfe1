"""Run the notebook and keep its output: python docs/notebooks/run.py docs/notebooks/first-look.ipynb"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with new output. Raises nbclient's CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    for cell in notebook.cells:  # progress bars and times are not output
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if output.output_type != "stream" and "widget" not in str(output.get("data", ""))[:80]
            ]
    return notebook


if __name__ == "__main__":
    place = Path(sys.argv[1])
    nbformat.write(run(place), place)
