"""The same model without its adapter, at no second copy in memory; and adapters for which that is not their base."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tokendeep.errors import InputError

if TYPE_CHECKING:
    from torch import nn

BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga", "eva")  # ways to begin that change the weights beneath


def unlike_base(config: Any) -> str | None:
    """Why a model is not its base once an adapter of this configuration is off; None where it is."""
    bias = getattr(config, "bias", None) or "none"
    if bias != "none":
        return f"bias={bias!r} trains biases beneath the adapter, which stay when it is taken off"
    if layers := getattr(config, "layer_replication", None):
        return f"layer_replication={layers!r} repeats layers beneath the adapter, which stay when it is taken off"
    begin = getattr(config, "init_lora_weights", True)
    if isinstance(begin, str) and begin.lower().startswith(BASE_CHANGING):
        return (
            f"init_lora_weights={begin!r} changes the weights beneath the adapter, so without it they are not its base"
        )
    return None


@contextlib.contextmanager
def reference(model: Any) -> Iterator[Any]:
    """The same model with its adapter off, at no second copy in memory.

    Raises:
        InputError: the model has no adapter, or is not its base without it.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise InputError("The model has no adapter that could be taken off: give the model to compare with.")
    for config in model.peft_config.values():
        if why := unlike_base(config):
            raise InputError(f"{why}: give the model to compare with.")
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
