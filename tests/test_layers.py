"""Imports go strictly down, heavy libraries stay where they belong, and starting up loads none of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tokendeep"

# From the bottom up. Modules of one line do not import each other, but for the files of one package.
LAYERS = [
    ["types"],
    ["config", "packaged", "refusal_phrases"],
    ["runs"],
    ["objective", "chat", "data", "refusal", "stats", "parts"],
    ["locate", "rows"],
    ["models"],
    ["head"],
    ["scoring", "generation"],
    ["training", "reference", "measure", "gradients"],
    ["sft", "weighted", "margin"],
    ["trainer"],
    ["dynamics"],
    ["finetune"],
    ["deepen", "utility"],
    ["attack"],
    ["evals"],
    ["reporting"],
    ["report", "compare", "poison_table", "poison_rows", "suffixes"],
    ["pipeline", "poisoning"],
    ["reproduce"],
    ["cli", "__init__"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "inspect_ai", "matplotlib"}
ONLY_IN = {"inspect_ai": {"evals"}, "matplotlib": {"report", "reporting"}, "trl": {"sft", "weighted"}}

MODULES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name below tokendeep: chat, evals.run, evals.__init__."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Dotted names that a file imports; `top_only` leaves out those inside functions and for type checkers."""
    package = ["tokendeep", *path.relative_to(SOURCE).parent.parts]
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif top_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif top_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def own(names: Iterator[str]) -> set[str]:
    """The modules of tokendeep among imported names, as `name_of` gives them."""
    known = {name_of(path) for path in MODULES}
    found = set()
    for name in names:
        if name.startswith("tokendeep."):
            below = name.removeprefix("tokendeep.")
            found |= {candidate for candidate in (below, f"{below}.__init__") if candidate in known}
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_strictly_down(path: Path) -> None:
    name = name_of(path)
    layer = name.split(".")[0]
    assert layer in RANK, f"give {layer} a place in LAYERS"
    for other in own(imports(path)):
        other_layer = other.split(".")[0]
        if other_layer != layer or "." not in name:
            assert RANK[other_layer] < RANK[layer], f"{name} imports {other}, which is not below it"


@pytest.mark.parametrize("package", ["attack", "evals", "reporting"])
def test_no_circles_inside_a_package(package: str) -> None:
    edges = {name_of(p): own(imports(p)) for p in MODULES if name_of(p).startswith(f"{package}.")}
    while edges:
        free = [name for name, others in edges.items() if not others & edges.keys() - {name}]
        assert free, f"these import each other: {sorted(edges)}"
        for name in free:
            del edges[name]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_some_libraries_have_one_home(path: Path) -> None:
    layer = name_of(path).split(".")[0]
    for library in {name.split(".")[0] for name in imports(path)} & ONLY_IN.keys():
        assert layer in ONLY_IN[library], f"{library} is imported in {sorted(ONLY_IN[library])} only"


def test_start_up_reaches_no_heavy_import() -> None:
    paths = {name_of(path): path for path in MODULES}
    waiting, seen = ["__init__", "cli"], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in paths:
            continue
        seen.add(name)
        names = list(imports(paths[name], top_only=True))
        heavy = {other.split(".")[0] for other in names} & HEAVY
        assert not heavy, f"{name} imports {heavy} when tokendeep starts: do it inside the function that needs it"
        waiting.extend(own(iter(names)))
        waiting.extend(f"{other.rsplit('.', 1)[0]}.__init__" for other in seen if "." in other)
    assert {"cli", "config", "types"} <= seen


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


def test_the_rule_sees_what_it_should(tmp_path: Path) -> None:
    """The checks above look at relative, absolute and inner imports alike."""
    path = SOURCE / "evals" / "imagined.py"
    code = "from ..models import load\nfrom . import tasks\nimport tokendeep.data\ndef f():\n    import torch.nn\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda self, **_: code)
        found, at_top = set(imports(path)), set(imports(path, top_only=True))
    assert {"tokendeep.models", "tokendeep.models.load", "tokendeep.evals.tasks", "tokendeep.data", "torch.nn"} <= found
    assert "torch.nn" not in at_top
