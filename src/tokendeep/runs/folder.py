"""Taking an output folder for a run: a new one, the same one to go on with, or the same one finished.

What a run writes is noted in its manifest before it is written, so that a file of the user's own is never written over
and `overwrite` knows what to move aside. Knows nothing of models and rows.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokendeep.errors import InputError, guarded
from tokendeep.runs import lock, results, written
from tokendeep.runs import manifest as manifests
from tokendeep.runs.files import CLAIMS, MADE, WARNING, is_main_process, make_folder, user_path, write_unclaimed

log = logging.getLogger(__name__)

# What libraries write into a run's folder on our behalf; noted in every manifest from the start.
SCRATCH = results.SCRATCH
LOGS = ".logs.part"  # evaluation logs of an unfinished run: Inspect takes every log below its folder for its own
BY_LIBRARIES = (LOGS, "checkpoint", "checkpoint.part", SCRATCH)


@dataclass
class Run:
    """An output folder in use.

    `finished`: this very run (same verb, settings, data and models) has already finished here; the caller says so and
    returns. `resumed`: it was started here and cut off; the caller goes on with what it finds in `out`.
    """

    out: Path
    manifest: dict[str, Any] = field(repr=False)
    resumed: bool = False
    finished: bool = False

    def claim(self, name: str) -> Path:
        """Note that this run is about to write `name` (a file or folder under `out`) and return its path.

        Only needed for what is not written through this package.

        Raises:
            InputError: it is there already and this run did not write it.
        """
        names = self.manifest["files"]
        if is_main_process() and name != manifests.MANIFEST and not written.covers(names, name):
            if os.path.lexists(self.out / name):
                raise InputError(f"{self.out / name} was not written by this run; move it or give another --out.")
            manifests.save(self.out, {**self.manifest, "files": [*names, name]})
            names.append(name)
        return self.out / name

    def agree(self, name: str, found: Mapping[str, Any], free: Sequence[str] = ()) -> None:
        """Note what was found out about a server; a run that goes on must find the same, but for what is `free`.

        Raises:
            InputError: an earlier attempt found something else.
        """
        before = self.manifest.get(name)
        known = {key: value for key, value in found.items() if key not in free and value is not None}
        other = [key for key, value in known.items() if before and before.get(key) not in (None, value)]
        if before and other:
            what = ", ".join(f"{key} {before[key]} then, {found[key]} now" for key in other)
            raise InputError(
                f"{self.out} holds answers of another {name} ({what}): start that one again, or give another --out, or "
                "--overwrite to replace them."
            )
        self.manifest[name] = dict(found)
        if is_main_process():
            manifests.save(self.out, self.manifest)

    def finish(self, **extra: Any) -> None:
        """Mark the run as finished and keep `extra` (model revision, template hash, counts ...) in the manifest.

        What another run left here before, and `overwrite` moved aside, is removed now.

        Raises:
            InputError: the disk is full or the folder may not be written.
            ValueError: `extra` uses a name of the manifest's own.
        """
        if clash := manifests.OWN & extra.keys():
            raise ValueError(f"the manifest has its own {sorted(clash)}")
        if is_main_process():
            paths = written.files(self.out, self.manifest["files"])
            written.remove_partials(self.out, paths)
            self.manifest["files"] = sorted(path.relative_to(self.out).as_posix() for path in paths)
            self.manifest |= {**extra, "status": "finished", "finished": manifests.now()}
            self.manifest["results"] = results.hashes(self.out, self.manifest["files"])
            manifests.save(self.out, self.manifest)
            written.remove_replaced(self.out)
        CLAIMS.pop(self.out.resolve(), None)
        lock.release(self.out)


def open_run(
    out: str | Path,
    verb: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str | Path] | None = None,
    overwrite: bool = False,
    nested: Sequence[str] = (),
    kind: type | None = None,
    models: Iterable[str] = (),
    begun: Callable[[Path], bool] | None = None,
    grows: Sequence[str] = (),
) -> Run:
    """Take `out` for this run: a new one, the same one to go on with, or the same one finished.

    Two runs are the same when verb, settings (other than `NOT_COMPARED`), inputs and models are. Settings named in
    `inputs`, `MODELS` and `TEXTS` are compared by content where they are local paths, so a moved file is the same.
    Of several processes (accelerate) only the one of rank 0 writes manifests and locks the folder, until `finish` or
    its end; it may call again before.

    Args:
        out: the output folder; made where it is missing.
        verb: measure, attack, deepen ...
        config: the resolved settings, JSON values only.
        inputs: name -> file or folder (hashed by content) or any other text (hashed as it is). A Path must exist.
        overwrite: start anew. What another run of ours wrote here is moved to `.replaced-XXXX` inside the folder and
            removed when this run has finished; files of the user's own stay where they are.
        nested: patterns of folders under `out` whose runs are parts of this one, and are moved aside with it.
        kind: the dataclass of the settings. One that an older version did not have was at its default there.
        models: settings that name models, beside those of all verbs.
        begun: whether an unfinished run of this verb has finished a row; by default, whether it wrote any result. One
            that has not is no loss, so that another run takes its place.

    Raises:
        InputError: `out` is empty, a file, not writable, on a full disk, holds a manifest of something else, holds a
            different run (the message names what differs), an input cannot be read, or another process is writing.
    """
    folder = _make_folder(out)
    manifest = manifests.new(verb, config, inputs or {}, BY_LIBRARIES, models)
    with _locked(folder):
        run = _take(folder, manifest, overwrite, nested, manifests.defaults(kind), begun, grows)
        if run.finished:
            _relabel(run, manifest["config"].get("label"))
        else:
            if is_main_process():
                manifests.save(folder, run.manifest)
            CLAIMS[folder.resolve()] = run.claim
        if run.resumed:
            for line in written.set_aside(folder):
                log.warning("%s", line)
    return run


def look(
    out: str | Path,
    verb: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str | Path] | None = None,
    overwrite: bool = False,
    kind: type | None = None,
    models: Iterable[str] = (),
    begun: Callable[[Path], bool] | None = None,
    grows: Sequence[str] = (),
) -> str:
    """What `open_run` with these arguments would meet in `out`, in words. Reads only.

    Raises:
        InputError: a name that no folder can have.
    """
    folder = _named(out)
    if not str(out):
        return "give a folder with --out"
    with guarded(folder):
        if folder.is_file():
            return "is a file; give another --out"
    try:
        old = manifests.read(folder)
    except InputError:
        return "holds a manifest that cannot be read; give another --out"
    if old is None:
        return "new"
    state = "finished" if old["status"] == "finished" else "unfinished"
    if overwrite:
        return f"holds a run of {old['verb']}, {state}; --overwrite replaces it once this run has finished"
    new = manifests.new(verb, config, inputs or {}, BY_LIBRARIES, models)
    old, grown = _grown(old, new, grows)
    if differences := _differences(old, new, manifests.defaults(kind)):
        if _holds_nothing(folder, old, new, begun):
            return f"holds a run of {old['verb']} that has finished no row yet; it is replaced"
        return (
            f"holds a run of {old['verb']}, {state}, that differs in {differences}; give another --out, or --overwrite"
        )
    if state == "unfinished":
        return "holds this run, unfinished: it goes on"
    if grown:
        return f"holds this run, finished with fewer {' and '.join(grown)}: what is new is added"
    if damaged := results.damaged(folder, old):
        return f"holds this run, finished, but {', '.join(damaged[:3])} is not as it was written: it is made again"
    return "holds this run, finished: nothing is left to do"


def set_aside() -> list[str]:
    """Where the runs lie that those still open in this process were to replace, a sentence each."""
    return [line for folder in CLAIMS for line in written.set_aside(folder)]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """What makes two runs different, in words; a setting that the older one did not have was at its default there."""
    return manifests.differences({**old, "config": {**defaults, **old["config"]}}, new)


def _grown(old: dict[str, Any], new: Mapping[str, Any], grows: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The old run as it will be with all parts of the new one, and the settings that list more parts than before."""
    before, after = old["config"], new["config"]
    pairs = {name: (before.get(name), after.get(name)) for name in grows if before.get(name) != after.get(name)}
    grown = [
        name
        for name, (few, more) in pairs.items()
        if isinstance(few, list) and isinstance(more, list) and few[:1] == more[:1] and set(few) <= set(more)
    ]
    return {**old, "config": {**before, **{name: after[name] for name in grown}}}, grown


def _holds_nothing(
    folder: Path, old: Mapping[str, Any], new: Mapping[str, Any], begun: Callable[[Path], bool] | None
) -> bool:
    """Whether the run that lies here was cut off before it had anything to show."""
    if old["status"] == "finished":
        return False
    if begun is not None and old["verb"] == new["verb"]:
        return not begun(folder)
    results = (path for path in written.files(folder, old["files"]) if path.name != WARNING)
    return not any(path.stat().st_size for path in results if path.exists())


def _take(
    folder: Path,
    manifest: dict[str, Any],
    overwrite: bool,
    nested: Sequence[str],
    defaults: Mapping[str, Any],
    begun: Callable[[Path], bool] | None,
    grows: Sequence[str],
) -> Run:
    """The run to do in `folder`, by what lies there."""
    old, grown = manifests.read(folder), list[str]()
    if old is not None:
        old, grown = _grown(old, manifest, grows)
    if old is None:
        _refuse_foreign(folder)
    elif overwrite:
        if is_main_process():
            parts = written.nested(folder, nested) if old["verb"] == manifest["verb"] else []
            _refuse_foreign(folder, old["files"])
            written.move_aside(folder, {**old, "files": [*old["files"], *parts]})
    elif (differences := _differences(old, manifest, defaults)) and _holds_nothing(folder, old, manifest, begun):
        if is_main_process():
            written.remove_written(folder, old)
    elif differences:
        raise InputError(
            f"{folder} holds {'a finished' if old['status'] == 'finished' else 'an unfinished'} {old['verb']} run that "
            f"differs in {differences}; give another --out, or --overwrite to replace it."
        )
    else:
        return _same_run(folder, old, manifest["config"], more=bool(grown))
    return Run(folder, manifest)


def _same_run(folder: Path, manifest: dict[str, Any], config: Mapping[str, Any], *, more: bool) -> Run:
    """The run that is already here. A finished one that is to have `more`, or whose results are gone or damaged, is gone
    through again.
    """
    if manifest["status"] == "finished":
        damaged = results.damaged(folder, manifest)
        if not damaged and not more:
            return Run(folder, manifest, finished=True)
        if is_main_process():
            results.set_aside(folder, damaged)
    again = {
        "results": {},
        "status": "running",
        "finished": None,
        "config": config,
        "files": [*BY_LIBRARIES, *(name for name in manifest["files"] if name not in BY_LIBRARIES)],
        "resumed": [*manifest.get("resumed", []), manifests.now()],
    }
    return Run(folder, {**manifest, **again}, resumed=True)


def _refuse_foreign(folder: Path, names: Iterable[str] = ()) -> None:
    """What libraries will write must not be there already: a verb would take it for its own, or write over it."""
    ours = written.files(folder, names)
    for path in written.files(folder, BY_LIBRARIES):
        if path not in ours:
            raise InputError(f"{path} lies in the output folder but is of no run; move it or give another --out.")


def _relabel(run: Run, label: str | None) -> None:
    """A finished run asked for under a new name gets it."""
    if label and label != run.manifest["config"].get("label") and is_main_process():
        run.manifest["config"]["label"] = run.manifest["label"] = label
        manifests.save(run.out, run.manifest)


@contextlib.contextmanager
def amended(out: Path, names: Sequence[str], grows: str, **extra: Any) -> Iterator[None]:
    """Replace files of a finished run within the block, and let one grow; its manifest knows them.

    Args:
        names: the run's own files that are written anew.
        grows: a file that is written bit by bit, so that what is there can be used whatever stops the block.
        extra: mappings of the manifest, to which these are added at the end.

    Raises:
        InputError: another process writes there, the run has not finished, or the growing file is not the run's.
    """
    with _locked(out):
        manifest = manifests.read(out)
        if manifest is None:  # logs that lie alone
            yield
            return
        if manifest["status"] != "finished":
            raise InputError(f"The run in {out} has not finished; run its command again first.")
        if grows not in manifest["files"]:
            if os.path.lexists(out / grows):
                raise InputError(f"{out / grows} was not written by this run; move it elsewhere.")
            manifest["files"] = sorted([*manifest["files"], grows])
            with guarded(out):
                manifests.save(out, manifest)
        # made after the manifest names it, so that a call that was cut off between the two can be repeated
        if not os.path.lexists(out / grows):
            write_unclaimed(out / grows, "")
        yield
        manifest["results"] = {**manifest.get("results", {}), **results.hashes(out, names)}
        manifest |= {name: {**(manifest.get(name) or {}), **value} for name, value in extra.items()}
        with guarded(out):
            manifests.save(out, manifest)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process, and leave it locked where the block has opened a run in it."""
    held = folder.resolve() in lock.HELD
    if is_main_process() and not held:
        lock.acquire(folder)
    try:
        yield
    finally:
        if not held and folder.resolve() not in CLAIMS:
            lock.release(folder)


def _named(out: str | Path) -> Path:
    """The folder of that name. Raises InputError for a name that would break lines and links."""
    if re.search(r"[\x00-\x1f\x7f]", str(out)):
        raise InputError(
            f"--out is {str(out)!r}, a name with a line break or another control sign; give another --out."
        )
    return user_path(out)


def _make_folder(out: str | Path) -> Path:
    if not str(out):
        raise InputError("There is no output folder; give one with --out.")
    folder = _named(out)
    with guarded(folder):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, not a folder; give another --out.")
        if not folder.exists():
            make_folder(folder)
            MADE.add(folder.resolve())
    return folder
