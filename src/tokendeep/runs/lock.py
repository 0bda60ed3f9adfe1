"""One process at a time writes into a folder: it holds a lock there, which the system drops when the process ends."""

import contextlib
import errno
from pathlib import Path

from filelock import FileLock, Timeout

from tokendeep.errors import InputError, explain

LOCK = ".lock"
# A folder that may not be written needs no lock, and some network disks have none.
LOCKLESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)

HELD: dict[Path, FileLock] = {}  # what this process holds: also after an error, so that it can go on


def acquire(folder: Path) -> None:
    """Lock a folder for this process. Raises InputError: another process is writing there, or the disk is full."""
    lock = FileLock(folder / LOCK, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"Another process is writing {folder}; wait until it has ended or give another --out."
        ) from None
    except OSError as error:
        if error.errno in LOCKLESS:
            return
        if explained := explain(error, folder):
            raise explained from error
        raise
    HELD[folder.resolve()] = lock


def release(folder: Path) -> None:
    if lock := HELD.pop(folder.resolve(), None):
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()  # while it is held: who opened it before sees that it is gone and takes a new one
        lock.release()
