"""Hashes keep their values, so that old manifests, logs and result files are still recognised."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokendeep import runs
from tokendeep.models import folders, locate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and an adapter in one folder, as far as hashes look at them."""
    (tmp_path / "a.json").write_text('{"b": 1}')
    (tmp_path / "w.safetensors").write_bytes(bytes(range(256)) * 4000)
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "base_model_name_or_path": "x"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"abc" * 100)
    return tmp_path


def test_inputs_and_models(folder: Path) -> None:
    assert runs.hash_input("data", folder / "a.json").startswith("cae1fd1cafc3a224")
    assert runs.hash_input("data", str(folder)).startswith("9b08a26644c16164")
    assert runs.hash_input("data", "text\ud800").startswith("33bb87fdbd917c13")
    assert runs.model_identity(folder).startswith("9b08a26644c16164")


def test_a_large_file_of_weights(tmp_path: Path) -> None:
    with (tmp_path / "m.safetensors").open("wb") as file:
        file.truncate(80 * 2**20)
        file.seek(40 * 2**20)
        file.write(b"hello" * 1000)
    assert runs.model_identity(tmp_path).startswith("edc17d21bb1a0976")


def test_what_results_call_weights_and_adapters(folder: Path) -> None:
    assert locate.Place("x", str(folder)).revision() == "weights:c28c0b2fc45d259a"
    assert folders.adapter_hash(folder) == "adapter:938f89d6f0bb3d7c"


def test_texts_and_seeds() -> None:
    assert [runs.system_name(text) for text in ("none", "default", "hi", "sha 01234567")] == [
        *("none", "default", "sha 8f434346", "sha 01234567")
    ]
    assert runs.fingerprint("\ud800x") == "sha 74a7e4a2"
    assert runs.seed("t=0.5|3") == 652121252
