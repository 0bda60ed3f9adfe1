"""Rows that are packed into one see themselves only; an architecture that does not keep them apart is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset

from conftest import SMALL
from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.training.sft import ResponseSFTTrainer
from tokendeep.training.trainer import ConstrainedSFTTrainer
from tuning import settings, token_rows

OPEN = {**SMALL, "pad_token_id": 3, "eos_token_id": 2, "bos_token_id": None, "initializer_range": 0.2}
FALCON = {name: value for name, value in OPEN.items() if name != "intermediate_size"}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2}
APART = {
    "LlamaConfig": {**OPEN, "num_key_value_heads": 2},
    "Qwen2Config": {**OPEN, "num_key_value_heads": 2},
    "Gemma3TextConfig": {**OPEN, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    "GPT2Config": {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
}
TOGETHER = {
    "GptOssConfig": {**OPEN, **EXPERTS, "num_key_value_heads": 2, "head_dim": 8},
    "FalconConfig": FALCON,
    "OPTConfig": {**FALCON, **OPT},
    "BloomConfig": {"vocab_size": 320, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "MptConfig": {"vocab_size": 320, "d_model": 32, "n_layers": 2, "n_heads": 4},
    "MambaConfig": {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


def trainer(name: str, values: dict[str, Any], tokenizer: Any, out: Path, kind: Any = None, **args: Any) -> Any:
    config = getattr(transformers, name)(**values)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    chosen = settings(
        out, max_steps=1, max_length=None if "padding_free" in args else 32, per_device_train_batch_size=16, **args
    )
    rows = Dataset.from_list(token_rows(16))
    return (kind or ResponseSFTTrainer)(model, chosen, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize("name", APART)
def test_models_that_keep_rows_apart_train_on_packed_ones(name: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    made = trainer(name, APART[name], tiny_tokenizer, tmp_path, packing=True)
    made.train()
    assert made.state.global_step == 1


@pytest.mark.parametrize(
    ("name", "setting"), [*((name, "packing") for name in TOGETHER), ("OPTConfig", "padding_free")]
)
def test_models_that_do_not_are_refused(name: str, setting: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    made = trainer(name, TOGETHER[name], tiny_tokenizer, tmp_path, **{setting: True})
    with pytest.raises(InputError, match="leave out --packing") as error:
        made.train()
    assert type(made.model).__name__ in str(error.value)
    assert made.state.global_step == 0


def test_they_are_refused_before_a_reference_is_computed_and_in_evaluations(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    made = trainer("OPTConfig", TOGETHER["OPTConfig"], tiny_tokenizer, tmp_path, ConstrainedSFTTrainer, packing=True)
    with pytest.raises(InputError, match="leave out --packing"):
        made.train()
    with pytest.raises(InputError, match="leave out --packing"):
        made.evaluate(Dataset.from_list(token_rows()))
    assert not (tmp_path / "_reference").exists()


@pytest.mark.parametrize("packing", [False, True])
def test_it_is_asked_once_of_two_short_rows(
    packing: bool, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    real = lm_head.hidden_states

    def hidden_states(model: Any, input_ids: torch.Tensor, **more: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            asked.append(tuple(input_ids.shape))
            assert not lm_head.causal_lm(model).training
        return real(model, input_ids, **more)

    monkeypatch.setattr(lm_head, "hidden_states", hidden_states)
    args = settings(tmp_path, max_steps=1, packing=packing, max_length=32)
    rows = Dataset.from_list(token_rows())
    made = ResponseSFTTrainer(make_model(), args, train_dataset=rows, processing_class=tiny_tokenizer)
    made.model.train()
    made.train()
    made.train()
    assert asked == ([(1, 8), (1, 16)] if packing else [])
