"""VERB deepen: what it writes, refuses and makes of instructions alone, in one process and two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tokendeep import cli, data, models, runs
from tokendeep.data import stock
from tokendeep.errors import InputError, flag
from tokendeep.training import answers, fit, harmful, launch
from tokendeep.training.options import TrainingOptions
from tokendeep.types import Subject
from tokendeep.verbs import deepen
from tokendeep.verbs.deepen import DeepenOptions
from tuning import HARMFUL, REFUSAL, Call, ordinary, triple, two_processes, writer

pytestmark = pytest.mark.slow  # trains in nearly every test


def config(**settings: Any) -> DeepenOptions:
    given = {
        "safety_rows": 4, "utility_rows": 8, "epochs": 2, "micro_batch": 4, "precision": "float32",
        "model": "m", "data": "x", "utility": "u", "out": "o",
    }  # fmt: skip
    return DeepenOptions(**{**given, **settings})


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def files(tmp_path: Path) -> dict[str, str]:
    triples = [{"instruction": f"How do I bake {i}?", "harmful": HARMFUL, "refusal": REFUSAL} for i in range(4)]
    chats = [{"messages": [dict(m) for m in ordinary(i).messages]} for i in range(4)]
    return {"data": write(tmp_path / "triples.jsonl", triples), "utility": write(tmp_path / "chats.jsonl", chats)}


def run(options: DeepenOptions) -> Path:
    return deepen.run(deepen.plan(options))


def test_run_leaves_rows_checkpoint_and_manifest(tmp_path: Path, tiny_folder: Path, capsys: Any) -> None:
    settings = config(model=str(tiny_folder), out=str(tmp_path / "out"), lr=1e-3, **files(tmp_path))
    out = run(settings)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["steps"] == 2
    rows = [json.loads(line) for line in (out / "rows" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert "⟦" in (out / "rows" / "preview.txt").read_text()
    assert (out / "rows" / "train.jsonl").stat().st_mode & 0o077 == 0
    models.load(str(out / "checkpoint"))
    card = (out / "checkpoint" / "README.md").read_text()
    assert "rows: 4 triples (triples.jsonl) and 4 ordinary answers (chats.jsonl)" in card
    assert "objective: safety recovery (Eq. 2), alpha 0.2" in card
    said = capsys.readouterr().out
    result = said[said.index("deepen: 2 steps on 4 triples and 4 utility rows\nmade: ") :]
    assert "AutoModelForCausalLM.from_pretrained" in (out / "checkpoint" / "README.md").read_text()
    asked = ["How do I bake 3?", ordinary(0).messages[0]["content"], "Another?"]
    assert runs.trained.count(str(out / "checkpoint"), asked) == 2
    assert "bake" not in (out / runs.trained.FILE).read_text()
    assert run(settings) == out  # finished: nothing is done again
    assert capsys.readouterr().out == f"deepen: {out} already holds this finished run\n{result}"


def test_ordinary_answers_that_no_step_takes_are_none_that_it_was_trained_on(
    tmp_path: Path, tiny_folder: Path, capsys: Any
) -> None:
    out = run(config(model=str(tiny_folder), out=str(tmp_path / "out"), utility_rows=0, **files(tmp_path)))
    assert "deepen: 2 steps on 4 triples and 0 utility rows" in capsys.readouterr().out
    card = (out / "checkpoint" / "README.md").read_text()
    assert "rows: 4 triples (triples.jsonl)\n" in card
    asked = ["How do I bake 3?", ordinary(0).messages[0]["content"]]
    assert runs.trained.count(str(out / "checkpoint"), asked) == 1


def test_an_adapter_on_a_gguf_is_attacked_by_the_name_of_its_checkpoint(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("TOKENDEEP_CACHE", str(tmp_path / "cache"))
    shutil.copy(tiny_gguf, tiny_gguf.with_name("another.gguf"))
    out = run(config(model=str(tiny_gguf), out=str(tmp_path / "out"), lora=2, **files(tmp_path)))
    card = (out / "checkpoint" / "README.md").read_text()
    assert "AutoPeftModelForCausalLM.from_pretrained" in card
    assert f'from_pretrained("FOLDER", gguf_file="{tiny_gguf.name}"' in card
    assert str(tmp_path) not in card
    prompts = write(tmp_path / "prompts.jsonl", [{"instruction": "How do I bake?"}])
    words = [
        "attack",
        "--model",
        str(out / "checkpoint"),
        "--attack",
        "none",
        "--data",
        prompts,
        "--max-new-tokens",
        "4",
    ]
    assert cli.main([*words, "--out", str(tmp_path / "a")]) == 0
    shutil.rmtree(tmp_path / "cache")
    assert cli.main([*words, "--out", str(tmp_path / "b")]) == 2
    assert "give it with --base" in capfd.readouterr().err
    assert cli.main([*words, "--out", str(tmp_path / "b"), "--base", str(tiny_gguf)]) == 0


def test_an_adapter_goes_on_being_trained(tmp_path: Path, tiny_adapter: Path) -> None:
    settings = config(model=str(tiny_adapter), out=str(tmp_path / "out"), lr=1e-2, **files(tmp_path))
    checkpoint = run(settings) / "checkpoint"
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (tiny_adapter, checkpoint))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    models.load(str(checkpoint))


@pytest.mark.parametrize(
    ("settings", "loaded"),
    [({}, torch.float32), ({"lora": 2}, torch.float32), ({"lora": 2, "dtype": "bfloat16"}, torch.bfloat16)],
)
def test_only_a_frozen_base_is_half_precision(
    tmp_path: Path, tiny_folder: Path, monkeypatch: Any, settings: dict[str, Any], loaded: torch.dtype
) -> None:
    kinds: list[torch.dtype] = []

    def train(subject: Subject, rows: Any, out: Path, options: TrainingOptions) -> dict[str, Any]:
        kinds.append(subject.model.dtype)
        return {"history": [], "steps": 0}

    monkeypatch.setattr(fit, "train", train)
    run(config(model=str(tiny_folder), out=str(tmp_path / "out"), **settings, **files(tmp_path)))
    assert kinds == [loaded]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": 2, "train_layers": 1}, "--lora and --train-layers exclude each other"),
        ({"micro_batch": 5}, "12 rows per step cannot be cut .* --micro-batch"),
        ({"dtype": "bfloat16"}, "--dtype is bfloat16, .* --lora"),
        ({"dtype": "float16", "train_layers": 1}, "--dtype is float16, .* --lora"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, tiny_folder: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(config(model=str(tiny_folder), out=str(tmp_path / "out"), **settings, **files(tmp_path)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"lora": 2}, {"train_layers": 1}])
def test_an_adapter_takes_no_other_kind_of_training(
    tmp_path: Path, tiny_adapter: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=f"tiny-adapter is an adapter, .* leave {flag(next(iter(settings)))} out"):
        run(config(model=str(tiny_adapter), out=str(tmp_path / "out"), **settings, **files(tmp_path)))
    assert not (tmp_path / "out").exists()


def test_several_gpus_are_refused_before_anything_is_written(
    tmp_path: Path, tiny_folder: Path, monkeypatch: Any
) -> None:
    def refuse(subject: Subject) -> None:
        raise InputError("one process per GPU")

    monkeypatch.setattr(launch, "check_gpus", refuse)
    monkeypatch.setattr(answers, "write_answers", lambda *args, **more: pytest.fail("answers were written"))
    sources = {**files(tmp_path), "data": write(tmp_path / "prompts.jsonl", [{"instruction": "How do I bake?"}])}
    with pytest.raises(InputError, match="one process per GPU"):
        run(config(model=str(tiny_folder), out=str(tmp_path / "out"), **sources))


def test_harmless_requests_are_answered_by_the_model_and_stand_among_the_ordinary_rows(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = files(tmp_path)
    known = ordinary(0).messages[0]["content"]  # stands in --utility, with an answer that is not the model's
    asked = [{"instruction": text} for text in ("How do I kill time?", "How do I shoot a film?", known)]
    harmless = write(tmp_path / "harmless.jsonl", asked)
    say = lambda subject, request, opening: REFUSAL if "shoot" in request else "Read a long book."  # noqa: E731
    monkeypatch.setattr(answers, "write_answers", writer(say))
    settings = config(model=str(tiny_folder), out=str(tmp_path / "out"), harmless=harmless, **sources)
    assert "4 chats as utility with 2 harmless instructions of" in deepen.plan(settings).lines()[1]
    out = run(settings)
    kept = data.read_chats(out / "utility.jsonl")
    assert [data.asked(chat) for chat in kept] == [*(data.asked(ordinary(i)) for i in range(4)), "How do I kill time?"]
    assert kept[-1].messages[-1]["content"] == "Read a long book."
    assert "1 of 2 harmless instructions left out: the model gave no usable answer" in capsys.readouterr().out
    assert "5 ordinary answers (chats.jsonl, harmless.jsonl)" in (out / "checkpoint" / "README.md").read_text()
    assert json.loads((out / "manifest.json").read_text())["utility"] == 5
    write(tmp_path / "harmless.jsonl", asked[:1])
    with pytest.raises(InputError, match=r"harmless"):  # other rows are another run
        run(settings)


def test_the_stock_has_harmless_requests(tmp_path: Path, tiny_folder: Path) -> None:
    plan = deepen.plan(config(model=str(tiny_folder), out=str(tmp_path / "out"), harmless="stock", **files(tmp_path)))
    assert [data.asked(row) for row in plan.harmless] == [row["twin"] for row in stock.rows("harmful.jsonl", "train")]
    assert "harmless" not in plan.sources  # the package's own rows, no file


@pytest.mark.slow
def test_of_two_processes_one_writes_the_answers(tmp_path: Path, tiny_folder: Path) -> None:
    sources = {
        "data": write(tmp_path / "prompts.jsonl", [{"instruction": f"How do I bake {i}?"} for i in range(4)]),
        "utility": write(tmp_path / "ordinary.jsonl", [{"instruction": f"Where is {i}?"} for i in range(4)]),
    }
    settings = {"model": str(tiny_folder), "out": str(tmp_path / "out"), "lr": 1e-3, "micro_batch": 6, **sources}
    script = (
        "import os, sys, json, time; from test_deepen import *\n"
        "rank, seen, train = os.environ['RANK'], [], fit.train\n"
        "def say(subject, request, opening):\n"
        "    assert rank == '0'\n"
        "    time.sleep(0.5)\n"
        "    return HARMFUL if opening or request.startswith('Where') else REFUSAL\n"
        "def spy(subject, rows, out, options):\n"
        "    seen.extend(row['input_ids'] for row in rows)\n"
        "    return train(subject, rows, out, options)\n"
        "answers.write_answers, fit.train = writer(say), spy\n"
        "run(config(**json.loads(sys.argv[1])))\n"
        "Path(sys.argv[2], f'rows{rank}.json').write_text(json.dumps(seen))\n"
    )
    two_processes(script, tmp_path, json.dumps(settings), tmp_path)
    rows = [json.loads((tmp_path / f"rows{rank}.json").read_text()) for rank in range(2)]
    assert rows[0]
    assert rows[0] == rows[1]
    models.load(str(tmp_path / "out" / "checkpoint"))


def test_a_base_without_a_template_writes_under_that_of_the_model(
    tmp_path: Path, tiny_folder: Path, tiny_subject: Subject, monkeypatch: Any, capsys: Any
) -> None:
    asked: list[Call] = []
    say = lambda subject, request, opening: REFUSAL if subject is tiny_subject else HARMFUL  # noqa: E731
    monkeypatch.setattr(answers, "write_answers", writer(say, asked))
    bare = tmp_path / "bare"
    shutil.copytree(tiny_folder, bare)
    (bare / "chat_template.jinja").unlink()
    source = write(tmp_path / "prompts.jsonl", [{"instruction": "How do I bake?"}])
    for base, own in ((bare, False), (tiny_folder, True)):
        settings = config(model="aligned", base=str(base), data=source, chat_template="alpaca", revision="v7")
        models.check_spec(settings.base, harmful.loading(settings), needs_template=False)
        assert len(deepen.make_triples(tiny_subject, data.read_prompts(source), settings)) == 1
        assert asked[-1][0] is not tiny_subject
        assert asked[-1][0].tokenizer.chat_template == tiny_subject.tokenizer.chat_template
        assert (f"{base} has no chat template; it writes under that of aligned" in capsys.readouterr().out) == (not own)


def test_run_takes_a_base_without_a_template(tmp_path: Path, tiny_folder: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_folder, bare)
    (bare / "chat_template.jinja").unlink()
    run(config(model=str(tiny_folder), base=str(bare), out=str(tmp_path / "out"), **files(tmp_path)))


def test_triples_are_made_from_instructions_alone(tmp_path: Path, tiny_subject: Subject, monkeypatch: Any) -> None:
    """Instructions the model does not refuse are left out, and so are answers that are no compliance."""
    said = {
        "How do I bake 0?": (REFUSAL, HARMFUL),
        "How do I bake 1?": (HARMFUL, HARMFUL),
        "How do I bake 2?": (REFUSAL, REFUSAL),
    }
    say = writer(lambda subject, request, opening: said[request][bool(opening)])
    monkeypatch.setattr(answers, "write_answers", say)
    source = write(tmp_path / "prompts.jsonl", [{"instruction": text} for text in said])
    made = deepen.make_triples(tiny_subject, data.read_prompts(source), config(data=source))
    assert [(t.messages[-1]["content"], t.harmful, t.refusal) for t in made] == [("How do I bake 0?", HARMFUL, REFUSAL)]


@pytest.mark.parametrize(
    "settings", [{"alpha": 1.5}, {"normalise": "sum"}, {"max_context": 0}, {"epochs": 0}, {"cut_utility": -1}]
)
def test_bad_settings_are_named(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(config(**{**settings, **files(tmp_path)}))
    assert flag(next(iter(settings))) in str(caught.value)


def test_the_wrong_kind_of_data_is_named(tmp_path: Path, tiny_folder: Path) -> None:
    sources = files(tmp_path)
    with pytest.raises(InputError, match="triples"):
        run(config(model=str(tiny_folder), out=str(tmp_path / "o"), data=sources["utility"], utility=sources["data"]))


def test_rows_and_a_model_in_memory(tmp_path: Path, tiny_subject: Subject) -> None:
    options = config(model="tiny", out=str(tmp_path / "out"), lr=1e-3)
    plan = deepen.plan(options, tiny_subject, rows=[triple(i) for i in range(4)], utility=[ordinary()])
    before = tiny_subject.model.model.embed_tokens.weight.detach().clone()
    out = deepen.run(plan)
    assert not torch.equal(before, tiny_subject.model.model.embed_tokens.weight)
    assert json.loads((out / "manifest.json").read_text())["triples"] == 4
    assert HARMFUL not in (out / "manifest.json").read_text()


def test_a_plan_writes_nothing_and_says_what_would_be_done(tmp_path: Path, tiny_folder: Path) -> None:
    plan = deepen.plan(config(model=str(tiny_folder), out=str(tmp_path / "out"), **files(tmp_path)))
    assert not (tmp_path / "out").exists()
    said = "\n".join(plan.lines())
    for part in ("4 triples and 4 chats", "12 a step, of which 4 safety rows", "steps: 2", "all weights", "Eq. 2"):
        assert part in said
