"""Files and folders that are there whole or not at all: written beside their place, synced and renamed.

A file of an open run is noted in that run's manifest before it is written (`CLAIMS`). Knows nothing of what is in it.
"""

import contextlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokendeep.errors import InputError, guarded

WARNING = "README.txt"
PARTIAL = ".tokendeep-partial"
PRIVATE_NOTE = (
    "The files in this folder hold instructions and model output that can be harmful.\n"
    "They are readable by their owner alone: do not publish them, train on them unknowingly or send them on.\n"
)

CLAIMS: dict[Path, Callable[[str], object]] = {}  # folders of open runs, and what notes a name that is written there
MADE: set[Path] = set()  # output folders that were not there before


def write_json(path: str | Path, value: Any) -> Path:
    """Write a JSON file atomically; NaN and infinities are refused, for they are no JSON.

    Raises:
        InputError: full disk or no permission, naming the path; what was there before is still whole.
        ValueError: the value is no JSON.
    """
    return write_text(path, json_text(value))


def write_text(path: str | Path, text: str, *, private: bool = False) -> Path:
    """Write a UTF-8 text file atomically; `private` makes it readable by the owner alone. Raises as `write_json`."""
    path = Path(path)
    _claim(path)
    write_unclaimed(path, text, private=private)
    return path


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]], *, private: bool = False) -> Path:
    """Write rows as JSON lines, all or none of them. Raises as `write_json`."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return write_text(path, "".join(lines), private=private)


def read_jsonl(path: str | Path) -> list[Any]:
    """The rows of a file of `write_jsonl`, whose texts may hold U+2028 and other ends of lines than a line break."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def private_dir(path: str | Path) -> Path:
    """Make a folder that its owner alone can enter, with a warning file in it. Raises as `write_json`.

    A folder of the user's own gets the warning but keeps its permissions; a README.txt of another text stops it.
    """
    path = Path(path)
    warning = path / WARNING
    with guarded(path):
        ours = not path.exists() or path.resolve() in MADE
        make_folder(path, mode=0o700)
        note = warning.read_text(encoding="utf-8", errors="replace") if os.path.lexists(warning) else None
        if note not in (None, PRIVATE_NOTE):
            raise InputError(f"{warning} was not written by tokendeep; move it or give another --out.")
        if ours or note:
            path.chmod(0o700)
    if note is None:
        write_text(warning, PRIVATE_NOTE, private=True)
    return path


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder, and those above it, where it is missing.

    Raises:
        InputError: it cannot be made there; full disk or no permission.
    """
    try:
        with guarded(path):
            path.mkdir(mode=mode, parents=True, exist_ok=True)
    except (FileNotFoundError, ValueError) as error:  # such as in /proc; a name with a NUL
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} lies where no folder can be made; give another place.") from error


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path` for a file or a folder, which takes the place of `path` when the block has ended well.

    For what libraries write. A reader, or a run that goes on after it was killed, sees the old one or the new one.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield part
        if part.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(part, path)
    except BaseException:
        remove(part)
        raise
    sync(path.parent)


def write_unclaimed(path: Path, text: str, *, private: bool = False) -> None:
    """As `write_text`, for a file that stands in no manifest."""
    make_folder(path.parent)
    with guarded(path), whole(path) as part:
        # the umask narrows the mode
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode(errors="backslashreplace"))  # JSON of half a surrogate pair
            file.flush()
            os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Make a rename in a folder survive a power cut, where the system can sync folders (Windows cannot)."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _claim(path: Path) -> None:
    """Note a file in the manifest of the nearest open run above it, before it is written."""
    place = path.parent.resolve() / path.name
    for parent in place.parents:
        if claim := CLAIMS.get(parent):
            claim(place.relative_to(parent).as_posix())
            return


def user_path(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))  # unlike Path.expanduser it leaves an unknown user's ~name alone


def user_file(path: str | Path) -> Path:
    """The place of a file or folder that a user names to be read; what else is there it leaves to the reader to say.

    Raises:
        InputError: it is a pipe, which can be read only once, or a device, which may have no end.
    """
    path = user_path(path)
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError):
        return path
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        what = "a pipe, which can be read only once" if stat.S_ISFIFO(kind) else "a device, which may have no end"
        raise InputError(f"{path} is {what}; give a file.")
    return path


def is_main_process() -> bool:
    """Rank 0, or no distributed launch at all."""
    return os.environ.get("RANK", "0") == "0"
