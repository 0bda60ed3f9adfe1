"""Per-token gradient norms equal those of one backward pass per token, for several architectures and for adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from conftest import SMALL
from tokendeep.compute import gradients
from tokendeep.errors import InputError
from tokendeep.types import IGNORE, Encoded

pytestmark = pytest.mark.slow  # a model runs in nearly every test


def encoded(seed: int = 0) -> list[Encoded]:
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for prompt, answer in ((4, 6), (3, 2), (6, 9)):
        ids = torch.randint(4, 40, (prompt + answer,), generator=draw).tolist()  # few tokens: many stand twice in a row
        rows.append(Encoded(ids, [IGNORE] * prompt + ids[prompt:]))
    return rows


def qwen() -> Any:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, tie_word_embeddings=False)  # biases in attention, a head of its own
    ).eval()  # fmt: skip


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2)).eval()


def assert_same(model: Any, positions: int = 7) -> None:
    ours = gradients.token_gradient_norms(model, encoded(), positions, batch_size=5)
    plain = gradients.plain_gradient_norms(model, encoded(), positions)
    assert [len(values) for values in ours] == [6, 2, 7]
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_llama_whose_head_and_embedding_are_one(tiny_model: Any) -> None:
    assert tiny_model.lm_head.weight is tiny_model.model.embed_tokens.weight
    assert_same(tiny_model)


def test_a_llama_with_a_head_of_its_own(make_model: Callable[..., Any]) -> None:
    assert_same(make_model(tie_word_embeddings=False))


def test_a_qwen_with_biases() -> None:
    assert_same(qwen())


def test_a_gemma_that_scales_its_embedding_and_caps_its_logits() -> None:
    torch.manual_seed(0)
    settings = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=4,
        num_key_value_heads=2, final_logit_softcapping=5.0, pad_token_id=0,
    )  # fmt: skip
    assert_same(Gemma2ForCausalLM(settings).eval())


def test_a_row_that_holds_the_padding_token(make_model: Callable[..., Any]) -> None:
    ids = [*encoded()[0].input_ids[:3], 7, *encoded()[0].input_ids[4:]]
    row = Encoded(ids, [IGNORE] * 4 + ids[4:])
    for tied in (True, False):
        model = make_model(pad_token_id=7, tie_word_embeddings=tied)
        assert model.model.embed_tokens.padding_idx == 7
        (ours,), (plain,) = (
            gradients.token_gradient_norms(model, [row], 4),
            gradients.plain_gradient_norms(model, [row], 4),
        )
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_a_head_that_is_trained_beside_an_adapter(make_model: Callable[..., Any]) -> None:
    model = make_model(tie_word_embeddings=False)
    lora = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    assert_same(get_peft_model(model, lora))


def test_what_the_quick_way_does_not_count_is_refused_and_then_done_plainly(
    tiny_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="wpe"):
        gradients.token_gradient_norms(gpt2(), encoded(), 3)
    lora = LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], init_lora_weights=False)
    with pytest.raises(InputError, match="embed"):
        gradients.token_gradient_norms(get_peft_model(tiny_model, lora), encoded(), 3)
    assert gradients.exact_gradient_norms(gpt2(), encoded(), 3) is gradients.plain_gradient_norms
    assert "one backward pass per token" in capsys.readouterr().out


def test_the_quick_way_is_taken_where_it_is_right(tiny_model: Any) -> None:
    assert gradients.exact_gradient_norms(tiny_model, encoded(), 3) is gradients.token_gradient_norms


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("GptOssConfig", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),  # attention by keywords
        ("DiffLlamaConfig", {}),
        ("DeepseekV3Config", {
            "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
            "moe_intermediate_size": 16, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8,
            "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
        }),
    ],
)  # fmt: skip
def test_whatever_the_quick_way_fails_on_takes_the_slow_one(name: str, more: dict[str, Any], capsys: Any) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**SMALL, "num_key_value_heads": 2, "initializer_range": 0.2, **more})
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    trained = [p.requires_grad for p in model.parameters()]
    assert gradients.exact_gradient_norms(model, encoded(), 3) is gradients.plain_gradient_norms
    assert "one backward pass per token" in capsys.readouterr().out
    assert [p.requires_grad for p in model.parameters()] == trained
    assert not any(module._forward_hooks for module in model.modules())


def test_an_xlstm_whose_cache_is_of_another_shape_than_its_states() -> None:
    torch.manual_seed(0)
    config = transformers.xLSTMConfig(
        vocab_size=64, hidden_size=16, embedding_dim=16, num_hidden_layers=2, num_blocks=2, num_heads=2, chunk_size=4
    )
    model = transformers.xLSTMForCausalLM(config).eval()
    assert_same(model)
    assert gradients.exact_gradient_norms(model, encoded(), 3) is gradients.token_gradient_norms


def test_a_gpt2_with_modules_of_another_kind() -> None:
    model = gpt2()
    for parameter in model.transformer.wpe.parameters():  # its position table is shared by all rows of a batch
        parameter.requires_grad_(False)
    assert_same(model)


def test_only_what_trains_is_counted(tiny_model: Any) -> None:
    for name, parameter in tiny_model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    assert_same(tiny_model)
    adapted = get_peft_model(tiny_model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    assert_same(adapted)


def test_the_model_is_left_as_it_was(tiny_model: Any) -> None:
    tiny_model.train()
    before = [p.requires_grad for p in tiny_model.parameters()]
    gradients.token_gradient_norms(tiny_model, encoded(), 3)
    assert tiny_model.training
    assert [p.requires_grad for p in tiny_model.parameters()] == before
    assert all(p.grad is None for p in tiny_model.parameters())
    assert not any(m._forward_hooks for m in tiny_model.modules())


def test_a_model_without_trained_weights_is_refused(tiny_model: Any) -> None:
    tiny_model.requires_grad_(False)
    with pytest.raises(InputError, match="No weight is trained"):
        gradients.token_gradient_norms(tiny_model, encoded(), 3)
