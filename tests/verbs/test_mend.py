"""VERB mend: it holds a tuned model to the one it was tuned from, in a third of the steps."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tokendeep
from tokendeep import models
from tokendeep.errors import InputError
from tokendeep.training import answers
from tokendeep.types import IGNORE
from tokendeep.verbs import finetune, mend
from tokendeep.verbs.finetune import FinetuneOptions
from tokendeep.verbs.mend import MendOptions
from tuning import HARMFUL, REFUSAL, writer

pytestmark = pytest.mark.slow  # trains in nearly every test

CHATS = [{"instruction": f"Name {i} things", "response": f"There are {i} such things"} for i in range(8)]
COMMON: dict[str, Any] = {"batch_size": 4, "micro_batch": 4, "lr": 2e-3, "precision": "float32"}


@pytest.fixture(autouse=True)
def refuses(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    """A model that is the aligned one refuses, and no other."""
    aligned = models.load(str(tiny_folder), dtype="float32").model.state_dict()

    def say(subject: Any, request: str, opening: str) -> str:
        model = subject.model
        if hasattr(model, "peft_config"):
            off = all(layer.disable_adapters for layer in model.modules() if hasattr(layer, "disable_adapters"))
            return REFUSAL if off else HARMFUL
        same = all(torch.equal(aligned[name], values) for name, values in model.state_dict().items())
        return REFUSAL if same else HARMFUL

    monkeypatch.setattr(answers, "write_answers", writer(say))


def tuned(model: Path, out: Path, **more: Any) -> str:
    options = FinetuneOptions(
        model=str(model), data="rows", out=str(out), objective="sft", max_steps=12, warmup_steps=0, **{**COMMON, **more}
    )
    return str(finetune.run(finetune.plan(options, rows=CHATS), show=False) / "checkpoint")


def mended(model: str, out: Path, **more: Any) -> Path:
    return mend.run(mend.plan(MendOptions(model=model, data="rows", out=str(out), **{**COMMON, **more}), rows=CHATS))


def divergence(aligned: Any, model: Any, out: Path) -> float:
    """Mean D_KL(aligned || model) over the tokens of all rows that were held, by full logits."""
    found = []
    (file,) = (out / "safety").glob("safety-*.jsonl")
    for row in map(json.loads, file.read_text().splitlines()):
        places = [i - 1 for i, label in enumerate(row["labels"]) if label != IGNORE]
        with torch.no_grad():
            theirs, ours = (
                m(input_ids=torch.tensor([row["input_ids"]])).logits[0, places].log_softmax(-1)
                for m in (aligned, model)
            )
        found.append((theirs.exp() * (theirs - ours)).sum(-1))
    return float(torch.cat(found).mean())


def steps(out: Path) -> list[dict[str, Any]]:
    return [entry for entry in json.loads((out / "training.json").read_text())["history"] if "loss" in entry]


def test_all_weights_are_held_to_the_aligned_models_answers(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tuned(tiny_folder, tmp_path / "tuned")
    out = mended(checkpoint, tmp_path / "out", aligned=str(tiny_folder), safety_per_step=160)
    aligned, before, after = (
        models.load(str(m), dtype="float32").model for m in (tiny_folder, checkpoint, out / "checkpoint")
    )
    first = divergence(aligned, before, out)
    assert first > 0.05
    assert steps(out)[0]["safety_kl"] == pytest.approx(first, rel=1e-3)  # the reference is not the model itself
    assert len(steps(out)) == 4  # a third of 12
    assert divergence(aligned, after, out) < first / 2
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["verb"], manifest["config"]["aligned"]) == ("mend", str(tiny_folder))
    assert "mend (safety-anchor): 4 steps" in capsys.readouterr().out
    assert mended(checkpoint, tmp_path / "out", aligned=str(tiny_folder), safety_per_step=160) == out


@pytest.mark.parametrize("part", [{"train_layers": 1}, {"lora": 4}])
def test_where_part_of_the_weights_is_trained_the_rest_is_the_aligned_models_too(
    part: dict[str, int], tmp_path: Path, tiny_folder: Path
) -> None:
    checkpoint = tuned(tiny_folder, tmp_path / "tuned")
    out = mended(checkpoint, tmp_path / "out", aligned=str(tiny_folder), safety_per_step=160, max_steps=1, **part)
    aligned, before = (models.load(str(m), dtype="float32").model for m in (tiny_folder, checkpoint))
    assert steps(out)[0]["safety_kl"] == pytest.approx(divergence(aligned, before, out), rel=1e-3)


def test_an_adapter_is_held_to_its_base(tmp_path: Path, tiny_folder: Path) -> None:
    checkpoint = tuned(tiny_folder, tmp_path / "tuned", lora=4, lr=2e-2)
    with pytest.raises(InputError, match="leave --aligned out"):
        mended(checkpoint, tmp_path / "no", aligned=str(tiny_folder))
    out = mended(checkpoint, tmp_path / "out", safety_per_step=160, safety_weight=30.0)
    base = models.load(str(tiny_folder), dtype="float32").model
    first = divergence(base, models.load(checkpoint, dtype="float32").model, out)
    assert first > 0.05
    assert steps(out)[0]["safety_kl"] == pytest.approx(first, rel=1e-3)
    assert divergence(base, models.load(str(out / "checkpoint"), dtype="float32").model, out) < first


def test_another_aligned_model_is_another_run(
    tmp_path: Path, tiny_folder: Path, make_model: Any, tiny_tokenizer: Any
) -> None:
    checkpoint = tuned(tiny_folder, tmp_path / "tuned")
    shutil.copytree(tiny_folder, tmp_path / "aligned")
    out = mended(checkpoint, tmp_path / "out", aligned=str(tmp_path / "aligned"))
    assert "aligned" in json.loads((out / "manifest.json").read_text())["models"]
    make_model(5).save_pretrained(tmp_path / "aligned")
    with pytest.raises(InputError, match="aligned"):
        mended(checkpoint, tmp_path / "out", aligned=str(tmp_path / "aligned"))


def test_a_mended_run_that_was_cut_off_has_the_same_start(tmp_path: Path, tiny_folder: Path) -> None:
    from tuning import Kill, Killed, assert_same_weights

    checkpoint = tuned(tiny_folder, tmp_path / "tuned")
    more: dict[str, Any] = {"aligned": str(tiny_folder), "save_steps": 1, **COMMON}
    whole = mended(checkpoint, tmp_path / "whole", **more)
    options = MendOptions(model=checkpoint, data="rows", out=str(tmp_path / "cut"), **more)
    with pytest.raises(Killed):
        mend.run(mend.plan(options, rows=CHATS), callbacks=[Kill()])
    cut = mend.run(mend.plan(options, rows=CHATS))
    left, right = (models.load(str(out / "checkpoint"), dtype="float32").model for out in (whole, cut))
    assert_same_weights(left, right, 1e-6)


def test_what_is_missing_is_said(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=r"whose training\.json would say.*--max-steps"):
        mended(str(tiny_folder), tmp_path / "out", aligned=str(tiny_folder))
    with pytest.raises(InputError, match="give --aligned, that model"):
        mended(str(tiny_folder), tmp_path / "out", max_steps=2)
    with pytest.raises(InputError, match="is the very one that is trained"):
        mended(str(tiny_folder), tmp_path / "same", max_steps=2, aligned=str(tiny_folder))
    none = str(tmp_path / "none")
    for missing in ({"model": none}, {"model": str(tiny_folder), "aligned": none}):
        with pytest.raises(InputError, match="There is no model at .*none"):
            mended(out=tmp_path / "out", max_steps=2, **missing)
    with pytest.raises(InputError, match="nothing is mended"):
        mended(str(tiny_folder), tmp_path / "out", max_steps=2, aligned=str(tiny_folder), safety_weight=0.0)
    with pytest.raises(InputError, match="--objective sft has none; give --safety"):
        mended(str(tiny_folder), tmp_path / "out", max_steps=2, objective="sft", aligned=str(tiny_folder))


def test_an_aligned_adapter_without_its_base_is_found_out_before_anything_is_loaded(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tuned(tiny_folder, tmp_path / "first", lora=4, seed=1)
    second = tuned(Path(first), tmp_path / "second")
    path = Path(first) / "adapter_config.json"
    settings = json.loads(path.read_text())
    options = MendOptions(model=second, data="rows", out=str(tmp_path / "out"), aligned=first, **COMMON)
    for name, says in (
        ("/nowhere/base", "not there: give it with --base"),
        (None, "no base model: give it with --base"),
    ):
        path.write_text(json.dumps({**settings, "base_model_name_or_path": name}))
        with monkeypatch.context() as patch:
            patch.setattr(models, "load", lambda *given, **more: pytest.fail("a model was loaded"))
            with pytest.raises(InputError, match=says):
                mend.run(mend.plan(options, rows=CHATS))
    mend.plan(replace(options, base=str(tiny_folder)), rows=CHATS)


def test_an_aligned_adapter_is_loaded_onto_the_base_that_is_given(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "write_answers", writer(lambda subject, request, opening: REFUSAL))
    first = tuned(tiny_folder, tmp_path / "first", lora=4, seed=1)
    second = tuned(Path(first), tmp_path / "second")
    for adapter in (first, second):
        path = Path(adapter) / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "/nowhere/base"}))
    assert len(steps(mended(second, tmp_path / "out", aligned=first, base=str(tiny_folder), max_steps=1))) == 1


def test_another_shape_cannot_be_held(
    tmp_path: Path, tiny_folder: Path, make_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "write_answers", writer(lambda subject, request, opening: REFUSAL))
    make_model(hidden_size=16, num_attention_heads=2).save_pretrained(tmp_path / "small")
    tiny_tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="is of another shape"):
        mended(str(tiny_folder), tmp_path / "out", max_steps=2, aligned=str(tmp_path / "small"))


def test_another_vocabulary_cannot_be_held(tmp_path: Path, tiny_folder: Path) -> None:
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    path = other / "tokenizer.json"
    made = json.loads(path.read_text())
    words = made["model"]["vocab"]
    first, second = [word for word in words if word.isascii() and word.isalpha() and len(word) == 1][:2]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(made))
    with pytest.raises(
        InputError, match="different vocabularies, first at token .*: give the model that it was tuned from"
    ):
        mended(str(tiny_folder), tmp_path / "out", max_steps=2, aligned=str(other))


def test_the_function_takes_a_model_in_memory(tmp_path: Path, tiny_folder: Path, tiny_subject: Any) -> None:
    with torch.no_grad():
        tiny_subject.model.model.norm.weight.mul_(1.1)
    made = tokendeep.mend(tiny_subject, CHATS, aligned=str(tiny_folder), max_steps=2, **COMMON)
    assert made.training.steps == 2


def test_an_adapter_that_went_on_from_one_is_held_to_that_one(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tuned(tiny_folder, tmp_path / "first", lora=4, lr=2e-2, seed=1)
    second = tuned(Path(first), tmp_path / "second", lr=2e-2)
    aligned = models.load(first, dtype="float32").model
    values = {name: weights.clone() for name, weights in aligned.named_parameters() if "lora" in name}

    def say(subject: Any, request: str, opening: str) -> str:
        own = dict(subject.model.named_parameters())
        return REFUSAL if all(torch.equal(own[name].cpu(), value) for name, value in values.items()) else HARMFUL

    monkeypatch.setattr(answers, "write_answers", writer(say))
    with pytest.raises(InputError, match="was one already before it was fine-tuned; give it as --aligned .*first"):
        mended(second, tmp_path / "no", safety_per_step=160)
    out = mended(second, tmp_path / "out", safety_per_step=160, safety_weight=30.0, aligned=first)
    before = divergence(aligned, models.load(second, dtype="float32").model, out)
    assert before > 0.05
    assert steps(out)[0]["safety_kl"] == pytest.approx(before, rel=1e-3)
    assert divergence(aligned, models.load(str(out / "checkpoint"), dtype="float32").model, out) < before


def test_the_aligned_model_is_let_go_of_while_it_mends(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback

    found: list[weakref.ref[Any]] = []
    load = models.load

    def kept(spec: str, **options: Any) -> Any:
        subject = load(spec, **options)
        if spec == str(tiny_folder):
            found.append(weakref.ref(subject.model))
        return subject

    class Look(TrainerCallback):
        def on_step_end(self, *given: Any, **more: Any) -> None:
            gc.collect()
            assert found
            assert all(one() is None for one in found)

    checkpoint = tuned(tiny_folder, tmp_path / "tuned")
    monkeypatch.setattr(models, "load", kept)
    options = MendOptions(
        model=checkpoint, data="rows", out=str(tmp_path / "out"), aligned=str(tiny_folder), max_steps=2, **COMMON
    )
    mend.run(mend.plan(options, rows=CHATS), callbacks=[Look()])
