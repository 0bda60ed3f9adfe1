"""Which files in a folder a run wrote, and moving them aside where another run takes its place.

A manifest names files, folders (all in them) and patterns (`*.eval`); nothing outside the folder is ever looked at,
links are not followed, and what is not named is the user's own and stays where it is. What is moved aside stays inside
the folder, so that it needs no room and no permission elsewhere.
"""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from tokendeep.errors import InputError, guarded
from tokendeep.runs import manifest as manifests
from tokendeep.runs.files import PARTIAL, remove

log = logging.getLogger(__name__)

REPLACED = ".replaced-"  # how the folders begin in which runs lie that were overwritten by one that has not finished


def covers(names: Iterable[str], path: str) -> bool:
    """Whether a path is what one of the names stands for, or lies below it."""
    place = PurePosixPath(path)
    return any(_fits(part, name) for part in (place, *place.parents) for name in names)


def _fits(path: PurePosixPath, name: str) -> bool:
    parts = PurePosixPath(name).parts
    return len(parts) == len(path.parts) > 0 and (str(path) == name or ("**" not in parts and path.match(name)))


def files(folder: Path, names: Iterable[str]) -> list[Path]:
    """The files and links below `folder` that the names stand for."""
    names = [str(name) for name in names]
    return [path for path in _walk(folder) if covers(names, path.relative_to(folder).as_posix())]


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, followlinks=False):
        paths = [Path(parent, name) for name in names + folders]
        yield from (path for path in paths if path.is_symlink() or not path.is_dir())


def nested(folder: Path, patterns: Iterable[str]) -> list[str]:
    """What the runs in these folders below `folder` wrote, with their manifests, named from `folder`."""
    places = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_dir()]
    names: list[str] = []
    for path in places:
        place = path.relative_to(folder)
        if not place.parts[0].startswith(REPLACED) and (manifest := manifests.read(path)):
            names += [(place / name).as_posix() for name in [*manifest["files"], manifests.MANIFEST]]
    return names


def remove_partials(folder: Path, paths: Iterable[Path]) -> None:
    """Remove the half-written files that killed processes left beside these paths."""
    for parent in {folder, *(path.parent for path in paths)}:
        for path in parent.glob(f".*{PARTIAL}"):
            remove(path)


def move_aside(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Move what a run wrote into a new folder inside its own, the manifest last.

    Raises:
        InputError: no folder can be made there, or a part of the run lies on another disk.
    """
    folder = folder.resolve()
    aside = folder / f"{REPLACED}{secrets.token_hex(4)}"
    paths = _written(folder, manifest)
    for path in paths:
        if path.lstat().st_dev != folder.stat().st_dev:
            raise InputError(
                f"{path} lies on another disk than {folder}, so it cannot be moved aside; move it yourself."
            )
    with guarded(aside):
        aside.mkdir(mode=0o700)
        manifests.save(aside, manifest)
        remove_partials(folder, paths)
        for path in paths:
            place = aside / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
        _remove_empty(folder, manifest["files"])
        (folder / manifests.MANIFEST).unlink()
    for line in set_aside(folder):
        log.warning("%s", line)


def set_aside(folder: Path) -> list[str]:
    """A sentence for each run that was moved aside for the one in `folder`: where it lies."""
    runs = {aside: manifests.read(aside) for aside in _asides(folder)}
    return [
        f"the {manifest['verb']} run that was in {folder} lies in {aside} until this one has finished"
        for aside, manifest in runs.items()
        if manifest
    ]


def _asides(folder: Path) -> list[Path]:
    """The folders of runs that were moved aside; earlier versions made them beside the folder."""
    folder = folder.resolve()
    places = [*folder.glob(f"{REPLACED}*"), *folder.parent.glob(f".{escape(folder.name)}{REPLACED}*")]
    return sorted(place for place in places if not place.is_symlink())


def remove_replaced(folder: Path) -> None:
    """Remove the runs that were moved aside for the one in `folder`, but for files that somebody put among them."""
    for aside in _asides(folder):
        manifest = manifests.read(aside)
        if manifest is None:
            continue
        remove_written(aside, manifest)
        try:
            aside.rmdir()
        except OSError:
            log.warning("%s holds files that no run wrote; they are left there", aside)


def remove_written(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Remove what a run wrote into `folder`, the manifest last."""
    with guarded(folder):
        for path in _written(folder, manifest):
            path.unlink()
        _remove_empty(folder, manifest["files"])
        (folder / manifests.MANIFEST).unlink()


def _written(folder: Path, manifest: Mapping[str, Any]) -> list[Path]:
    return [path for path in files(folder, manifest["files"]) if path != folder / manifests.MANIFEST]


def _remove_empty(folder: Path, names: Iterable[str]) -> None:
    """Remove the empty folders that the names stand for, and those that only held what they stand for."""
    names = [str(name) for name in names]
    above = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    for parent, _, _ in os.walk(folder, topdown=False):
        place = Path(parent).relative_to(folder).as_posix()
        if place != "." and (place in above or covers(names, place)):
            with contextlib.suppress(OSError):  # something that is not ours lies in it
                Path(parent).rmdir()
