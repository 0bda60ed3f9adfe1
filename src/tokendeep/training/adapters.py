"""The reference beside an adapter: the same weights with it off, or with the values that a continued one began with.

Knows nothing of rows or losses.
"""

import contextlib
from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from tokendeep.errors import InputError
from tokendeep.models.adapters import unlike_base
from tokendeep.training.options import REFERENCES


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
    if peft_config is not None and (why := unlike_base(peft_config)):
        raise InputError(f"{why}; leave that setting of the adapter out.")
    return name


def trained_values(model: Any, but: Container[str] = (), *, on_cpu: bool = False) -> dict[str, Tensor]:
    """A copy of the weights that are trained, by name, but for some."""
    trained = {name: weights.detach() for name, weights in model.named_parameters() if weights.requires_grad}
    return {name: (value.cpu() if on_cpu else value).clone() for name, value in trained.items() if name not in but}


def unlike(other: Any, model: Any) -> list[tuple[Any, Tensor]]:
    """The weights of a model that another one of the same shape has otherwise, each with the values it has there.

    Raises:
        InputError: it is of another shape, or other where weights are quantised.
    """
    if isinstance(model, str) or isinstance(other, str):
        raise InputError("A start that is another model takes both models in memory; load them first (tokendeep.load).")
    theirs = dict(other.named_parameters())
    found = []
    for name, weights in model.named_parameters():
        if name not in theirs or theirs[name].shape != weights.shape:
            raise InputError(
                f"The model whose answers are held is of another shape: it has no {name} of {tuple(weights.shape)}; give the "
                "one that this model was tuned from."
            )
        values = theirs[name].detach().to(weights)
        if not torch.equal(values, weights.detach()):
            if not weights.is_floating_point():
                raise InputError(
                    f"The model whose answers are held has other values in {name}, which is quantised, where they cannot be "
                    "put in the place of others; load both without quantisation."
                )
            found.append((weights, values.cpu().clone()))
    if not found:
        raise InputError(
            "The model whose answers are held is the very one that is trained; give the one before its fine-tuning."
        )
    return found


@contextlib.contextmanager
def exchanged(model: Any, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it the trained weights have these values, and afterwards their own again, bit for bit.

    Raises:
        InputError: the launcher keeps the weights in shards of another kind than FSDP2's.
    """
    weights = dict(model.named_parameters())
    if any(weights[name].shape != value.shape for name, value in values.items()):
        raise InputError(
            "The launcher keeps the adapter in shards, where its start cannot be put in its place beside every step; use "
            "reference='precomputed'."
        )
    own = {name: weights[name].detach().clone() for name in values}
    try:
        _put(weights, values)
        yield
    finally:
        _put(weights, own)


@torch.no_grad()
def _put(weights: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        to = weights[name]
        value = value.to(to.device) if not isinstance(value, DTensor) else value
        if isinstance(to, DTensor) and not isinstance(value, DTensor):
            value = distribute_tensor(value.to(to.device), to.device_mesh, to.placements)
        to.copy_(value)
