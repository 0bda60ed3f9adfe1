"""The head on chosen positions equals the model's own logits, for architectures that do different things after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

from tokendeep.compute import lm_head
from tokendeep.types import IGNORE

V = 97
SMALL: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS = {"head_dim": 8}
CONFIGS: dict[str, Any] = {
    "llama": tf.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "gpt2": tf.GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gemma2 (soft cap)": tf.Gemma2Config(**SMALL, **HEADS, final_logit_softcapping=2.0, sliding_window=8),
    "gemma3": tf.Gemma3TextConfig(**SMALL, **HEADS, sliding_window=8),
    "cohere (logit scale)": tf.CohereConfig(**SMALL, logit_scale=0.25),
    "granite (divided logits)": tf.GraniteConfig(**SMALL, logits_scaling=8.0),
    "qwen3": tf.Qwen3Config(**SMALL, **HEADS),
    "mistral": tf.MistralConfig(**SMALL, sliding_window=8),
    "phi (biased head)": tf.PhiConfig(**{**SMALL, "num_key_value_heads": 4}),
    "opt": tf.OPTConfig(vocab_size=V, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                        max_position_embeddings=64, word_embed_proj_dim=16),
    "gpt-neox": tf.GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
    "mixtral (experts)": tf.MixtralConfig(**SMALL, num_local_experts=4, output_router_logits=True),
    "falcon": tf.FalconConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "llama4 (a base of another name)": tf.Llama4TextConfig(**SMALL, **HEADS, intermediate_size_mlp=48, num_local_experts=2),
    "mamba": tf.MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=4),
}  # fmt: skip


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name]).float().eval()
    for parameter in model.parameters():  # far from the flat distribution of an untrained model
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch(rows: int = 3, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, V, (rows, length))
    labels = ids.clone()
    labels[:, :5] = IGNORE
    labels[1, 9:] = IGNORE
    return ids, labels


@pytest.mark.parametrize("name", CONFIGS)
def test_projected_rows_equal_the_models_own_logits(name: str) -> None:
    model = tiny(name)
    ids, _ = batch()
    with torch.no_grad():
        own = model(input_ids=ids).logits.float()
        states = lm_head.hidden_states(model, ids)
        ours = lm_head.project(model, states.flatten(0, 1)).view_as(own)
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_label_logps_and_their_gradient_equal_the_plain_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(name)
    ids, labels = batch()

    def gradient(logps: torch.Tensor) -> list[torch.Tensor]:
        weights = torch.linspace(0.1, 1.0, len(logps))
        model.zero_grad()
        (-(weights * logps).sum()).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    logits = model(input_ids=ids).logits.float()[:, :-1]
    mask = labels[:, 1:] != IGNORE
    plain = logits.log_softmax(-1)[mask].gather(-1, labels[:, 1:][mask][:, None])[:, 0]
    expected = gradient(plain)
    lm_head.add_supervised_forward(model)
    monkeypatch.setattr(lm_head, "chunk_rows", lambda model: 4)  # several chunks, each recomputed in the backward pass
    ours = model(input_ids=ids, labels=labels, supervised=True).logps
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    for left, right in zip(gradient(ours), expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # without the flag, the forward is what it was
        torch.testing.assert_close(model(input_ids=ids).logits.float()[:, :-1], logits)


def test_no_more_than_a_chunk_of_logits_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = tiny("llama"), []
    own = lm_head.project
    monkeypatch.setattr(lm_head, "project", lambda m, h: sizes.append(len(h)) or own(m, h))
    monkeypatch.setattr(lm_head, "CHUNK_BYTES", 16 * 4 * V)
    states = torch.randn(50, 32)
    with torch.no_grad():
        lm_head.label_logps(model, states, torch.randint(0, V, (50,)))
    assert sizes == [16, 16, 16, 2]


def test_an_adapter_is_part_of_the_states() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny("llama")
    ids, _ = batch()
    with torch.no_grad():
        before = lm_head.hidden_states(model, ids)
        wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        adapted = lm_head.hidden_states(wrapped, ids)
        assert not torch.allclose(before, adapted)
        torch.testing.assert_close(lm_head.project(wrapped, adapted[0]), wrapped(input_ids=ids).logits[0])
        with wrapped.disable_adapter():
            torch.testing.assert_close(lm_head.hidden_states(wrapped, ids), before)


def test_a_failing_head_leaves_the_decoder_as_it_was() -> None:
    model = tiny("llama")
    ids, _ = batch()
    before = model(input_ids=ids).logits
    with pytest.raises(RuntimeError):
        lm_head.project(model, torch.randn(3, 31))
    torch.testing.assert_close(model(input_ids=ids).logits, before)
