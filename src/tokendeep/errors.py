"""The one error that users see, the checks of settings that raise it, and sentences for what a machine runs out of.

Knows nothing of models or verbs; everything else may import it.
"""

import contextlib
import difflib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

MANY = 25  # known words that a sentence lists
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_PLACE = {
    errno.EISDIR: "is a folder",
    errno.ENAMETOOLONG: "is too long a name",
    errno.ENOTDIR: "lies below a file",
    errno.EEXIST: "lies below a file",
    errno.ELOOP: "is a link that leads back to itself",
}


class InputError(ValueError):
    """Something the user gave is wrong. The message is one sentence: what, where, how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """


class NoTemplate(InputError):
    """A model that is asked as in a chat has no chat template, and none is given."""


class Unusable(InputError):
    """A row that holds nothing to train on: empty, or too long. Where few are, a training goes on without them."""


def flag(name: str) -> str:
    """An option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def check_least(config: object, least: Mapping[str, float]) -> None:
    """Raises InputError for the first setting that is below its least value, NaN or infinite."""
    for name, bound in least.items():
        value = getattr(config, name)
        if not bound <= value < float("inf"):
            must = "a number" if value == float("inf") else f"at least {bound}"
            raise InputError(f"{flag(name)} is {value}, but must be {must}.")


def check_most(config: object, most: Mapping[str, float]) -> None:
    """Raises InputError for the first setting that is above its largest value."""
    for name, bound in most.items():
        if getattr(config, name) > bound:
            raise InputError(f"{flag(name)} is {getattr(config, name)}, but must be at most {bound}.")


def check_known(config: object, known: Mapping[str, Sequence[str]]) -> None:
    """Raises InputError for the first setting that is none of those it can be."""
    for name, values in known.items():
        if getattr(config, name) not in values:
            given = getattr(config, name)
            near = f"; did you mean {like}" if isinstance(given, str) and (like := nearest(given, values)) else ""
            raise InputError(f"{flag(name)} is {given!r}, but must be one of {', '.join(values)}{near}.")


def check_budget(config: object, names: Sequence[str]) -> None:
    """Raises InputError for the first setting of a search that allows it nothing."""
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}, a budget of nothing; give at least 1.")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a misspelt one most likely means; None where none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the nearest known one, else all of them, or the first of very many."""
    words = list(known)
    near, more = nearest(word, words), len(words) - MANY
    if near:
        return f"did you mean {near}"
    return (
        f"the known ones are {', '.join(words[:MANY] if more > 0 else words)}{f' and {more} more' if more > 0 else ''}"
    )


# --- what a machine runs out of ------------------------------------------------------------------


@contextlib.contextmanager
def guarded(path: str | Path) -> Iterator[None]:
    """Turn a full disk or a missing permission inside the block into an InputError that names `path`.

    Also where a library writes, which wraps the system's error in its own.
    """
    try:
        yield
    except Exception as error:
        if (explained := explain(error, path)) is None:
            raise
        raise explained from error


def explain(error: BaseException, path: str | Path) -> InputError | None:
    """The InputError for an error of writing to `path` that the user can mend; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    full = os.strerror(errno.ENOSPC)  # a library quotes the system, or torch.save broke off
    told = any(
        full in str(e) or ("inline_container" in str(e) and _free_bytes(Path(path)) < 2**24) for e in causes(error)
    )
    if number in NO_ROOM or told:
        return InputError(
            f"The disk of {path} is full; free some space and call again, what is finished is kept and continued."
        )
    if number == errno.EFBIG or any(os.strerror(errno.EFBIG) in str(one) for one in causes(error)):
        return InputError(
            f"A file of {path} grew too large for its disk or for this user's limit (ulimit -f); raise it and call "
            "again, what is finished is kept and continued, or give another --out."
        )
    if number in DENIED:
        return InputError(f"{path} may not be written by this user; change its permissions or give another --out.")
    if number in NO_PLACE:
        why = "is a file" if os.path.isfile(path) and number != errno.EISDIR else NO_PLACE[number]
        return InputError(f"{path} {why}, so nothing can be written there; give another --out.")
    return None


def memory_full(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine itself, has no memory left (PyTorch: a class for the first only)."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error))
    )


@contextlib.contextmanager
def enough_memory(sentence: str) -> Iterator[None]:
    """Turn a full memory inside the block into an InputError of this sentence."""
    try:
        yield
    except RuntimeError as error:
        if not memory_full(error):
            raise
        raise InputError(sentence) from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it arose from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _free_bytes(path: Path) -> int:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free
