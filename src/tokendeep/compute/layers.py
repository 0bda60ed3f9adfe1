"""The decoder layers of a model: where they are, their weights by name, and the state that a row has behind one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokendeep.compute import lm_head
from tokendeep.errors import InputError


class _Reached(Exception):
    """The state that was asked for is there; what lies behind it need not run."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def stack(model: Any) -> Sequence[nn.Module]:
    """The decoder layers, first to last. Raises InputError for an architecture that keeps them elsewhere."""
    lm = lm_head.causal_lm(model)
    decoder = lm.get_decoder() if lm.base_model is not lm else lm_head.decoder(lm)
    layers = getattr(decoder, "layers", None) or getattr(decoder, "h", None)
    if layers is None:
        raise InputError(
            f"{type(lm).__name__} keeps its decoder layers where tokendeep does not find them; use a method that needs none."
        )
    found: Sequence[nn.Module] = list(layers)
    return found


def check_layers(model: Any, layers: int, option: str) -> None:
    """Raises InputError where the model has fewer decoder layers than an option asks for."""
    if layers > (count := len(stack(model))):
        raise InputError(f"{option} is {layers}, but this model has {count} decoder layers.")


def last_weights(model: Any, layers: int) -> dict[str, nn.Parameter]:
    """Weights of the last `layers` decoder layers (0: all of them), by their name in the model's decoder.

    Of a model with an adapter they are those of the adapter alone, which is what a training of it moves.

    Raises:
        InputError: there are fewer layers, or none of these weights can have a gradient.
    """
    check_layers(model, layers, "--last-layers")
    decoder, adapted = lm_head.decoder(lm_head.causal_lm(model)), hasattr(model, "peft_config")
    chosen = {id(p) for layer in stack(model)[-layers:] for p in layer.parameters()}
    named = {
        name: p
        for name, p in decoder.named_parameters()
        if id(p) in chosen and p.is_floating_point() and (not adapted or getattr(model, "prefix", "lora_") in name)
    }
    if not named:
        raise InputError(
            "No weight of these layers can have a gradient (quantised ones cannot); raise --last-layers, or load the model "
            "without quantisation."
        )
    return named


@torch.no_grad()
def last_states(model: Any, rows: Sequence[Sequence[int]], layer: int) -> Tensor:
    """The state (B, H), float32, of each row's last token behind decoder layer `layer`: Hugging Face's `hidden_states[layer]`.

    Layers behind it do not run. The last one's is taken behind the final norm, as there.

    Args:
        rows: token ids; they are padded on the right, which no token of theirs sees.
        layer: 1 to the number of layers.
    """
    layers, lm, ids = stack(model), lm_head.causal_lm(model), lm_head.padded(model, rows)
    if layer == len(layers):
        states = lm_head.hidden_states(model, ids)
    else:
        states = _behind(lm, layers[layer - 1], ids)
    ends = torch.tensor([len(row) - 1 for row in rows], device=states.device)
    return states[torch.arange(len(rows), device=states.device), ends].float()


def _behind(lm: Any, layer: nn.Module, ids: Tensor) -> Tensor:
    """What a layer puts out (B, S, H)."""

    def reached(_: nn.Module, args: Any, output: Any) -> None:
        raise _Reached(output[0] if isinstance(output, tuple) else output)

    hook = layer.register_forward_hook(reached)
    try:
        lm_head.hidden_states(lm, ids)
    except _Reached as found:
        return found.states
    finally:
        hook.remove()
    raise InputError(f"{type(lm).__name__} does not run its decoder layers one after another.")
