"""A finished run whose results were emptied, replaced or removed is known and gone through again; others are left alone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from killed import forget_runs
from tokendeep import runs
from tokendeep.errors import InputError
from tokendeep.runs import files

CONFIG = {"model": "me/model", "out": "somewhere", "seed": 3}


@pytest.fixture(autouse=True)
def forget_open_runs():
    yield
    forget_runs()


def start(out: Path) -> runs.Run:
    return runs.open_run(out, "measure", CONFIG)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    run = start(tmp_path / "out")
    runs.write_json(run.out / "profile.json", {"kl": None})
    runs.write_text(run.out / "README.txt", "for people")
    (run.claim("checkpoint") / "deep").mkdir(parents=True)
    (run.out / "checkpoint" / "deep" / "weights").write_bytes(b"weights")
    (run.out / "trainer").mkdir()
    (run.out / "trainer" / "state").write_text("scratch")
    run.finish()
    return run.out


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def test_a_finished_manifest_holds_the_hash_of_each_result(out):
    assert manifest(out)["results"] == {
        "checkpoint/deep/weights": runs.sha256_file(out / "checkpoint" / "deep" / "weights"),
        "profile.json": runs.sha256_file(out / "profile.json"),
    }
    assert start(out).finished


@pytest.mark.parametrize(("name", "content"), [("profile.json", b""), ("checkpoint/deep/weights", b"Weights")])
def test_a_damaged_result_is_said_set_aside_and_made_again(out, name, content, caplog):
    (out / name).write_bytes(content)
    line = runs.look(out, "measure", CONFIG)
    assert f"finished, but {name} is not as it was written" in line
    with caplog.at_level(logging.WARNING, "tokendeep"):
        run = start(out)
    assert (run.finished, run.resumed) == (False, True)
    assert f"{name} is not as this run wrote it" in caplog.text
    assert not (out / name).exists()
    assert (out / ".damaged" / name).read_bytes() == content
    assert (manifest(out)["status"], manifest(out)["results"]) == ("running", {})
    runs.write_text(out / name, "again")
    run.finish()
    assert manifest(out)["results"][name] == runs.sha256_file(out / name)
    assert start(out).finished


def test_a_result_that_is_gone_is_made_again(out, caplog):
    (out / "profile.json").unlink()
    with caplog.at_level(logging.WARNING, "tokendeep"):
        assert start(out).resumed
    assert "profile.json is gone" in caplog.text


def test_cards_scratch_and_older_manifests_are_no_damage(out):
    (out / "README.txt").write_text("my own words")
    (out / "trainer" / "state").unlink()
    assert start(out).finished
    old = {name: value for name, value in manifest(out).items() if name != "results"}
    (out / "manifest.json").write_text(json.dumps(old))
    (out / "profile.json").write_text("{}")  # which an older manifest cannot know
    assert start(out).finished


@pytest.mark.parametrize(
    "change",
    [
        {"config": []},
        {"files": [3]},
        {"files": "all"},
        {"verb": None},
        {"status": 3},
        {"results": []},
        {"seed": float("nan")},
    ],
)
def test_a_manifest_with_a_value_of_another_type_is_named(out, change):
    (out / "manifest.json").write_text(json.dumps({**manifest(out), **change}))
    with pytest.raises(InputError, match=r"manifest\.json was not written by tokendeep or is damaged"):
        start(out)


def test_a_manifest_that_is_a_folder_or_a_loop_is_named(tmp_path):
    (tmp_path / "folder" / "manifest.json").mkdir(parents=True)
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "manifest.json").symlink_to(tmp_path / "loop" / "manifest.json")
    for name in ("folder", "loop"):
        with pytest.raises(InputError, match=r"manifest\.json was not written"):
            start(tmp_path / name)


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "a\x1b[31mb"])
def test_a_name_with_a_control_sign_is_refused(tmp_path, name):
    for ask in (lambda: start(tmp_path / name), lambda: runs.look(tmp_path / name, "measure", CONFIG)):
        with pytest.raises(InputError, match="line break or another control sign"):
            ask()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file/below", "loop/below", "n" * 300, "/proc/nope/below"])
def test_a_place_where_no_folder_can_be_made_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"give another"):
        start(tmp_path / place)


def test_half_a_surrogate_pair_survives_in_json(tmp_path):
    path = files.write_json(tmp_path / "one.json", {"label": "\ud800 é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"label": "\ud800 é"}
    assert "é" in path.read_text(encoding="utf-8")
