"""Output folders: atomic files, the manifest that says what was run, and going on where a run was cut off.

Every verb opens its folder with `open_run` and writes through `write_json`, `write_text` and `write_jsonl`. A file is
written beside its place, synced and renamed, so a reader sees the old file or the new one and never half of either.
What a run writes is noted in its manifest before it is written; `overwrite` removes what is noted and nothing else.
While a process writes into a folder it holds a lock there, which the system drops when the process ends.
Knows nothing of models and rows.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from tokendeep.errors import InputError
from tokendeep.runs.identity import PACKAGED

MANIFEST = "manifest.json"
WARNING = "README.txt"
LOCK = ".lock"
# A folder that may not be written needs no lock, and some network disks have none.
LOCKLESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
PARTIAL = ".tokendeep-partial"
# What libraries write into a run's folder on our behalf; noted in every manifest from the start.
SCRATCH = "trainer"  # checkpoints to resume from, which a user may delete once the run has finished
BY_LIBRARIES = ("*.eval", ".eval-set-id", "eval-set.json", "logs.json", "checkpoint", "checkpoint.part", SCRATCH)
# Settings that do not change what a run computes; a run that ran out of memory goes on with a smaller batch.
NOT_COMPARED = ("out", "overwrite", "debug", "batch_size", "micro_batch", "device", "device_map", "label")
RESERVED = frozenset(
    ["tokendeep", "verb", "status", "config", "inputs", "models", "seed", "versions", "started", "resumed", "finished",
     "files"]
)  # fmt: skip
MODELS = ("model", "base", "rank_base", "others")  # settings whose local folders are part of a run's identity
TEXTS = ("chat_template", "openings")  # settings whose local files are
PACKAGES = ("tokendeep", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "inspect-ai", "gguf",
            "safetensors", "tokenizers", "numpy", "scipy")  # fmt: skip
SAMPLES, SAMPLE = 64, 2**20  # pieces, and bytes each, that stand for a large file of weights
PRIVATE_NOTE = (
    "The files in this folder hold instructions and model output that can be harmful.\n"
    "They are readable by their owner alone: do not publish them, train on them unknowingly or send them on.\n"
)


# ------------------------------------------------------------------------------------------------------- runs


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
        """Note that this run is about to write `name` (a file, folder or glob under `out`) and return its path.

        Only needed for what is not written through this module.

        Raises:
            InputError: it is there already and this run did not write it.
        """
        noted = self.manifest["files"]
        if is_main_process() and not any(_covers(pattern, name) for pattern in noted):
            if found := _find(self.out, name):
                raise InputError(f"{found[0]} was not written by this run; move it or give another --out.")
            _save(self.out, {**self.manifest, "files": [*noted, name]})
            noted.append(name)
        return self.out / name

    def finish(self, **extra: Any) -> None:
        """Mark the run as finished and keep `extra` (model revision, template hash, counts ...) in the manifest.

        Raises:
            InputError: the disk is full or the folder may not be written.
            ValueError: `extra` uses a name of the manifest's own.
        """
        if clash := RESERVED & extra.keys():
            raise ValueError(f"the manifest has its own {sorted(clash)}")
        if is_main_process():
            written = _noted_files(self.out, self.manifest["files"])
            self.manifest["files"] = sorted({_relative(path, self.out) for path in written})
            _remove_partials(self.out, self.manifest["files"])
            self.manifest |= {**extra, "status": "finished", "finished": _now()}
            _save(self.out, self.manifest)
        _OPEN.pop(self.out.resolve(), None)
        _unlock(self.out)


_OPEN: dict[Path, Run] = {}  # runs that are being written, so that each write is noted in the right manifest
_LOCKS: dict[Path, FileLock] = {}  # what this process holds: also after an error, so that it can go on
_MADE: set[Path] = set()  # output folders that were not there before


def open_run(
    out: str | Path,
    verb: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str | Path] | None = None,
    overwrite: bool = False,
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
        overwrite: start anew: first remove what tokendeep wrote here before, and only that.

    Raises:
        InputError: `out` is empty, a file, not writable, on a full disk, holds a manifest of something else, holds a
            different run (the message names what differs), an input cannot be read, or another process is writing.
    """
    folder = _make_folder(out)
    manifest = _new_manifest(verb, config, inputs or {})
    with _locked(folder):
        run = _take(folder, manifest, overwrite)
        if run.finished:
            _relabel(run, manifest["config"].get("label"))
        else:
            if is_main_process():
                _save(folder, run.manifest)
            _OPEN[folder.resolve()] = run
    return run


def _take(folder: Path, manifest: dict[str, Any], overwrite: bool) -> Run:
    """The run to do in `folder`, by what lies there."""
    old = _read_manifest(folder)
    if old is None:
        _refuse_foreign(folder)
    elif overwrite:
        if is_main_process():
            _refuse_foreign(folder, old["files"])
            _remove_written(folder, old)
    elif differences := _differences(old, manifest):
        raise InputError(
            f"{folder} holds {'a finished' if old['status'] == 'finished' else 'an unfinished'} {old['verb']} run that "
            f"differs in {differences}; give another --out, or --overwrite to replace it."
        )
    else:
        return _same_run(folder, old, manifest["config"])
    return Run(folder, manifest)


def _same_run(folder: Path, manifest: dict[str, Any], config: Mapping[str, Any]) -> Run:
    """The run that is already here. A finished one whose results somebody removed is to be gone through again."""
    kept = [name for name in manifest["files"] if PurePosixPath(name).parts[:1] != (SCRATCH,)]
    if manifest["status"] == "finished" and all(_find(folder, name) for name in kept):
        return Run(folder, manifest, finished=True)
    again = {
        "status": "running",
        "finished": None,
        "config": config,
        "files": [*BY_LIBRARIES, *(name for name in manifest["files"] if name not in BY_LIBRARIES)],
        "resumed": [*manifest.get("resumed", []), _now()],
    }
    return Run(folder, {**manifest, **again}, resumed=True)


def _relabel(run: Run, label: str | None) -> None:
    """A finished run asked for under a new name gets it."""
    if label and label != run.manifest["config"].get("label") and is_main_process():
        run.manifest["config"]["label"] = run.manifest["label"] = label
        _save(run.out, run.manifest)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process, and leave it locked where the block has opened a run in it."""
    held = folder.resolve() in _LOCKS
    if is_main_process() and not held:
        _lock(folder)
    try:
        yield
    finally:
        if not held and folder.resolve() not in _OPEN:
            _unlock(folder)


def _lock(folder: Path) -> None:
    lock = FileLock(folder / LOCK, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another process is writing {folder}; wait until it has ended or give another --out."
        ) from None
    except OSError as error:
        if error.errno in LOCKLESS:
            return
        if explained := explain(error, folder):
            raise explained from error
        raise
    else:
        _LOCKS[folder.resolve()] = lock


def _unlock(folder: Path) -> None:
    if lock := _LOCKS.pop(folder.resolve(), None):
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()  # while it is held: who opened it before sees that it is gone and takes a new one
        lock.release()


def _make_folder(out: str | Path) -> Path:
    if not str(out):
        raise InputError("There is no output folder; give one with --out.")
    folder = _user_path(out)
    with guarded(folder):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, not a folder; give another --out.")
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _MADE.add(folder.resolve())
    return folder


def _new_manifest(verb: str, config: Mapping[str, Any], inputs: Mapping[str, str | Path]) -> dict[str, Any]:
    settings = json.loads(_json({name: _plain(value) for name, value in config.items()}))
    texts = {name: path for name in TEXTS if (path := config.get(name)) and os.path.isfile(_user_path(path))}
    return {
        "tokendeep": _version("tokendeep"),
        "verb": verb,
        "status": "running",
        "config": settings,
        "inputs": {name: hash_input(name, value) for name, value in {**texts, **inputs}.items()},
        "models": {name: found for name in MODELS if (found := _known_identity(config.get(name)))},
        "seed": settings.get("seed"),
        "versions": versions(),
        "started": _now(),
        "finished": None,
        "files": list(BY_LIBRARIES),
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _user_path(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))  # unlike Path.expanduser it leaves an unknown user's ~name alone


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text too long for a path
        return False


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except PermissionError:
        raise InputError(
            f"{path} may not be read by this user; change its permissions or give another --out."
        ) from None
    except ValueError:
        manifest = None
    needed = {"tokendeep", "verb", "status", "config", "inputs", "models", "files"}
    if not isinstance(manifest, dict) or not needed <= manifest.keys() or not isinstance(manifest["files"], list):
        raise InputError(f"{path} was not written by tokendeep or is damaged; move it away or give another --out.")
    return manifest


def _save(folder: Path, manifest: Mapping[str, Any]) -> None:
    _write(folder / MANIFEST, _json(manifest).encode())


def _refuse_foreign(folder: Path, noted: Iterable[str] = ()) -> None:
    """What libraries will write must not be there already: a verb would take it for its own, or write over it."""
    ours = set(_noted_files(folder, noted))
    for path in _noted_files(folder, BY_LIBRARIES):
        if path not in ours:
            raise InputError(f"{path} lies in the output folder but is of no run; move it or give another --out.")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What makes two runs different, in words; "" for the same run. Texts are named, not shown."""
    if old["verb"] != new["verb"]:
        return f"its verb (this is {new['verb']})"
    by_content = {**new["inputs"], **new["models"], **old["inputs"], **old["models"]}
    found = [f"the content of {name}" for name in sorted(by_content) if _content(old, name) != _content(new, name)]
    names = sorted({*old["config"], *new["config"]} - {*NOT_COMPARED, *by_content})
    for name in names:
        before, now = old["config"].get(name), new["config"].get(name)
        if before != now:
            is_text = isinstance(before, str) or isinstance(now, str)
            found.append(name if is_text else f"{name} ({before} there, {now} now)")
    return ", ".join(found)


def _content(manifest: Mapping[str, Any], name: str) -> Any:
    """What identifies input or model `name`: its hash, or the setting where it is no local path."""
    for hashes in (manifest["inputs"], manifest["models"]):
        if name in hashes:
            return hashes[name]
    return manifest["config"].get(name)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results can depend on."""
    found = {name: version for name in PACKAGES if (version := _version(name))}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_main_process() -> bool:
    """Rank 0, or no distributed launch at all."""
    return os.environ.get("RANK", "0") == "0"


# -------------------------------------------------------------------------------- what a run wrote, and removing it


def _note(path: Path) -> None:
    """Note a file in the manifest of the nearest open run above it, before it is written."""
    resolved = path.parent.resolve() / path.name
    for parent in resolved.parents:
        if run := _OPEN.get(parent):
            if resolved != parent / MANIFEST:
                run.claim(_relative(resolved, parent))
            return


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _covers(pattern: str, name: str) -> bool:
    """Whether a noted name is `name`, matches it as a glob, or is a folder above it."""
    path = PurePosixPath(name)
    return any(str(part) == pattern or _matches(part, pattern) for part in (path, *path.parents))


def _matches(path: PurePosixPath, pattern: str) -> bool:
    return len(path.parts) == len(PurePosixPath(pattern).parts) and path.match(pattern)


def _find(folder: Path, name: str) -> list[Path]:
    """What a noted name stands for now: the entry of that name or, as a glob, the entries that match it."""
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or {"..", "**"} & set(parts):
        return []
    return [folder / name] if os.path.lexists(folder / name) else sorted(folder.glob(name))


def _noted_files(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Every file that a noted name stands for, never outside `folder`; links are named, not followed."""
    root = folder.resolve()
    for name in names:
        for path in _find(folder, name):
            if not path.parent.resolve().is_relative_to(root) or path == folder / MANIFEST:
                continue
            if path.is_dir() and not path.is_symlink():
                for parent, _, files in os.walk(path, followlinks=False):
                    yield from (Path(parent) / file for file in files)
                yield from _links(path)
            else:
                yield path


def _links(folder: Path) -> Iterator[Path]:
    """Links to folders below `folder`, which `os.walk` counts among the folders."""
    for parent, folders, _ in os.walk(folder, followlinks=False):
        yield from (path for name in folders if (path := Path(parent) / name).is_symlink())


def _remove_written(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Remove the files a run noted and the folders that are empty then; its manifest goes last."""
    names = [str(name) for name in manifest["files"]]
    with guarded(folder):
        _remove_partials(folder, names)
        paths = list(_noted_files(folder, names))
        folders = {parent for path in paths for parent in path.parents if parent.is_relative_to(folder)} - {folder}
        folders |= {path for name in names for path in _subfolders(folder, name)}
        for path in paths:
            path.unlink(missing_ok=True)
        for path in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):  # a file that is not ours lies in it
                path.rmdir()
        (folder / MANIFEST).unlink(missing_ok=True)


def _subfolders(folder: Path, name: str) -> Iterator[Path]:
    """The folders that a noted name stands for, and all below them."""
    for path in _find(folder, name):
        if path.is_dir() and not path.is_symlink() and path.parent.resolve().is_relative_to(folder.resolve()):
            yield from (Path(parent) for parent, _, _ in os.walk(path, followlinks=False))


def _remove_partials(folder: Path, names: Iterable[str]) -> None:
    """Remove the half-written files that killed processes left beside the noted ones."""
    for parent in {folder, *((folder / name).parent for name in names)}:
        if parent.is_dir() and parent.resolve().is_relative_to(folder.resolve()):
            for path in parent.glob(f".*{PARTIAL}"):
                path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------- hashes


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with _user_path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from error


def hash_input(name: str, value: str | Path) -> str:
    path = _user_path(value)
    if not _exists(path):
        if isinstance(value, Path):
            raise InputError(f"There is no file {value}; check what --{name} names.")
        return hashlib.sha256(str(value).encode("utf-8", "surrogatepass")).hexdigest()
    return (
        _combined({file.name: sha256_file(file) for file in _top_files(path)}) if path.is_dir() else sha256_file(path)
    )


def _known_identity(spec: Any) -> str | None:
    """The hash of the packaged model or of a local one; None for a hub id, which only its name identifies.

    Of several, the hashes of all, with the names of those that have none.
    """
    if isinstance(spec, list):
        return " ".join(_known_identity(one) or str(one) for one in spec) or None
    if spec in PACKAGED:
        return PACKAGED[spec]
    return model_identity(spec) if spec and _exists(_user_path(spec)) else None


def model_identity(spec: str | Path) -> str:
    """Hash of a local model: a GGUF file, or a folder's files (not its subfolders), large weights by samples.

    Reading every byte of a large model would take longer than many measurements; of a file over 64 MiB the size and
    64 pieces of 1 MiB, evenly spaced, stand for it. Training changes weights all over the file.

    Raises:
        InputError: a file cannot be read.
    """
    path = _user_path(spec)
    files = _top_files(path) if path.is_dir() else [path]
    stats = {file: file.stat() for file in files}
    return _combined({file.name: _sampled(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()})


@lru_cache(maxsize=256)
def _sampled(path: Path, size: int, mtime_ns: int) -> str:
    """Hash of a file by samples; `mtime_ns` makes the cache forget a file that was written again."""
    if size <= SAMPLES * SAMPLE:
        return sha256_file(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for n in range(SAMPLES):
            file.seek((size - SAMPLE) * n // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def _top_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _combined(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------- writing


def write_json(path: str | Path, value: Any) -> Path:
    """Write a JSON file atomically; NaN and infinities are refused, for they are no JSON.

    Raises:
        InputError: full disk or no permission, naming the path; what was there before is still whole.
        ValueError: the value is no JSON.
    """
    return write_text(path, _json(value))


def write_text(path: str | Path, text: str, *, private: bool = False) -> Path:
    """Write a UTF-8 text file atomically; `private` makes it readable by the owner alone. Raises as `write_json`."""
    path = Path(path)
    _note(path)
    _write(path, text.encode(), private=private)
    return path


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]], *, private: bool = False) -> Path:
    """Write rows as JSON lines, all or none of them. Raises as `write_json`."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return write_text(path, "".join(lines), private=private)


def private_dir(path: str | Path) -> Path:
    """Make a folder that its owner alone can enter, with a warning file in it. Raises as `write_json`.

    A folder of the user's own gets the warning but keeps its permissions; a README.txt of another text stops it.
    """
    path = Path(path)
    warning = path / WARNING
    with guarded(path):
        ours = not path.exists() or path.resolve() in _MADE
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        note = warning.read_text(encoding="utf-8", errors="replace") if os.path.lexists(warning) else None
        if note not in (None, PRIVATE_NOTE):
            raise InputError(f"{warning} was not written by tokendeep; move it or give another --out.")
        if ours or note:
            path.chmod(0o700)
    if note is None:
        write_text(warning, PRIVATE_NOTE, private=True)
    return path


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _write(path: Path, content: bytes, *, private: bool = False) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    with guarded(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_synced(partial, content, 0o600 if private else 0o666)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def _write_synced(path: Path, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)  # the umask narrows the mode
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can sync folders (Windows cannot)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def guarded(path: str | Path) -> Iterator[None]:
    """Turn a full disk or a missing permission inside the block into an InputError that names `path`.

    For code that writes by other means than this module: libraries wrap the system's error in their own.
    """
    try:
        yield
    except Exception as error:
        if (explained := explain(error, path)) is None:
            raise
        raise explained from error


def memory_full(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine itself, has no memory left (PyTorch: a class for the first only)."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error))
    )


def explain(error: BaseException, path: str | Path) -> InputError | None:
    """The InputError for an error of writing to `path` that the user can mend; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or _tells_of_full_disk(error, Path(path)):
        return InputError(
            f"The disk of {path} is full; free some space and call again, what is finished is kept and continued."
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"{path} may not be written by this user; change its permissions or give another --out.")
    if number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
        reason = {errno.EISDIR: "is a folder", errno.ENAMETOOLONG: "is too long a name"}.get(
            number, "lies below a file"
        )
        return InputError(f"{path} {reason}, so nothing can be written there; give another --out.")
    return None


def _tells_of_full_disk(error: BaseException | None, path: Path) -> bool:
    """Whether a library's own error stands for a full disk: it quotes the system, or torch.save broke off on one."""
    while error is not None:
        if "No space left on device" in str(error):
            return True
        if "inline_container" in str(error) and _free_bytes(path) < 2**24:
            return True
        error = error.__cause__ or error.__context__
    return False


def _free_bytes(path: Path) -> int:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free
