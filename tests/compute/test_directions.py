"""The derivative of rows' losses along a direction of the weights: forward mode, backward passes, and moved weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

from conftest import SMALL
from tokendeep.compute import directions, layers, scoring
from tokendeep.types import IGNORE, Encoded, Subject

ROWS = [
    Encoded([5, 6, 7, 8, 9, 10], [IGNORE, IGNORE, IGNORE, 8, 9, 10]),
    Encoded([50, 60, 70], [IGNORE, 60, 70]),
    Encoded([11, 12, 13, 14, 15, 16, 17, 18, 19], [IGNORE] * 8 + [19]),
]


def drawn(model: Any, count: int) -> dict[str, torch.Tensor]:
    """A random direction in the weights of the last layers, of length about 1."""
    generator = torch.Generator().manual_seed(1)
    ways = {n: torch.randn(p.shape, generator=generator) for n, p in layers.last_weights(model, count).items()}
    length = sum(float(way.square().sum()) for way in ways.values()) ** 0.5
    return {name: way / length for name, way in ways.items()}


@pytest.mark.parametrize("config", [
    None, tf.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    tf.Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),
    tf.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4),
])  # fmt: skip
@pytest.mark.parametrize("count", [1, 0])
def test_forward_mode_equals_backward_passes(tiny_model: Any, config: Any, count: int) -> None:
    torch.manual_seed(0)
    model = tiny_model if config is None else tf.AutoModelForCausalLM.from_config(config).eval()
    direction = drawn(model, count)
    way, why = directions.way_for(model, ROWS[0], direction)
    assert (way, why) == (directions.along, None)
    plain = directions.plain_along(model, ROWS, direction)
    torch.testing.assert_close(way(model, ROWS, direction), plain, rtol=1e-4, atol=1e-6)
    alone = torch.cat([way(model, [row], direction) for row in ROWS])
    torch.testing.assert_close(alone, plain, rtol=1e-4, atol=1e-6)  # neither padding nor neighbours matter


def test_it_is_the_slope_of_the_loss_when_the_weights_move(tiny_subject: Subject) -> None:
    model = tiny_subject.model.double()
    direction = {name: way.double() for name, way in drawn(model, 1).items()}
    weights = dict(model.base_model.named_parameters())

    def losses(distance: float) -> torch.Tensor:
        with torch.no_grad():
            for name, way in direction.items():
                weights[name].add_(way, alpha=distance)
            values = [-logps.double().mean() for logps in scoring.token_logps(tiny_subject, ROWS)]
            for name, way in direction.items():
                weights[name].sub_(way, alpha=distance)
        return torch.stack(values)

    slope = (losses(1e-3) - losses(-1e-3)) / 2e-3
    torch.testing.assert_close(directions.along(model, ROWS, direction).double(), slope, rtol=1e-3, atol=1e-4)


def test_where_forward_mode_fails_backward_passes_do_it(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> torch.Tensor:
        raise NotImplementedError("no rule for this operation\nmore")

    monkeypatch.setattr(directions, "along", fails)
    assert directions.way_for(tiny_model, ROWS[0], drawn(tiny_model, 1)) == (
        directions.plain_along, "no rule for this operation",
    )  # fmt: skip


def test_weights_that_no_row_reaches_bring_nothing(tiny_model: Any) -> None:
    """Such as keys and values of layers that share those of others (Gemma 3n)."""
    direction = drawn(tiny_model, 1)
    plain = directions.plain_along(tiny_model, ROWS, direction)
    tiny_model.model.layers[-1].mlp.unused = torch.nn.Linear(2, 2)
    more = drawn(tiny_model, 1)
    assert more.keys() > direction.keys()
    found = directions.plain_along(tiny_model, ROWS, {**more, **direction})
    torch.testing.assert_close(found, plain)


def test_weights_are_left_as_they_were(tiny_model: Any) -> None:
    tiny_model.requires_grad_(False)
    direction, before = drawn(tiny_model, 1), {n: p.clone() for n, p in tiny_model.named_parameters()}
    for way in (directions.along, directions.plain_along):
        way(tiny_model, ROWS, direction)
    for name, weight in tiny_model.named_parameters():
        assert torch.equal(weight, before[name]), name
        assert not weight.requires_grad, name
        assert weight.grad is None, name


def test_an_opening_ends_behind_its_last_token() -> None:
    assert directions.opening(ROWS[0], 2) == Encoded([5, 6, 7, 8, 9], [IGNORE, IGNORE, IGNORE, 8, 9])
    assert directions.opening(ROWS[1], 10) == ROWS[1]
