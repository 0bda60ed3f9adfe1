"""A verdict's hash covers the code of a rule by its version: who changes the code raises the version, and pins it here."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import tokendeep.judges
from tokendeep.judges import JUDGES
from tokendeep.runs import sha256_text

FOLDER = Path(tokendeep.judges.__file__).parent
CODE = {"refusal": ["rule/*.py"], "refusal-keywords": ["keywords.py"]}
PINNED = {"refusal": (1, "623a9658cfd746d6"), "refusal-keywords": (1, "7b4b2df0e64cf825")}


def code_of(patterns: list[str]) -> str:
    """A hash of the code, which neither comments nor docstrings nor blank lines change; the same under every Python."""
    files = sorted(path for pattern in patterns for path in FOLDER.glob(pattern))
    return sha256_text("\n".join(line for path in files for line in _code(path.read_text())))[:16]


def _code(source: str) -> Iterator[str]:
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        documented = (
            isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None
        )
        for gone in [node.body[0]] if documented else [node] if _is_judge(node) else []:
            lines[gone.lineno - 1 : gone.end_lineno] = [""] * (gone.end_lineno - gone.lineno + 1)
    yield from (line.rstrip() for line in lines if line.strip())


def _is_judge(node: ast.AST) -> bool:
    """The entry of JUDGES, which holds the version itself and what reports say."""
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "JUDGE"


@pytest.mark.parametrize("name", [name for name, judge in JUDGES.items() if judge.rule])
def test_a_change_of_a_rules_code_is_another_version(name: str) -> None:
    found = (JUDGES[name].version, code_of(CODE[name]))
    assert found == PINNED[name], (
        f"the code of {name} has changed: raise its version where it finds anything else, and pin {found[1]}"
    )


def test_a_version_is_another_hash_and_the_first_is_that_of_older_runs() -> None:
    judge = JUDGES["refusal"]
    assert judge.template == sha256_text(judge.words())[:16]
    assert replace(judge, version=2).template not in (judge.template, replace(judge, version=3).template)
