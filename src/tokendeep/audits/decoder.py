"""The decoder layers that scores of an audit look at: how many of the last ones, or which one, and whether there are so many."""

from __future__ import annotations

from typing import Any

from tokendeep.errors import InputError, flag

LAST = 4  # layers whose weights are looked at where none are given, or as many as there are
NAMES = ("last_layers", "layer")  # the options


def check(options: Any, count: int | None) -> None:
    """Raises InputError where an option is above the number of layers, as far as that is known."""
    for name in NAMES:
        if count is not None and (getattr(options, name) or 0) > count:
            raise InputError(f"{flag(name)} is {getattr(options, name)}, but this model has {count} decoder layers.")


def last(options: Any, model: Any, *, capped: bool) -> int:
    """How many of the last layers of a loaded model are looked at; 0: all.

    Args:
        capped: whether they are as many as there are where the model has fewer.

    Raises:
        InputError: the model has fewer layers than an option asks for, or keeps them where they are not found.
    """
    from tokendeep.compute import layers

    count = len(layers.stack(model))
    wanted = min(options.last_layers, count) if capped else options.last_layers
    layers.check_layers(model, wanted, "--last-layers")
    layers.check_layers(model, options.layer, "--layer")
    return int(wanted)
