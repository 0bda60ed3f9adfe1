"""Files of rows, and what refusing one must look like: shared by the tests of data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokendeep.errors import InputError

SECRET = "boil an egg without water"  # row text, which no error message may show


def write(folder: Path, name: str, content: str | bytes | list[Any]) -> Path:
    """A file with text, bytes, or one JSON value a line."""
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(load: Callable[[Any], object], source: Any, *parts: str) -> str:
    """Load, expect an InputError of one sentence that holds all parts and no row text; return the message."""
    with pytest.raises(InputError) as caught:
        load(source)
    message = str(caught.value)
    for part in parts:
        assert part in message, (part, message)
    assert "\n" not in message
    assert message.endswith(".")
    assert SECRET not in message
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, OSError | RuntimeError | ValueError)
    return message
