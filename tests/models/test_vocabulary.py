"""Adapters for which tokens were added, adapters that are not their base when they are off, and models that do not fit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tokendeep import models
from tokendeep.errors import InputError
from tokendeep.models.locate import hub_id

MORE = ["<|tool|>", "<|call|>", "<|done|>"]


def adapter(folder: Path, base: Path, tokenizer: Any, **settings: Any) -> tuple[Path, torch.Tensor]:
    """An adapter that was trained with three more tokens, and its logits for them."""
    model = LlamaForCausalLM.from_pretrained(base)
    tokenizer.add_tokens(MORE, special_tokens=True)
    model.resize_token_embeddings(len(tokenizer))
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    )
    with torch.no_grad():
        for name, weights in adapted.named_parameters():
            if weights.requires_grad and "lora" not in name:
                weights += 0.3
        logits = adapted.eval()(input_ids=torch.tensor([[5, 320, 6, 322, 7]])).logits
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, logits


@pytest.mark.parametrize(
    "settings",
    [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": {"embed_tokens": [320, 321, 322]}}],
    ids=["all embeddings", "new rows"],
)
def test_an_adapter_with_added_tokens_loads_as_it_was(
    settings: Any, tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any
) -> None:
    folder, expected = adapter(tmp_path / "more", tiny_folder, tiny_tokenizer, **settings)
    subject = models.load(str(folder))
    with torch.no_grad():
        logits = subject.model(input_ids=torch.tensor([[5, 320, 6, 322, 7]])).logits
    torch.testing.assert_close(logits, expected)
    assert len(subject.tokenizer) == 323
    models.load(str(folder), trainable=True)


def test_added_tokens_without_weights_are_said(
    tmp_path: Path, tiny_adapter: Path, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_tokenizer.add_tokens(MORE, special_tokens=True)
    tiny_tokenizer.save_pretrained(tiny_adapter)
    with caplog.at_level(logging.WARNING, logger="tokendeep"):
        subject = models.load(str(tiny_adapter))
    assert "adds 3 tokens to its base but has no weights for them" in caplog.text
    rows = subject.model.get_input_embeddings().weight
    torch.testing.assert_close(rows[321], rows[:320].mean(0))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert subject.model(input_ids=ids).logits.shape[-1] == 323


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_an_adapter_that_trains_biases_is_not_its_base_when_off(bias: Any, tiny_model: Any) -> None:
    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"], bias=bias))
    with (
        pytest.raises(InputError, match=f"bias='{bias}' trains biases beneath .*: give the model"),
        models.reference(model),
    ):
        pass


def test_weights_that_do_not_fit_are_named(tiny_folder: Path) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    (tiny_folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(InputError, match=r"mlp\.\w+_proj\.weight is \(\d+, \d+\) in its weights but \(\d+, \d+\) by"):
        models.load(str(tiny_folder))


def test_an_error_of_several_lines_keeps_the_one_that_tells(tiny_adapter: Path) -> None:
    path = tiny_adapter / "adapter_model.safetensors"
    tensors = {name: torch.zeros(3, 5) if "lora_A" in name else value for name, value in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(InputError, match="size mismatch for .*lora_A"):
        models.load(str(tiny_adapter))


def test_a_model_is_known_by_its_hub_id(tmp_path: Path, tiny_adapter: Path, tiny_folder: Path) -> None:
    assert hub_id("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub_id("owner/name@v2") == "owner/name"
    assert hub_id(str(tiny_folder)) is None
    assert hub_id(str(tiny_adapter)) is None
    (tiny_folder / "README.md").write_text("---\nbase_model: owner/name\n---\nA model.\n")
    assert hub_id(str(tiny_adapter)) == "owner/name"
    settings = json.loads((tiny_adapter / "adapter_config.json").read_text())
    for name, known in {"owner/other": "owner/other", "/nowhere/model": None, "": None}.items():
        (tiny_adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": name}))
        assert hub_id(str(tiny_adapter)) == known
