"""One training of weighted rows: the loss by hand, the equivalences (accumulation, processes, padding, resume), saving."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tokendeep import models
from tokendeep.errors import InputError
from tokendeep.training import fit, launch
from tokendeep.training.eq3 import BetaSchedule
from tokendeep.training.sft import ResponseSFTTrainer
from tokendeep.training.trainer import ConstrainedSFTTrainer
from tokendeep.types import IGNORE, Subject
from tuning import (
    LORA,
    PER_STEP,
    STEPS,
    Kill,
    KillAtEnd,
    Killed,
    assert_same_weights,
    fitted,
    losses,
    options,
    two_processes,
    weighted_rows,
)

pytestmark = pytest.mark.slow  # trains or searches in nearly every test


def test_the_first_step_is_the_weighted_nll_by_hand(tmp_path: Path, tiny_folder: Path, tiny_model: Any) -> None:
    _, result = fitted(tmp_path / "out", tiny_folder)
    expected, sums = 0.0, {"safety": [0.0, 0], "utility": [0.0, 0]}
    for row in weighted_rows()[:PER_STEP]:
        with torch.no_grad():
            logps = tiny_model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        for place in range(1, len(row["labels"])):
            if row["labels"][place] != IGNORE:
                nll = -logps[place - 1, row["labels"][place]].item()
                expected += row["weight"] * nll
                sums[row["group"]][0] += nll
                sums[row["group"]][1] += 1
    first = result["history"][0]
    assert first["loss"] == pytest.approx(expected, rel=1e-4)
    for group, (nll, count) in sums.items():
        assert first[f"nll_{group}"] == pytest.approx(nll / count, rel=1e-4)


def test_the_loss_falls_and_the_weights_move(tmp_path: Path, tiny_folder: Path, tiny_model: Any) -> None:
    same = weighted_rows(1) * 12
    model, result = fitted(tmp_path / "out", tiny_folder, same, lr=5e-3)
    assert losses(result)[-1] < 0.6 * losses(result)[0]
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, tiny_model.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("micro", [1, 2])
def test_accumulation_changes_nothing(tmp_path: Path, tiny_folder: Path, micro: int) -> None:
    whole, one = fitted(tmp_path / "whole", tiny_folder)
    cut, two = fitted(tmp_path / "cut", tiny_folder, micro_batch=micro)
    assert losses(one) == pytest.approx(losses(two), rel=1e-4)
    assert_same_weights(whole, cut)


def test_rows_that_cannot_be_cut_into_micro_batches_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="micro_batch"):
        fitted(tmp_path / "out", tiny_folder, micro_batch=3)


def test_resumed_equals_uninterrupted(tmp_path: Path, tiny_folder: Path) -> None:
    whole, one = fitted(tmp_path / "whole", tiny_folder)
    with pytest.raises(Killed):
        fitted(tmp_path / "cut", tiny_folder, save_steps=2, callbacks=[Kill()])
    assert not (tmp_path / "cut" / "checkpoint").exists()
    cut, two = fitted(tmp_path / "cut", tiny_folder, save_steps=2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert_same_weights(whole, cut, 1e-6)


def test_the_mean_loss_of_a_resumed_training_is_of_all_its_steps(tmp_path: Path, tiny_folder: Path) -> None:
    _, one = fitted(tmp_path / "whole", tiny_folder)
    with pytest.raises(Killed):
        fitted(tmp_path / "cut", tiny_folder, save_steps=2, callbacks=[Kill()])
    _, two = fitted(tmp_path / "cut", tiny_folder, save_steps=2)
    assert two["history"][-1]["train_loss"] == pytest.approx(sum(losses(one)) / len(losses(one)), rel=1e-5)
    assert one["history"][-1]["train_loss"] == pytest.approx(two["history"][-1]["train_loss"], rel=1e-5)


def test_an_evaluation_due_at_a_saved_step_is_never_lost(tmp_path: Path, tiny_folder: Path) -> None:
    class KillAtEpochEnd(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise Killed

    def run(out: Path, *callbacks: Any) -> list[tuple[int, float]]:
        rows = [{name: row[name] for name in ("input_ids", "labels")} for row in weighted_rows(2)]
        result = fit.train(
            models.load(str(tiny_folder), dtype="float32"), rows, out, options(max_steps=0, epochs=2, save_steps=2),
            eval_rows=rows[:4], callbacks=callbacks,
        )  # fmt: skip
        return [(line["step"], line["eval_nll"]) for line in result["history"] if "eval_nll" in line]

    whole = run(tmp_path / "whole")
    assert [step for step, _ in whole] == [2, 4]
    with pytest.raises(Killed):
        run(tmp_path / "cut", KillAtEpochEnd())
    cut = run(tmp_path / "cut")
    assert [step for step, _ in cut] == [2, 4]
    assert [nll for _, nll in cut] == pytest.approx([nll for _, nll in whole], rel=1e-5)


@pytest.mark.parametrize("steps", [3, 4])  # in the middle of an epoch, and at its end
def test_a_run_killed_after_its_last_step_takes_no_other(tmp_path: Path, tiny_folder: Path, steps: int) -> None:
    whole, one = fitted(tmp_path / "whole", tiny_folder, max_steps=steps)
    with pytest.raises(Killed):
        fitted(tmp_path / "cut", tiny_folder, max_steps=steps, save_steps=1, callbacks=[KillAtEnd()])
    cut, two = fitted(tmp_path / "cut", tiny_folder, max_steps=steps, save_steps=1)
    assert (one["steps"], two["steps"]) == (steps, steps)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert_same_weights(whole, cut, 1e-6)


@pytest.mark.parametrize("state", [None, '{"epoch": '])
def test_a_checkpoint_without_its_state_is_skipped(tmp_path: Path, tiny_folder: Path, state: str | None) -> None:
    whole, one = fitted(tmp_path / "whole", tiny_folder)
    with pytest.raises(Killed):
        fitted(tmp_path / "cut", tiny_folder, save_steps=2, callbacks=[Kill()])
    half = tmp_path / "cut" / "trainer" / "checkpoint-4"
    shutil.copytree(half.with_name("checkpoint-2"), half)
    (half / "trainer_state.json").unlink()
    if state is not None:
        (half / "trainer_state.json").write_text(state)
    cut, two = fitted(tmp_path / "cut", tiny_folder)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert_same_weights(whole, cut, 1e-6)


def test_half_written_checkpoints_are_removed_by_the_first_process(tmp_path: Path, monkeypatch: Any) -> None:
    for step in (8, 16):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text("{}")
    monkeypatch.setenv("RANK", "1")
    assert fit.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    assert (tmp_path / "checkpoint-16").exists()
    monkeypatch.setenv("RANK", "0")
    assert fit.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    assert not (tmp_path / "checkpoint-16").exists()
    assert fit.last_checkpoint(tmp_path / "absent") is None


def test_too_little_memory_names_the_setting_and_the_run_goes_on_with_less(tmp_path: Path, tiny_folder: Path) -> None:
    whole, one = fitted(tmp_path / "whole", tiny_folder)
    with pytest.raises(InputError, match=r"lower --micro-batch \(now 8\)"):
        fitted(tmp_path / "cut", tiny_folder, save_steps=2, callbacks=[Kill(torch.OutOfMemoryError)])
    cut, two = fitted(tmp_path / "cut", tiny_folder, micro_batch=2, save_steps=2)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert_same_weights(whole, cut)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, tiny_folder: Path) -> None:
    whole, one = fitted(tmp_path / "one", tiny_folder, micro_batch=4)
    script = (
        "import json, os; from tuning import *\n"
        "model, result = fitted(Path(sys.argv[1]), Path(sys.argv[2]), micro_batch=4)\n"
        "(Path(sys.argv[1]) / f'losses{os.environ[\"RANK\"]}.json').write_text(json.dumps(losses(result)))\n"
    )
    two_processes(script, tmp_path, tmp_path / "two", tiny_folder)
    two = json.loads((tmp_path / "two" / "losses0.json").read_text())
    assert (tmp_path / "two" / "losses1.json").exists()  # there was a second process
    assert two == pytest.approx(losses(one), rel=1e-4)
    assert_same_weights(whole, models.load(str(tmp_path / "two" / "checkpoint"), dtype="float32").model)


def test_lora_leaves_an_adapter_that_loads_with_its_base(tmp_path: Path, tiny_folder: Path) -> None:
    subject = models.load(str(tiny_folder), dtype="float32")
    fit.train(subject, weighted_rows(), tmp_path / "out", options(lora=4, lr=1e-2))
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
    fit.train(subject, weighted_rows(), tmp_path / "out", options(lora=4, lr=1e-2))
    kinds = {"lora_" in name: parameter.dtype for name, parameter in subject.model.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    saved = load_file(tmp_path / "out" / "checkpoint" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert any("lora_B" in name and tensor.any() for name, tensor in saved.items())


class Packed(torch.nn.Module):
    """A linear layer whose weights are held as integers, as quantised models hold them."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(weight.abs().max() / 127, requires_grad=False)
        self.weight = torch.nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given @ (self.weight.to(given.dtype) * self.scale.to(given.dtype)).T


def test_an_adapter_over_quantised_weights_is_saved(tmp_path: Path, tiny_folder: Path, monkeypatch: Any) -> None:
    subject = models.load(str(tiny_folder), dtype="float32")
    mlp = subject.model.model.layers[1].mlp
    mlp.up_proj = Packed(mlp.up_proj.weight.detach())
    monkeypatch.setattr(launch, "lora_config", lambda rank: LORA)
    fit.train(subject, weighted_rows(), tmp_path / "out", options(lora=4))
    saved = load_file(tmp_path / "out" / "checkpoint" / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.any() for name, tensor in saved.items())
    trained = {name for name, weights in subject.model.named_parameters() if weights.requires_grad}
    assert trained == {name for name, _ in subject.model.named_parameters() if "lora_" in name}


def test_an_adapter_goes_on_being_trained(tmp_path: Path, tiny_adapter: Path) -> None:
    subject = models.load(str(tiny_adapter), dtype="float32", trainable=True)
    before = {name: parameter.detach().clone() for name, parameter in subject.model.named_parameters()}
    fit.train(subject, weighted_rows(), tmp_path / "out", options(lr=1e-2))
    after = models.load(str(tmp_path / "out" / "checkpoint"), dtype="float32").model
    changed = {name for name, parameter in after.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_a_frozen_model_is_refused(tmp_path: Path, tiny_adapter: Path) -> None:
    with pytest.raises(InputError, match="frozen"):
        fit.train(models.load(str(tiny_adapter)), weighted_rows(), tmp_path / "out", options())


def test_several_gpus_and_one_process(monkeypatch: Any) -> None:
    def on(*devices: str) -> Any:
        parameters = [SimpleNamespace(device=torch.device(device)) for device in devices]
        return Subject(SimpleNamespace(parameters=lambda: parameters), None, "m")  # type: ignore[arg-type]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match=r"accelerate launch --num-processes 2 .*CUDA_VISIBLE_DEVICES"):
        launch.check_gpus(on("cuda:0", "cuda:0"))
    launch.check_gpus(on("cpu"))
    launch.check_gpus(on("cuda:0", "cuda:1"))  # split by device_map
    with monkeypatch.context() as launched:
        launched.setenv("WORLD_SIZE", "2")
        launch.check_gpus(on("cuda:1"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    launch.check_gpus(on("cuda:0"))


def test_only_the_top_layers_train(tmp_path: Path, tiny_folder: Path, tiny_model: Any) -> None:
    model, _ = fitted(tmp_path / "out", tiny_folder, train_layers=1)
    before, after = tiny_model.model, model.model
    assert torch.equal(before.embed_tokens.weight, after.embed_tokens.weight)
    assert torch.equal(before.layers[0].mlp.up_proj.weight, after.layers[0].mlp.up_proj.weight)
    assert not torch.equal(before.layers[1].mlp.up_proj.weight, after.layers[1].mlp.up_proj.weight)
    with pytest.raises(InputError, match="train_layers"):
        fitted(tmp_path / "more", tiny_folder, train_layers=3)
    tiny_model.model.layers[1].mlp.up_proj = Packed(tiny_model.model.layers[1].mlp.up_proj.weight.detach())
    with pytest.raises(InputError, match="quantised"):
        fit.train_top_layers(tiny_model, 1)


def test_a_loss_that_is_not_finite_stops_with_the_step_named(tmp_path: Path, tiny_folder: Path) -> None:
    subject: Subject = models.load(str(tiny_folder), dtype="float32")
    subject.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="step 1"):
        fit.train(subject, weighted_rows(), tmp_path / "out", options())


def test_training_state_is_kept_where_no_weights_were_saved(
    tmp_path: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    save, out = ResponseSFTTrainer.save_model, tmp_path / "out"

    def shards(self: Any, output_dir: str, _internal_call: bool = False) -> None:
        if _internal_call:  # a checkpoint of the training's own
            save(self, output_dir, _internal_call)

    with monkeypatch.context() as patch:
        patch.setattr(ResponseSFTTrainer, "save_model", shards)
        with pytest.raises(InputError, match="FULL_STATE_DICT"):
            fitted(out, tiny_folder, save_steps=STEPS)
    assert not (out / "checkpoint").exists()
    assert fit.last_checkpoint(out / "trainer") == str(out / "trainer" / f"checkpoint-{STEPS}")
    (out / "checkpoint.part").mkdir()
    (out / "checkpoint.part" / "half.safetensors").touch()  # of a run that was killed while it saved
    fitted(out, tiny_folder, save_steps=STEPS)
    assert not (out / "trainer").exists()
    assert not (out / "checkpoint" / "half.safetensors").exists()


def test_a_process_that_does_not_see_the_output_folder_says_so(
    tmp_path: Path, tiny_subject: Subject, monkeypatch: Any
) -> None:
    monkeypatch.setattr("accelerate.PartialState", lambda **given: SimpleNamespace(wait_for_everyone=lambda: None))
    monkeypatch.setenv("RANK", "3")
    launch.wait_for_everyone(tiny_subject, tmp_path)  # one process opens it itself
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"\(rank 3\) does not see it.*disk that all machines share"):
        launch.wait_for_everyone(tiny_subject, tmp_path)
    (tmp_path / "manifest.json").touch()
    launch.wait_for_everyone(tiny_subject, tmp_path)


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
    fitted(tmp_path / "out", tiny_folder)
    names = {path.name for path in (tmp_path / "out" / "checkpoint").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


@pytest.mark.parametrize("has", [True, False])
def test_precision_is_as_asked_for_or_as_the_device_has_it(monkeypatch: Any, has: bool) -> None:
    monkeypatch.setattr(launch, "has_bf16", lambda device: has)
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        weights = torch.zeros(1, dtype=kind)
        assert launch.mixed_precision("auto", weights, weights.device) == {"bf16": has, "fp16": False}
        assert launch.mixed_precision("float32", weights, weights.device) == {"bf16": False, "fp16": False}
        assert launch.mixed_precision("bfloat16", weights, weights.device) == {"bf16": True, "fp16": False}


def test_weights_and_groups_come_together_with_any_objective(tmp_path: Path, tiny_folder: Path) -> None:
    """With a vanishing beta Eq. 3 is the cross-entropy, up to a constant: weighted rows train the same."""
    plain, one = fitted(tmp_path / "plain", tiny_folder)
    build = partial(ConstrainedSFTTrainer, schedule=BetaSchedule.uniform(1e-4))
    subject = models.load(str(tiny_folder), dtype="float32")
    two = fit.train(subject, weighted_rows(), tmp_path / "held", options(), build=build)
    for name in ("nll", "nll_safety", "nll_utility"):
        logged = [[entry[name] for entry in result["history"] if "loss" in entry] for result in (one, two)]
        assert logged[0] == pytest.approx(logged[1], rel=1e-3)
    assert_same_weights(plain, models.load(str(tmp_path / "held" / "checkpoint"), dtype="float32").model, 1e-3)


@pytest.mark.parametrize(
    ("change", "more", "match"),
    [
        ({"weight": -1.0}, {}, "Row 1: its weight is -1.0"),
        ({}, {"packing": True}, "Packing would lose the column weight"),
        ({}, {"max_length": 8}, "more than max_length"),
        ({}, {"eval_rows": weighted_rows(1)}, "evaluation gives means over tokens and takes no weights"),
        ({"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, {}, "Row 1: its very first token"),
    ],
)
def test_weighted_rows_that_would_mislead_are_refused(
    change: dict[str, Any], more: dict[str, Any], match: str, tmp_path: Path, tiny_folder: Path
) -> None:
    rows = weighted_rows()
    rows[0] |= change
    held_out = more.pop("eval_rows", None)
    subject = models.load(str(tiny_folder), dtype="float32")
    with pytest.raises(InputError, match=match):
        fit.train(subject, rows, tmp_path / "out", options(**more), eval_rows=held_out)


def test_weighted_rows_fill_whole_steps(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="fill whole optimizer steps of 8"):
        fitted(tmp_path / "out", tiny_folder, weighted_rows()[:-1])


def test_groups_are_logged_without_weights(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "weight"} for row in weighted_rows()]
    _, result = fitted(tmp_path / "out", tiny_folder, rows)
    first = result["history"][0]
    assert first["loss"] == pytest.approx(first["nll"], rel=1e-5)
    assert {"nll_safety", "nll_utility"} <= first.keys()
    assert "nll_1" not in first
