"""Short rows trained in bfloat16 on a CPU attend in float32: where, in which steps, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers.integrations import sdpa_attention

from tokendeep.training import attention
from tuning import history, token_rows, trained


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, int]]:
    """The number format and the length of the rows of every call of PyTorch's attention."""
    seen: list[tuple[torch.dtype, int]] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def spied(query: Any, *given: Any, **settings: Any) -> Any:
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        seen.append((autocast or query.dtype, query.shape[2]))
        return plain(query, *given, **settings)

    monkeypatch.setattr(sdpa_attention.torch.nn.functional, "scaled_dot_product_attention", spied)
    return seen


@pytest.mark.parametrize("longest", [192, 2], ids=["short rows", "long rows"])
@pytest.mark.parametrize("bf16", [True, False], ids=["bfloat16", "float32"])
def test_short_rows_in_bfloat16_attend_in_float32(
    bf16: bool, longest: int, attended: Any, make_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Steps, the pass of the reference and evaluations alike."""
    monkeypatch.setattr(attention, "LONGEST", longest)
    rows = Dataset.from_list(token_rows(seed=1))
    trainer = trained(make_model(), tiny_tokenizer, tmp_path, args={"bf16": bf16, "max_steps": 2}, eval_dataset=rows)
    trainer.evaluate()
    expected = torch.bfloat16 if bf16 and longest == 2 else torch.float32
    assert {kind for kind, _ in attended} == {expected}
    assert trainer.model.config._attn_implementation == "sdpa"  # as it was


def test_the_model_stands_at_its_reference_before_the_first_step(
    make_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    trainer = trained(make_model(), tiny_tokenizer, tmp_path, args={"bf16": True, "max_steps": 1}, head_anchor=(1.0, 5))
    first = trainer.state.log_history[0]
    assert first["log_ratio_1"] == 0
    assert first["anchor_kl"] == pytest.approx(0, abs=1e-7)


def test_losses_are_those_of_bfloat16_attention_to_its_rounding(
    make_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = history(trained(make_model(), tiny_tokenizer, tmp_path / "a", args={"bf16": True}), "nll")
    monkeypatch.setattr(attention, "LONGEST", 0)
    plain = history(trained(make_model(), tiny_tokenizer, tmp_path / "b", args={"bf16": True}), "nll")
    exact = history(trained(make_model(), tiny_tokenizer, tmp_path / "c"), "nll")
    assert ours == pytest.approx(plain, rel=2e-2)
    assert ours == pytest.approx(exact, rel=2e-2)
    assert ours != plain


def test_other_implementations_are_left_alone(make_model: Callable[..., Any]) -> None:
    model = make_model()
    model.set_attn_implementation("eager")
    with attention.short_rows_in_float32(model, torch.device("cpu")):
        assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    with attention.short_rows_in_float32(model, torch.device("cuda")):
        assert model.config._attn_implementation == "sdpa"
    with attention.short_rows_in_float32(model, torch.device("cpu")):
        assert model.config._attn_implementation == attention.NAME


def test_it_is_as_it_was_after_a_step_that_failed(make_model: Callable[..., Any]) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="broken"), attention.short_rows_in_float32(model, torch.device("cpu")):
        raise ValueError("broken")
    assert model.config._attn_implementation == "sdpa"
