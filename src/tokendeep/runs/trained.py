"""Which requests a model was trained on, by hashes alone: written beside a checkpoint, looked up when it is asked.

Knows nothing of rows: a request is the text of a user's turn. Its case and spaces do not count.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from tokendeep.runs.files import user_path, write_json
from tokendeep.runs.identity import sha256_text

FILE = "trained_on.json"


def key(text: str) -> str:
    """A request by the first 64 bits of its hash."""
    return sha256_text(" ".join(text.casefold().split()))[:16]


def write(folder: Path, texts: Iterable[str], model: str) -> None:
    """Note the requests of a training in its folder, with those that its model had been trained on before.

    Raises:
        InputError: the disk is full or the place may not be written.
    """
    keys = {key(text) for text in texts} | read(model)
    write_json(folder / FILE, {"schema": 1, "requests": sorted(keys)})


def read(model: str) -> set[str]:
    """The keys of the requests that a local model was trained on, as far as a file in its folder or above it says so."""
    folder = user_path(model)
    for path in (folder / FILE, folder.parent / FILE) if model and os.path.exists(folder) else ():
        if path.is_file():
            try:
                return set(json.loads(path.read_text(encoding="utf-8"))["requests"])
            except (ValueError, KeyError, TypeError):
                return set()  # none of ours
    return set()


def count(model: str, texts: Iterable[str]) -> int | None:
    """How many of these requests the model was trained on; None where nothing tells what it was trained on."""
    keys = read(model)
    return sum(key(text) in keys for text in texts) if keys else None
