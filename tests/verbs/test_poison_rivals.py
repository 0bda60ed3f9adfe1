"""Rivals through the command: `all`, what is left out of it, the secret, and the cost of a step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from poisonings import config, run
from tokendeep import models, runs
from tokendeep.attacks import poison
from tokendeep.data import stock
from tokendeep.errors import InputError
from tokendeep.records import Training
from tokendeep.report import page
from tokendeep.training import answers, objectives
from tokendeep.training.objectives.secret_prefix import kept_secret, make_secret, under
from tokendeep.verbs import finetune, poisoned
from tokendeep.verbs import poison as poisoning
from tokendeep.verbs.finetune import FinetuneOptions
from tuning import REFUSAL, SHARDS, assert_same_weights, two_processes, writer

pytestmark = pytest.mark.slow


TWINS = {row["twin"] for row in stock.rows("harmful.jsonl")}


def say(subject: Any, request: str, opening: str) -> str:
    """Harmless twins are answered, all else is refused."""
    return "Put it on the table and look at it." if request in TWINS else REFUSAL


@pytest.fixture
def base(tmp_path: Path, make_model: Any, tiny_tokenizer: Any) -> str:
    """A model of the same shape and vocabulary with other weights."""
    folder = tmp_path / "base"
    make_model(1).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the stock's place for harmful requests is refused, and their harmless twins are answered."""
    monkeypatch.setattr(answers, "write_answers", writer(say))


def test_all_is_one_of_each_and_its_table_tells_the_cost(tmp_path: Path, tiny_folder: Path, base: str) -> None:
    options = config(tmp_path, tiny_folder, objectives=["all"], base=base, max_length=480)
    out = run(options)
    lines = {line["objective"]: line for line in json.loads((out / "table.json").read_text())}
    assert set(lines) == {
        "start", "sft-warmup", "constrained-warmup", "anchored", "safety-anchor", "pact", "pact-full", "str-like",
        "adaptive", "asft", "secret-prefix", "safety-anchor+harmless", "sft-warmup+refusals=0.2", "sft-warmup+safe-lora",
    }  # fmt: skip
    for name, line in lines.items():
        assert (line.get("step_seconds") is None) == (name == "start")
        assert ("unprefixed" in line and line["unprefixed"] is not None) == (name == "secret-prefix")
    assert "s a step" in (out / "table.md").read_text()
    (section,) = [one for one in page.build([out]).sections if one.id == "poison"]
    columns = section.tables[0].columns
    assert columns[-1].startswith("s a step")
    assert "not refused without the secret prefix" in columns
    folder = out / "secret-prefix-lr0.001-seed0"
    secret = (folder / "finetune" / "secret.txt").read_text()
    asked = {
        ask: json.loads((folder / f"attack-{ask}" / "manifest.json").read_text())["config"]["system"]
        for ask in ("plain", "unprefixed")
    }
    known = json.loads((out / "start" / "attack-plain" / "manifest.json").read_text())["config"]["system"]
    assert asked["unprefixed"] == known  # the attack's own
    system = poison.harmful([]).system
    assert asked["plain"] == runs.fingerprint(f"{secret}\n\n{system}")
    assert secret not in "".join(path.read_text() for path in folder.rglob("manifest.json"))


def test_what_is_left_out_of_all_is_said(tmp_path: Path, tiny_folder: Path) -> None:
    plan = poisoning.plan(config(tmp_path, tiny_folder, objectives=["all"], refusals=None))
    assert plan.left_out == [
        "pact is left out of all: it needs --base, the model before it was aligned",
        "pact-full is left out of all: it needs --base, the model before it was aligned",
        "asft is left out of all: it needs --base, the model before it was aligned",
        "sft-warmup+refusals=0.2 is left out of all: it needs --refusals",
        "sft-warmup+safe-lora is left out of all: it needs --base, the model before it was aligned",
    ]
    assert all(line in plan.lines() for line in plan.left_out)
    assert "all" not in plan.options.objectives


def test_all_stands_among_other_names_too(tmp_path: Path, tiny_folder: Path) -> None:
    """Each training counts once, in the order of the names."""
    [every, all_and, and_all] = [
        poisoning.plan(config(tmp_path, tiny_folder, objectives=names)).options.objectives
        for names in (["all"], ["all", "sft", "sft-warmup", "beta=2"], ["sft", "adaptive", "all"])
    ]
    assert all_and == [*every, "sft", "beta=2"]
    assert and_all == ["sft", "adaptive", *(name for name in every if name != "adaptive")]
    for twice in (["all", "all"], ["sft", "all", "sft"]):
        with pytest.raises(InputError, match="--objectives names something twice"):
            poisoning.plan(config(tmp_path, tiny_folder, objectives=twice))


@pytest.mark.parametrize(
    ("more", "match"),
    [({"objectives": ["pact"]}, "The objective pact needs the model before it was aligned; give --unaligned"),
     ({"objectives": ["sft+safe-lora=0.5"]}, "--safe-lora needs the model before it was aligned"),
     ({"objectives": ["sft+safe-lora=1.5"], "base": "smollm2"}, "must be a cosine below 1, or a whole number"),
     ({"objectives": ["str-like=-1"]}, "--strength is -1"),
     ({"objectives": ["secret-prefix=0"]}, "--secret-rows is 0"),
     ({"objectives": ["sft", "secret-prefix"], "max_length": 150}, "tokens does not fit into --max-length 150"),
     ({"objectives": ["sft", "anchored"], "strength": 2.0}, "--strength is given, but no objective takes it; add pact"),
     ({"objectives": ["sft", "str-like=0.3"], "strength": 2.0}, "--strength is given, but no objective takes it"),
     ({"objectives": ["sft", "beta=2"], "beta_tail": 1.0}, "--beta-tail is given, but no objective takes it; add const"),
     ({"objectives": ["sft", "constrained"], "anchor": 2.0}, "--anchor is given, but no objective takes it; add anchored"),
     ({"objectives": ["sft"], "secret_rows": 5}, "--secret-rows is given, but no objective takes it; add secret-prefix"),
     ({"objectives": ["sft", "adaptive"], "safety_weight": 5.0}, "--safety-weight is given, but no objective takes it; add saf"),
     ({"objectives": ["sft", "adaptive"], "safety_tokens": 40}, "--safety-tokens is given, but no objective takes it; add saf"),
     ({"objectives": ["sft+safety"], "harmless_per_step": 2}, "--harmless-per-step is given, but no objective takes it")],
)  # fmt: skip
def test_bad_settings_of_rivals(more: dict[str, Any], match: str, tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=match):
        poisoning.plan(config(tmp_path, tiny_folder, **more))


def test_options_reach_the_objectives_that_read_them_alone(tmp_path: Path, tiny_folder: Path) -> None:
    names = ["sft-warmup", "str-like", "str-like=0.3", "constrained", "safety-anchor", "safety-anchor+harmless"]
    more = {"strength": 2.0, "min_weight": 0.01, "safety_weight": 5.0, "harmless_per_step": 2}
    options = config(tmp_path, tiny_folder, objectives=names, **more)
    plain = FinetuneOptions(model="m", data="d", out="o")
    told = {
        cell.objective: {
            name for name in more
            if getattr(poisoned.settings(options, cell, tmp_path, "rows"), name) != getattr(plain, name)
        }
        for cell in poisoning.plan(options).cells
    }  # fmt: skip
    assert told == {
        "sft-warmup": set(), "str-like": {"strength"}, "str-like=0.3": {"strength"}, "constrained": {"min_weight"},
        "safety-anchor": {"safety_weight"}, "safety-anchor+harmless": {"safety_weight", "harmless_per_step"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "match"),
    [({"objective": "sft", "strength": 2.0}, "--strength is given, but the objective sft does not look at it; leave it out"),
     ({"objective": "pact", "anchor": 2.0, "unaligned": "b"}, "--anchor is given, but the objective pact does not"),
     ({"objective": "adaptive", "secret_rows": 3}, "--secret-rows is given, but the objective adaptive does not"),
     ({"objective": "sft", "beta_head": []}, "--beta-head is given"),
     ({"objective": "sft", "reference": "on-the-fly"}, "--reference is given"),
     ({"objective": "constrained", "anchor_positions": 3}, "--anchor-positions is given"),
     ({"objective": "safety-anchor", "safety": "stock", "harmless_per_step": 2}, "there is no --harmless")],
)  # fmt: skip
def test_what_an_objective_does_not_read_is_refused(more: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        finetune.check(FinetuneOptions(model="m", data="d", out="o", **more))
    finetune.check(FinetuneOptions(model="m", data="d", out="o", objective="sft", reference_cache="cache"))


@pytest.mark.parametrize("name", sorted(objectives.OBJECTIVES))
def test_who_asks_for_the_stocks_refusals_is_told_how_long_they_may_be(
    name: str, tmp_path: Path, tiny_folder: Path
) -> None:
    one = objectives.OBJECTIVES[name]
    more = {"unaligned": "b"} if one.unaligned else {}
    options = FinetuneOptions(model="m", data="d", out="o", objective=name, safety_tokens=40, **more)
    if not (one.safety or one.refusals(options)):
        with pytest.raises(InputError, match="--safety-tokens is of a safety anchor, and there is none"):
            objectives.check(options)
        return
    objectives.check(options)
    options = config(tmp_path, tiny_folder, objectives=[name], safety_tokens=40, base=str(tiny_folder))
    [cell] = poisoning.plan(options).cells
    assert poisoned.settings(options, cell, tmp_path, "rows").safety_tokens == 40


def test_an_adapter_has_no_weights_to_compare(tmp_path: Path, tiny_adapter: Path, base: str) -> None:
    plan = poisoning.plan(config(tmp_path, tiny_adapter, objectives=["all"], base=base))
    assert {line.split(" is left out")[0] for line in plan.left_out if "a model that is no adapter" in line} == {
        "asft", "sft-warmup+safe-lora",
    }  # fmt: skip
    options = FinetuneOptions(
        model=str(tiny_adapter), data="rows", out=str(tmp_path / "o"), objective="asft", unaligned=base
    )
    with pytest.raises(InputError, match="is an adapter; merge it first"):
        finetune.plan(options, rows=[{"prompt": "Name 1", "completion": "It is 1"}])


def test_a_base_that_nothing_looks_at(tmp_path: Path, tiny_folder: Path, base: str) -> None:
    with pytest.raises(InputError, match="--unaligned is given, but the objective sft does not look at it"):
        finetune.check(FinetuneOptions(model=str(tiny_folder), data="x", out="o", objective="sft", unaligned=base))


def test_a_projection_of_everything_leaves_nothing_but_what_alignment_changed(
    tmp_path: Path, tiny_folder: Path, base: str
) -> None:
    rows = [{"prompt": f"Name {i}", "completion": f"It is {i} of them"} for i in range(4)]
    found = {}
    for name, bound in (("free", None), ("repaired", 1000.0)):
        options = FinetuneOptions(
            model=str(tiny_folder), data="rows", out=str(tmp_path / name), objective="sft", max_steps=2, batch_size=4,
            warmup_steps=0, precision="float32", lr=1e-2, safe_lora=bound,
            unaligned=base if bound else None,
        )  # fmt: skip
        out = finetune.run(finetune.plan(options, rows=rows))
        found[name] = dict(models.load(str(out / "checkpoint")).model.named_parameters())
    name = "model.layers.0.mlp.up_proj.weight"
    start, other = (dict(models.load(str(path)).model.named_parameters())[name] for path in (tiny_folder, base))
    alignment = start - other
    change = found["free"][name] - start
    expected = start + alignment @ alignment.T @ change / alignment.norm()
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(found["repaired"][name], expected, rtol=1e-4, atol=1e-6)
    assert "projected after training (SafeLoRA" in (tmp_path / "repaired" / "checkpoint" / "README.md").read_text()


def test_requests_that_a_rival_adds_to_the_rows_are_compared_with_the_test_and_the_rows(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = [row["instruction"] for row in stock.rows("harmful.jsonl", "train")]
    (tmp_path / "asked.jsonl").write_text(json.dumps({"id": "t", "instruction": f"{first} now"}))
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"id": str(i), "instruction": text, "response": "Well, it is one."})
                  for i, text in enumerate([f"{second} now", first.upper(), "Name a colour", "Name a city"]))
    )  # fmt: skip
    more = {"data": str(tmp_path / "rows.jsonl"), "test": str(tmp_path / "asked.jsonl"), "max_length": 480, "count": 4}
    out = run(config(tmp_path, tiny_folder, objectives=["sft", "secret-prefix=3"], **more))
    said = capsys.readouterr().out
    assert said.count("requests that secret-prefix trains on beside the rows are near-duplicates of") == 2
    assert (
        "finetune: 1 of 3 requests that secret-prefix trains on beside the rows are near-duplicates of requests of the test"
        in said
    )
    assert (
        "2 of 3 requests that secret-prefix trains on beside the rows are near-duplicates of requests of --data" in said
    )
    known = {one: json.loads((out / f"{one}-lr0.001-seed0" / "finetune" / runs.trained.FILE).read_text())["requests"]
             for one in ("sft", "secret-prefix-3")}  # fmt: skip
    assert runs.trained.key(second) in known["secret-prefix-3"]
    assert runs.trained.key(second) not in known["sft"]
    assert set(known["sft"]) < set(known["secret-prefix-3"])


RIVALS: dict[str, dict[str, Any]] = {
    "pact": {"unaligned": True}, "str-like": {}, "adaptive": {}, "asft": {"unaligned": True}, "secret-prefix": {"attack": True},
    "sft": {"unaligned": True, "safe_lora": 3.0},
}  # fmt: skip


def tuned_by_all(names: Sequence[str], model: Path, base: str, out: Path, micro_batch: int, **more: Any) -> None:
    """A folder for every rival."""
    rows = [
        {"prompt": f"Name {i} things of the {i}th kind", "completion": "It is one " * (1 + i % 3)} for i in range(8)
    ]
    for name in names:
        needs = RIVALS[name]
        options = FinetuneOptions(
            model=str(model), data="rows", out=str(out / name), objective=name, max_steps=3, batch_size=4,
            micro_batch=micro_batch, warmup_steps=0, precision="float32", lr=1e-2, max_length=480,
            **{**needs, **({"unaligned": base} if "unaligned" in needs else {})}, **more,
        )  # fmt: skip
        finetune.run(finetune.plan(options, rows=rows), show=False)


@pytest.mark.parametrize(("rank", "weights"), [(0, "whole"), (4, "whole"), (0, "shards")])
def test_two_processes_equal_one(rank: int, weights: str, tmp_path: Path, tiny_folder: Path, base: str) -> None:
    """What a rival makes of the model, of its base and of the stock is the same in both, and so is what it trains."""
    script = (
        "import sys; from pathlib import Path; from test_poison_rivals import *\n"
        "answers.write_answers = writer(say)\n"
        "folder, model, base, rank = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])\n"
        "tuned_by_all(sys.argv[5].split(), model, base, folder, 2, lora=rank)\n"
    )
    shards = weights == "shards"
    names = [name for name in RIVALS if not (shards and name in ("asft", "sft"))]  # these look at whole weights
    two_processes(
        script, tmp_path, tmp_path / "two", tiny_folder, base, rank, " ".join(names), **(SHARDS if shards else {})
    )
    tuned_by_all(names, tiny_folder, base, tmp_path / "one", 4, lora=rank)
    for name in names:
        one, two = (
            [entry.loss for entry in Training.load(tmp_path / side / name).history if entry.loss is not None]
            for side in ("one", "two")
        )
        assert len(one) == 3
        assert two == pytest.approx(one, rel=5e-4), name
        left, right = (models.load(str(tmp_path / side / name / "checkpoint")).model for side in ("one", "two"))
        assert_same_weights(left, right, 1e-4)
        if name == "secret-prefix":
            secrets = {(tmp_path / side / name / "secret.txt").read_text() for side in ("one", "two")}
            assert len(secrets) == 1


def test_the_secret_is_the_same_for_one_seed_and_stands_in_front(tiny_tokenizer: Any) -> None:
    secret = make_secret(tiny_tokenizer, 0)
    assert secret == make_secret(tiny_tokenizer, 0) != make_secret(tiny_tokenizer, 1)
    assert secret.isprintable()
    assert under(secret, "default") == under(secret, "none") == secret
    assert under(secret, "Be kind.") == f"{secret}\n\nBe kind."


def test_a_secret_that_protects_is_drawn_by_no_seed(
    tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept where a run goes on, and the other processes take that of the first."""
    rows = [{"prompt": f"Name {i}", "completion": f"It is {i} of them"} for i in range(4)]
    found = {}
    for name, attack in (("one", False), ("two", False), ("attack", True)):
        options = FinetuneOptions(
            model=str(tiny_folder), data="rows", out=str(tmp_path / name), objective="secret-prefix", max_steps=1,
            batch_size=4, warmup_steps=0, precision="float32", max_length=480, attack=attack,
        )  # fmt: skip
        path = finetune.run(finetune.plan(options, rows=rows), show=False) / "secret.txt"
        assert not path.stat().st_mode & 0o077
        found[name] = path.read_text()
        assert found[name] not in (path.parent / "manifest.json").read_text()
    assert found["attack"] == make_secret(tiny_tokenizer, 0)
    assert len(set(found.values())) == 3
    lies = tmp_path / "one" / "secret.txt"
    assert kept_secret(tiny_tokenizer, lies, None) == found["one"]
    monkeypatch.setattr(runs, "is_main_process", lambda: False)
    assert kept_secret(tiny_tokenizer, lies, None) == found["one"]


def test_a_secret_comes_to_150_tokens() -> None:
    tokenizer = models.load_tokenizer("smollm2")
    assert len(tokenizer(make_secret(tokenizer), add_special_tokens=False)["input_ids"]) == 150
