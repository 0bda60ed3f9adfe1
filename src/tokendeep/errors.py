"""The one error that users see, and the checks of settings that raise it.

Knows nothing of files, models or verbs; everything else may import it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class InputError(ValueError):
    """Something the user gave is wrong. The message is one sentence: what, where, how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """


def check_least(config: object, least: Mapping[str, float]) -> None:
    """Raises InputError for the first setting that is below its least value, or NaN."""
    for name, bound in least.items():
        if not getattr(config, name) >= bound:
            raise InputError(f"--{name} is {getattr(config, name)}, but must be at least {bound}.")


def check_known(config: object, known: Mapping[str, Sequence[str]]) -> None:
    """Raises InputError for the first setting that is none of those it can be."""
    for name, values in known.items():
        if getattr(config, name) not in values:
            raise InputError(f"--{name} is {getattr(config, name)!r}, but must be one of {', '.join(values)}.")
