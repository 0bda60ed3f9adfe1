"""Output folders: same run, other run, killed run, full disk, and what overwriting removes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from killed import forget_runs
from tokendeep import errors, runs
from tokendeep.errors import InputError
from tokendeep.models import packaged
from tokendeep.runs import files, identity, lock, written
from tokendeep.runs import manifest as manifests

CONFIG = {"model": "me/model", "data": "pairs.jsonl", "out": "somewhere", "overwrite": False, "k": [0, 5], "seed": 3}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"instruction": "A?", "response": "B."}\n')
    return path


@pytest.fixture(autouse=True)
def forget_open_runs():
    yield
    forget_runs()


def start(out: Path, pairs: Path, overwrite: bool = False, verb="measure", nested=(), kind=None, **changes):
    config = {**CONFIG, "data": str(pairs), "out": str(out), **changes}
    return runs.open_run(out, verb, config, {"data": str(pairs)}, overwrite=overwrite, nested=nested, kind=kind)


def manifest(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def refused(*parts: str):
    """Expect an InputError of one sentence that holds all parts."""

    class Check:
        def __enter__(self):
            self.raises = pytest.raises(InputError)
            self.caught = self.raises.__enter__()

        def __exit__(self, *error):
            done = self.raises.__exit__(*error)
            message = str(self.caught.value)
            for part in parts:
                assert part in message, (part, message)
            assert message.endswith(".")
            assert "\n" not in message
            return done

    return Check()


def names(folder: Path) -> set[str]:
    """Every file below `folder`, but for the locks of runs that are open and for runs that were moved aside."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if Path(name).name != lock.LOCK and not name.startswith(written.REPLACED)}


# ------------------------------------------------------------------------------------- same and other runs


def test_manifest_of_a_new_run(out, pairs):
    run = start(out, pairs)
    assert (run.out, run.resumed, run.finished) == (out, False, False)
    found = manifest(out)
    assert found["status"] == "running"
    assert found["verb"] == "measure"
    assert found["config"]["k"] == [0, 5]
    assert found["seed"] == 3
    assert found["inputs"] == {"data": hashlib.sha256(pairs.read_bytes()).hexdigest()}
    assert found["versions"]["python"]
    assert "torch" in found["versions"]
    assert found["finished"] is None
    runs.write_json(run.out / "profile.json", {"kl": None})
    run.finish(revision="abc", template="def")
    found = manifest(out)
    assert (found["status"], found["revision"], found["template"]) == ("finished", "abc", "def")
    assert found["started"] <= found["finished"]
    assert found["files"] == ["profile.json"]


def test_same_run_finished_and_cut_off(out, pairs):
    first = start(out, pairs)
    again = start(out, pairs)  # the first never finished
    assert (again.resumed, again.finished) == (True, False)
    assert manifest(out)["started"] == first.manifest["started"]
    again.finish()
    before = (out / "manifest.json").read_bytes()
    third = start(out, pairs)
    assert (third.resumed, third.finished) == (False, True)
    assert (out / "manifest.json").read_bytes() == before


def test_out_overwrite_and_moved_data_make_no_other_run(out, pairs, tmp_path):
    start(out, pairs).finish()
    moved = pairs.rename(tmp_path / "moved.jsonl")
    config = {**CONFIG, "data": str(moved), "out": "elsewhere/../out", "overwrite": True}
    assert runs.open_run(str(out), "measure", config, {"data": moved}).finished


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"k": [0, 5, 10]}, ["differs in k ([0, 5] there, [0, 5, 10] now);"]),
        ({"model": "me/other"}, ["differs in model;"]),
        ({"base": "me/base"}, ["differs in base;"]),
        ({"seed": 4, "batch": 2}, ["differs in batch (None there, 2 now), seed (3 there, 4 now);"]),
        ({"system": "secret text"}, ["differs in system;"]),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_named(out, pairs, changes, parts, finished):
    run = start(out, pairs)
    runs.write_json(out / "profile.json", {})
    if finished:
        run.finish()
    before = (out / "manifest.json").read_bytes()
    state = "a finished measure run" if finished else "an unfinished measure run"
    with refused(str(out), state, "--out", "--overwrite", *parts) as check:
        start(out, pairs, **changes)
    assert "secret" not in str(check)
    assert (out / "manifest.json").read_bytes() == before


@dataclass
class Settings:
    """The settings of a verb that has two more than it had."""

    model: str
    schedule: str = "linear"
    betas: tuple[float, ...] = (0.5, 2.0)


@pytest.mark.parametrize("finished", [True, False])
def test_a_setting_that_an_older_run_did_not_have_was_at_its_default(out, pairs, finished):
    run = start(out, pairs)
    if finished:
        run.finish()
    new = {"schedule": "linear", "betas": [0.5, 2.0], "kind": Settings}
    again = start(out, pairs, **new)
    assert (again.finished, again.resumed) == (finished, not finished)
    forget_runs()
    if finished:
        with refused("schedule", "betas ([0.5, 2.0] there, [1.0] now)"):
            start(out, pairs, **{**new, "schedule": "constant", "betas": [1.0]})


def test_other_data_and_another_verb_are_named(out, pairs):
    start(out, pairs).finish()
    pairs.write_text('{"instruction": "A?", "response": "C."}\n')
    with refused("differs in the content of data;", "--out", "--overwrite"):
        start(out, pairs)
    with refused("differs in its verb (this is attack);", "a finished measure run"):
        runs.open_run(out, "attack", CONFIG)


def test_the_packaged_model_is_known_by_the_hash_of_its_file(out, pairs):
    start(out, pairs, model="smollm2", base="org/name").finish()
    assert manifest(out)["models"] == {"model": packaged.SHA256}


def test_a_local_model_is_known_by_its_content(out, pairs, tmp_path):
    model = tmp_path / "model"
    (model / "checkpoint-3").mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "config.json").write_text("{}")
    start(out, pairs, model=str(model)).finish()
    assert set(manifest(out)["models"]) == {"model"}
    moved = model.rename(tmp_path / "moved")
    (moved / "checkpoint-3" / "optimizer.pt").write_bytes(b"x")
    assert start(out, pairs, model=str(moved)).finished
    (moved / "model.safetensors").write_bytes(b"weightZ")
    with refused("differs in the content of model;"):
        start(out, pairs, model=str(moved))


def test_identity_of_large_weights_sees_changes_all_over_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "SAMPLE", 2**10)
    path = tmp_path / "model.safetensors"
    size = 100 * 2**10
    with path.open("wb") as file:
        file.truncate(size)
    seen = {runs.model_identity(path)}
    for offset in (0, size // 2, size - 1):
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"x" * min(2**11, size - offset))
        os.utime(path, ns=(offset, offset))
        seen.add(runs.model_identity(path))
    assert len(seen) == 4


def test_a_finished_run_whose_results_are_gone_is_to_be_done_again(out, pairs):
    run = start(out, pairs)
    runs.write_json(out / "profile.json", {})
    (out / "trainer").mkdir()
    (out / "trainer" / "optimizer.pt").write_text("")
    run.finish()
    (out / "trainer" / "optimizer.pt").unlink()
    assert start(out, pairs).finished
    (out / "profile.json").unlink()
    again = start(out, pairs)
    assert (again.resumed, again.finished) == (True, False)
    assert manifest(out)["status"] == "running"


def test_inputs_may_be_texts_and_a_path_must_exist(out, tmp_path):
    run = runs.open_run(out, "measure", {}, {"a": "hf:me/set", "b": "x" * 5000, "c": "a\nb"})
    assert run.manifest["inputs"]["a"] == hashlib.sha256(b"hf:me/set").hexdigest()
    with refused("nothing.jsonl", "--data"):
        runs.open_run(tmp_path / "other", "measure", {}, {"data": tmp_path / "nothing.jsonl"})
    assert runs.open_run(tmp_path / "third", "measure", {}, {"folder": tmp_path / "new"}).manifest["inputs"]["folder"]


def test_what_changes_no_result_makes_no_other_run(out, pairs):
    before = {"batch_size": 64, "micro_batch": 8, "device": "cuda", "device_map": "auto", "label": "mine",
              "reference_cache": "here"}  # fmt: skip
    start(out, pairs, **before)  # ran out of memory
    after = {"batch_size": 8, "micro_batch": 4, "device": "cpu", "device_map": None, "label": None,
             "reference_cache": None}  # fmt: skip
    run = start(out, pairs, **after)
    assert run.resumed
    run.finish()
    assert {name: manifest(out)["config"][name] for name in after} == after
    assert start(out, pairs, **before).finished
    with refused("differs in max_length"):
        start(out, pairs, max_length=64)


def test_a_finished_run_takes_a_new_label(out, pairs):
    start(out, pairs, label="one").finish(label="one")
    assert start(out, pairs, label="two").finished
    assert (manifest(out)["label"], manifest(out)["config"]["label"]) == ("two", "two")
    before = (out / "manifest.json").read_bytes()
    assert start(out, pairs, label=None).finished
    assert (out / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("name", ["chat_template", "openings"])
def test_a_text_file_among_the_settings_is_known_by_its_content(out, pairs, tmp_path, name):
    file = tmp_path / "mine.txt"
    file.write_text("one")
    start(out, pairs, **{name: str(file)}).finish()
    moved = file.rename(tmp_path / "moved.txt")
    assert start(out, pairs, **{name: str(moved)}).finished
    moved.write_text("two")
    with refused(f"differs in the content of {name};"):
        start(out, pairs, **{name: str(moved)})
    with refused(f"differs in the content of {name};"):
        start(out, pairs, **{name: "alpaca"})


def test_a_template_by_name_is_compared_as_text(out, pairs):
    start(out, pairs, chat_template="alpaca").finish()
    assert "chat_template" not in manifest(out)["inputs"]
    assert start(out, pairs, chat_template="alpaca").finished
    with refused("differs in chat_template;"):
        start(out, pairs, chat_template="x" * 5000)


def test_finish_keeps_the_manifests_own_names(out, pairs):
    with pytest.raises(ValueError, match="seed"):
        start(out, pairs).finish(seed=1)


def test_other_ranks_only_read(out, pairs, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run = start(out, pairs)
    assert names(out) == set()
    monkeypatch.setenv("RANK", "0")
    start(out, pairs)
    monkeypatch.setenv("RANK", "1")
    before = manifest(out)
    runs.write_json(out / "profile.json", {})
    run.finish()
    start(out, pairs, overwrite=True, seed=9)
    assert manifest(out) == before
    assert names(out) == {"manifest.json", "profile.json"}


# ----------------------------------------------------------------------------------------------- two processes

OTHER = "import sys; from tokendeep import runs; runs.open_run(sys.argv[1], 'measure', {}, {})\n"


@pytest.fixture
def other_process(out):
    """Starts Python in another process: `OTHER` opens the run, what follows happens after it."""
    started = []

    def start_other(then: str = "") -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(Path(runs.__file__).parents[2])}
        command = [sys.executable, "-c", OTHER + then, str(out)]
        started.append(subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True))
        return started[-1]

    yield start_other
    for process in started:
        process.kill()
        process.communicate()


def test_a_folder_another_process_writes_is_refused_until_that_ends(out, other_process):
    other = other_process("print('open', flush=True); import time; time.sleep(60)")
    assert other.stdout.readline() == "open\n"
    before = names(out)
    for overwrite in (False, True):
        with refused("nother process is writing", str(out), "another --out"):
            runs.open_run(out, "measure", {}, {}, overwrite=overwrite)
    assert names(out) == before
    other.kill()
    other.wait()
    assert (out / lock.LOCK).exists()
    assert runs.open_run(out, "measure", {}, {}).resumed


def test_a_run_in_progress_locks_its_folder_and_a_finished_one_does_not(out, other_process):
    run = runs.open_run(out, "measure", {}, {})
    assert "nother process is writing" in other_process().communicate()[1]
    run.finish()
    assert not (out / lock.LOCK).exists()
    assert manifest(out)["files"] == []
    other = other_process("assert runs.open_run(sys.argv[1], 'measure', {}, {}).finished")
    assert (other.communicate()[1], other.returncode) == ("", 0)
    assert not (out / lock.LOCK).exists()


def test_a_folder_that_was_refused_is_not_locked(out, pairs):
    start(out, pairs).finish()
    with refused("differs in"):
        start(out, pairs, seed=4)
    assert not (out / lock.LOCK).exists()


def test_one_process_may_open_a_run_again_at_any_time(out, pairs, monkeypatch):
    start(out, pairs)
    runs.write_json(out / "profile.json", {})

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(manifests, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(out, pairs)
    monkeypatch.undo()
    with refused("differs in"):
        start(out, pairs, seed=4)
    assert (out / lock.LOCK).exists()  # of the run that is still open
    start(out, pairs).finish()
    start(out, pairs, overwrite=True).finish()


def test_other_ranks_take_no_lock(out, other_process, monkeypatch):
    other = other_process("print('open', flush=True); import time; time.sleep(60)")
    assert other.stdout.readline() == "open\n"
    monkeypatch.setenv("RANK", "1")
    assert runs.open_run(out, "measure", {}, {}).resumed


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EROFS])
def test_a_disk_without_locks_is_used_without(out, pairs, monkeypatch, number):
    def fail(self):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(lock.FileLock, "acquire", fail)
    start(out, pairs).finish()
    assert start(out, pairs).finished


def test_a_full_disk_at_the_lock(out, pairs, monkeypatch):
    monkeypatch.setattr(lock.FileLock, "acquire", full)
    with refused("disk", "full"):
        start(out, pairs)


# ----------------------------------------------------------------------------------------------- bad folders


def test_bad_folders(tmp_path, pairs):
    with refused("--out"):
        runs.open_run("", "measure", {})
    with refused("is a file", "another --out"):
        start(pairs, pairs)
    with refused("lies below a file", "another --out"):
        start(pairs / "out", pairs)
    with refused("too long", "another --out"):
        start(tmp_path / ("x" * 300), pairs)


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff", '{"name": "my web app"}', '{"files": ["*"]}'])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_manifest_of_something_else_is_left_alone(out, pairs, content, overwrite):
    out.mkdir(parents=True)
    (out / "manifest.json").write_text(content, encoding="latin-1")
    (out / "profile.json").write_text("mine")
    with refused("manifest.json", "not written by tokendeep", "another --out"):
        start(out, pairs, overwrite=overwrite)
    assert (out / "manifest.json").read_text(encoding="latin-1") == content
    assert (out / "profile.json").read_text() == "mine"


def test_a_folder_of_the_users_own_is_used_but_never_written_over(out, pairs):
    out.mkdir(parents=True)
    (out / "profile.json").write_text("mine")
    (out / "notes.txt").write_text("mine")
    run = start(out, pairs, overwrite=True)
    for write in (runs.write_json, runs.write_text):
        with refused("profile.json", "not written by this run", "another --out"):
            write(out / "profile.json", "{}")
    with refused("notes.txt"):
        run.claim("notes.txt")
    runs.write_json(out / "asr.json", [])
    start(out, pairs, overwrite=True, seed=5)
    assert names(out) == {"profile.json", "notes.txt", "manifest.json"}
    assert (out / "profile.json").read_text() == "mine"


@pytest.mark.parametrize("name", [".logs.part", "checkpoint", "trainer"])
def test_what_libraries_would_take_for_their_own_is_refused(out, pairs, name):
    out.mkdir(parents=True)
    (out / name).write_text("mine")
    with refused(name, "of no run", "another --out"):
        start(out, pairs)
    assert names(out) == {name}


# ----------------------------------------------------------------------------------------------- overwriting


def fill(out: Path, run: runs.Run) -> None:
    """Write as verbs do: through this module, through libraries, and a file of the user's beside each."""
    runs.write_json(out / "profile.json", {})
    runs.private_dir(out / "rows")
    runs.write_jsonl(out / "rows" / "a[1].jsonl", [{"a": 1}], private=True)
    (run.claim("plots") / "deep").mkdir(parents=True)
    (out / "plots" / "deep" / "kl.png").write_text("")
    (out / ".logs.part").mkdir()
    (out / ".logs.part" / "x.eval").write_text("")
    (out / "checkpoint").mkdir()
    (out / "checkpoint" / "model.safetensors").write_text("")
    (out / "rows" / "mine.txt").write_text("mine")
    (out / "notes.txt").write_text("mine")


@pytest.mark.parametrize("finished", [True, False])
def test_overwrite_removes_what_the_run_wrote_and_nothing_else(out, pairs, finished):
    run = start(out, pairs)
    fill(out, run)
    if finished:
        run.finish()
    new = start(out, pairs, overwrite=True, seed=4)
    assert not new.resumed
    assert not new.finished
    assert names(out) == {"manifest.json", "rows/mine.txt", "notes.txt"}
    assert not (out / "plots").exists()
    assert not (out / "checkpoint").exists()
    assert manifest(out)["seed"] == 4


@pytest.mark.parametrize("name", ["trainer", "checkpoint/mine.txt"])
def test_what_was_put_among_results_after_the_end_stops_overwriting(out, pairs, name):
    run = start(out, pairs)
    fill(out, run)
    run.finish()
    (out / name).write_text("mine")
    before = names(out)
    with refused(name, "of no run", "another --out"):
        start(out, pairs, overwrite=True, seed=4)
    assert names(out) == before
    assert start(out, pairs).finished


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """What runs say on the terminal."""
    lines: list[str] = []
    monkeypatch.setattr(written.log, "warning", lambda text, *values: lines.append(text % values))
    return lines


def replaced(out: Path) -> list[Path]:
    """The folders of runs that were moved aside for the one in `out`."""
    return sorted(out.glob(".replaced-*"))


def test_an_overwritten_run_lies_inside_its_folder_until_the_new_one_has_finished(out, pairs, told):
    run = start(out, pairs)
    fill(out, run)
    run.finish()
    before = {name: (out / name).read_bytes() for name in names(out)}
    new = start(out, pairs, overwrite=True, seed=4)
    (aside,) = replaced(out)
    assert str(aside) in told[-1]
    assert stat.S_IMODE(aside.stat().st_mode) == 0o700
    moved = {name: (aside / name).read_bytes() for name in names(aside)}
    assert moved == {name: text for name, text in before.items() if name not in ("rows/mine.txt", "notes.txt")}
    runs.write_json(out / "profile.json", {"new": True})
    again = start(out, pairs, seed=4)  # the new one was killed and goes on
    assert again.resumed
    assert replaced(out) == [aside]
    assert str(aside) in told[-1]  # said again
    assert [line for line in runs.set_aside() if str(aside) in line]
    new.finish()
    assert replaced(out) == []
    assert names(out) == {"manifest.json", "profile.json", "rows/mine.txt", "notes.txt"}


def test_runs_overwritten_one_after_another_all_lie_there_until_one_has_finished(out, pairs):
    start(out, pairs).finish()
    start(out, pairs, overwrite=True, seed=4)
    runs.write_json(out / "profile.json", {})
    last = start(out, pairs, overwrite=True, seed=5)
    assert sorted(manifest(aside)["seed"] for aside in replaced(out)) == [3, 4]
    last.finish()
    assert replaced(out) == []


def test_a_move_that_was_cut_off_is_gone_on_with(out, pairs, monkeypatch):
    run = start(out, pairs)
    fill(out, run)
    run.finish()

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(out, pairs, overwrite=True, seed=4)
    monkeypatch.undo()
    assert start(out, pairs).finished  # nothing was lost
    new = start(out, pairs, overwrite=True, seed=4)
    assert names(out) == {"manifest.json", "rows/mine.txt", "notes.txt"}
    new.finish()
    assert replaced(out) == []


def test_what_somebody_put_among_an_overwritten_run_is_left_there(out, pairs, told):
    run = start(out, pairs)
    fill(out, run)
    run.finish()
    new = start(out, pairs, overwrite=True, seed=4)
    (aside,) = replaced(out)
    (aside / "plots" / "mine.txt").write_text("mine")
    new.finish()
    assert names(aside) == {"plots/mine.txt"}
    assert f"{aside} holds files that no run wrote" in told[-1]


@pytest.mark.parametrize("place", [".replaced-mine", "../.out.replaced-mine"])
def test_a_folder_of_such_a_name_that_is_not_ours_is_left_alone(out, pairs, place):
    mine = out / place
    out.mkdir(parents=True)
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    start(out, pairs).finish()
    assert names(mine) == {"notes.txt"}


def test_a_run_that_an_older_version_moved_beside_the_folder_is_removed_too(out, pairs):
    old = start(out.parent / ".out.replaced-0a", pairs)
    runs.write_json(old.out / "profile.json", {})
    old.finish()
    start(out, pairs, seed=4).finish()
    assert not old.out.exists()


def test_overwriting_needs_nothing_outside_the_folder(out, pairs, monkeypatch):
    """The folder is a mount, and its parent may not be written."""
    run = start(out, pairs)
    fill(out, run)
    run.finish()
    before = sorted(out.parent.iterdir())
    make = os.mkdir

    def inside(path, *rest, **more):
        assert Path(path).resolve().is_relative_to(out.resolve()), path
        make(path, *rest, **more)

    monkeypatch.setattr(os, "mkdir", inside)
    new = start(out, pairs, overwrite=True, seed=4)
    assert sorted(out.parent.iterdir()) == before
    new.finish()
    assert names(out) == {"manifest.json", "rows/mine.txt", "notes.txt"}


def test_a_part_on_another_disk_stops_overwriting(out, pairs, monkeypatch):
    run = start(out, pairs)
    runs.write_json(out / "profile.json", {})
    run.finish()
    look = Path.lstat

    def lstat(self):
        stat = look(self)
        return os.stat_result((*stat[:2], stat.st_dev + 1, *stat[3:10])) if self.name == "profile.json" else stat

    monkeypatch.setattr(Path, "lstat", lstat)
    with refused("profile.json", "another disk"):
        start(out, pairs, overwrite=True, seed=4)
    monkeypatch.undo()
    assert start(out, pairs).finished


# ----------------------------------------------------------------------------------- runs that hold nothing


@pytest.mark.parametrize("verb", ["measure", "attack"])
def test_a_run_that_was_cut_off_before_its_first_result_holds_nothing(out, pairs, verb):
    runs.private_dir(start(out, pairs, model="me/wrong").out)
    config = {**CONFIG, "model": "me/right"}
    assert "it is replaced" in runs.look(out, verb, config)
    assert "README.txt" in names(out)
    new = runs.open_run(out, verb, config, {"data": str(pairs)})
    assert not new.resumed
    assert names(out) == {"manifest.json"}
    assert manifest(out)["config"]["model"] == "me/right"
    runs.write_json(out / "profile.json", {})
    with refused("differs in model"):
        start(out, pairs, verb=verb, model="me/wrong")


def test_a_verb_says_itself_when_its_runs_have_begun(out, pairs):
    run = start(out, pairs, seed=3)
    runs.write_json(out / "attacked.json", {})
    more = {"inputs": {"data": str(pairs)}, "config": {**CONFIG, "data": str(pairs), "seed": 4}}
    with refused("differs in seed"):
        runs.open_run(out, "measure", begun=lambda folder: True, **more)
    (out / "notes.txt").write_text("mine")
    assert not runs.open_run(out, "measure", begun=lambda folder: False, **more).resumed
    assert names(out) == {"manifest.json", "notes.txt"}
    assert run.out == out
    start(out, pairs, seed=4).finish()
    with refused("differs in seed"):
        runs.open_run(out, "measure", begun=lambda folder: False, **{**more, "config": {**CONFIG, "seed": 5}})


def test_runs_that_are_parts_of_one_are_moved_aside_with_it(out, pairs):
    parts = ("*/finetune", "*/attack-*")
    outer = start(out, pairs, nested=parts)
    inner = start(out / "sft" / "finetune", pairs, seed=8)
    (inner.out / "checkpoint" / "deep").mkdir(parents=True)
    (inner.out / "checkpoint" / "deep" / "weights").write_text("old")
    inner.finish()
    runs.write_json(out / "sft" / "cell.json", {})
    (inner.out / "notes.txt").write_text("mine")
    other = start(out / "sft" / "measure", pairs, seed=8)  # no part of it
    other.finish()
    outer.finish()
    assert manifest(out)["files"] == ["sft/cell.json"]  # as ever: what a part wrote stands in its own manifest
    new = start(out, pairs, overwrite=True, seed=9, nested=parts)
    (aside,) = replaced(out)
    assert names(aside) == {
        "manifest.json", "sft/cell.json", "sft/finetune/manifest.json", "sft/finetune/checkpoint/deep/weights",
    }  # fmt: skip
    assert names(out) == {"manifest.json", "sft/finetune/notes.txt", "sft/measure/manifest.json"}
    new.finish()
    assert replaced(out) == []
    assert not (out / "sft" / "finetune" / "checkpoint").exists()
    start(out, pairs, verb="attack", overwrite=True, nested=("*/measure",))  # of another verb nothing is known
    assert (other.out / "manifest.json").exists()


def test_overwrite_starts_the_same_run_anew(out, pairs):
    run = start(out, pairs)
    runs.write_json(out / "profile.json", {})
    run.finish()
    again = start(out, pairs, overwrite=True)
    assert not again.finished
    assert names(out) == {"manifest.json"}


def test_overwrite_follows_no_link_and_leaves_the_folder(out, pairs, tmp_path):
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold.txt").write_text("mine")
    run = start(out, pairs)
    (out / "checkpoint").mkdir()
    (out / "checkpoint" / "link").symlink_to(treasure, target_is_directory=True)
    (out / "trainer").symlink_to(treasure, target_is_directory=True)
    (out / "linked").symlink_to(treasure, target_is_directory=True)
    run.manifest["files"] += [
        "../../treasure/*",
        str(treasure / "gold.txt"),
        "**",
        "",
        ".",
        "linked/gold.txt",
        "manifest.json",
    ]
    manifests.save(out, run.manifest)
    (out / "mine").mkdir()
    (out / "mine" / "notes.txt").write_text("mine")
    start(out, pairs, overwrite=True, seed=4)
    assert (treasure / "gold.txt").read_text() == "mine"
    assert names(out) == {"manifest.json", "mine/notes.txt"}


def test_a_run_inside_a_run_keeps_its_own_files(out, pairs):
    outer = start(out, pairs)
    inner = start(out / "aligned" / "measure", pairs, seed=8)
    runs.write_json(inner.out / "profile.json", {})
    runs.write_json(outer.out / "table.json", {})
    inner.finish()
    outer.finish()
    assert manifest(inner.out)["files"] == ["profile.json"]
    assert manifest(out)["files"] == ["table.json"]
    start(out, pairs, overwrite=True, seed=9)
    assert (inner.out / "profile.json").exists()


# --------------------------------------------------------------------------------------------------- writing


def test_writing_and_modes(tmp_path):
    runs.write_json(tmp_path / "a" / "b.json", {"é": [1, None]})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"é": [1, None]}
    runs.write_jsonl(tmp_path / "c.jsonl", ({"n": n, "t": "ü\n"} for n in range(3)), private=True)
    assert [json.loads(line)["n"] for line in (tmp_path / "c.jsonl").read_text().splitlines()] == [0, 1, 2]
    assert stat.S_IMODE((tmp_path / "c.jsonl").stat().st_mode) == 0o600
    old = os.umask(0o022)
    try:
        runs.write_text(tmp_path / "d.txt", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "d.txt").stat().st_mode) == 0o644
    folder = runs.private_dir(tmp_path / "rows")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "harmful" in (folder / "README.txt").read_text()
    before = (folder / "README.txt").stat().st_mtime_ns
    runs.private_dir(folder)
    assert (folder / "README.txt").stat().st_mtime_ns == before


def test_a_private_folder_of_the_users_own_keeps_its_readme_and_permissions(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    (folder / "README.txt").write_text("mine")
    with refused(str(folder / "README.txt"), "not written by tokendeep", "another --out"):
        runs.private_dir(folder)
    assert (folder / "README.txt").read_text() == "mine"
    (folder / "README.txt").unlink()
    runs.private_dir(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert (folder / "README.txt").read_text() == files.PRIVATE_NOTE
    runs.private_dir(folder)  # ours by now
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_runs_own_folder_becomes_private(out, pairs, tmp_path):
    start(out, pairs)
    assert stat.S_IMODE(runs.private_dir(out).stat().st_mode) == 0o700
    mine = tmp_path / "mine"
    mine.mkdir()
    mine.chmod(0o755)
    start(mine, pairs)
    assert stat.S_IMODE(runs.private_dir(mine).stat().st_mode) == 0o755


def test_json_takes_no_nan(tmp_path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            runs.write_json(tmp_path / "a.json", {"a": value})
        with pytest.raises(ValueError, match="JSON"):
            runs.write_jsonl(tmp_path / "a.jsonl", [{"a": value}])
    assert names(tmp_path) == set()


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "open", "replace"])
def test_full_disk_keeps_what_was_finished(out, pairs, monkeypatch, call):
    run = start(out, pairs)
    runs.write_json(out / "profile.json", {"done": True})
    before = {name: (out / name).read_bytes() for name in names(out)}
    monkeypatch.setattr(os, call, full)
    for path in ("profile.json", "asr.json"):
        with refused(str(out), "disk", "full", "free some space"):
            runs.write_json(out / path, {"done": False})
    with refused("disk", "full"):
        run.finish()
    monkeypatch.undo()
    assert {name: (out / name).read_bytes() for name in names(out)} == before
    assert start(out, pairs).resumed


def test_full_disk_half_way_through_a_file(out, pairs, monkeypatch):
    start(out, pairs)
    runs.write_json(out / "profile.json", {"done": True})
    real = os.fdopen

    class Small:
        def __init__(self, handle, mode):
            self.file = real(handle, mode)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            full()

    monkeypatch.setattr(os, "fdopen", Small)
    with refused("disk", "full"):
        runs.write_text(out / "profile.json", "x" * 1000)
    monkeypatch.undo()
    assert json.loads((out / "profile.json").read_text()) == {"done": True}
    assert names(out) == {"manifest.json", "profile.json"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_no_permission(out, pairs, monkeypatch, number):
    start(out, pairs)

    def deny(*args, **kwargs):
        raise OSError(number, "denied")

    monkeypatch.setattr(os, "open", deny)
    with refused(str(out), "may not be written", "permissions"):
        runs.write_json(out / "asr.json", [])
    with refused("alone.json", "may not be written", "permissions"):
        runs.write_json(out.parent / "alone.json", [])
    with refused(str(out / "other"), "may not be written"):
        start(out / "other", pairs)


def test_a_folder_that_may_not_be_entered(out, pairs, monkeypatch):
    def deny(*args, **kwargs):
        raise PermissionError(errno.EACCES, "denied")

    out.mkdir(parents=True)
    monkeypatch.setattr(Path, "read_text", deny)
    with refused("manifest.json", "may not be read", "another --out"):
        start(out, pairs)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_for_real(out, pairs):
    out.mkdir(parents=True)
    out.chmod(0o500)
    with refused("may not be written"):
        start(out, pairs)


def test_other_errors_are_not_explained_away(tmp_path):
    with pytest.raises(OSError, match="broken"), errors.guarded(tmp_path):
        raise OSError(errno.EIO, "broken")
    with pytest.raises(KeyError), errors.guarded(tmp_path):
        raise KeyError("x")


def test_a_librarys_own_error_for_a_full_disk(tmp_path):
    with refused(str(tmp_path), "full"), errors.guarded(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_torch_breaking_off_on_a_full_disk(tmp_path, monkeypatch):
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    assert errors.explain(error, tmp_path / "a" / "b") is None
    monkeypatch.setattr(errors.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 2**30, 4096))
    assert "full" in str(errors.explain(error, tmp_path / "a" / "b"))
    assert errors.explain(RuntimeError("other"), tmp_path) is None
    chained = RuntimeError("could not save")
    chained.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "full" in str(errors.explain(chained, tmp_path))


def test_interrupted_write_leaves_the_old_file(out, pairs, monkeypatch):
    start(out, pairs)
    runs.write_json(out / "profile.json", {"done": True})

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        runs.write_json(out / "profile.json", {"done": False})
    monkeypatch.undo()
    assert json.loads((out / "profile.json").read_text()) == {"done": True}
    assert names(out) == {"manifest.json", "profile.json"}
    assert manifest(out)["status"] == "running"


def test_killed_while_writing(out, pairs):
    """A process killed at any moment leaves whole files; the next one cleans up and goes on."""
    program = (
        "import sys; from tokendeep import runs\n"
        "run = runs.open_run(sys.argv[1], 'measure', {}, {})\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1; runs.write_json(run.out / 'big.json', [n] * 200_000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(runs.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", program, str(out)], env=environment)
    deadline = time.monotonic() + 20
    while not (out / "big.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(set(json.loads((out / "big.json").read_text()))) == 1
    (out / f".big.json.00000000{files.PARTIAL}").write_text("half")
    run = runs.open_run(out, "measure", {}, {})
    assert run.resumed
    run.finish()
    assert names(out) == {"manifest.json", "big.json"}


def test_sha256_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert runs.sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with refused(str(tmp_path / "y"), "cannot be read"):
        runs.sha256_file(tmp_path / "y")


def test_a_look_says_what_opening_would_meet_and_writes_nothing(out, tmp_path):
    settings = {"model": "m", "k": [0, 5], "label": None}
    assert runs.look(out, "measure", settings) == "new"
    assert not out.exists()
    assert "--out" in runs.look("", "measure", settings)
    (tmp_path / "file").write_text("mine")
    assert "is a file" in runs.look(tmp_path / "file", "measure", settings)
    run = runs.open_run(out, "measure", settings)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir())
    assert runs.look(out, "measure", settings) == "holds this run, unfinished: it goes on"
    run.finish()
    assert runs.look(out, "measure", {**settings, "label": "short"}).startswith("holds this run, finished")
    other = runs.look(out, "measure", {**settings, "k": [0]})
    assert "differs in k" in other
    assert "--overwrite" in other
    with pytest.raises(InputError, match="differs in k"):  # as opening it would say
        runs.open_run(out, "measure", {**settings, "k": [0]})
    assert "differs in its verb" in runs.look(out, "attack", settings)
    assert "--overwrite replaces it" in runs.look(out, "attack", settings, overwrite=True)
    (out / "manifest.json").write_text("{")
    assert "cannot be read" in runs.look(out, "measure", settings)
    assert {name for name, _ in before} >= {path.name for path in out.iterdir()} - {".lock"}
