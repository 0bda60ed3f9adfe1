"""Decoder layers: their states against Hugging Face's own, their weights by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tokendeep import models
from tokendeep.compute import layers
from tokendeep.errors import InputError

ROWS = [[5, 6, 7, 8], [50, 60], [11, 12, 13, 14, 15, 16]]


@pytest.mark.parametrize("layer", [1, 2])
def test_states_are_hugging_faces_of_the_last_token(tiny_model: Any, layer: int) -> None:
    ours = layers.last_states(tiny_model, ROWS, layer)
    with torch.no_grad():
        plain = [tiny_model(torch.tensor([row]), output_hidden_states=True).hidden_states[layer][0, -1] for row in ROWS]
    torch.testing.assert_close(ours, torch.stack(plain), rtol=1e-4, atol=1e-5)


def test_layers_behind_do_not_run(make_model: Any) -> None:
    model = make_model(num_hidden_layers=4)
    ran: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, layer in enumerate(model.model.layers, 1)
    ]
    layers.last_states(model, ROWS, 2)
    assert ran == [1, 2]
    for hook in hooks:
        hook.remove()
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_weights_of_the_last_layers(tiny_model: Any) -> None:
    assert {name.split(".")[1] for name in layers.last_weights(tiny_model, 1)} == {"1"}
    assert {name.split(".")[1] for name in layers.last_weights(tiny_model, 0)} == {"0", "1"}
    with pytest.raises(InputError, match="--last-layers is 3, but this model has 2 decoder layers"):
        layers.last_weights(tiny_model, 3)


def test_of_an_adapted_model_they_are_the_adapters(tiny_adapter: Path) -> None:
    names = layers.last_weights(models.load(str(tiny_adapter), dtype="float32").model, 1)
    assert names
    assert all("lora_" in name and ".1." in name for name in names)
