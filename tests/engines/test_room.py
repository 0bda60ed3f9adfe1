"""How many rows are decoded together where nobody says it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, MambaConfig

from decoded import build, same_up_to_ties, sweep
from tokendeep.engines import room
from tokendeep.engines.base import Completion
from tokendeep.engines.batching import Batcher
from tokendeep.engines.local import generate
from tokendeep.engines.rows import Row
from tokendeep.types import Subject


@pytest.fixture
def llama() -> Subject:
    return build(LlamaConfig, num_key_value_heads=2, head_dim=8)


def test_as_many_rows_as_fit_a_share_of_what_is_free(llama: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = llama.model.config.num_hidden_layers
    assert room.token_bytes(llama.model) == 2 * layers * 2 * 8 * 4  # keys and values, two heads of 8, float32
    monkeypatch.setattr(room, "free", lambda _: 100 * room.token_bytes(llama.model) * 50)
    assert room.rows(llama.model, 50) == 30
    assert room.rows(llama.model, 10**6) == 1
    assert room.rows(llama.model, 1) == room.MOST["cpu"]


def test_a_recurrent_model_has_a_size_too() -> None:
    assert room.token_bytes(build(MambaConfig, state_size=4).model) > 0


def test_a_container_has_less_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    cpu = torch.device("cpu")
    assert room.free(cpu) == 1000
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.stat").write_text("anon 200\ninactive_file 50\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert room.free(cpu) == 1000
    (tmp_path / "memory.max").write_text("900\n")
    assert room.free(cpu) == 650


def test_the_engine_chooses_and_the_answers_stay_the_same(llama: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(room, "rows", lambda _, longest: asked.append(longest) or 3)
    requests = sweep()
    assert generate(llama, requests) == generate(llama, requests, batch_size=5)
    assert asked == [max(len(request.ids) + request.decoding.max_new_tokens for request in requests)]


def test_a_longer_row_waits_until_slots_are_counted_for_it(llama: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(room, "rows", lambda _, longest: asked.append(longest) or 2)
    short, other = sweep(prompts=2, ks=(0,), new_tokens=(6,))
    long = replace(other, ids=other.ids * 3)
    done: dict[int, Completion | Exception] = {}
    with Batcher(llama, 0) as batcher:
        batcher.add(Row(0, short, done.__setitem__))
        batcher.step()
        batcher.add(Row(1, long, done.__setitem__))
        batcher.step()
        assert [row.index for row in batcher.active if row] == [0]  # there is a free slot, which is too small
        while batcher.busy:
            batcher.step()
    assert asked == [len(short.ids) + 6, len(long.ids) + 6]
    for index, request in enumerate((short, long)):
        completion = done[index]
        assert isinstance(completion, Completion)
        assert same_up_to_ties(llama.model, request, completion)
