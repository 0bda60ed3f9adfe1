"""The same model without its adapter, at no second copy in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tokendeep.errors import InputError

if TYPE_CHECKING:
    from torch import nn


@contextlib.contextmanager
def reference(model: Any) -> Iterator[Any]:
    """The same model with its adapter off, at no second copy in memory.

    Raises:
        InputError: the model has no adapter.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise InputError("The model has no adapter that could be taken off: give the model to compare with.")
    with same_trainable(model) as flags, model.disable_adapter():
        restore(flags)  # FSDP looks at its first forward, which may be this one, for what is trained
        yield model


@contextlib.contextmanager
def same_trainable(model: Any) -> Iterator[list[tuple[nn.Parameter, bool]]]:
    """Afterwards the weights that were trainable are so again: PEFT changes that when adapters are switched.

    Gives every weight with whether it is trained, for `restore`.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield flags
    finally:
        restore(flags)


def restore(flags: Iterable[tuple[nn.Parameter, bool]]) -> None:
    """Let the weights be trained or not as `same_trainable` found them."""
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
