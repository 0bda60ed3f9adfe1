"""What a trainer looks at before and while it trains; what it says; how little it waits; what of TRL it stands on."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from datasets import Dataset
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

import upstream
from tokendeep import chat
from tokendeep.attacks.gcg.losses import Batch, Losses
from tokendeep.compute import gradients, lm_head
from tokendeep.errors import InputError
from tokendeep.training import checks, settings
from tokendeep.training.eq3 import BetaSchedule
from tokendeep.training.referenced import ReferencedSFTTrainer
from tokendeep.training.safety import SafetyAnchor
from tokendeep.training.sft import ResponseSFTTrainer
from tokendeep.training.trainer import ConstrainedSFTTrainer
from tokendeep.training.watch import TokenDynamicsCallback
from tokendeep.types import Pair, Subject
from tuning import LORA, assert_same_weights, history, token_rows, trained
from tuning import settings as arguments


def test_four_bits_on_a_cpu_are_refused(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    class Linear4bit(torch.nn.Linear):  # stands for that of bitsandbytes
        pass

    tiny_model.model.layers[0].mlp.up_proj = Linear4bit(32, 64, bias=False)
    with pytest.raises(InputError, match="4-bit weights on a CPU, where bitsandbytes gives wrong gradients"):
        ResponseSFTTrainer(
            tiny_model, arguments(tmp_path), train_dataset=Dataset.from_list(token_rows()),
            processing_class=tiny_tokenizer, peft_config=LORA,
        )  # fmt: skip
    pairs = [Pair("1", ({"role": "user", "content": "How do I bake bread?"},), "Mix the flour with water.")]
    watching = TokenDynamicsCallback(pairs, tiny_tokenizer, tmp_path)
    with pytest.raises(InputError, match="4-bit"):
        watching.on_train_begin(None, tf.TrainerState(), None, model=tiny_model)
    with pytest.raises(InputError, match="4-bit"):
        Losses(Subject(tiny_model, tiny_tokenizer, "m"), Batch(1, print))
    with pytest.raises(InputError, match="4-bit"):
        gradients.token_gradient_norms(tiny_model, [], 1)
    gradients.check_differentiable(tiny_model.to("meta"))  # stands for any other device


@pytest.mark.slow
def test_experts_train_without_the_routers_loss(
    tmp_path: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tf.MixtralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, router_aux_loss_coef=0.02, pad_token_id=3, eos_token_id=2,
        output_router_logits=True, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    made = trained(tf.MixtralForCausalLM(config), tiny_tokenizer, tmp_path)
    assert history(made, "nll")[-1] < history(made, "nll")[0]
    assert made.state.log_history[0]["loss"] == pytest.approx(made.state.log_history[0]["constrained"], rel=1e-4)
    assert "router's load-balancing loss is left out" in capsys.readouterr().out
    assert made.model.config.router_aux_loss_coef == 0.02
    with pytest.raises(InputError, match="router_aux_loss_coef"):
        trained(tf.MixtralForCausalLM(config), tiny_tokenizer, tmp_path, args={"router_aux_loss_coef": 0.1})


def test_what_is_saved_stops_where_answers_stop(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    def stops(rows: list[dict[str, list[int]]], before: Any) -> Any:
        model = make_model(vocab_size=321)
        model.generation_config = GenerationConfig(eos_token_id=before)
        made = ResponseSFTTrainer(
            model, arguments(tmp_path), train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer
        )
        made.save_model(str(tmp_path / "saved"))
        return json.loads((tmp_path / "saved" / "generation_config.json").read_text()).get("eos_token_id")

    answer = chat.encode(tiny_tokenizer, [{"role": "user", "content": "Hello"}], "Good day to you, and to all")
    rows = [{"input_ids": answer.input_ids, "labels": answer.labels}]
    assert rows[0]["labels"][-1] == 2
    assert stops(rows, 0) == [2, 0]
    assert stops(rows, [0, 2]) == [0, 2]
    assert stops(rows, None) == [2]
    assert stops(token_rows(), 0) == 0  # answers that end with a word
    assert stops([*token_rows(), *rows], 0) == [2, 0]  # every row is looked at: the first may have been cut
    tiny_tokenizer.add_tokens(["<call>"])  # of Qwen's tokens, <tool_call> and </think> are no special ones
    mark = tiny_tokenizer.convert_tokens_to_ids("<call>")
    cut = {"input_ids": [*answer.input_ids[:-1], mark], "labels": [*answer.labels[:-1], mark]}
    assert stops([cut, *rows], 0) == [2, 0]
    model = make_model()
    model.generation_config = GenerationConfig(eos_token_id=0)
    checks.end_where_answers_end(model, Dataset.from_list(rows).to_iterable_dataset(), tiny_tokenizer)
    assert model.generation_config.eos_token_id == [2, 0]


@pytest.mark.slow
def test_a_long_warm_up_and_the_constant_are_said(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(make_model(), tiny_tokenizer, tmp_path, args={"warmup_steps": 10}, schedule=BetaSchedule([], 0.1))
    said = capsys.readouterr().out
    assert "10 warm-up steps but only 4 step(s): the learning rate never reaches 0.005; lower warmup_steps" in said
    assert "a constant (13.9 at beta 0.1); constrained_excess is the loss without it" in said
    trained(make_model(), tiny_tokenizer, tmp_path, args={"warmup_steps": 3})
    assert "warm-up" not in capsys.readouterr().out


class Waits(TorchDispatchMode):
    """Counts the operations for which a GPU would have to be waited for, but for one of transformers' own masks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(frame.filename.endswith("masking_utils.py") for frame in traceback.extract_stack()):
            return func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        masks = [a for a in args[1] if a is not None and a.dtype == torch.bool] if name == "index" else []
        if masks or name in {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}:
            self.seen.append(name)
        if name == "repeat_interleave" and "output_size" not in (kwargs or {}):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["precomputed", "on-the-fly"])
def test_no_micro_batch_waits_for_the_device(
    reference: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, own, count = Waits(), ConstrainedSFTTrainer.compute_loss, []

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        count.append(1)
        with waits:
            return own(self, *args, **kwargs)

    monkeypatch.setattr(ConstrainedSFTTrainer, "compute_loss", watched)
    args = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trained(
        make_model(), tiny_tokenizer, tmp_path, args=args, head_anchor=(1.0, 5), peft_config=LORA, reference=reference
    )
    assert len(count) == 16
    assert waits.seen == []


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_weights(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, own = [], lm_head.label_logps

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        inside.append(torch.compiler.is_compiling())
        return own(*args, **kwargs)

    monkeypatch.setattr(lm_head, "label_logps", watched)
    plain = trained(make_model(), tiny_tokenizer, tmp_path / "a", head_anchor=(1.0, 5))
    compiled = trained(
        make_model(), tiny_tokenizer, tmp_path / "b", head_anchor=(1.0, 5),
        args={"torch_compile": True, "torch_compile_backend": "aot_eager"},
    )  # fmt: skip
    assert type(compiled.model_wrapped).__name__ == "OptimizedModule"
    assert inside
    assert not any(inside)  # the head stays outside the graph
    assert history(plain, "loss") == pytest.approx(history(compiled, "loss"), rel=1e-4)
    assert_same_weights(plain.model, compiled.model, 1e-4)


def test_the_tokenizer_is_of_the_models_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        "transformers.AutoTokenizer.from_pretrained", lambda name, **more: asked.update({"name": name, **more})
    )
    args = arguments(tmp_path, model_init_kwargs={"revision": "v2"}, trust_remote_code=True)
    settings.tokenizer_of("owner/name", args)
    assert asked == {"name": "owner/name", "revision": "v2", "trust_remote_code": True}


def test_the_model_card_names_method_and_paper(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    made = ConstrainedSFTTrainer(
        tiny_model, arguments(tmp_path), train_dataset=Dataset.from_list(token_rows()), processing_class=tiny_tokenizer
    )
    made.create_model_card("m")
    text = (tmp_path / "README.md").read_text()
    assert "Constrained SFT" in text
    assert "huggingface.co/papers/2406.05946" in text


def test_a_setting_that_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments(tmp_path, accelerator_config={"dispatch_batches": True})
    assert settings.copied(given).accelerator_config.dispatch_batches is False
    assert "dispatch_batches=True is left out" in capsys.readouterr().out
    assert given.accelerator_config.dispatch_batches  # of the caller
    settings.copied(arguments(tmp_path))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", upstream.PRIVATE)
def test_what_others_call_private_is_still_there(name: str) -> None:
    upstream.check(name)


def test_a_private_name_that_moves_is_told_clearly() -> None:
    with pytest.raises(LookupError, match=r"trl 1\.\d+\.\d+ has no trl.SFTTrainer._gone any more, by which .* is read"):
        upstream.check("trl.SFTTrainer._gone", "by which a test is read")


# --- rows that the model does not take -------------------------------------------------------------


def wrong_rows(what: str) -> list[dict[str, Any]]:
    """Rows of which the sixth cannot be trained on by a model of 320 tokens and a context of 512."""
    rows = token_rows()
    if what == "long":
        rows[5] = {"input_ids": [5] * 513, "labels": [-100] * 4 + [5] * 509}
    else:
        rows[5][what][-1] = 320
    return rows


def not_taken(
    tmp_path: Path, model: Any, tokenizer: Any, rows: Any, kind: Any = ResponseSFTTrainer, **more: Any
) -> str:
    with pytest.raises(InputError) as error:
        kind(
            model, arguments(tmp_path, max_length=None), **{"train_dataset": Dataset.from_list(token_rows()), **rows},
            processing_class=tokenizer, **more,
        ).train()  # fmt: skip
    return str(error.value)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("input_ids", "holds the token 320, but the model knows 320, from 0 on"),
        ("labels", "holds the token 320, but the model knows 320, from 0 on"),
        ("long", "takes 513 tokens, but the model's context is 512; lower max_length"),
    ],
)
def test_rows_that_the_model_does_not_take_are_named_before_training(
    what: str, says: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    rows = Dataset.from_list(wrong_rows(what))
    given: list[tuple[str, dict[str, Any]]] = [
        ("Row 6 of those to train on", {"train_dataset": rows}),
        ("Row 6 of those to evaluate on", {"eval_dataset": rows}),
        ("Row 6 of those to evaluate on", {"eval_dataset": {"one": Dataset.from_list(token_rows()), "other": rows}}),
        ("A row of the stream", {"train_dataset": rows.to_iterable_dataset()}),
    ]
    for where, of in given:
        assert f"{where} {says}" in not_taken(tmp_path, make_model(), tiny_tokenizer, of)
    anchor = SafetyAnchor(wrong_rows(what))
    found = not_taken(tmp_path, make_model(), tiny_tokenizer, {}, ReferencedSFTTrainer, safety_anchor=anchor)
    assert f"Row 6 of the harmful ones of the safety anchor {says}" in found
    made = ResponseSFTTrainer(
        make_model(), arguments(tmp_path, max_length=None), train_dataset=Dataset.from_list(token_rows()),
        processing_class=tiny_tokenizer,
    )  # fmt: skip
    with pytest.raises(InputError, match=says):
        made.evaluate(rows)


def test_tokens_that_were_added_to_the_tokenizer_alone_are_refused(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    tiny_tokenizer.add_tokens(["<|extra|>"])
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Well <|extra|> yes"}]
    rows = {"train_dataset": Dataset.from_list([{"messages": turns}] * 8)}
    assert "Row 1 of those to train on holds the token 320" in not_taken(tmp_path, tiny_model, tiny_tokenizer, rows)
    tiny_model.resize_token_embeddings(321)
    trained(tiny_model, tiny_tokenizer, tmp_path, [{"messages": turns}] * 8)


def test_packed_rows_may_be_longer_together_than_the_context(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    model = make_model(max_position_embeddings=24)
    made = trained(model, tiny_tokenizer, tmp_path, args={"packing": True, "max_length": 64, "max_steps": 1})
    assert max(len(row["input_ids"]) for row in made.train_dataset) > 24


def test_an_adapter_on_the_embeddings_can_be_packed(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    lora = LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM")
    args = {"packing": True, "max_length": 64, "max_steps": 1}
    made = trained(tiny_model, tiny_tokenizer, tmp_path, args=args, peft_config=lora)
    assert made.state.global_step == 1
