"""What a finished run left, by hash: a result that was emptied, replaced or lost since then is known, and set aside.

Knows nothing of what a result says. Cards and warnings (README) are for people, who may change them.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tokendeep.errors import guarded
from tokendeep.runs.files import make_folder
from tokendeep.runs.identity import file_identity

SCRATCH = "trainer"  # checkpoints to resume from, which a user may delete once the run has finished
ASIDE = ".damaged"

log = logging.getLogger(__name__)


def hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The hash of each result."""
    names = [name for name in names if not _scratch(name) and PurePosixPath(name).stem != "README"]
    return {name: file_identity(folder / name) for name in names if (folder / name).is_file()}


def damaged(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The results of a finished run that are gone, or are not as it wrote them (older manifests do not say how)."""
    gone = [name for name in manifest["files"] if not _scratch(name) and not os.path.lexists(folder / name)]
    kept = [(name, folder / name, digest) for name, digest in manifest.get("results", {}).items()]
    changed = [name for name, path, digest in kept if not (path.is_file() and file_identity(path) == digest)]
    return sorted({*gone, *changed})


def set_aside(folder: Path, names: Iterable[str]) -> None:
    """Say what is damaged, and move what is there of it out of the way: it may be somebody's own."""
    for name in names:
        path, aside = folder / name, folder / ASIDE / name
        if not os.path.lexists(path):
            log.warning("%s is gone; it is made again", path)
            continue
        make_folder(aside.parent)
        with guarded(aside):
            os.replace(path, aside)
        log.warning("%s is not as this run wrote it; it is made again, and what was there lies in %s", path, aside)


def _scratch(name: str) -> bool:
    return PurePosixPath(name).parts[:1] == (SCRATCH,)
