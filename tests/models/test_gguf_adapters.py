"""Adapters trained on a GGUF file: what they name as their base can be loaded, by us and by PEFT alone."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

from gguf_files import write_gguf
from tokendeep import models
from tokendeep.errors import InputError
from tokendeep.models import packaged
from tokendeep.types import Subject

IDS = torch.tensor([[1, 40, 60, 2, 70, 80, 90]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENDEEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def adapter_of(subject: Subject, folder: Path) -> torch.Tensor:
    """Put an adapter on the model and save it; gives what the adapted model says."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    adapted = get_peft_model(subject.model, config)
    adapted.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return logits(adapted)


def base_named(folder: Path, name: str | None = None) -> str:
    """The base that an adapter names, after it was changed to `name`."""
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    if name is not None:
        path.write_text(json.dumps({**settings, "base_model_name_or_path": name}))
    return str(settings["base_model_name_or_path"])


def test_an_adapter_trained_on_a_gguf_names_what_every_library_loads(
    tiny_gguf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(tiny_gguf, tiny_gguf.with_name("another.gguf"))
    with caplog.at_level(logging.WARNING, logger="tokendeep"):
        subject = models.load(str(tiny_gguf), trainable=True)
    assert f"{tiny_gguf} is unpacked into" in caplog.text
    said = adapter_of(subject, tmp_path / "adapter")
    assert Path(base_named(tmp_path / "adapter")) == packaged.folder_of(tiny_gguf)
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), said)
    torch.testing.assert_close(logits(models.load(str(tmp_path / "adapter")).model), said)
    torch.testing.assert_close(logits(models.load(str(tmp_path / "adapter"), base=str(tiny_gguf)).model), said)
    monkeypatch.setattr(packaged, "_convert", lambda *_: pytest.fail("converted twice"))
    again = models.load(str(tiny_gguf), trainable=True)
    assert again.revision == subject.revision == models.load(str(tiny_gguf)).revision
    assert models.same_model(base_named(tmp_path / "adapter"), str(tiny_gguf))
    assert not models.same_model(base_named(tmp_path / "adapter"), str(tmp_path))


def test_a_model_in_memory_names_its_gguf(tiny_gguf: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_gguf, tiny_gguf.with_name("another.gguf"))
    said = adapter_of(models.load(str(tiny_gguf)), tmp_path / "adapter")
    assert base_named(tmp_path / "adapter") == str(tiny_gguf)
    torch.testing.assert_close(logits(models.load(str(tmp_path / "adapter")).model), said)


def test_a_conversion_that_is_gone_is_told_with_the_way_out(tiny_gguf: Path, tmp_path: Path, cache: Path) -> None:
    said = adapter_of(models.load(str(tiny_gguf), trainable=True), tmp_path / "adapter")
    shutil.rmtree(cache)
    with pytest.raises(InputError, match=r"belongs to a GGUF file whose conversion lay in .*give it with --base"):
        models.check_spec(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(models.load(str(tmp_path / "adapter"), base=str(tiny_gguf)).model), said)


def test_an_older_adapter_that_names_the_folder(tiny_gguf: Path, tmp_path: Path) -> None:
    said = adapter_of(models.load(str(tiny_gguf)), tmp_path / "adapter")
    base_named(tmp_path / "adapter", str(tiny_gguf.parent))
    torch.testing.assert_close(logits(models.load(str(tmp_path / "adapter")).model), said)
    shutil.copy(tiny_gguf, tiny_gguf.with_name("another.gguf"))
    with pytest.raises(InputError, match=rf"several models lie \({packaged.GGUF}, another\.gguf\): give .* --base\."):
        models.check_spec(str(tmp_path / "adapter"))
    with pytest.raises(InputError, match=r"holds no model .* name one of them: .*\.gguf, .*another\.gguf\."):
        models.check_spec(str(tiny_gguf.parent))
    models.check_spec(str(tmp_path / "adapter"), base=str(tiny_gguf))


def test_an_adapter_trained_on_a_folder_named_from_here_is_loaded_from_elsewhere(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = adapter_of(models.load(tiny_folder.name), tmp_path / "adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    torch.testing.assert_close(logits(models.load("../adapter").model), said)


def test_a_base_that_is_not_there_is_replaced_by_the_one_given(
    tiny_adapter: Path, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = models.ModelOptions()
    moved = tmp_path / "deeper" / "moved"
    assert models.missing_base(str(tiny_folder), str(moved), options) is None
    assert models.missing_base(str(tiny_adapter), str(moved), options) is None  # its own is there
    moved.parent.mkdir()
    tiny_folder.rename(moved)
    with caplog.at_level(logging.WARNING, logger="tokendeep"):
        assert models.missing_base(str(tiny_adapter), str(moved), options) == str(moved)
    assert "takes its place" in caplog.text
    with pytest.raises(InputError, match="no adapter, so it takes no base"):
        models.check_spec(str(moved), base=str(tiny_adapter))


def test_a_gguf_without_a_template_is_told_before_it_is_loaded(tiny_subject: Subject, tmp_path: Path) -> None:
    tiny_subject.tokenizer.chat_template = None
    path = tmp_path / "bare.gguf"
    write_gguf(path, tiny_subject.model, tiny_subject.tokenizer)
    with pytest.raises(InputError, match=r"bare\.gguf has no chat template: give one with --chat-template"):
        models.check_spec(str(path))
    models.check_spec(str(path), needs_template=False)
    assert models.load(str(path), chat_template="chatml").tokenizer.chat_template


def test_loading_a_gguf_shows_one_line_and_no_bar_of_a_library(
    tiny_gguf: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    models.load(str(tiny_gguf))
    assert capfd.readouterr().err == f"loading {tiny_gguf}\n"
