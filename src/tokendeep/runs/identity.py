"""What identifies a file, a text, a model or a set of rows: every hash in the program.

Hashes stand in manifests, logs and result files, so each keeps its value for ever: old runs are known by them.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokendeep.errors import InputError, flag
from tokendeep.runs.files import user_path

SMOLLM2 = "smollm2"  # the packaged demo model, by its name
PACKAGED = {SMOLLM2: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
SPLITS = "dataset_dict.json"  # in a folder whose splits are folders, as `datasets` saves them
SAMPLES, SAMPLE = 64, 2**20  # pieces, and bytes each, that stand for a large file of weights in a manifest
SKETCHED = 2**16  # bytes of each of 64 pieces of a weight file that stand for it in results


def sha256(pieces: Iterable[bytes]) -> str:
    """SHA-256 of the pieces one after another, in hex."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of a text as UTF-8, in hex; halves of surrogate pairs are taken as they are."""
    return sha256([text.encode("utf-8", "surrogatepass")])


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises InputError: the file cannot be read."""
    try:
        with user_path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from error


def seed(text: str, size: int = 4) -> int:
    """A seed drawn from a text: the first `size` bytes of its hash as a number."""
    return int(sha256_text(text)[: 2 * size], 16)


def fingerprint(text: str) -> str:
    """A text by the first signs of its hash, for files that are shown to others."""
    return f"sha {sha256_text(text)[:8]}"


def system_name(system: str) -> str:
    """What results call a system prompt: none and default as they are, a text by its fingerprint."""
    known = system in ("none", "default") or re.fullmatch("sha [0-9a-f]{8}", system)
    return system if known else fingerprint(system)


def hash_input(name: str, value: str | Path) -> str:
    """Hash of setting `name`: of the content where it is a local file or folder, else of the text.

    Raises:
        InputError: a Path that is not there, or a file that cannot be read.
    """
    path = user_path(value)
    if os.path.exists(path):  # unlike Path.exists it is False, and no error, for a text too long
        if path.is_dir():
            inner = [] if not (path / SPLITS).is_file() else [top for top in path.iterdir() if top.is_dir()]
            files = [file for folder in (path, *inner) for file in _top_files(folder)]
            return _combined({file.relative_to(path).as_posix(): sha256_file(file) for file in files})
        return sha256_file(path)
    if isinstance(value, Path):
        raise InputError(f"There is no file {value}; check what {flag(name)} names.")
    return sha256_text(value)


# --- models --------------------------------------------------------------------------------------


def known_identity(spec: Any) -> str | None:
    """The hash of the packaged model or of a local one; None for a hub id, which only its name identifies.

    Of several, the hashes of all, with the names of those that have none.
    """
    if isinstance(spec, list):
        return " ".join(known_identity(one) or str(one) for one in spec) or None
    if spec in PACKAGED:
        return PACKAGED[spec]
    return model_identity(spec) if spec and os.path.exists(user_path(spec)) else None


def model_identity(spec: str | Path) -> str:
    """Hash of a local model: a GGUF file, or a folder's files (not its subfolders), large weights by samples.

    Reading every byte of a large model would take longer than many measurements; of a file over 64 MiB the size and
    64 pieces of 1 MiB, evenly spaced, stand for it. Training changes weights all over the file.

    Raises:
        InputError: a file cannot be read.
    """
    path = user_path(spec)
    files = _top_files(path) if path.is_dir() else [path]
    return _combined({file.name: file_identity(file) for file in files})


def weights_name(files: Iterable[Path]) -> str:
    """What results call local weights: a hash of the files' sizes and of 64 evenly spaced pieces of each."""

    def pieces() -> Iterable[bytes]:
        for path in files:
            size = path.stat().st_size
            yield f"{path.name}\0{size}\0".encode()
            yield from _spaced(path, size, SKETCHED)

    return f"weights:{sha256(pieces())[:16]}"


def adapter_name(config: Mapping[str, Any], weights: Path | None) -> str:
    """What results call an adapter: a hash of settings and weights, the same after it or its base was moved."""
    settings = {name: value for name, value in config.items() if name != "base_model_name_or_path"}
    pieces = [json.dumps(settings, sort_keys=True).encode(), *([sha256_file(weights).encode()] if weights else [])]
    return f"adapter:{sha256(pieces)[:16]}"


def file_identity(path: Path) -> str:
    """Hash of a file: of all its bytes, or of one over 64 MiB of its size and 64 pieces, as `model_identity` takes it."""
    stat = path.stat()
    return _sampled(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _sampled(path: Path, size: int, mtime_ns: int) -> str:
    """Hash of a file by samples; `mtime_ns` makes the cache forget a file that was written again."""
    if size <= SAMPLES * SAMPLE:
        return sha256_file(path)
    return sha256([str(size).encode(), *_spaced(path, size, SAMPLE)])


def _spaced(path: Path, size: int, length: int) -> Iterable[bytes]:
    """Evenly spaced pieces of a file."""
    with path.open("rb") as file:
        for n in range(SAMPLES):
            file.seek(max(0, size - length) * n // (SAMPLES - 1))
            yield file.read(length)


def _top_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _combined(hashes: Mapping[str, str]) -> str:
    return sha256_text(json.dumps(hashes, sort_keys=True))
