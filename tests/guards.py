"""Shared by tests of classifiers: tiny models that write what a table says, and tokenizers with their words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from conftest import build_tokenizer, chatml
from tokendeep.types import Subject

KINDS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "gemma": (GemmaConfig, GemmaForCausalLM),
}
Table = Mapping[str, Mapping[str, float]]  # last token -> what may follow -> its logit; "" is any other token


def tokenizer(words: Sequence[str] = (), kind: str = "llama", template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that adds a BOS, with these words as tokens of their own."""
    made = build_tokenizer(
        kind, control=["<s>", "</s>"], bos="<s>", eos="</s>", template=template or chatml(), adds_bos=True
    )
    made.add_tokens(list(words))
    return made


def scripted(tokens: PreTrainedTokenizerFast, table: Table, kind: str = "llama", context: int = 4096) -> Any:
    """A model whose logits hang on the last token alone: embeddings are unit vectors, attention and MLP write nothing."""
    size = len(tokens)
    config, model_class = KINDS[kind]
    made = config(
        vocab_size=size,
        hidden_size=size + size % 2,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=None,
    )
    model = model_class(made).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()[:, :size] = torch.eye(size)
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        head = model.lm_head.weight.zero_()
        for last, logits in table.items():
            column = slice(None) if not last else tokens.convert_tokens_to_ids(last)
            head[:, column] = 0
            for word, logit in logits.items():
                head[tokens.convert_tokens_to_ids(word), column] = logit / math.sqrt(made.hidden_size)
    return model


def subject(tokens: PreTrainedTokenizerFast, table: Table, kind: str = "llama", context: int = 4096) -> Subject:
    return Subject(scripted(tokens, table, kind, context), tokens, "tiny guard")


def classifier(
    folder: Path, labels: tuple[str, ...] = ("NORMAL", "REJECTION"), positions: int = 40, **more: Any
) -> str:
    """A BERT of random weights; `bias` makes one label the likeliest."""
    tokens = build_tokenizer("wordpiece", control=["[CLS]", "[SEP]"], bos="[CLS]", eos="[SEP]", template="")
    tokens.pad_token, tokens.model_max_length = "[SEP]", 1000
    settings: dict[str, Any] = {
        "vocab_size": len(tokens), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": positions, "pad_token_id": tokens.pad_token_id,
        "id2label": dict(enumerate(labels)), "initializer_range": 0.5,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(**settings, **more.pop("config", {})))
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor(more.pop("bias", [0.0] * len(labels))))
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return str(folder)
