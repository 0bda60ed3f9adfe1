"""Training on a CPU: attention in float32, norms in one pass, memory that is kept; and that nothing else changes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from datasets import Dataset
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.integrations import sdpa_attention
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from tokendeep.training import cpu
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
    monkeypatch.setattr(cpu, "_attention", sdpa_attention.sdpa_attention_forward)
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
    own: Any = {"falcon": {"alibi": False}, "gemma2": {"head_dim": 8, **rest}}.get(kind, rest)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **own)).eval()
    ids = torch.arange(1, 13)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        outside = model(ids).logits
        with cpu.quick(model):
            inside = model(ids).logits
    torch.testing.assert_close(inside, outside, rtol=0, atol=2e-2 if bf16 else 1e-6)


def test_it_is_as_it_was_after_a_step_that_failed(make_model: Callable[..., Any]) -> None:
    model, forward = make_model(), LlamaRMSNorm.forward
    with pytest.raises(ValueError, match="broken"), cpu.quick(model), cpu.quick(model):
        raise ValueError("broken")
    assert AttentionInterface()["sdpa"] is sdpa_attention.sdpa_attention_forward
    assert LlamaRMSNorm.forward is forward


def test_what_was_kept_of_bfloat16_attention_is_not_taken_again() -> None:
    def known(mixed: str, device: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> str:
        model = SimpleNamespace(dtype=dtype, config=SimpleNamespace(_attn_implementation=attention))
        return cpu.precision(SimpleNamespace(mixed_precision=mixed, device=torch.device(device)), model)

    assert known("bf16", "cpu") != known("bf16", "cuda") == "bf16"
    assert known("no", "cpu") == "no" != known("no", "cpu", torch.bfloat16)
    assert known("bf16", "cpu", attention="eager") == "bf16"


def test_a_bias_of_positions_is_attended_with_in_float32_too() -> None:
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 2, 5, 8, generator=draw).bfloat16() for _ in range(3)]
    bias = torch.randn(1, 2, 5, 5, generator=draw).bfloat16()
    module = SimpleNamespace(is_causal=False)
    ours = cpu._attention(module, *states, None, position_bias=bias)[0]
    plain = sdpa_attention.sdpa_attention_forward(module, *states, None, position_bias=bias)[0]
    torch.testing.assert_close(ours, plain, rtol=0, atol=3e-2)
    without = cpu._attention(module, *states, None)[0]
    assert (ours - without).abs().max() > 0.1


def test_an_attention_that_a_user_has_registered_is_left_alone(make_model: Callable[..., Any]) -> None:
    own = Mock(side_effect=sdpa_attention.sdpa_attention_forward)
    model = make_model()
    AttentionInterface.register("sdpa", own)
    try:
        with cpu.quick(model):
            model(torch.tensor([[5, 6, 7]]))
        assert own.called
        assert AttentionInterface()["sdpa"] is own
    finally:
        AttentionInterface.register("sdpa", sdpa_attention.sdpa_attention_forward)


def test_of_two_trainings_at_once_the_last_one_puts_back(make_model: Callable[..., Any]) -> None:
    first, second, forward = cpu.quick(make_model()), cpu.quick(make_model()), LlamaRMSNorm.forward
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert AttentionInterface()["sdpa"] is cpu._attention
    assert LlamaRMSNorm.forward is not forward
    second.__exit__(None, None, None)
    assert AttentionInterface()["sdpa"] is sdpa_attention.sdpa_attention_forward
    assert LlamaRMSNorm.forward is forward


def test_a_norm_that_does_something_else_within_keeps_it() -> None:
    class Centred(Gemma3RMSNorm):  # type: ignore[misc]
        def _norm(self, x: torch.Tensor) -> torch.Tensor:
            return super()._norm(x - x.mean(-1, keepdim=True))

    both = torch.nn.ModuleList([Gemma3RMSNorm(8), Centred(8)])
    states = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)) + 2
    plain = [norm(states) for norm in both]
    with cpu.quick(both):
        for norm, expected in zip(both, plain, strict=True):
            torch.testing.assert_close(norm(states), expected)


NORMS: dict[str, Any] = {"llama": LlamaRMSNorm, "qwen2": Qwen2RMSNorm, "olmo2": Olmo2RMSNorm, "gemma3": Gemma3RMSNorm}


@pytest.mark.parametrize("kind", sorted(NORMS))
@pytest.mark.parametrize("trained", ["all", "states", "weights"])
def test_norms_and_their_gradients_are_those_of_the_model(kind: str, trained: str) -> None:
    """Of states with an outlier and a mean, with weights that are neither 0 nor 1."""
    draw = torch.Generator().manual_seed(0)
    norm, forward = NORMS[kind](48), NORMS[kind].forward
    norm.weight.data.normal_(generator=draw)
    norm.weight.requires_grad_(trained != "states")
    states = torch.randn(3, 5, 48, generator=draw) * 3 + 1
    states[1, 2, 7] = 400.0
    states.requires_grad_(trained != "weights")
    grad = torch.randn(5, 3, 48, generator=draw).transpose(0, 1)  # not contiguous

    def found() -> list[torch.Tensor]:
        out = norm(states)
        return [out.detach(), *torch.autograd.grad(out, [x for x in (states, norm.weight) if x.requires_grad], grad)]

    plain = found()
    with cpu.quick(norm):
        assert NORMS[kind].forward is not forward
        quick = found()
    assert len(quick) == (3 if trained == "all" else 2)
    for one, other in zip(quick, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_norm_is_exact_in_float64() -> None:
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(4, 7, dtype=torch.float64, generator=draw, requires_grad=True)
    weight = torch.randn(7, dtype=torch.float64, generator=draw, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: cpu.RMSNorm.apply(*given, 1e-5), (states, weight))
    root = (states.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(cpu.RMSNorm.apply(states, weight, 1e-5), states / root * weight)


class Doubled(LlamaRMSNorm):
    """Written otherwise than those that are known."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(hidden_states)


class Inherits(LlamaRMSNorm):
    """Has its forward from one that is known."""


def test_norms_that_are_written_otherwise_or_rounded_are_left_alone() -> None:
    doubled, inherits, states = Doubled(8), Inherits(8), torch.randn(2, 8)
    half = Inherits(8).bfloat16()
    plain = [one.detach() for one in (doubled(states), inherits(states), half(states.bfloat16()))]
    own = Doubled.forward
    with cpu.quick(torch.nn.ModuleList([doubled, inherits])):
        assert Doubled.forward is own
        torch.testing.assert_close(doubled(states), plain[0])
        torch.testing.assert_close(inherits(states), plain[1])
        assert type(inherits(states).grad_fn).__name__ == "RMSNormBackward"
        assert torch.equal(half(states.bfloat16()), plain[2])
    assert "forward" not in vars(Inherits)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have settings of their own")
def test_memory_is_kept_while_a_model_trains_and_given_back_after() -> None:
    """In a process of its own, for what glibc does depends on all that came before."""
    script = """
import resource, torch
from tokendeep.training import cpu

MB = 2**20

def fetched(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(size // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

with cpu.memory_kept(torch.device("cuda")):
    before = fetched(24 * MB)
with cpu.memory_kept(torch.device("cpu")):
    torch.ones(24 * MB // 4)
    kept = fetched(24 * MB)
    many = [torch.ones(MB) for _ in range(50)]
    del many
    at_last = held()
print(before, kept, (at_last - held()) // MB)
"""

    def found(**more: str) -> list[int]:
        told = {*cpu.OWN, cpu.TUNABLES}
        env = {name: value for name, value in os.environ.items() if name not in told} | more
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
        return [int(word) for word in run.stdout.split()]

    before, kept, given_back = found()
    assert before > 20 * kept
    assert given_back > 150  # of 200 MB
    for told in ({"MALLOC_MMAP_THRESHOLD_": "262144"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=262144"}):
        before, kept, _ = found(**told)  # docs/sizes.md, where memory is short
        assert kept > before // 2
    assert found(GLIBC_TUNABLES="glibc.pthread.rseq=0")[2] > 150  # which says nothing of memory


def test_a_training_takes_the_quick_norms_keeps_memory_and_learns_the_same(
    make_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, where nothing else differs: losses, the reference beside them, and the weights at the end."""
    kept, apply = Mock(side_effect=cpu.memory_kept), Mock(side_effect=cpu.RMSNorm.apply)
    monkeypatch.setattr(cpu, "memory_kept", kept)
    monkeypatch.setattr(cpu.RMSNorm, "apply", apply)
    quick = trained(make_model(), tiny_tokenizer, tmp_path / "a", args={"max_steps": 3})
    kept.assert_called_once_with(torch.device("cpu"))
    apply.assert_called()
    monkeypatch.setattr(cpu, "KNOWN", {})
    apply.reset_mock()
    plain = trained(make_model(), tiny_tokenizer, tmp_path / "b", args={"max_steps": 3})
    apply.assert_not_called()
    assert history(quick, "loss") == pytest.approx(history(plain, "loss"), rel=1e-5)
    for one, other in zip(quick.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # a fiftieth of a step
