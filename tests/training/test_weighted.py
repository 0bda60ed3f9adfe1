"""Training: the loss by hand, and the equivalences (accumulation, processes, padding, resume)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tokendeep import models
from tokendeep.errors import InputError
from tokendeep.training import launch, weighted
from tokendeep.types import IGNORE, Subject

pytestmark = pytest.mark.slow  # trains or searches in nearly every test

STEPS, PER_STEP = 4, 8


def rows(steps: int = STEPS) -> list[weighted.WeightedRow]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for step in range(steps):
        for i in range(PER_STEP):
            prompt, answer = 3 + i, 1 + (5 * i + step) % 7  # unequal lengths: ranks get unequal token counts
            ids = torch.randint(4, 300, (prompt + answer,), generator=generator).tolist()
            weight = 0.05 * (1 + i % 3)
            made.append(
                weighted.WeightedRow(ids, [IGNORE] * prompt + ids[prompt:], weight, "safety" if i % 4 else "utility")
            )
    return made


def settings(**more: Any) -> dict[str, Any]:
    return {"rows_per_step": PER_STEP, "micro_batch": 8, "lr": 1e-3, "schedule": "linear", "warmup_steps": 1,
            "precision": "float32", **more}  # fmt: skip


def trained(
    out: Path, folder: Path, data: list[weighted.WeightedRow] | None = None, **more: Any
) -> tuple[Any, dict[str, Any]]:
    subject = models.load(str(folder), dtype="float32")
    result = weighted.train(subject, data or rows(), out, **settings(**more))
    return models.load(str(out / "checkpoint"), dtype="float32").model, result


def losses(result: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in result["history"] if "loss" in entry]


def assert_same_weights(one: Any, two: Any, tolerance: float = 1e-5) -> None:
    for (name, left), right in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, msg=name)


def test_the_first_step_is_the_weighted_nll_by_hand(tmp_path: Path, tiny_folder: Path, tiny_model: Any) -> None:
    _, result = trained(tmp_path / "out", tiny_folder)
    expected, sums = 0.0, {"safety": [0.0, 0], "utility": [0.0, 0]}
    for row in rows()[:PER_STEP]:
        with torch.no_grad():
            logps = tiny_model(input_ids=torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
        for place in range(1, len(row.labels)):
            if row.labels[place] != IGNORE:
                nll = -logps[place - 1, row.labels[place]].item()
                expected += row.weight * nll
                sums[row.group][0] += nll
                sums[row.group][1] += 1
    first = result["history"][0]
    assert first["loss"] == pytest.approx(expected, rel=1e-4)
    for group, (nll, count) in sums.items():
        assert first[f"nll_{group}"] == pytest.approx(nll / count, rel=1e-4)


def test_the_loss_falls_and_the_weights_move(tmp_path: Path, tiny_folder: Path, tiny_model: Any) -> None:
    same = rows(1) * 12
    model, result = trained(tmp_path / "out", tiny_folder, same, lr=5e-3)
    assert losses(result)[-1] < 0.6 * losses(result)[0]
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, tiny_model.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("micro", [1, 2])
def test_accumulation_changes_nothing(tmp_path: Path, tiny_folder: Path, micro: int) -> None:
    whole, one = trained(tmp_path / "whole", tiny_folder)
    cut, two = trained(tmp_path / "cut", tiny_folder, micro_batch=micro)
    assert losses(one) == pytest.approx(losses(two), rel=1e-4)
    assert_same_weights(whole, cut)


def test_rows_that_cannot_be_cut_into_micro_batches_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="micro_batch"):
        trained(tmp_path / "out", tiny_folder, micro_batch=3)


class Killed(Exception):
    """Stands for a process that is killed."""


def test_resumed_equals_uninterrupted(tmp_path: Path, tiny_folder: Path) -> None:
    whole, one = trained(tmp_path / "whole", tiny_folder)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", tiny_folder, save_steps=2, callbacks=[Kill()])
    assert not (tmp_path / "cut" / "checkpoint").exists()
    cut, two = trained(tmp_path / "cut", tiny_folder, save_steps=2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert_same_weights(whole, cut, 1e-6)


class Kill(TrainerCallback):
    """Ends the training before its fourth step."""

    def __init__(self, error: type[Exception] = Killed) -> None:
        self.error = error

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise self.error


@pytest.mark.parametrize("state", [None, '{"epoch": '])
def test_a_checkpoint_without_its_state_is_skipped(tmp_path: Path, tiny_folder: Path, state: str | None) -> None:
    whole, one = trained(tmp_path / "whole", tiny_folder)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", tiny_folder, save_steps=2, callbacks=[Kill()])
    half = tmp_path / "cut" / "trainer" / "checkpoint-4"
    shutil.copytree(half.with_name("checkpoint-2"), half)
    (half / "trainer_state.json").unlink()
    if state is not None:
        (half / "trainer_state.json").write_text(state)
    cut, two = trained(tmp_path / "cut", tiny_folder)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert_same_weights(whole, cut, 1e-6)


def test_half_written_checkpoints_are_removed_by_the_first_process(tmp_path: Path, monkeypatch: Any) -> None:
    for step in (8, 16):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text("{}")
    monkeypatch.setenv("RANK", "1")
    assert launch.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    assert (tmp_path / "checkpoint-16").exists()
    monkeypatch.setenv("RANK", "0")
    assert launch.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    assert not (tmp_path / "checkpoint-16").exists()
    assert launch.last_checkpoint(tmp_path / "absent") is None


def test_too_little_memory_names_the_setting_and_the_run_goes_on_with_less(tmp_path: Path, tiny_folder: Path) -> None:
    whole, one = trained(tmp_path / "whole", tiny_folder)
    with pytest.raises(InputError, match=r"lower --micro_batch \(now 8\)"):
        trained(tmp_path / "cut", tiny_folder, save_steps=2, callbacks=[Kill(torch.OutOfMemoryError)])
    cut, two = trained(tmp_path / "cut", tiny_folder, micro_batch=2, save_steps=2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert_same_weights(whole, cut)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, tiny_folder: Path) -> None:
    whole, one = trained(tmp_path / "one", tiny_folder, micro_batch=4)
    script = (
        "import sys, json; sys.path[:0] = [sys.argv[1] + part for part in ('', '/training', '/verbs')]\n"
        "from test_weighted import *\n"
        "model, result = trained(Path(sys.argv[2]), Path(sys.argv[3]), micro_batch=4)\n"
        "(Path(sys.argv[2]) / f'losses{os.environ[\"RANK\"]}.json').write_text(json.dumps(losses(result)))\n"
    )
    (tmp_path / "script.py").write_text(script)
    # accelerate 1.15 starts a single process for `accelerate launch --cpu --num_processes 2`; torchrun starts both
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [str(tmp_path / "script.py"), str(Path(__file__).parents[1]), str(tmp_path / "two"), str(tiny_folder)]
    done = subprocess.run(launch + words, capture_output=True, text=True, timeout=240, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two" / "losses0.json").read_text())
    assert (tmp_path / "two" / "losses1.json").exists()  # there was a second process
    assert two == pytest.approx(losses(one), rel=1e-4)
    assert_same_weights(whole, models.load(str(tmp_path / "two" / "checkpoint"), dtype="float32").model)


def test_lora_leaves_an_adapter_that_loads_with_its_base(tmp_path: Path, tiny_folder: Path) -> None:
    subject = models.load(str(tiny_folder), dtype="float32")
    weighted.train(subject, rows(), tmp_path / "out", **settings(lora=4, lr=1e-2))
    assert (tmp_path / "out" / "checkpoint" / "adapter_config.json").is_file()
    loaded = models.load(str(tmp_path / "out" / "checkpoint"))
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        adapted = loaded.model(input_ids=ids).logits
        with models.reference(loaded.model):
            plain = loaded.model(input_ids=ids).logits
    assert not torch.allclose(adapted, plain)


def test_an_adapter_over_a_half_precision_base_is_float32(tmp_path: Path, tiny_folder: Path) -> None:
    subject = models.load(str(tiny_folder), dtype="bfloat16")
    weighted.train(subject, rows(), tmp_path / "out", **settings(lora=4, lr=1e-2))
    kinds = {"lora_" in name: parameter.dtype for name, parameter in subject.model.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    saved = load_file(tmp_path / "out" / "checkpoint" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert any("lora_B" in name and tensor.any() for name, tensor in saved.items())


def test_an_adapter_goes_on_being_trained(tmp_path: Path, tiny_adapter: Path) -> None:
    subject = models.load(str(tiny_adapter), dtype="float32", trainable=True)
    before = {name: parameter.detach().clone() for name, parameter in subject.model.named_parameters()}
    weighted.train(subject, rows(), tmp_path / "out", **settings(lr=1e-2))
    after = models.load(str(tmp_path / "out" / "checkpoint"), dtype="float32").model
    changed = {name for name, parameter in after.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_a_frozen_model_is_refused(tmp_path: Path, tiny_adapter: Path) -> None:
    with pytest.raises(InputError, match="frozen"):
        weighted.train(models.load(str(tiny_adapter)), rows(), tmp_path / "out", **settings())


def test_several_gpus_and_one_process(monkeypatch: Any) -> None:
    def on(*devices: str) -> Any:
        parameters = [SimpleNamespace(device=torch.device(device)) for device in devices]
        return Subject(SimpleNamespace(parameters=lambda: parameters), None, "m")  # type: ignore[arg-type]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match=r"accelerate launch --num_processes 2 .*CUDA_VISIBLE_DEVICES"):
        launch.check_gpus(on("cuda:0", "cuda:0"))
    launch.check_gpus(on("cpu"))
    launch.check_gpus(on("cuda:0", "cuda:1"))  # split by device_map
    with monkeypatch.context() as launched:
        launched.setenv("WORLD_SIZE", "2")
        launch.check_gpus(on("cuda:1"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    launch.check_gpus(on("cuda:0"))


def test_only_the_top_layers_train(tmp_path: Path, tiny_folder: Path, tiny_model: Any) -> None:
    model, _ = trained(tmp_path / "out", tiny_folder, train_layers=1)
    before, after = tiny_model.model, model.model
    assert torch.equal(before.embed_tokens.weight, after.embed_tokens.weight)
    assert torch.equal(before.layers[0].mlp.up_proj.weight, after.layers[0].mlp.up_proj.weight)
    assert not torch.equal(before.layers[1].mlp.up_proj.weight, after.layers[1].mlp.up_proj.weight)
    with pytest.raises(InputError, match="train_layers"):
        trained(tmp_path / "more", tiny_folder, train_layers=3)


def test_a_loss_that_is_not_finite_stops_with_the_step_named(tmp_path: Path, tiny_folder: Path) -> None:
    subject: Subject = models.load(str(tiny_folder), dtype="float32")
    subject.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="step 1"):
        weighted.train(subject, rows(), tmp_path / "out", **settings())


def test_training_state_is_kept_where_no_weights_were_saved(
    tmp_path: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    save, out = weighted.WeightedSFTTrainer.save_model, tmp_path / "out"

    def shards(self: Any, output_dir: str, _internal_call: bool = False) -> None:
        if _internal_call:  # a checkpoint of the training's own
            save(self, output_dir, _internal_call)

    with monkeypatch.context() as patch:
        patch.setattr(weighted.WeightedSFTTrainer, "save_model", shards)
        with pytest.raises(InputError, match="FULL_STATE_DICT"):
            trained(out, tiny_folder, save_steps=STEPS)
    assert not (out / "checkpoint").exists()
    assert launch.last_checkpoint(out / "trainer") == str(out / "trainer" / f"checkpoint-{STEPS}")
    (out / "checkpoint.part").mkdir()
    (out / "checkpoint.part" / "half.safetensors").touch()  # of a run that was killed while it saved
    trained(out, tiny_folder, save_steps=STEPS)
    assert not (out / "trainer").exists()
    assert not (out / "checkpoint" / "half.safetensors").exists()


def test_sharded_weights_are_gathered_for_the_checkpoint(tmp_path: Path, tiny_subject: Subject) -> None:
    said: list[str] = []

    def save(folder: str) -> None:
        assert said == ["FULL_STATE_DICT"]
        tiny_subject.model.save_pretrained(folder)

    stub: Any = SimpleNamespace(
        model=tiny_subject.model,
        args=SimpleNamespace(output_dir=str(tmp_path / "trainer")),
        accelerator=SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=SimpleNamespace(set_state_dict_type=said.append)),
            wait_for_everyone=lambda: None,
        ),
        save_model=save,
        is_world_process_zero=lambda: True,
    )
    launch.save(stub, tiny_subject, tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()


def test_the_checkpoint_is_safetensors_without_pickles(tmp_path: Path, tiny_folder: Path) -> None:
    trained(tmp_path / "out", tiny_folder)
    names = {path.name for path in (tmp_path / "out" / "checkpoint").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


@pytest.mark.parametrize("has", [True, False])
def test_precision_is_as_asked_for_or_as_the_device_has_it(monkeypatch: Any, has: bool) -> None:
    monkeypatch.setattr(launch, "has_bf16", lambda device: has)
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        weights = torch.zeros(1, dtype=kind)
        assert launch.mixed_precision("auto", weights) == {"bf16": has, "fp16": False}
        assert launch.mixed_precision("float32", weights) == {"bf16": False, "fp16": False}
        assert launch.mixed_precision("bfloat16", weights) == {"bf16": True, "fp16": False}
