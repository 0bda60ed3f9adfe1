"""A start that is another model than the one that is trained: its log-probabilities are the reference, whenever asked for."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tokendeep.errors import InputError
from tokendeep.training.adapters import unlike
from tokendeep.training.trainer import ConstrainedSFTTrainer
from tokendeep.types import IGNORE
from tuning import LORA, Kill, Killed, history, settings, token_rows

ROWS, OTHERS = token_rows(), token_rows(seed=5)


def tuned_from(aligned: Any, what: str = "mlp") -> Any:
    """The model with some of its weights moved, as a fine-tuning does."""
    tuned, draw = copy.deepcopy(aligned), torch.Generator().manual_seed(3)
    for name, weights in tuned.named_parameters():
        if what in name:
            weights.data += 0.1 * torch.randn(weights.shape, generator=draw)
    return tuned


def first_ratio(model: Any, reference: Any, rows: list[dict[str, list[int]]] = ROWS) -> float:
    """The mean log-ratio at the first answer position, by hand."""
    found = []
    for row in rows:
        start = next(i for i, label in enumerate(row["labels"]) if label != IGNORE)
        with torch.no_grad():
            ours, theirs = (
                one(input_ids=torch.tensor([row["input_ids"]])).logits[0, start - 1].log_softmax(-1)
                for one in (model.eval(), reference.eval())
            )
        found.append(float((ours - theirs)[row["labels"][start]]))
    return sum(found) / len(found)


def trainer(model: Any, aligned: Any, tokenizer: Any, out: Path, args: dict[str, Any], **more: Any) -> Any:
    return ConstrainedSFTTrainer(
        model, settings(out, **args), train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer, start=aligned,
        **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "reference"), [("adapter", "precomputed"), ("adapter", "on-the-fly"), ("all", "precomputed")]
)
def test_another_start_is_the_reference_of_every_training(
    weights: str, reference: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    aligned = make_model()
    tuned = tuned_from(aligned)
    more = {"reference": reference, "peft_config": LORA if weights == "adapter" else None}
    made = trainer(copy.deepcopy(tuned), copy.deepcopy(aligned), tiny_tokenizer, tmp_path, {"max_steps": 2}, **more)
    far = first_ratio(tuned, aligned)
    assert abs(far) > 0.1  # a reference that is the tuned model would give 0
    made.train()
    assert history(made, "log_ratio_1")[0] == pytest.approx(far, abs=1e-4)

    new = made.evaluate(Dataset.from_list(OTHERS))
    if reference == "on-the-fly":
        assert new["eval_log_ratio_1"] == pytest.approx(first_ratio(made.model, aligned, OTHERS), abs=1e-4)
    else:  # the other model is not kept in memory
        assert "eval_loss" not in new
        assert "eval_nll" in new

    far = first_ratio(made.model, aligned)
    made.train()
    assert history(made, "log_ratio_1")[0] == pytest.approx(far, abs=1e-4)


def test_a_reference_that_is_lost_is_computed_of_the_whole_start(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    aligned = make_model()
    tuned = tuned_from(aligned)

    def begun(**more: Any) -> Any:
        args = {"save_strategy": "steps", "save_steps": 1}
        return trainer(copy.deepcopy(tuned), copy.deepcopy(aligned), tiny_tokenizer, tmp_path, args, **more)

    with pytest.raises(Killed):
        begun(callbacks=[Kill()]).train()
    shutil.rmtree(tmp_path / "_reference")
    model = type(aligned).from_pretrained(tmp_path / "checkpoint-3")
    again = begun()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert history(again, "log_ratio_1")[-1] == pytest.approx(first_ratio(model, aligned), abs=1e-4)


def test_packed_weights_take_no_other_values(make_model: Callable[..., Any]) -> None:
    aligned, tuned = make_model(), make_model(1)
    for model in (aligned, tuned):
        weight = model.model.layers[0].mlp.up_proj.weight.detach()
        packed = torch.nn.Parameter((weight * 100).to(torch.int8), requires_grad=False)
        model.model.layers[0].mlp.up_proj.weight = packed
    with pytest.raises(InputError, match="load both without quantisation"):
        unlike(aligned, tuned)
