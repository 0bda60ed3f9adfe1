"""What the first process reads, and the others do not; two real processes are in `test_trainer.test_two_processes_equal_one`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tokendeep import models
from tokendeep.errors import InputError
from tokendeep.models import unread
from tokendeep.models.locate import locate
from tokendeep.models.options import ModelOptions
from tokendeep.types import Subject

ASKED = {
    "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}  # fmt: skip


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Between two processes that are one: what was told last."""
    told: list[Any] = []

    def broadcast(given: list[Any]) -> None:
        if given[0] is None:
            given[0] = told[-1]
        else:
            told.append(given[0])

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", broadcast)
    return told


def empty(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return unread.unread(locate(str(folder), ModelOptions()), dtype, False)


@pytest.mark.parametrize("missing", [None, *ASKED])
def test_it_is_done_where_the_launcher_asks(missing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ASKED.items():
        monkeypatch.delenv(name, raising=False)
        if name != missing:
            monkeypatch.setenv(name, value)
    assert models.first_reads() == (missing is None)
    if missing:
        models.check_read("--safety")
    else:
        with pytest.raises(
            InputError, match="--safety needs the model before it is trained, but fsdp_cpu_ram_efficient"
        ):
            models.check_read("--safety")


@pytest.mark.parametrize("tied", [False, True])
def test_the_others_have_the_same_model_without_reading_it(
    tied: bool, tiny_subject: Subject, tmp_path: Path, line: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_subject.model
    model.config.tie_word_embeddings = tied
    model.save_pretrained(tmp_path)
    first = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    first.model.norm.weight.data = first.model.norm.weight.data.float()  # architectures keep some weights exact
    first.model.rotary_emb.inv_freq.mul_(3.0)
    unread.share(first)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    other = empty(tmp_path, torch.bfloat16)
    assert [(name, one.dtype, one.shape) for name, one in other.named_parameters()] == [
        (name, one.dtype, one.shape) for name, one in first.named_parameters()
    ]
    assert (other.lm_head.weight is other.model.embed_tokens.weight) == tied
    assert torch.equal(other.model.rotary_emb.inv_freq, first.model.rotary_emb.inv_freq)
    places = {one.data_ptr() for one in other.parameters()}
    assert len(places) == len(list(other.parameters()))  # accelerate tells weights by where they lie


def test_another_model_than_the_configuration_makes_is_told(tiny_folder: Path, line: list[Any]) -> None:
    first = AutoModelForCausalLM.from_pretrained(tiny_folder)
    first.resize_token_embeddings(first.config.vocab_size + 8)
    unread.share(first)
    with pytest.raises(InputError, match="has other weights in the first process than its configuration makes"):
        empty(tiny_folder)


def test_buffers_that_are_saved_are_refused_in_every_process(tiny_folder: Path, line: list[Any]) -> None:
    first = AutoModelForCausalLM.from_pretrained(tiny_folder)
    first.register_buffer("scale", torch.ones(1))
    for ask in (lambda: unread.share(first), lambda: empty(tiny_folder)):
        with pytest.raises(InputError, match="keeps scale beside its weights"):
            ask()
