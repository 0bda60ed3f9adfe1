"""Safety-recovery rows: which tokens carry loss, how k is drawn, how rows are weighted, and the verb end to end."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import CONTROL, build_tokenizer, chatml
from tokendeep import chat, data, models
from tokendeep.engines import local as generation
from tokendeep.errors import InputError
from tokendeep.training import answers, launch, recovery, weighted
from tokendeep.training.rows import show
from tokendeep.types import IGNORE, Chat, Decoding, Prompt, Subject, Triple
from tokendeep.verbs import deepen
from tokendeep.verbs.options import DeepenConfig

pytestmark = pytest.mark.slow  # trains in nearly every test

HARMFUL = "Mix the flour with water, add salt and let the dough rest for an hour."
REFUSAL = "I cannot help with that."


def triple(number: int = 0) -> Triple:
    return Triple(f"t{number}", ({"role": "user", "content": f"How do I bake bread {number}?"},), HARMFUL, REFUSAL)


def ordinary(number: int = 0) -> Chat:
    turns = (
        {"role": "user", "content": f"Where is Rome {number}?"},
        {"role": "assistant", "content": "Rome is in Italy."},
    )
    return Chat(f"u{number}", turns)  # type: ignore[arg-type]


def config(**settings: Any) -> DeepenConfig:
    return DeepenConfig(**{"safety_rows": 4, "utility_rows": 8, "epochs": 2, "micro_batch": 4, "data": "x",
                           "precision": "float32", **settings})  # fmt: skip


def test_a_recovery_row_is_prompt_context_refusal_by_ids(tiny_tokenizer: Any) -> None:
    t = triple()
    prompt = chat.prompt_ids(tiny_tokenizer, t.messages)
    harmful = chat.response_ids(tiny_tokenizer, t.messages, HARMFUL, end=False)
    refusal = chat.response_ids(tiny_tokenizer, t.messages, REFUSAL)
    row = recovery.recovery_row(tiny_tokenizer, t, 7)
    assert row.input_ids == prompt + harmful[:7] + refusal
    assert row.labels == [IGNORE] * (len(prompt) + 7) + refusal


def test_context_never_crosses_the_end_of_the_harmful_answer(tiny_tokenizer: Any) -> None:
    t = triple()
    row = recovery.recovery_row(tiny_tokenizer, t, 10_000)
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    start = len(chat.prompt_ids(tiny_tokenizer, t.messages))
    context = [i for i, label in zip(row.input_ids[start:], row.labels[start:], strict=True) if label == IGNORE]
    assert context == chat.response_ids(tiny_tokenizer, t.messages, HARMFUL, end=False)
    assert end not in context
    assert max(recovery.draw_context(0, 0, i, 9, 0.0, 100) for i in range(300)) == 9


def test_k_is_zero_half_the_time_and_else_uniform() -> None:
    draws = [recovery.draw_context(0, epoch, row, 500, 0.5, 100) for epoch in range(20) for row in range(500)]
    counts = Counter(draws)
    assert abs(counts[0] / len(draws) - 0.5) < 0.02
    positive = np.array([k for k in draws if k])
    assert (positive.min(), positive.max()) == (1, 100)
    observed = np.histogram(positive, bins=10, range=(0.5, 100.5))[0]
    expected = len(positive) / 10
    assert ((observed - expected) ** 2 / expected).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = .001
    assert all(recovery.draw_context(0, 0, i, 500, 1.0, 100) == 0 for i in range(50))


def test_draws_are_fresh_each_epoch_and_the_same_for_the_same_key() -> None:
    first, again, second = ([recovery.draw_context(0, e, i, 500, 0.5, 100) for i in range(50)] for e in (0, 0, 1))
    assert first == again
    assert first != second


def test_every_step_holds_the_ratio_and_epochs_cover_all_rows(tiny_tokenizer: Any) -> None:
    plan = recovery.plan_rows(tiny_tokenizer, [triple(i) for i in range(8)], [ordinary(i) for i in range(5)], config())
    steps = [[p for p in plan if p.step == s] for s in range(4)]  # 8 triples x 2 epochs / 4
    assert [len(step) for step in steps] == [12] * 4
    assert all(sum(p.row.group == "safety" for p in step) == 4 for step in steps)
    first_epoch = Counter(p.source for step in steps[:2] for p in step if p.row.group == "safety")
    assert first_epoch == Counter(f"t{i}" for i in range(8))


def test_step_weights_by_hand() -> None:
    rows = [("safety", 3), ("safety", 1), ("utility", 10), ("utility", 30)]
    assert recovery.step_weights(rows, 0.2, "tokens") == pytest.approx([0.05, 0.05, 0.02, 0.02])
    assert recovery.step_weights(rows, 0.2, "rows") == pytest.approx([0.1, 0.1, 0.4, 0.4])
    assert recovery.step_weights(rows, 0.2, "batch") == pytest.approx([1 / 44] * 4)


def test_weights_of_a_planned_step_add_up_to_alpha(tiny_tokenizer: Any) -> None:
    plan = recovery.plan_rows(tiny_tokenizer, [triple()], [ordinary()], config(max_steps=1))
    totals: Counter[str] = Counter()
    for p in plan:
        totals[p.row.group] += p.row.weight * sum(label != IGNORE for label in p.row.labels)  # type: ignore[assignment]
    assert totals == {"safety": pytest.approx(0.2), "utility": pytest.approx(0.8)}


def test_a_cut_utility_row_supervises_the_rest_only(tiny_tokenizer: Any) -> None:
    whole, cut = (recovery.utility_row(tiny_tokenizer, ordinary(), c) for c in (0.0, 0.5))
    assert whole.input_ids == cut.input_ids
    supervised = [sum(label != IGNORE for label in row.labels) for row in (whole, cut)]
    assert 0 < supervised[1] < supervised[0]
    assert cut.labels[-1] == whole.labels[-1]


def test_the_end_of_an_answer_that_was_cut_off_is_not_learnt(tiny_tokenizer: Any, tmp_path: Path) -> None:
    whole, cut = ordinary(), dataclasses.replace(ordinary(), truncated=True)
    data.write_rows(tmp_path / "chats.jsonl", [whole, dataclasses.replace(cut, id="cut")])
    read = data.read_chats(tmp_path / "chats.jsonl")
    assert [row.truncated for row in read] == [False, True]
    rows = [recovery.utility_row(tiny_tokenizer, row, 0.0) for row in read]
    end = chat.response_ids(tiny_tokenizer, whole.messages[:1], "Rome is in Italy.")[
        len(chat.response_ids(tiny_tokenizer, whole.messages[:1], "Rome is in Italy.", end=False)) :
    ]
    assert end
    assert rows[0].labels == rows[1].labels + end


def test_answers_that_hit_the_length_limit_are_marked(tiny_subject: Subject, monkeypatch: Any) -> None:
    given = [("Rome lies in Italy, on the Tiber.", False), ("Rome lies in Italy, on the", True)]
    monkeypatch.setattr(answers, "write_answers", lambda *args: given)
    prompts = [Prompt(name, ({"role": "user", "content": "Where is Rome?"},)) for name in "ab"]  # type: ignore[arg-type]
    assert [row.truncated for row in answers.distil(tiny_subject, prompts, 8)] == [False, True]


def test_rendering_marks_exactly_the_supervised_tokens(tiny_tokenizer: Any) -> None:
    text = show(tiny_tokenizer, recovery.recovery_row(tiny_tokenizer, triple(), 3))
    marked = "".join(piece.split("⟧")[0] for piece in text.split("⟦")[1:])
    assert marked == REFUSAL + "<|im_end|>"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def files(tmp_path: Path) -> dict[str, str]:
    triples = [{"instruction": f"How do I bake {i}?", "harmful": HARMFUL, "refusal": REFUSAL} for i in range(4)]
    chats = [{"messages": [dict(m) for m in ordinary(i).messages]} for i in range(4)]
    return {"data": write(tmp_path / "triples.jsonl", triples), "utility": write(tmp_path / "chats.jsonl", chats)}


def test_run_leaves_rows_checkpoint_and_manifest(tmp_path: Path, tiny_folder: Path) -> None:
    settings = config(model=str(tiny_folder), out=str(tmp_path / "out"), lr=1e-3, **files(tmp_path))
    out = deepen.run(settings)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["steps"] == 2
    rows = [json.loads(line) for line in (out / "rows" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert "⟦" in (out / "rows" / "preview.txt").read_text()
    assert (out / "rows" / "train.jsonl").stat().st_mode & 0o077 == 0
    models.load(str(out / "checkpoint"))
    assert deepen.run(settings) == out  # finished: nothing is done again


def test_an_adapter_goes_on_being_trained(tmp_path: Path, tiny_adapter: Path) -> None:
    settings = config(model=str(tiny_adapter), out=str(tmp_path / "out"), lr=1e-2, **files(tmp_path))
    checkpoint = deepen.run(settings) / "checkpoint"
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

    def train(subject: Subject, rows: Any, out: Path, **options: Any) -> dict[str, Any]:
        kinds.append(subject.model.dtype)
        return {"steps": 0}

    monkeypatch.setattr(weighted, "train", train)
    deepen.run(config(model=str(tiny_folder), out=str(tmp_path / "out"), **settings, **files(tmp_path)))
    assert kinds == [loaded]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": 2, "train_layers": 1}, "--lora and --train_layers exclude each other"),
        ({"micro_batch": 5}, "12 rows per step cannot be cut .* --micro_batch"),
        ({"dtype": "bfloat16"}, "--dtype is bfloat16, .* --lora"),
        ({"dtype": "float16", "train_layers": 1}, "--dtype is float16, .* --lora"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, tiny_folder: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        deepen.run(config(model=str(tiny_folder), out=str(tmp_path / "out"), **settings, **files(tmp_path)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("settings", [{"lora": 2}, {"train_layers": 1}])
def test_an_adapter_takes_no_other_kind_of_training(
    tmp_path: Path, tiny_adapter: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=f"tiny-adapter is an adapter, .* leave --{next(iter(settings))} out"):
        deepen.run(config(model=str(tiny_adapter), out=str(tmp_path / "out"), **settings, **files(tmp_path)))
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
        deepen.run(config(model=str(tiny_folder), out=str(tmp_path / "out"), **sources))


@pytest.mark.slow
def test_of_two_processes_one_writes_the_answers(tmp_path: Path, tiny_folder: Path) -> None:
    sources = {
        "data": write(tmp_path / "prompts.jsonl", [{"instruction": f"How do I bake {i}?"} for i in range(4)]),
        "utility": write(tmp_path / "ordinary.jsonl", [{"instruction": f"Where is {i}?"} for i in range(4)]),
    }
    settings = {"model": str(tiny_folder), "out": str(tmp_path / "out"), "lr": 1e-3, "micro_batch": 6, **sources}
    script = (
        "import sys, json, time; sys.path[:0] = [sys.argv[1] + part for part in ('', '/training', '/verbs')]\n"
        "from test_deepen import *\n"
        "rank, seen, train = os.environ['RANK'], [], weighted.train\n"
        "def answers(subject, messages, decoding, opening='', batch_size=64):\n"
        "    assert rank == '0'\n"
        "    time.sleep(2)\n"
        "    complies = [opening or turns[-1]['content'].startswith('Where') for turns in messages]\n"
        "    return [(HARMFUL if yes else REFUSAL, False) for yes in complies]\n"
        "def spy(subject, rows, out, **options):\n"
        "    seen.extend(row.input_ids for row in rows)\n"
        "    return train(subject, rows, out, **options)\n"
        "from tokendeep.training import answers as home; home.write_answers, weighted.train = answers, spy\n"
        "deepen.run(config(**json.loads(sys.argv[2])))\n"
        "Path(sys.argv[3], f'rows{rank}.json').write_text(json.dumps(seen))\n"
    )
    (tmp_path / "script.py").write_text(script)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [str(tmp_path / "script.py"), str(Path(__file__).parents[1]), json.dumps(settings), str(tmp_path)]
    done = subprocess.run(launch + words, capture_output=True, text=True, timeout=240, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads((tmp_path / f"rows{rank}.json").read_text()) for rank in range(2)]
    assert rows[0]
    assert rows[0] == rows[1]
    models.load(str(tmp_path / "out" / "checkpoint"))


@pytest.mark.parametrize("kind", ["byte-level", "unigram", "llama"])
def test_answers_keep_the_space_behind_their_opening(tiny_model: Any, monkeypatch: Any, kind: str) -> None:
    tokenizer = build_tokenizer(kind, control=CONTROL, bos=None, eos="<|im_end|>", template=chatml())
    turns = [{"role": "user", "content": "How do I bake bread?"}]
    opening, whole = "Sure, here is", "Sure, here is a short list"
    ids = chat.response_ids(tokenizer, turns, whole, end=False)
    start = len(chat.response_ids(tokenizer, turns, opening, end=False))

    def generate(subject: Subject, requests: Any, *, batch_size: int, on_done: Any) -> None:
        for index, request in enumerate(requests):
            assert list(request.ids[-start:]) == ids[:start]
            on_done(index, generation.Completion(tuple(ids[start:]), tokenizer.decode(ids[start:]), True))

    monkeypatch.setattr(generation, "generate", generate)
    subject = Subject(tiny_model, tokenizer, "tiny")
    assert answers.write_answers(subject, [turns, turns], Decoding(), opening) == [(whole, True)] * 2


def test_answers_are_written_fewer_at_once_where_the_memory_is_small(tiny_subject: Subject, monkeypatch: Any) -> None:
    tried: list[tuple[int, int]] = []

    def generate(subject: Subject, requests: Any, *, batch_size: int, on_done: Any) -> None:
        tried.append((len(requests), batch_size))
        for index, request in enumerate(requests):
            if batch_size > 16 and index == 2:
                raise InputError("too little") from torch.OutOfMemoryError()
            on_done(index, generation.Completion(request.ids[-8:], "", False))

    monkeypatch.setattr(generation, "generate", generate)
    turns = [[{"role": "user", "content": f"How do I bake {i}?"}] for i in range(7)]
    written = answers.write_answers(tiny_subject, turns, Decoding())
    assert tried == [(7, 96), (5, 48), (3, 24), (1, 12)]
    ends = [chat.prompt_ids(tiny_subject.tokenizer, turn)[-8:] for turn in turns]
    assert [text for text, _ in written] == [
        tiny_subject.tokenizer.decode(ids, skip_special_tokens=True) for ids in ends
    ]


def test_a_base_without_a_template_writes_under_that_of_the_model(
    tmp_path: Path, tiny_folder: Path, tiny_subject: Subject, monkeypatch: Any, capsys: Any
) -> None:
    asked: list[Subject] = []

    def written(subject: Subject, messages: Any, decoding: Any, opening: str = "", batch_size: int = 64) -> Any:
        asked.append(subject)
        return [(REFUSAL if subject is tiny_subject else HARMFUL, False) for _ in messages]

    monkeypatch.setattr(answers, "write_answers", written)
    bare = tmp_path / "bare"
    shutil.copytree(tiny_folder, bare)
    (bare / "chat_template.jinja").unlink()
    source = write(tmp_path / "prompts.jsonl", [{"instruction": "How do I bake?"}])
    for base, own in ((bare, False), (tiny_folder, True)):
        settings = config(model="aligned", base=str(base), data=source, chat_template="alpaca", revision="v7")
        models.check_spec(settings.base, deepen._of_writer(settings), needs_template=False)
        assert len(deepen.make_triples(tiny_subject, settings, "prompts")) == 1
        assert asked[-1] is not tiny_subject
        assert asked[-1].tokenizer.chat_template == tiny_subject.tokenizer.chat_template
        assert (f"{base} has no chat template; it writes under that of aligned" in capsys.readouterr().out) == (not own)


def test_run_takes_a_base_without_a_template(tmp_path: Path, tiny_folder: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_folder, bare)
    (bare / "chat_template.jinja").unlink()
    deepen.run(config(model=str(tiny_folder), base=str(bare), out=str(tmp_path / "out"), **files(tmp_path)))


@pytest.mark.parametrize("p_zero", [0.5, 1.0])
def test_a_row_that_does_not_fit_is_named_whatever_is_drawn(tiny_tokenizer: Any, p_zero: float) -> None:
    long = dataclasses.replace(triple(3), harmful=" ".join([HARMFUL] * 8))
    room = len(chat.prompt_ids(tiny_tokenizer, long.messages)) + 50
    triples = [triple(), long, triple(1)]
    settings = [config(data="mine.jsonl", max_length=room, p_zero=p_zero, max_steps=1, seed=s) for s in range(4)]
    for each in settings:
        if p_zero == 1:
            recovery.plan_rows(tiny_tokenizer, triples, [ordinary()], each)
        else:
            with pytest.raises(
                InputError, match=r"^row t3 of mine\.jsonl, with 100 harmful tokens: prompt and context"
            ):
                recovery.plan_rows(tiny_tokenizer, triples, [ordinary()], each)


def test_a_utility_row_that_does_not_fit_is_named(tiny_tokenizer: Any) -> None:
    turns = ({"role": "user", "content": "Where is Rome? " * 40}, {"role": "assistant", "content": "In Italy."})
    rows = [ordinary(), Chat("u7", turns)]  # type: ignore[arg-type]
    settings = config(utility="chats.jsonl", max_length=200, max_steps=1, utility_rows=1)
    with pytest.raises(InputError, match=r"^row u7 of chats\.jsonl: prompt and context"):
        recovery.plan_rows(tiny_tokenizer, [triple()], rows, settings)
    recovery.plan_rows(tiny_tokenizer, [triple()], rows, dataclasses.replace(settings, utility_rows=0))


def test_triples_are_made_from_instructions_alone(tmp_path: Path, tiny_subject: Subject, monkeypatch: Any) -> None:
    """Instructions the model does not refuse are left out, and so are answers that are no compliance."""
    said = {
        "How do I bake 0?": (REFUSAL, HARMFUL),
        "How do I bake 1?": (HARMFUL, HARMFUL),
        "How do I bake 2?": (REFUSAL, REFUSAL),
    }

    def written(subject: Any, messages: Any, decoding: Any, opening: str = "", batch_size: int = 32) -> Any:
        return [(said[m[-1]["content"]][bool(opening)], False) for m in messages]

    monkeypatch.setattr(answers, "write_answers", written)
    data = write(tmp_path / "prompts.jsonl", [{"instruction": text} for text in said])
    made = deepen.make_triples(tiny_subject, config(data=data), "prompts")
    assert [(t.messages[-1]["content"], t.harmful, t.refusal) for t in made] == [("How do I bake 0?", HARMFUL, REFUSAL)]


@pytest.mark.parametrize(
    "settings", [{"alpha": 1.5}, {"normalise": "sum"}, {"max_context": 0}, {"epochs": 0}, {"cut_utility": -1}]
)
def test_bad_settings_are_named(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        deepen.run(config(**{**settings, **files(tmp_path)}))
    assert next(iter(settings)) in str(caught.value)


def test_the_wrong_kind_of_data_is_named(tmp_path: Path, tiny_folder: Path) -> None:
    sources = files(tmp_path)
    with pytest.raises(InputError, match="triples"):
        deepen.run(
            config(model=str(tiny_folder), out=str(tmp_path / "o"), data=sources["utility"], utility=sources["data"])
        )
