"""The rule of imports: a package knows those before it in this line, and none behind it. And what starts up stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

RULE = (
    *(
        "errors",
        "types",
        "records",
        "stats",
        "plain",
        "runs",
        "progress",
        "chat",
        "data",
        "models",
        "compute",
        "engines",
        "depth",
        "judges",
    ),
    *(
        "defences",
        "attacks",
        "training",
        "audits",
        "evals",
        "pairing",
        "report",
        "verbs",
        "cli",
        "__init__",
        "__main__",
    ),
)
SOURCE = Path(__file__).parents[1] / "src" / "tokendeep"
FILES = sorted(SOURCE.rglob("*.py"))
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "inspect_ai", "matplotlib", "pandas"}


def room(path: Path) -> str:
    """The package of a file, or the module where it is one by itself."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """What a file imports of tokendeep, as (room, ...), also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level or path.parent == SOURCE, f"{path}: write tokendeep.ROOM, which can be searched for"
            whole = (node.module or "").split(".")
            names = whole[1:] if whole[0] == "tokendeep" else whole if node.level else None
            if names is not None:
                yield from ((*filter(None, names), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (tuple(a.name.split(".")[1:]) for a in node.names if a.name.startswith("tokendeep."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_the_line_only(path: Path) -> None:
    rank = RULE.index(room(path))  # a room without a place in the line is an error
    for name in imported(path):
        if name[0] in RULE and name[0] != room(path):
            assert RULE.index(name[0]) < rank, f"{path.name} imports {'.'.join(name)}, which stands behind {room(path)}"


def test_no_circles_inside_a_room() -> None:
    names = {path: ".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in FILES}
    edges = {}
    for path, name in names.items():
        inner = {".".join(parts[:n]) for parts in imported(path) for n in range(2, len(parts) + 1)}
        edges[name] = {other for other in inner & set(names.values()) if other.split(".")[0] == room(path)} - {name}
    while edges:
        free = [name for name, others in edges.items() if not others & edges.keys()]
        assert free, f"these import each other: {sorted(edges)}"
        for name in free:
            del edges[name]


def test_inspect_has_one_home() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert room(path) == "evals" or "inspect_ai" not in text.replace("inspect-ai", ""), path


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, tokendeep, tokendeep.cli\n"
        "try:\n    tokendeep.cli.main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SOURCE.parent)}
    )
    assert done.stderr.strip().splitlines()[-1] == "[]"
    assert "measure" in done.stdout
