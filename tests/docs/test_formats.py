"""The page of the file formats says what every key is, also of the objects inside a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tokendeep import records

HOOKS = Path(__file__).parents[2] / "docs" / "hooks.py"


def parts(schema: Any) -> Iterator[tuple[str, Any]]:
    """The objects of a schema that have keys: the file (or its row) itself, and those inside."""
    top = schema.get("items", schema)
    for name, part in {top["title"]: top, **top.get("$defs", {})}.items():
        if "properties" in part:
            yield name, part


@pytest.mark.parametrize("name", records.schemas())
def test_every_key_has_a_description(name: str) -> None:
    bare = [
        f"{kind}.{key}"
        for kind, part in parts(records.schemas()[name])
        for key, value in part["properties"].items()
        if not value.get("description")
    ]
    assert not bare


def test_the_page_shows_every_object_once() -> None:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("hooks", HOOKS)
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    lines = hooks.formats_page().splitlines()
    for name, schema in records.schemas().items():
        assert lines.count(f"## {name}") == 1
        _, *inside = parts(schema)
        for kind, part in inside:
            assert lines.count(f"### {kind}") == 1
            for key, value in part["properties"].items():
                end = f"| {hooks._cell(value['description'])} |"
                assert any(line.startswith(f"| `{key}` |") and line.endswith(end) for line in lines)
