"""AsFT and SafeLoRA against dense matrices, and what they leave alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model

from tokendeep.errors import InputError
from tokendeep.training import subspace
from tokendeep.training.sft import ResponseSFTTrainer
from tokendeep.training.subspace import AsftTrainer, SafeLora, differences, parts
from tokendeep.types import Subject
from tuning import LORA, assert_same_weights, history, settings, token_rows

Make = Callable[..., Any]


def subjects(make: Make, tokenizer: Any) -> tuple[Subject, Subject]:
    return Subject(make(0), tokenizer, "aligned"), Subject(make(1), tokenizer, "base")


def dense(alignment: torch.Tensor) -> torch.Tensor:
    return alignment @ alignment.T / alignment.norm()


def moved(model: Any, seed: int = 3) -> Any:
    """The model with other values in all that is trained."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:
                weights += 0.1 * torch.randn(weights.shape, generator=draw)
    return model


def changes(model: Any, before: Any) -> dict[str, torch.Tensor]:
    """dW of every linear layer of the decoder: B A of an adapter, without its scale."""
    found = {}
    start = dict(before.named_modules())
    for name, module in subspace._linears(model):
        if hasattr(module, "lora_A"):
            found[name] = module.lora_B["default"].weight @ module.lora_A["default"].weight
        else:
            found[name] = module.weight - start[name].weight
    return found


def test_what_alignment_changed_is_of_the_linear_layers_alone(make_model: Make, tiny_tokenizer: Any) -> None:
    aligned, base = subjects(make_model, tiny_tokenizer)
    base.model.model.layers[1].mlp.up_proj.weight.data = aligned.model.model.layers[1].mlp.up_proj.weight.data.clone()
    found = differences(aligned, base, "asft")
    assert len(found) == 2 * 7 - 1
    assert "model.layers.1.mlp.up_proj" not in found
    expected = (
        aligned.model.model.layers[0].self_attn.q_proj.weight - base.model.model.layers[0].self_attn.q_proj.weight
    )
    torch.testing.assert_close(found["model.layers.0.self_attn.q_proj"], expected.detach())


@pytest.mark.parametrize("adapter", [False, True])
def test_the_penalty_and_its_gradient_equal_dense_matrices(
    adapter: bool, make_model: Make, tiny_tokenizer: Any
) -> None:
    alignment = differences(*subjects(make_model, tiny_tokenizer), "asft")
    before = make_model().requires_grad_(False)
    model = get_peft_model(make_model(), LORA) if adapter else make_model()
    found = parts(model, alignment)
    assert len(found) == (4 if adapter else 14)
    moved(model)
    ours = torch.stack([part.outside() for part in found]).sum()
    by_hand: Any = 0
    for name, change in changes(model, before).items():
        if change.requires_grad:
            by_hand = by_hand + ((torch.eye(len(change)) - dense(alignment[name])) @ change).square().sum()
    assert ours.item() == pytest.approx(by_hand.item(), rel=1e-4)
    weights = [part.weight for part in found] + [part.right for part in found if part.right is not None]
    for one, two in zip(torch.autograd.grad(ours, weights), torch.autograd.grad(by_hand, weights), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_before_the_first_step_nothing_is_outside(make_model: Make, tiny_tokenizer: Any) -> None:
    alignment = differences(*subjects(make_model, tiny_tokenizer), "asft")
    found = parts(make_model(), alignment)
    outside = torch.stack([part.outside() for part in found]).sum()
    assert outside.item() == 0
    assert not any(grad.any() for grad in torch.autograd.grad(outside, [part.weight for part in found]))


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("bound", [0.75, -1.0, 3.0])
def test_a_projection_afterwards_equals_dense_matrices(
    adapter: bool, bound: float, make_model: Make, tiny_tokenizer: Any
) -> None:
    alignment = differences(*subjects(make_model, tiny_tokenizer), "safe-lora")
    before, plain = make_model().requires_grad_(False), make_model()
    repair = SafeLora(alignment, plain, bound, adapter=adapter)
    model = moved(get_peft_model(plain, LORA) if adapter else plain)
    raw = {name: change for name, change in changes(model, before).items() if change.requires_grad}
    expected = {name: dense(alignment[name]) @ change for name, change in raw.items()}
    cosines = {
        name: torch.cosine_similarity(expected[name].flatten(), change.flatten(), dim=0).item()
        for name, change in raw.items()
    }
    lowest = sorted(raw, key=lambda name: cosines[name])
    chosen = {name for name in raw if cosines[name] <= bound} if bound < 1 else set(lowest[:3])
    if bound == 0.75:
        assert 0 < len(chosen) < len(raw), cosines
    repair(model)
    for name, change in changes(model, before).items():
        if name in raw:
            wanted = expected[name] if name in chosen else raw[name]
            torch.testing.assert_close(change, wanted, rtol=1e-3, atol=1e-5)
    assert repair.lines == [
        f"safe-lora: {len(chosen)} of {len(raw)} matrices are projected onto what alignment changed"
    ]


def test_models_that_cannot_be_compared(make_model: Make, tiny_tokenizer: Any) -> None:
    aligned, base = subjects(make_model, tiny_tokenizer)
    with pytest.raises(InputError, match="give the model before it was aligned"):
        differences(aligned, Subject(copy.deepcopy(aligned.model), tiny_tokenizer, "same"), "asft")
    with pytest.raises(InputError, match="of the shape of aligned's"):
        differences(aligned, Subject(make_model(num_hidden_layers=1), tiny_tokenizer, "short"), "asft")
    with pytest.raises(InputError, match="is an adapter; merge it first"):
        differences(Subject(get_peft_model(make_model(), LORA), tiny_tokenizer, "lora"), base, "asft")
    with pytest.raises(InputError, match="is trained"):
        parts(make_model().requires_grad_(False), differences(aligned, base, "asft"))


# --- the trainer -----------------------------------------------------------------------------------


def trained(kind: Any, model: Any, tokenizer: Any, out: Path, args: dict[str, Any] | None = None, **more: Any) -> Any:
    made = kind(
        model, settings(out, **(args or {})), train_dataset=Dataset.from_list(token_rows()), processing_class=tokenizer,
        **more,
    )  # fmt: skip
    made.train()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True])
def test_accumulation_changes_nothing_and_it_holds(
    adapter: bool, tmp_path: Path, make_model: Make, tiny_tokenizer: Any
) -> None:
    alignment = differences(*subjects(make_model, tiny_tokenizer), "asft")
    more = {"alignment": alignment, "peft_config": LORA if adapter else None}
    whole = trained(AsftTrainer, make_model(), tiny_tokenizer, tmp_path / "a", **more)
    cut = trained(
        AsftTrainer, make_model(), tiny_tokenizer, tmp_path / "b",
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, **more,
    )  # fmt: skip
    for name in ("loss", "outside"):
        assert history(cut, name) == pytest.approx(history(whole, name), rel=1e-3, abs=1e-6)
    assert_same_weights(cut.model, whole.model, 1e-3)
    free = trained(AsftTrainer, make_model(), tiny_tokenizer, tmp_path / "c", weight=1e-9, **more)
    assert history(whole, "outside")[-1] < history(free, "outside")[-1]
    assert history(whole, "loss")[1] == pytest.approx(history(whole, "nll")[1] + history(whole, "outside")[1], rel=1e-4)


@pytest.mark.slow
def test_weight_0_is_plain_training(tmp_path: Path, make_model: Make, tiny_tokenizer: Any) -> None:
    alignment = differences(*subjects(make_model, tiny_tokenizer), "asft")
    plain = trained(ResponseSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "a")
    zero = trained(AsftTrainer, make_model(), tiny_tokenizer, tmp_path / "b", alignment=alignment, weight=0.0)
    assert_same_weights(plain.model, zero.model, 0)


@pytest.mark.slow
def test_a_second_training_of_the_trainer_keeps_its_start(
    tmp_path: Path, make_model: Make, tiny_tokenizer: Any
) -> None:
    alignment = differences(*subjects(make_model, tiny_tokenizer), "asft")
    made = trained(AsftTrainer, make_model(), tiny_tokenizer, tmp_path, alignment=alignment)
    assert history(made, "outside")[0] == 0
    made.train()
    assert history(made, "outside")[0] > 0
