"""The reference beside an adapter: the same weights with the adapter off, or a frozen copy of it.

Knows nothing of rows or losses.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from tokendeep import models
from tokendeep.errors import InputError
from tokendeep.training.options import REFERENCES

BASE_CHANGING = (
    "pissa",
    "olora",
    "corda",
    "loftq",
    "lora_ga",
    "eva",
)  # ways to begin an adapter that change the weights beneath it


def checked_reference(name: str, model: Any, peft_config: Any) -> str:
    """The kind of reference, where this model can have it."""
    if name not in REFERENCES:
        raise InputError(f"reference is {name!r}, but must be one of {', '.join(REFERENCES)}.")
    adapted = peft_config is not None or hasattr(model, "peft_config")
    if name == "on-the-fly" and not adapted:
        raise InputError(
            "reference='on-the-fly' takes the adapter off, but all weights are trained and no second copy is kept; use "
            "reference='precomputed', or train an adapter."
        )
    configs = [peft_config] if peft_config is not None else list(getattr(model, "peft_config", {}).values())
    if name == "on-the-fly" or peft_config is not None:
        for config in configs:
            if getattr(config, "bias", "none") != "none":
                raise InputError(
                    f"bias={config.bias!r} trains biases beneath the adapter, which stay when it is taken off; use "
                    "bias='none'."
                )
    begin = getattr(peft_config, "init_lora_weights", True)
    if isinstance(begin, str) and begin.lower().startswith(BASE_CHANGING):
        raise InputError(
            f"init_lora_weights={begin!r} changes the weights beneath the adapter, so without it they are not the model "
            "you gave; use the default."
        )
    return name


def keep(model: Any) -> None:
    """Give the model a frozen copy of its active adapter, named ref."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    active = model.active_adapter
    config = copy.deepcopy(model.peft_config[active])
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # its weights are copied; other ways to begin would change the base
    model.add_adapter("ref", config)
    set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name=active), adapter_name="ref")
    model.set_adapter(active)
    for name, parameter in model.named_parameters():
        if ".ref." in name:
            parameter.requires_grad_(False)


@contextlib.contextmanager
def switched(model: Any, name: str) -> Iterator[None]:
    """Within it another adapter is active; what is trained stays the same."""
    before = model.active_adapter
    with models.same_trainable(model):
        model.set_adapter(name)
        try:
            yield
        finally:
            model.set_adapter(before)
