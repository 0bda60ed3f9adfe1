"""Rows trained in bfloat16 on a CPU attend in float32: in which passes, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations import sdpa_attention

from tokendeep.training import attention
from tokendeep.types import IGNORE
from tuning import history, token_rows, trained


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The number format of every call of PyTorch's attention."""
    seen: list[torch.dtype] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def spied(query: Any, *given: Any, **settings: Any) -> Any:
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        seen.append(autocast or query.dtype)
        return plain(query, *given, **settings)

    monkeypatch.setattr(sdpa_attention.torch.nn.functional, "scaled_dot_product_attention", spied)
    return seen


@pytest.mark.parametrize("bf16", [True, False], ids=["bfloat16", "float32"])
def test_rows_attend_in_float32(
    bf16: bool, attended: Any, make_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Steps, the pass of the reference and evaluations alike; outside them the model attends as ever."""
    rows = Dataset.from_list(token_rows(seed=1))
    trainer = trained(make_model(), tiny_tokenizer, tmp_path, args={"bf16": bf16, "max_steps": 2}, eval_dataset=rows)
    trainer.evaluate()
    assert set(attended) == {torch.float32}
    attended.clear()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        trainer.model(torch.tensor([[5, 6, 7]]))
    assert set(attended) == {torch.bfloat16 if bf16 else torch.float32}


def test_the_model_stands_at_its_reference_before_the_first_step(
    make_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Also where a short row stands beside a long one in its step, and beside others in the pass of the reference."""
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(4, 300, (length,), generator=draw).tolist() for length in (12, 300, 9, 260, 14, 11, 240, 10)]
    rows = [{"input_ids": row, "labels": [IGNORE] * 6 + row[6:]} for row in ids]
    args = {"bf16": True, "max_steps": 1, "per_device_eval_batch_size": 2}
    trainer = trained(make_model(), tiny_tokenizer, tmp_path, rows, args, head_anchor=(1.0, 5))
    first = trainer.state.log_history[0]
    assert first["log_ratio_1"] == pytest.approx(0, abs=2e-3)
    assert first["log_ratio_later"] == pytest.approx(0, abs=2e-3)
    assert first["anchor_kl"] == pytest.approx(0, abs=2e-3)


def test_losses_are_those_of_bfloat16_attention_to_its_rounding(
    make_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = history(trained(make_model(), tiny_tokenizer, tmp_path / "a", args={"bf16": True}), "nll")
    exact = history(trained(make_model(), tiny_tokenizer, tmp_path / "c"), "nll")
    monkeypatch.setattr(attention, "_attention", sdpa_attention.sdpa_attention_forward)
    plain = history(trained(make_model(), tiny_tokenizer, tmp_path / "b", args={"bf16": True}), "nll")
    assert ours == pytest.approx(plain, rel=2e-2)
    assert ours == pytest.approx(exact, rel=2e-2)
    assert ours != plain


@pytest.mark.parametrize("kind", ["falcon", "llama", "gemma2", "qwen2"])
@pytest.mark.parametrize("bf16", [True, False], ids=["bfloat16", "float32"])
def test_models_say_the_same_within_it(kind: str, bf16: bool) -> None:
    """Falcon asks for the name of its implementation, and would leave its causal mask out under another one."""
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    rest = {"intermediate_size": 64, "num_key_value_heads": 2}
    own = {"falcon": {"alibi": False}, "gemma2": {"head_dim": 8, **rest}}.get(kind, rest)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **own)).eval()
    ids = torch.arange(1, 13)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        outside = model(ids).logits
        with attention.in_float32():
            inside = model(ids).logits
    torch.testing.assert_close(inside, outside, rtol=0, atol=2e-2 if bf16 else 0)


def test_it_is_as_it_was_after_a_step_that_failed() -> None:
    with pytest.raises(ValueError, match="broken"), attention.in_float32(), attention.in_float32():
        raise ValueError("broken")
    assert AttentionInterface()["sdpa"] is sdpa_attention.sdpa_attention_forward


def test_what_was_kept_of_bfloat16_attention_is_not_taken_again() -> None:
    def known(mixed_precision: str, device: str) -> str:
        return attention.precision(SimpleNamespace(mixed_precision=mixed_precision, device=torch.device(device)))

    assert known("bf16", "cpu") != known("bf16", "cuda") == "bf16"
    assert known("no", "cpu") == "no"
