"""Requests and texts that come with the package: harmful ones by category, each with a harmless twin, and ordinary ones."""

import json
from importlib import resources
from typing import Any


def text(name: str) -> str:
    """A text file of the stock."""
    return resources.files("tokendeep").joinpath(f"assets/demo/{name}").read_text(encoding="utf-8")


def rows(name: str, split: str | None = None) -> list[dict[str, Any]]:
    """The rows of one of its JSONL files, or those of one split (train, test, utility, unseen)."""
    found = [json.loads(line) for line in text(name).splitlines() if line.strip()]
    return [row for row in found if split in (None, row["split"])]
