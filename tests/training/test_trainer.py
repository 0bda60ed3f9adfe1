"""ConstrainedSFTTrainer: its loss against one written out by hand, and the equivalences that make it trustworthy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import LlamaForCausalLM, TrainerCallback
from trl import SFTTrainer

from tokendeep import chat, models
from tokendeep.errors import InputError
from tokendeep.training import eq3, launch, reference_pass
from tokendeep.training.eq3 import BetaSchedule
from tokendeep.training.settings import ConstrainedSFTConfig
from tokendeep.training.sft import ResponseSFTTrainer
from tokendeep.training.trainer import ConstrainedSFTTrainer
from tokendeep.types import IGNORE
from tuning import (
    LORA,
    PAPER,
    Kill,
    Killed,
    assert_same_weights,
    by_hand,
    history,
    settings,
    token_rows,
    trained,
    two_processes,
)

pytestmark = pytest.mark.slow  # trains in nearly every test


@pytest.mark.parametrize("anchor", [0.0, 0.7])
def test_two_steps_equal_training_by_hand(
    anchor: float, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    rows = token_rows()
    made = trained(
        make_model(), tiny_tokenizer, tmp_path, args={"max_steps": 2, "max_grad_norm": 0, "lr_scheduler_type": "constant"},
        head_anchor=(anchor, 5),
    )  # fmt: skip
    plain, ref = make_model().train(), make_model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=5e-3, weight_decay=0.0)
    losses = []
    for _ in range(2):
        loss = by_hand(plain, ref, rows, PAPER, 0.1, anchor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert history(made, "loss") == pytest.approx(losses, rel=1e-4)
    assert_same_weights(made.model, plain, 1e-4)


def test_what_is_logged_starts_at_the_reference(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    made = trained(tiny_model, tiny_tokenizer, tmp_path, head_anchor=(1.0, 5))
    first, last = made.state.log_history[0], made.state.log_history[-2]
    for span in ("1", "2_5", "later"):
        assert first[f"weight_{span}"] == pytest.approx(1, abs=1e-4)
        assert first[f"log_ratio_{span}"] == pytest.approx(0, abs=1e-4)
        assert last[f"log_ratio_{span}"] > 0.01
        assert last[f"weight_{span}"] < 1
    assert first["constrained_excess"] == pytest.approx(0, abs=1e-4)
    assert first["anchor_kl"] == pytest.approx(0, abs=1e-4)
    assert first["stopped"] == 0
    assert last["constrained_excess"] < -0.01
    assert last["nll"] < first["nll"]
    assert 0 < first["entropy"] < 6.3
    assert first["loss"] == pytest.approx(first["constrained"] + first["anchor_kl"], abs=1e-3)


def test_nll_entropy_and_accuracy_are_those_of_full_logits(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    made = trained(make_model(), tiny_tokenizer, tmp_path, args={"max_steps": 1})
    nlls, entropies, hits = [], [], []
    for row in token_rows():
        with torch.no_grad():
            logps = make_model()(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for place, label in enumerate(row["labels"]):
            if label != IGNORE:
                nlls.append(-logps[place - 1, label].item())
                entropies.append(-(logps[place - 1].exp() * logps[place - 1]).sum().item())
                hits.append(logps[place - 1].argmax().item() == label)
    first = made.state.log_history[0]
    assert first["nll"] == pytest.approx(sum(nlls) / len(nlls), rel=1e-5)
    assert first["entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    assert first["mean_token_accuracy"] == pytest.approx(sum(hits) / len(hits), abs=1e-6)


# --- equivalences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("anchor", [0.0, 1.0])
def test_accumulation_changes_nothing(
    anchor: float, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    whole = trained(make_model(), tiny_tokenizer, tmp_path / "a", head_anchor=(anchor, 5))
    cut = trained(
        make_model(), tiny_tokenizer, tmp_path / "b", head_anchor=(anchor, 5),
        args={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    )  # fmt: skip
    assert history(whole, "loss") == pytest.approx(history(cut, "loss"), rel=1e-4)
    assert history(whole, "nll") == pytest.approx(history(cut, "nll"), rel=1e-4)
    assert_same_weights(whole.model, cut.model, 1e-4)


@pytest.mark.parametrize("reference", ["precomputed", "on-the-fly"])
def test_packed_equals_padded(
    reference: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    more: dict[str, Any] = {"peft_config": LORA, "reference": reference, "head_anchor": (1.0, 5)}
    padded = trained(make_model(), tiny_tokenizer, tmp_path / "a", args={"max_steps": 2}, **more)
    packed = trained(
        make_model(), tiny_tokenizer, tmp_path / "b", **more,
        args={"max_steps": 2, "packing": True, "max_length": 32, "per_device_train_batch_size": 16},
    )  # fmt: skip
    assert len(packed.train_dataset) < len(padded.train_dataset)
    assert history(padded, "loss") == pytest.approx(history(packed, "loss"), rel=1e-4)
    assert history(padded, "weight_1") == pytest.approx(history(packed, "weight_1"), rel=1e-4)
    assert_same_weights(padded.model, packed.model, 1e-4)


def test_precomputed_equals_on_the_fly_and_a_real_copy(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    more: dict[str, Any] = {"peft_config": LORA, "head_anchor": (0.5, 3), "args": {"lr_scheduler_type": "constant"}}
    before = trained(make_model(), tiny_tokenizer, tmp_path / "a", **more)
    beside = trained(make_model(), tiny_tokenizer, tmp_path / "b", reference="on-the-fly", **more)
    assert history(before, "loss") == pytest.approx(history(beside, "loss"), rel=1e-5)
    assert_same_weights(before.model, beside.model, 1e-5)
    last = by_hand(before.model.eval(), make_model(), token_rows(), PAPER, 0.1)
    found = before.evaluate(Dataset.from_list(token_rows()))
    assert found["eval_constrained"] == pytest.approx(last.item(), rel=1e-4)


@pytest.mark.parametrize("reference", ["precomputed", "on-the-fly"])
def test_a_continued_adapter_is_compared_with_itself_as_it_was(
    reference: str, tmp_path: Path, tiny_folder: Path, tiny_adapter: Path, tiny_tokenizer: Any
) -> None:
    def adapted() -> Any:
        base = LlamaForCausalLM.from_pretrained(tiny_folder)
        return PeftModel.from_pretrained(base, str(tiny_adapter), is_trainable=True)

    made = trained(adapted(), tiny_tokenizer, tmp_path / "a", reference=reference)
    first = made.state.log_history[0]
    assert first["log_ratio_1"] == pytest.approx(0, abs=1e-5)
    expected = by_hand(made.model.eval(), adapted(), token_rows(), PAPER, 0.1).item()
    assert made.evaluate(Dataset.from_list(token_rows()))["eval_constrained"] == pytest.approx(expected, rel=1e-4)
    moved = dict(made.model.named_parameters())[
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    ]
    start = dict(adapted().named_parameters())["base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"]
    assert not torch.equal(moved, start)


@pytest.mark.parametrize("peft", [None, LORA])
def test_resumed_equals_uninterrupted(
    peft: Any, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = {"per_device_train_batch_size": 4, "max_steps": 6}
    more: dict[str, Any] = {"peft_config": peft, "head_anchor": (1.0, 5)}
    whole = trained(make_model(), tiny_tokenizer, tmp_path / "a", args=args, **more)
    args |= {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(Killed):
        trained(make_model(), tiny_tokenizer, tmp_path / "b", args=args, callbacks=[Kill()], **more)
    second = ConstrainedSFTTrainer(
        make_model(), settings(tmp_path / "b", **args), train_dataset=Dataset.from_list(token_rows()),
        processing_class=tiny_tokenizer, **more,
    )  # fmt: skip
    monkeypatch.setattr(reference_pass, "compute", None)  # the stored one is used
    second.train(resume_from_checkpoint=True)
    assert history(whole, "loss") == pytest.approx(history(second, "loss"), rel=1e-5)
    assert_same_weights(whole.model, second.model, 1e-6)


def test_resuming_without_the_stored_reference_is_refused(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    args = {"save_strategy": "steps", "save_steps": 2}
    trained(make_model(), tiny_tokenizer, tmp_path, args=args)
    for file in tmp_path.rglob("reference-*"):
        file.unlink()
    again = ConstrainedSFTTrainer(
        make_model(), settings(tmp_path, **args), train_dataset=Dataset.from_list(token_rows()),
        processing_class=tiny_tokenizer,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"reference of this run is not in .* trained for 4 steps"):
        again.train(resume_from_checkpoint=True)


def test_the_reference_is_kept_and_another_ones_is_not_used(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    one = trained(make_model(), tiny_tokenizer, tmp_path)
    (kept,) = tmp_path.rglob("reference-*.safetensors")
    stamp = kept.stat().st_mtime_ns
    two = trained(make_model(), tiny_tokenizer, tmp_path)
    assert kept.stat().st_mtime_ns == stamp
    assert history(one, "loss") == history(two, "loss")
    assert "another model" not in capsys.readouterr().out
    other = trained(make_model(seed=5), tiny_tokenizer, tmp_path)
    assert "another model or other rows" in capsys.readouterr().out
    assert other.state.log_history[0]["log_ratio_1"] == pytest.approx(0, abs=1e-5)
    assert len(list(tmp_path.rglob("reference-*.safetensors"))) == 2


TWO = """
import os, pytest, sys, json, torch
if "shards" in sys.argv[4]:  # accelerate shards on GPUs only, torch anywhere: what it asks for is a kind of process group
    from accelerate import state
    from accelerate.utils import DistributedType
    begin = state.PartialState.__init__
    def shard(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU
    state.PartialState.__init__ = shard
from pathlib import Path
from datasets import Dataset
from tuning import *
from tokendeep.errors import InputError
from tokendeep.training import launch
from tokendeep.types import Subject
from transformers import AutoTokenizer
spared = sys.argv[4].startswith("spared")
model = models.load(sys.argv[1], trainable=True, dtype="float32", device="cpu", needs_template=False).model
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
if spared and int(os.environ["RANK"]):  # it is not read here, and must not be run before it is sent
    with pytest.raises(InputError, match="fsdp_cpu_ram_efficient_loading"):
        model(torch.tensor([[1]]))
    with torch.no_grad():
        for weights in model.parameters():
            weights.fill_(7.0)
bf16 = sys.argv[4].startswith("bf16")
made = trained(model, tokenizer, Path(sys.argv[2]),
               args={"per_device_train_batch_size": 4, "max_steps": 3, "bf16": bf16},
               head_anchor=(1.0, 5), peft_config=LORA if sys.argv[3] == "lora" else None,
               reference="on-the-fly" if sys.argv[3] == "lora" else "precomputed")
found = made.evaluate(Dataset.from_list(token_rows(5, seed=9))) if sys.argv[3] == "lora" else {}
assert made.args.world_size == 2
shards = {type(weights).__name__ for weights in made.model.parameters()}
if bf16 and sys.argv[3] == "full":  # not rounded on the way out of the model
    stored = torch.cat([logps for logps, _ in made._collator.references.values()])
    assert stored.dtype == torch.float32 and (stored.bfloat16().float() != stored).float().mean() > 0.9
assert ("DTensor" in shards) == ("shards" in sys.argv[4]), shards
out = Path(sys.argv[2] + "-saved")
launch.save(made, Subject(made.model, tokenizer, "tiny"), out)
if made.is_world_process_zero():
    (out / "log.json").write_text(json.dumps([made.state.log_history, found]))
"""
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["whole", "shards", "spared shards", "bf16 shards"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_processes_equal_one(
    kind: str, weights: str, tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any
) -> None:
    two_processes(
        TWO, tmp_path, tiny_folder, tmp_path / "two", kind, weights,
        ACCELERATE_MIXED_PRECISION="bf16" if weights.startswith("bf16") else "no", **(FSDP2 if "shards" in weights else {}),
        FSDP_CPU_RAM_EFFICIENT_LOADING=str(weights.startswith("spared")).lower(),
    )  # fmt: skip
    saved = tmp_path / "two-saved"
    log, found = json.loads((saved / "log.json").read_text())
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    lora = kind == "lora"
    one = trained(
        model, tiny_tokenizer, tmp_path / "one", args={"max_steps": 3}, head_anchor=(1.0, 5),
        peft_config=LORA if lora else None, reference="on-the-fly" if lora else "precomputed",
    )  # fmt: skip
    rel, most = (0.05, 5e-3) if weights.startswith("bf16") else (2e-4, 1e-5)
    for name in ("loss", "nll", "weight_1", "anchor_kl"):
        theirs = [entry[name] for entry in log if "loss" in entry]
        assert theirs == pytest.approx(history(one, name), rel=rel, abs=most), name
    if lora:
        own = one.evaluate(Dataset.from_list(token_rows(5, seed=9)))
        assert found["eval_nll"] == pytest.approx(own["eval_nll"], rel=rel)
        assert found["eval_loss"] == pytest.approx(own["eval_loss"], rel=rel)
        kept = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_folder), saved)
    else:
        kept = LlamaForCausalLM.from_pretrained(saved)
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[0] - losses[-1] == pytest.approx(history(one, "loss")[0] - history(one, "loss")[-1], rel=0.3)
    if not weights.startswith("bf16"):  # there Adam's first steps turn rounding into whole steps
        assert_same_weights(kept, one.model, 2e-4)


# --- rows --------------------------------------------------------------------------------------------

CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"Say {word}"},
            {"role": "assistant", "content": f"{word} and more words"},
        ]
    }
    for word in ("one", "two", "three", "four")
]


def test_chats_are_encoded_as_everywhere(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    chats = Dataset.from_list(CHATS)
    made = ConstrainedSFTTrainer(
        tiny_model, settings(tmp_path, assistant_only_loss=True), train_dataset=chats, processing_class=tiny_tokenizer
    )
    for row, source in zip(made.train_dataset, CHATS, strict=True):
        expected = chat.encode(tiny_tokenizer, source["messages"][:1], source["messages"][1]["content"])
        assert row["input_ids"] == expected.input_ids
        assert row["labels"] == expected.labels


@pytest.mark.parametrize("kind", ["prompt-completion", "conversations"])
def test_other_shapes_of_a_conversation_give_the_same_rows(
    kind: str, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    turned = [
        {"prompt": c["messages"][:1], "completion": c["messages"][1:]}
        if kind == "prompt-completion"
        else {"conversations": [{"from": "human", "value": c["messages"][0]["content"]},
                                {"from": "gpt", "value": c["messages"][1]["content"]}]}
        for c in CHATS
    ]  # fmt: skip
    one, two = (
        ResponseSFTTrainer(
            tiny_model, settings(tmp_path), train_dataset=Dataset.from_list(r), processing_class=tiny_tokenizer
        ).train_dataset
        for r in (CHATS, turned)
    )
    assert one["input_ids"] == two["input_ids"]
    assert one["labels"] == two["labels"]


def test_all_turns_makes_a_row_of_every_answer(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    turns = [{"messages": [*CHATS[0]["messages"], *CHATS[1]["messages"]]}]
    made = ConstrainedSFTTrainer(
        tiny_model, settings(tmp_path), train_dataset=Dataset.from_list(turns), processing_class=tiny_tokenizer,
        train_on="all_turns",
    )  # fmt: skip
    answers = [[t for t in row["labels"] if t != IGNORE] for row in made.train_dataset]
    assert [tiny_tokenizer.decode(a, skip_special_tokens=True) for a in answers] == [
        "one and more words",
        "two and more words",
    ]


def test_text_prompts_and_completions_train_as_trls(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    """With a vanishing beta the constrained trainer is TRL's own SFTTrainer; without a template texts are plain texts."""
    tiny_tokenizer.chat_template = None
    data = [{"prompt": f"Question {i}: ", "completion": f"the answer is {i} {i}"} for i in range(8)]
    ours = trained(make_model(), tiny_tokenizer, tmp_path / "a", data, schedule=BetaSchedule.uniform(1e-4))
    theirs = SFTTrainer(
        make_model(), settings(tmp_path / "b"), train_dataset=Dataset.from_list(data), processing_class=tiny_tokenizer
    )
    theirs.train()
    assert history(ours, "nll") == pytest.approx(history(theirs, "loss"), rel=1e-3)
    assert history(ours, "entropy") == pytest.approx(history(theirs, "entropy"), rel=1e-3)
    assert_same_weights(ours.model, theirs.model, 1e-3)


def test_a_column_of_betas_takes_the_place_of_the_schedule(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    rows = token_rows()
    schedule = BetaSchedule((0.3, 4.0), 0.7)
    columns = []
    for row in rows:
        positions = eq3.response_positions(torch.tensor([row["labels"]]) != IGNORE)
        columns.append({**row, "betas": schedule(positions)[0].tolist()})
    one = trained(make_model(), tiny_tokenizer, tmp_path / "a", columns)
    two = trained(make_model(), tiny_tokenizer, tmp_path / "b", rows, schedule=schedule)
    assert history(one, "loss") == pytest.approx(history(two, "loss"), rel=1e-6)
    columns[1]["betas"][-1] = 0.0
    with pytest.raises(InputError, match="Row 2: betas"):
        trained(make_model(), tiny_tokenizer, tmp_path / "c", columns)


def test_evaluation_reports_both_losses_over_tokens(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    held_out = token_rows(5, seed=9)
    made = ConstrainedSFTTrainer(
        make_model(), settings(tmp_path, per_device_eval_batch_size=2, eval_strategy="steps", eval_steps=2),
        train_dataset=Dataset.from_list(token_rows()), eval_dataset=Dataset.from_list(held_out),
        processing_class=tiny_tokenizer, head_anchor=(0.5, 5),
    )  # fmt: skip
    made.train()
    found = made.evaluate()
    expected = by_hand(made.model.eval(), make_model(), held_out, PAPER, 0.1, 0.5).item()
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-4)
    evaluations = [entry for entry in made.state.log_history if "eval_nll" in entry]
    assert len(evaluations) == 3
    assert evaluations[-1]["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_the_best_model_is_chosen_by_nll(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    args = settings(
        tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2
    )
    made = ConstrainedSFTTrainer(
        tiny_model, args, train_dataset=Dataset.from_list(token_rows()), processing_class=tiny_tokenizer,
        eval_dataset=Dataset.from_list(token_rows(4, seed=9)),
    )  # fmt: skip
    made.train()
    nlls = [entry["eval_nll"] for entry in made.state.log_history if "eval_nll" in entry]
    assert made.state.best_metric == pytest.approx(min(nlls))
    assert args.metric_for_best_model == "loss"  # the settings given are not changed


def test_gradient_checkpointing_changes_nothing(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    one = trained(make_model(), tiny_tokenizer, tmp_path / "a")
    two = trained(make_model(), tiny_tokenizer, tmp_path / "b", args={"gradient_checkpointing": True})
    assert_same_weights(one.model, two.model, 1e-5)


def test_the_papers_settings_are_the_defaults(tmp_path: Path) -> None:
    args = ConstrainedSFTConfig(str(tmp_path), use_cpu=True, bf16=False)
    assert (args.adam_beta1, args.adam_beta2, args.learning_rate, args.warmup_steps) == (0.5, 0.999, 2e-5, 10)


# --- what is refused ---------------------------------------------------------------------------------


def refused(
    match: str, tmp_path: Path, model: Any, tokenizer: Any, rows: Any = None, args: Any = None, **more: Any
) -> None:
    with pytest.raises(InputError, match=match):
        trained(model, tokenizer, tmp_path, rows, args, **more)


@pytest.mark.parametrize(
    ("args", "more", "match"),
    [
        ({"completion_only_loss": False}, {}, "completion_only_loss"),
        ({"loss_type": "dft"}, {}, "loss_type"),
        ({"packing": True, "packing_strategy": "wrapped", "max_length": 32}, {}, "packing_strategy"),
        ({"truncation_mode": "keep_end"}, {}, "keep_end"),
        ({}, {"formatting_func": str}, "formatting_func"),
        ({}, {"reference": "on-the-fly"}, "all weights are trained"),
        ({}, {"reference": "none"}, "reference is 'none'"),
        ({}, {"head_anchor": (-1.0, 5)}, "head_anchor"),
        ({}, {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "lm_head"])}, "lm_head"),
        ({}, {"peft_config": LoraConfig(r=2, init_lora_weights="pissa")}, "pissa"),
        ({}, {"schedule": lambda positions: positions * 0.0}, "beta above 0"),
        ({}, {"train_on": "some"}, "train_on"),
        ({"assistant_only_loss": True}, {"train_on": "last_turn"}, "leave one of them out"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, {}, "skip_prepare_dataset"),
        ({"chat_template_path": "Qwen/Qwen3-4B"}, {}, "chat_template_path is Qwen/Qwen3-4B, and no file"),
        ({"eos_token": "<none>"}, {}, "which the tokenizer does not know"),
    ],
)
def test_settings_that_would_mislead_are_refused(
    args: Any, more: Any, match: str, tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    refused(match, tmp_path, tiny_model, tiny_tokenizer, args=args, **more)


def test_rows_that_cannot_be_trained_on_are_named(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    good = token_rows(3)
    empty = {"input_ids": [5, 6, 7], "labels": [IGNORE] * 3}
    naked = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    refused("no row left to train on: Row 1: it has no supervised token", tmp_path, tiny_model, tiny_tokenizer, [empty])
    refused("Row 4: its very first token", tmp_path, tiny_model, tiny_tokenizer, [*good, naked])
    refused("no labels", tmp_path, tiny_model, tiny_tokenizer, [{"input_ids": [5, 6]}])
    refused("cannot be told apart", tmp_path, tiny_model, tiny_tokenizer, [{"text": "all of it"}])
    unanswered = [*CHATS, {"messages": CHATS[0]["messages"][:1]}]
    refused("Row 5: the last message must be from the assistant", tmp_path, tiny_model, tiny_tokenizer, unanswered)
    refused(
        "Row 1: it has no supervised token.*max_length", tmp_path, tiny_model, tiny_tokenizer, good, {"max_length": 3}
    )


def test_a_template_that_opens_the_answer_does_not_take_its_first_positions(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    made = ConstrainedSFTTrainer(
        tiny_model, settings(tmp_path), train_dataset=Dataset.from_list(CHATS), processing_class=tiny_tokenizer
    )
    answer = [t for t in made.train_dataset[0]["labels"] if t != IGNORE]
    assert tiny_tokenizer.decode(answer).startswith("one and")  # counted from the answer
    opening = chat.continuation_ids(tiny_tokenizer, "<think>\n\n</think>\n\n")
    row = made.train_dataset[0]
    start = next(i for i, label in enumerate(row["labels"]) if label != IGNORE) - len(opening)
    labels = [IGNORE] * start + row["input_ids"][start:]
    own = [{"input_ids": row["input_ids"], "labels": labels}]
    refused("it supervises what the chat template writes", tmp_path, tiny_model, tiny_tokenizer, own)


def test_a_loss_that_is_not_finite_stops_and_names_step_and_rows(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    class Spoil(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                kwargs["model"].model.layers[0].mlp.up_proj.weight.data.fill_(float("nan"))

    args = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(InputError, match=r"at step 3 \(rows \d, \d\)"):
        trained(tiny_model, tiny_tokenizer, tmp_path, args=args, callbacks=[Spoil()])
    kept = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert all(torch.isfinite(p).all() for p in kept.parameters())


def test_a_trained_adapter_can_be_loaded_again(tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any) -> None:
    subject = models.load(str(tiny_folder))
    made = trained(subject.model, tiny_tokenizer, tmp_path / "run", peft_config=LORA)
    made.save_model(str(tmp_path / "adapter"))
    tiny_tokenizer.save_pretrained(tmp_path / "adapter")
    again = models.load(str(tmp_path / "adapter"), base=str(tiny_folder))
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(again.model(ids).logits, made.model.eval()(ids).logits)


# --- what SFTTrainer takes, taken rightly --------------------------------------------------------------


def masked(rows: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    return [
        {"input_ids": r["input_ids"], "completion_mask": [int(label != IGNORE) for label in r["labels"]]} for r in rows
    ]


@pytest.mark.parametrize("packing", [False, True])
def test_masks_become_labels_packed_or_not(
    packing: bool, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    args: dict[str, Any] = {"max_steps": 1, "packing": packing, "max_length": 32, "per_device_train_batch_size": 16}
    one = trained(make_model(), tiny_tokenizer, tmp_path / "a", masked(token_rows()), args)
    two = trained(make_model(), tiny_tokenizer, tmp_path / "b", token_rows(), args)
    assert history(one, "loss") == history(two, "loss")


def test_packing_does_not_hide_rows_that_cannot_be_trained_on(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    args = {"packing": True, "max_length": 10}
    beyond = {"input_ids": list(range(5, 25)), "labels": [IGNORE] * 12 + list(range(17, 25))}
    made = trained(tiny_model, tiny_tokenizer, tmp_path, [*token_rows(), beyond], {**args, "max_steps": 1})
    assert made.skipped == ["Row 9: it has no supervised token; give it an answer, or raise max_length"]
    tiny_tokenizer.chat_template = None
    naked = [{"prompt": "", "completion": "all of it"}]
    refused("Row 1: its very first token", tmp_path, tiny_model, tiny_tokenizer, naked, args)


def test_betas_are_never_left_behind(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    rows = [{**r, "betas": [1.0] * len(r["labels"])} for r in token_rows()]
    refused("Packing would lose", tmp_path, tiny_model, tiny_tokenizer, rows, {"packing": True, "max_length": 32})
    chats = [{**c, "betas": [1.0]} for c in CHATS]
    refused("betas, one number per token", tmp_path, tiny_model, tiny_tokenizer, chats)
    more: dict[str, Any] = {"eval_dataset": Dataset.from_list(token_rows(3, seed=9))}
    refused("must both have the column betas", tmp_path, tiny_model, tiny_tokenizer, rows, **more)
    short = [
        {**r, "labels": r["labels"][:6], "input_ids": r["input_ids"][:6], "betas": [1.0] * len(r["labels"][:6])}
        for r in token_rows(2)
    ]
    trained(tiny_model, tiny_tokenizer, tmp_path / "run", short, {"max_steps": 1})  # no head of a schedule is looked at


def test_rows_of_another_trainer_get_numbers_of_their_own(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    held = Dataset.from_list(token_rows(5, seed=9))
    made = trained(make_model(), tiny_tokenizer, tmp_path / "a", peft_config=LORA)
    other = trained(make_model(), tiny_tokenizer, tmp_path / "b", peft_config=LORA)
    expected = made.evaluate(held)["eval_loss"]
    assert made.evaluate(other._prepared(held))["eval_loss"] == pytest.approx(expected, rel=1e-6)
    numbered = held.add_column("row", list(range(5)))
    assert made.evaluate(numbered)["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert made.predict(held).metrics["test_loss"] == pytest.approx(expected, rel=1e-6)


def test_evaluating_first_changes_nothing_in_half_precision(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    made = ConstrainedSFTTrainer(
        make_model(), settings(tmp_path, bf16=True, max_steps=1), train_dataset=Dataset.from_list(token_rows()),
        eval_dataset=Dataset.from_list(token_rows()), processing_class=tiny_tokenizer,
    )  # fmt: skip
    made.evaluate()
    made.train()
    assert made.state.log_history[-2]["log_ratio_1"] == pytest.approx(0, abs=1e-6)


def test_another_architecture_with_the_same_weights_is_another_reference(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    trained(make_model(), tiny_tokenizer, tmp_path, args={"max_steps": 1})
    other = make_model(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    made = trained(other, tiny_tokenizer, tmp_path, args={"max_steps": 1})
    assert made.state.log_history[0]["log_ratio_later"] == pytest.approx(0, abs=1e-5)


def test_short_answers_train_and_evaluate(tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    """Answers of fewer tokens than the schedule's head: what of it they reach is used."""
    short = [{name: ids[:-6] for name, ids in row.items()} for row in token_rows() if len(row["labels"]) > 12]
    short.append({"input_ids": [5, 6, 7], "labels": [IGNORE, 6, 7]})
    made = trained(
        make_model(), tiny_tokenizer, tmp_path, short, {"max_steps": 1}, eval_dataset=Dataset.from_list(short),
        schedule=BetaSchedule([0.5] * 20, 0.1),
    )  # fmt: skip
    assert made.evaluate()["eval_nll"] > 0
    positions = torch.arange(1, 4)[None]
    assert BetaSchedule([0.5] * 20, 0.1)(positions).tolist() == [[0.5] * 3]


def test_settings_of_trl_that_rows_hang_on(tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    """assistant_only_loss supervises every answer; a template and an EOS of the settings are there before the rows."""
    template = tmp_path / "mine.jinja"
    template.write_text(tiny_tokenizer.chat_template.replace("assistant", "model"))
    turns = [{"messages": [*CHATS[0]["messages"], *CHATS[1]["messages"]]}]
    args = settings(
        tmp_path, assistant_only_loss=True, chat_template_path=str(template), eos_token="<|endoftext|>",
        dataset_num_proc=1,
    )  # fmt: skip
    made = ConstrainedSFTTrainer(
        make_model(), args, train_dataset=Dataset.from_list(turns).with_format("torch"), processing_class=tiny_tokenizer
    )
    assert len(made.train_dataset) == 2
    assert "<|im_start|>model\ntwo and" in tiny_tokenizer.decode(made.train_dataset[1]["input_ids"])
    assert tiny_tokenizer.eos_token == "<|endoftext|>"
    assert args.assistant_only_loss  # of the caller


def test_a_tokenizer_that_names_no_end_and_no_padding_is_refused(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    tiny_tokenizer.eos_token = tiny_tokenizer.pad_token = None  # its tokenizer_config.json is gone
    with pytest.raises(InputError, match=r"neither a pad_token nor an eos_token.*tokenizer_config\.json"):
        ResponseSFTTrainer(
            make_model(), settings(tmp_path), train_dataset=Dataset.from_list(token_rows()),
            processing_class=tiny_tokenizer,
        )  # fmt: skip


def test_a_stream_is_checked_row_by_row(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    naked = {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}
    stream = Dataset.from_list([*token_rows(1200), naked]).to_iterable_dataset()
    more: dict[str, Any] = {"processing_class": tiny_tokenizer, "peft_config": LORA}
    made = ResponseSFTTrainer(tiny_model, settings(tmp_path, max_steps=160), train_dataset=stream, **more)
    with pytest.raises(InputError, match="Row 1201: its very first token"):
        made.train()
    good = Dataset.from_list(token_rows()).to_iterable_dataset()
    made = ConstrainedSFTTrainer(
        made.model.unload(), settings(tmp_path, max_steps=2), train_dataset=good, reference="on-the-fly", **more
    )
    made.train()
    assert made.state.global_step == 2
    with pytest.raises(InputError, match="stream of rows to train on"):
        ConstrainedSFTTrainer(made.model.unload(), settings(tmp_path), train_dataset=good, **more)


@pytest.mark.parametrize("peft", [None, LORA])
def test_a_stream_is_evaluated_while_training(
    peft: Any, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    held = Dataset.from_list(token_rows(5, seed=9))
    made = ConstrainedSFTTrainer(
        make_model(),
        settings(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1),
        train_dataset=Dataset.from_list(token_rows()),
        eval_dataset={"stream": held.to_iterable_dataset(), "fixed": held},
        processing_class=tiny_tokenizer,
        peft_config=peft,
    )
    made.train()
    found = {
        name: [e[name] for e in made.state.log_history if name in e] for name in ("eval_stream_nll", "eval_fixed_nll")
    }
    assert len(found["eval_stream_nll"]) == 2
    assert found["eval_stream_nll"] == pytest.approx(found["eval_fixed_nll"], rel=1e-5)
    assert any("eval_stream_loss" in entry for entry in made.state.log_history) == (peft is not None)


def test_a_stream_is_not_evaluated_in_several_processes(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their last batches are filled with rows of the first ones, and only of fixed rows it is known how many."""
    rows, held = Dataset.from_list(token_rows()), Dataset.from_list(token_rows(5, seed=9))
    made = ConstrainedSFTTrainer(make_model(), settings(tmp_path), train_dataset=rows, processing_class=tiny_tokenizer)
    monkeypatch.setattr(launch, "processes", lambda: 2)
    for evaluate in (made.evaluate, made.predict):
        with pytest.raises(InputError, match="cannot be evaluated in 2 processes"):
            evaluate(held.to_iterable_dataset())
    assert "eval_nll" in made.evaluate(held)
    with pytest.raises(InputError, match="cannot be evaluated in 2 processes"):
        ConstrainedSFTTrainer(
            make_model(), settings(tmp_path), train_dataset=rows, processing_class=tiny_tokenizer,
            eval_dataset={"fixed": held, "stream": held.to_iterable_dataset()},
        )  # fmt: skip


def test_a_stream_is_evaluated_with_a_loss_while_there_is_a_reference(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    held = Dataset.from_list(token_rows(5, seed=9))
    made = ConstrainedSFTTrainer(
        make_model(), settings(tmp_path), train_dataset=Dataset.from_list(token_rows()), processing_class=tiny_tokenizer
    )
    before, fixed = made.evaluate(held.to_iterable_dataset()), made.evaluate(held)
    assert before["eval_loss"] == pytest.approx(fixed["eval_loss"], rel=1e-5)
    assert before["eval_nll"] == pytest.approx(fixed["eval_nll"], rel=1e-5)
    made.train()
    after = made.evaluate(held.to_iterable_dataset())
    assert after["eval_nll"] == pytest.approx(made.evaluate(held)["eval_nll"], rel=1e-5)
    assert "eval_loss" not in after
    assert "a stream of rows has no reference of before the training" in capsys.readouterr().out
    adapted = trained(make_model(), tiny_tokenizer, tmp_path / "lora", peft_config=LORA)
    assert adapted.evaluate(held.to_iterable_dataset())["eval_loss"] == pytest.approx(
        adapted.evaluate(held)["eval_loss"]
    )


def test_rows_that_were_evaluated_are_forgotten(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    kept, held = Dataset.from_list(token_rows(3, seed=8)), Dataset.from_list(token_rows(5, seed=9))
    made = ConstrainedSFTTrainer(
        make_model(), settings(tmp_path), train_dataset=Dataset.from_list(token_rows()), eval_dataset=kept,
        processing_class=tiny_tokenizer,
    )  # fmt: skip
    first = made.evaluate()["eval_loss"]
    new = made.evaluate(held)["eval_loss"]
    made.evaluate({"one": held, "two": held.to_iterable_dataset()})
    made.predict(held)
    assert len(made._own) == 2
    assert sorted(made._collator.references) == [8, 9, 10]  # of the rows that it was made with
    assert made.evaluate(held)["eval_loss"] == new
    assert made.evaluate()["eval_loss"] == first


@pytest.mark.parametrize("packing", [False, True])
def test_a_stream_is_prepared_once(
    packing: bool, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Dataset.from_list(token_rows(5, seed=9))
    made = ConstrainedSFTTrainer(
        make_model(),
        settings(tmp_path, packing=packing, max_length=64, padding_free=False),
        train_dataset=Dataset.from_list(token_rows()),
        processing_class=tiny_tokenizer,
    )
    fixed = made.evaluate(held)["eval_nll"]
    calls: list[int] = []
    real = made._encoded
    monkeypatch.setattr(made, "_encoded", lambda dataset: (calls.append(1), real(dataset))[1])
    assert made.evaluate(held.to_iterable_dataset())["eval_nll"] == pytest.approx(fixed, rel=1e-5)
    assert len(calls) == 1
    several = made.evaluate({"one": held.to_iterable_dataset(), "two": held.to_iterable_dataset()})
    assert several["eval_two_nll"] == pytest.approx(fixed, rel=1e-5)
    assert len(calls) == 3


def test_adapters_that_change_what_lies_beneath_them_are_refused(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    biased = LoraConfig(r=2, target_modules=["q_proj"], bias="all")
    refused("bias='all'", tmp_path, tiny_model, tiny_tokenizer, peft_config=biased)
    ga = LoraConfig(r=2, target_modules=["q_proj"])
    ga.init_lora_weights = "lora_ga"
    refused("lora_ga", tmp_path, tiny_model, tiny_tokenizer, peft_config=ga)
    repeated = LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[(0, 2), (1, 2)])
    refused("repeats layers", tmp_path, tiny_model, tiny_tokenizer, peft_config=repeated)
