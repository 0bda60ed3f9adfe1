"""The reference: whose weights it is of, where it lies, and what happens where there is none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from tokendeep.errors import InputError
from tokendeep.training import reference, reference_pass
from tokendeep.training.trainer import ConstrainedSFTTrainer
from tokendeep.types import IGNORE
from tuning import LORA, Kill, Killed, assert_same_weights, history, settings, token_rows, trained


def made(model: Any, tokenizer: Any, out: Path, args: dict[str, Any] | None = None, **more: Any) -> Any:
    rows = Dataset.from_list(token_rows())
    return ConstrainedSFTTrainer(
        model, settings(out, **(args or {})), train_dataset=rows, processing_class=tokenizer, **more
    )


def test_one_other_value_anywhere_is_another_model(make_model: Callable[..., Any]) -> None:
    model = make_model()
    before = reference.weights_hash(model, without_adapter=False)
    assert reference.weights_hash(make_model(), without_adapter=False) == before
    for weights in (model.model.layers[1].mlp.up_proj.weight, model.model.rotary_emb.inv_freq):
        flat = weights.data.view(-1)
        flat[len(flat) // 3] += 1e-3
        changed = reference.weights_hash(model, without_adapter=False)
        assert changed != before
        before = changed


def test_only_what_lies_beneath_a_new_adapter_counts(make_model: Callable[..., Any]) -> None:
    from peft import get_peft_model

    model = get_peft_model(make_model(), LORA)
    before = reference.weights_hash(model, without_adapter=True)
    for weights in model.parameters():
        if weights.requires_grad:
            weights.data += 1
    assert reference.weights_hash(model, without_adapter=True) == before
    model.get_base_model().model.norm.weight.data += 1
    assert reference.weights_hash(model, without_adapter=True) != before


def change(model: Any) -> None:
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.1)


@pytest.mark.slow
def test_weights_that_change_before_training_are_the_reference(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    trainer = made(make_model(), tiny_tokenizer, tmp_path, head_anchor=(1.0, 5))
    change(trainer.model)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["log_ratio_1"] == pytest.approx(0, abs=1e-5)
    assert first["anchor_kl"] == pytest.approx(0, abs=1e-5)  # the copy of the head is of those weights too
    other = trained(
        make_model(), tiny_tokenizer, tmp_path, head_anchor=(1.0, 5)
    )  # finds that file, and does not use it
    assert other.state.log_history[0]["log_ratio_1"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_a_second_training_keeps_the_reference_of_the_first(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trained(make_model(), tiny_tokenizer, tmp_path)
    for file in tmp_path.rglob("reference-*"):
        file.unlink()
    monkeypatch.setattr(reference_pass, "compute", None)  # never again
    gained = history(trainer, "log_ratio_1")[-1]
    trainer.train()
    assert history(trainer, "log_ratio_1")[0] > gained > 0.01


@pytest.mark.slow
def test_files_of_the_reference_lie_where_no_weights_are_looked_for(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    trainer = trained(make_model(), tiny_tokenizer, tmp_path)
    trainer.save_model()
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert list((tmp_path / "_reference").glob("reference-*.safetensors"))  # a hub leaves out what begins with _


@pytest.mark.slow
def test_a_checkpoint_knows_the_weights_that_the_run_began_with(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    args: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = trained(make_model(), tiny_tokenizer, tmp_path / "a", args=args)
    with pytest.raises(Killed):
        trained(make_model(), tiny_tokenizer, tmp_path / "b", args=args, callbacks=[Kill()])
    between = LlamaForCausalLM.from_pretrained(tmp_path / "b" / "checkpoint-2")  # not the model of the start
    second = made(between, tiny_tokenizer, tmp_path / "b", args)
    second.train(resume_from_checkpoint=True)
    assert history(whole, "loss") == pytest.approx(history(second, "loss"), rel=1e-5)
    assert_same_weights(whole.model, second.model, 1e-6)


@pytest.mark.slow
def test_an_anchor_needs_the_head_of_the_start(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    args: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(Killed):
        trained(make_model(), tiny_tokenizer, tmp_path, args=args, callbacks=[Kill()], head_anchor=(1.0, 5))
    between = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    with pytest.raises(InputError, match="not the one that this training began with"):
        made(between, tiny_tokenizer, tmp_path, args, head_anchor=(1.0, 5)).train(resume_from_checkpoint=True)


def nll_by_hand(model: Any, rows: list[dict[str, list[int]]]) -> float:
    values = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        logits = model(input_ids=ids).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        values.append(F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE)[labels != IGNORE])
    return float(torch.cat(values).detach().mean())


@pytest.mark.slow
def test_new_rows_need_no_reference_after_all_weights_were_trained(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, rows = made(make_model(), tiny_tokenizer, tmp_path, head_anchor=(1.0, 5)), token_rows(5, seed=9)
    before = trainer.evaluate(Dataset.from_list(rows))
    assert before["eval_loss"] == pytest.approx(before["eval_constrained"], rel=1e-5)  # no divergence yet
    trainer.train()
    found = trainer.evaluate(Dataset.from_list(token_rows(5, seed=10)))
    assert found["eval_nll"] == pytest.approx(nll_by_hand(trainer.model.eval(), token_rows(5, seed=10)), rel=1e-4)
    assert "eval_loss" not in found
    assert 0 <= found["eval_mean_token_accuracy"] <= 1
    assert "5 rows have no reference" in capsys.readouterr().out
    assert "eval_loss" in trainer.evaluate(Dataset.from_list(token_rows()))  # whose reference is known
    assert "no reference" not in capsys.readouterr().out
    predicted = trainer.predict(Dataset.from_list(token_rows(5, seed=10)))
    assert predicted.metrics["test_nll"] == pytest.approx(found["eval_nll"], rel=1e-6)


@pytest.mark.slow
def test_a_continued_adapter_leaves_no_second_one(
    tmp_path: Path, tiny_folder: Path, tiny_adapter: Path, tiny_tokenizer: Any
) -> None:
    model = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(tiny_folder), str(tiny_adapter), is_trainable=True
    )
    start = copy.deepcopy(model)
    args = {"save_strategy": "steps", "save_steps": 2}
    trainer = trained(model, tiny_tokenizer, tmp_path, args=args, reference="on-the-fly")
    assert list(trainer.model.peft_config) == ["default"]
    assert not [path for path in tmp_path.rglob("*") if path.name == "ref"]
    with trainer._as_reference():
        assert_same_weights(trainer.model, start, 0)
    assert trainer.state.log_history[-2]["log_ratio_1"] > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("peft", [None, LORA])
def test_a_stream_is_evaluated_as_far_as_it_can_be(
    peft: Any, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trained(make_model(), tiny_tokenizer, tmp_path, peft_config=peft)
    rows = Dataset.from_list(token_rows(5, seed=9))
    whole = trainer.evaluate(rows)
    capsys.readouterr()
    found = trainer.evaluate(rows.to_iterable_dataset())
    assert found["eval_nll"] == pytest.approx(whole["eval_nll"], rel=1e-5)
    if peft is None:
        assert "a stream of rows has no reference" in capsys.readouterr().out
        assert "eval_loss" not in found
    else:  # the adapter is taken off beside every batch
        assert found["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-5)
