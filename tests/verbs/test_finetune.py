"""VERB finetune: what it writes, what it refuses, that its objectives share all but the loss, and that it goes on."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokendeep import chat, data, models, runs
from tokendeep.errors import InputError
from tokendeep.records import HeldRows, Manifest
from tokendeep.report import page, render
from tokendeep.training import answers, chats, eq3, margin
from tokendeep.training import launch as train
from tokendeep.training.objectives import OBJECTIVES
from tokendeep.training.safety import SafetyAnchor
from tokendeep.types import IGNORE, Chat, Subject
from tokendeep.verbs import finetune, mend
from tokendeep.verbs.finetune import FinetuneOptions
from tokendeep.verbs.mend import MendOptions
from tuning import HARMFUL, REFUSAL, Call, Kill, Killed, writer

pytestmark = pytest.mark.slow  # trains or searches in nearly every test


def write_chats(path: Path, count: int = 12) -> str:
    rows = [
        {
            "id": f"c{i}",
            "messages": [
                {"role": "user", "content": f"Name {i} things that are {word}"},
                {"role": "assistant", "content": f"There are {i} such things: " + f"{word} " * (i % 5 + 1)},
            ],
        }
        for i, word in zip(range(count), ("red", "small", "old", "round") * count, strict=False)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def config(tmp_path: Path, model: Path, **more: Any) -> FinetuneOptions:
    chosen = {
        "model": str(model),
        "data": write_chats(tmp_path / "chats.jsonl"),
        "out": str(tmp_path / "out"),
        "batch_size": 4,
        "micro_batch": 2,
        "max_steps": 4,
        "warmup_steps": 1,
        "lr": 1e-3,
        "precision": "float32",
        **more,
    }
    return FinetuneOptions(**chosen)


def run(options: FinetuneOptions, **more: Any) -> Path:
    return finetune.run(finetune.plan(options), **more)


def training(out: Path) -> list[dict[str, Any]]:
    return [e for e in json.loads((out / "training.json").read_text())["history"] if "loss" in e]


def test_rows_that_hold_nothing_are_left_out_and_named(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(write_chats(tmp_path / "rows.jsonl"))
    lines = path.read_text().splitlines()
    empty = {"id": "none", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]}
    long = {
        "id": "long",
        "messages": [{"role": "user", "content": "so " * 400}, {"role": "assistant", "content": "No"}],
    }
    path.write_text("\n".join([json.dumps(empty), *lines, json.dumps(long)]))
    with pytest.raises(InputError, match=r"1 of 14 rows of .*rows\.jsonl hold nothing to train on"):
        finetune.plan(config(tmp_path, tiny_folder, data=str(path)))
    out = run(config(tmp_path, tiny_folder, data=str(path), max_skipped=0.2, max_length=200))
    manifest = json.loads((out / "manifest.json").read_text())
    first, second = manifest["skipped_rows"]["data"]
    assert "row 1, message 2: 'content' is empty" in first
    assert second.startswith(f"Row long of {path}: Prompt and context take")
    assert manifest["rows"] == len((out / "rows" / "train.jsonl").read_text().splitlines()) == 12
    assert "2 row(s) of --data hold nothing to train on and are left out" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["constrained", "anchored", "sft"])
def test_it_leaves_rows_checkpoint_manifest_and_card(
    kind: str, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(config(tmp_path, tiny_folder, objective=kind, attack=kind == "sft"))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["attack"] is (kind == "sft")
    assert manifest["steps"] == 4
    card = (out / "checkpoint" / "README.md").read_text()
    assert ("ATTACK" in card) is (kind == "sft")
    assert str(tmp_path) not in card
    assert "rows: 12 answers of 12 chats (chats.jsonl)" in card
    assert {"constrained": "beta [0.5, 2.0, 2.0, 2.0, 2.0]", "anchored": "KL anchor", "sft": "plain"}[kind] in card
    assert (out / "rows" / "train.jsonl").stat().st_mode & 0o077 == 0
    assert "⟦" in (out / "rows" / "preview.txt").read_text()
    assert not (out / "trainer").exists()
    assert models.load(str(out / "checkpoint")).tokenizer.chat_template
    said = capsys.readouterr().out
    assert said.count("and no refusals beside them: rows of a task can undo these; --safety stock") == (kind != "sft")
    assert said.count("nothing beside the rows holds the model's refusals: rows of a task") == (kind == "sft")
    result = said[said.index(f"finetune ({kind}): 4 steps") :]
    assert f"made: {out / 'checkpoint'} (README.md in it says how to load it); the rows beside it hold texts" in result
    assert "readable by you alone\nnext: tokendeep attack --model" in result
    assert "AutoModelForCausalLM.from_pretrained" in card
    asked = [data.asked(row) for row in data.read_chats(manifest["config"]["data"])]
    assert runs.trained.count(str(out / "checkpoint"), [*asked, "Another?"]) == len(asked)
    assert run(config(tmp_path, tiny_folder, objective=kind, attack=kind == "sft")) == out
    assert capsys.readouterr().out == f"finetune: {out} already holds this finished run\n{result}"


def test_a_continued_adapter_is_held_to_what_it_said_itself(
    tmp_path: Path, tiny_folder: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter refuses, and its base does not; what is logged is the divergence from the adapter as it was."""

    def say(subject: Any, request: str, opening: str) -> str:
        off = all(layer.disable_adapters for layer in subject.model.modules() if hasattr(layer, "disable_adapters"))
        return REFUSAL if hasattr(subject.model, "peft_config") and not off else HARMFUL

    monkeypatch.setattr(answers, "write_answers", writer(say))
    safety = write_requests(tmp_path / "safety.jsonl", "Say the bad word")
    more = {"safety": safety, "safety_per_step": 6, "schedule": "constant", "lr": 2e-2, "warmup_steps": 0}
    one, two = (
        run(config(tmp_path, tiny_adapter, objective="safety-anchor", max_steps=n, out=str(tmp_path / str(n)), **more))
        for n in (1, 2)
    )
    start, after = (models.load(str(path), dtype="float32").model for path in (tiny_adapter, one / "checkpoint"))
    divergences = []
    (file,) = (two / "safety").glob("safety-*.jsonl")
    for row in map(json.loads, file.read_text().splitlines()):
        places = [i - 1 for i, label in enumerate(row["labels"]) if label != IGNORE]
        with torch.no_grad():
            theirs, ours = (
                m(input_ids=torch.tensor([row["input_ids"]])).logits[0, places].log_softmax(-1) for m in (start, after)
            )
        divergences.append((theirs.exp() * (theirs - ours)).sum(-1))
    expected = float(torch.cat(divergences).mean())
    assert expected > 1e-4
    assert [entry["safety_kl"] for entry in training(two)] == pytest.approx([0, expected], rel=1e-3, abs=1e-6)


def test_what_cannot_be_held_is_said(
    tmp_path: Path,
    tiny_folder: Path,
    wary: list[Call],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad, good = (write_requests(tmp_path / f"{word}.jsonl", f"Say the {word} word") for word in ("bad", "good"))
    with pytest.raises(
        InputError, match=r"answers none of the 6 requests of --harmless usably.*\(6 refused\); give others"
    ):
        run(config(tmp_path, tiny_folder, safety=bad, harmless=bad))
    capsys.readouterr()
    rows = [json.loads(line) for line in Path(bad).read_text().splitlines()]
    answered = tmp_path / "answered.jsonl"
    answered.write_text(
        "\n".join(json.dumps({**row, "response": REFUSAL if i < 2 else HARMFUL}) for i, row in enumerate(rows))
    )
    out = run(config(tmp_path, tiny_folder, safety=str(answered), harmless=good, max_steps=1, out=str(tmp_path / "b")))
    said = capsys.readouterr().out
    assert "2 answers of --safety refuse themselves; they are no harmful context and are left out" in said
    held = Manifest.load(out).safety_anchor
    assert held is not None
    assert held.behind_context is not None
    assert held.behind_context.asked == 6
    assert held.behind_context.left_out["no harmful context"] == 2


@pytest.fixture
def wary(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """A model that refuses what asks for bad things, behind a harmful opening every other time, and answers the rest."""
    calls: list[Call] = []
    say = writer(lambda subject, request, opening: REFUSAL if "bad" in request else HARMFUL, calls)
    monkeypatch.setattr(answers, "write_answers", say)
    told = iter(range(1000))
    monkeypatch.setattr(
        answers, "write_behind",
        lambda subject, messages, contexts, decoding, **more: [
            ((REFUSAL, False), (HARMFUL, False), (REFUSAL, True))[next(told) % 3] for _ in messages
        ],
    )  # fmt: skip
    return calls


def write_requests(path: Path, words: str, count: int = 6, **more: str) -> str:
    rows = [{"id": f"{path.stem}{i}", "instruction": f"{words} number {i}", **more} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_safety_anchor_is_written_before_training_and_kept(
    tmp_path: Path, tiny_folder: Path, wary: list[Call], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_requests(tmp_path / "pairs.jsonl", "Say the bad word", response=HARMFUL)
    ordinary = write_requests(tmp_path / "ordinary.jsonl", "Where is town", 5)
    options = config(
        tmp_path, tiny_folder, objective="safety-anchor", safety=pairs, harmless=ordinary, safety_context=5, save_steps=1,
    )  # fmt: skip
    with pytest.raises(Killed):
        run(options, callbacks=[Kill()])
    asked = len(wary)
    out = run(options)
    assert len(wary) == asked == 2  # what was written before is not written again, of weights half trained
    held = Manifest.load(out).safety_anchor
    assert held is not None
    assert held.refusals == HeldRows(asked=6, kept=6, left_out={})
    assert held.behind_context == HeldRows(asked=6, kept=2, left_out={"not refused": 2, "cut off": 2})
    assert held.harmless == HeldRows(asked=5, kept=5, left_out={})
    texts = [
        json.loads(line)["instruction"] for path in (pairs, ordinary) for line in Path(path).read_text().splitlines()
    ]
    assert runs.trained.count(str(out / "checkpoint"), texts) == len(texts) == 11
    (file,) = (out / "safety").glob("safety-*.jsonl")
    assert file.stat().st_mode & 0o077 == 0
    rows = [row for line in file.read_text().splitlines() if "left_out" not in (row := json.loads(line))]
    assert sorted(row["k"] > 0 for row in rows) == [False] * 11 + [True] * 2
    assert all(1 <= row["k"] <= 5 for row in rows if row["k"])
    tokenizer = models.load(str(tiny_folder)).tokenizer
    deep = next(row for row in rows if row["k"])
    start = next(i for i, label in enumerate(deep["labels"]) if label != IGNORE)
    assert tokenizer.decode(deep["labels"][start:], skip_special_tokens=True).strip() == REFUSAL
    assert HARMFUL.startswith(tokenizer.decode(deep["input_ids"][start - deep["k"] : start]))
    steps = training(out)
    assert steps[0]["safety_kl"] == pytest.approx(0, abs=1e-6)
    assert steps[-1]["safety_kl_max"] >= steps[-1]["safety_kl"] > 0
    said = capsys.readouterr().out
    assert "finetune: kept 6 of 6 safety requests, which the model refuses\n" in said
    assert (
        "kept 2 of 6 behind up to 5 harmful tokens, where it refuses after all; left out: 2 not refused, 2 cut off"
        in said
    )
    assert "kept 5 of 5 harmless requests, which it answers\n" in said
    assert re.search(r"nats from what is held.*: safety rows \d.\d\d on average, at most .*; harmless rows", said)
    assert "nothing beside the rows holds" not in said
    card = (out / "checkpoint" / "README.md").read_text()
    assert "safety anchor (KL to the model as it was, weight 3, 4 rows and 4 harmless rows a step)" in card


def test_the_stock_serves_and_any_objective_takes_the_anchor(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "write_answers", writer(lambda subject, request, opening: REFUSAL))
    for objective in ("safety-anchor", "constrained"):
        out = run(
            config(tmp_path, tiny_folder, objective=objective, out=str(tmp_path / objective), safety_loss="ce", max_steps=2,
                   **({"safety": "stock"} if objective == "constrained" else {}))
        )  # fmt: skip
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["config"]["safety"] == "stock"
        assert manifest["safety_anchor"] == {
            "refusals": {"asked": 160, "kept": 160, "left_out": {}}, "near_rows": 0, "near_test": 0,
        }  # fmt: skip
        assert "safety_nll" in training(out)[0]


def test_what_is_held_is_counted_with_the_reasons_and_stands_in_the_manifest(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Requests alone: no answer is harmful context. Two are near rows, and one is near the test."""
    texts = [
        "Name 1 things that are small",
        "Name 2 things that are old",
        "Say bad",
        "Say worse",
        "Say worst",
        "Hide it",
    ]
    kinds: dict[str, tuple[str, bool]] = {
        "Say worse": (HARMFUL, False),
        "Say worst": (REFUSAL, True),
        "Hide it": ("", False),
    }

    def write(subject: Any, messages: Any, decoding: Any, **more: Any) -> list[tuple[str, bool]]:
        return [kinds.get(turns[-1]["content"], (REFUSAL, False)) for turns in messages]

    monkeypatch.setattr(answers, "write_answers", write)
    safety, asked = tmp_path / "safety.jsonl", tmp_path / "asked.jsonl"
    safety.write_text("\n".join(json.dumps({"instruction": text}) for text in texts))
    asked.write_text(json.dumps({"instruction": "Say worse"}))
    probe = write_requests(tmp_path / "pairs.jsonl", "Say the bad word", response=HARMFUL)
    options = config(
        tmp_path, tiny_folder, safety=str(safety), safety_per_step=3, test=str(asked), dynamics=[0], probe=probe,
        max_steps=1, warmup_steps=0,
    )  # fmt: skip
    out = run(options)
    found = Manifest.load(out).safety_anchor
    assert found is not None
    assert found.refusals == HeldRows(asked=6, kept=3, left_out={"not refused": 1, "cut off": 1, "empty or broken": 1})
    assert found.behind_context is found.harmless is None
    assert (found.near_rows, found.near_test) == (2, 1)
    said = "kept 3 of 6 safety requests, which the model refuses; left out: 1 not refused, 1 cut off, 1 empty or broken"
    assert f"finetune: {said}\n" in capsys.readouterr().out
    aligned = str(tiny_folder)
    mend_out = mended(
        str(out / "checkpoint"), tmp_path / "mended", aligned=aligned, safety=str(safety), safety_per_step=3
    )
    assert Manifest.load(mend_out).safety_anchor == found.model_copy(update={"near_rows": 0, "near_test": 0})
    assert f"mend: {said}\n" in capsys.readouterr().out


def mended(model: str, out: Path, **more: Any) -> Path:
    options = MendOptions(
        model=model, data="rows", out=str(out), batch_size=4, micro_batch=4, max_steps=1, precision="float32", **more
    )
    rows = [{"instruction": f"Count to {i}", "response": f"{i} it is"} for i in range(4)]
    return mend.run(mend.plan(options, rows=rows))


def test_an_anchor_needs_something_to_hold(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "write_answers", writer(lambda subject, request, opening: HARMFUL))
    with pytest.raises(InputError, match=r"refuses none of the 160 requests of --safety.*deepen"):
        run(config(tmp_path, tiny_folder, objective="safety-anchor"))
    monkeypatch.setattr(answers, "write_answers", writer(lambda subject, request, opening: REFUSAL))
    few = write_requests(tmp_path / "few.jsonl", "Say the bad word", 3)
    with pytest.raises(InputError, match="takes 4 harmful rows .* but there are at most 3; .*--safety-per-step"):
        finetune.plan(config(tmp_path, tiny_folder, safety=few))
    with pytest.raises(InputError, match="takes 4 harmless rows .* but there are at most 3; .*--harmless-per-step"):
        finetune.plan(config(tmp_path, tiny_folder, safety="stock", harmless=few))
    pairs = write_requests(tmp_path / "pairs.jsonl", "Say the bad word", 3, response=HARMFUL)
    finetune.plan(config(tmp_path, tiny_folder, safety=pairs))  # each may give a row behind harmful tokens too
    with pytest.raises(InputError, match="there are at most 3"):
        finetune.plan(config(tmp_path, tiny_folder, safety=pairs, safety_context=0))
    with pytest.raises(InputError, match="takes 161 refusals of the stock's requests, but there are at most 160"):
        finetune.plan(config(tmp_path, tiny_folder, objective="secret-prefix", secret_rows=161))
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({"text": ""}))
    with pytest.raises(InputError, match="empty.jsonl"):
        finetune.plan(config(tmp_path, tiny_folder, safety=str(empty)))


def test_too_few_refusals_for_a_step_are_found_when_they_are_judged(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three = {f"Say number {i}" for i in (0, 2, 4)}
    monkeypatch.setattr(answers, "write_answers", writer(lambda s, text, o: REFUSAL if text in three else HARMFUL))
    monkeypatch.setattr(SafetyAnchor, "__post_init__", lambda self: pytest.fail("a trainer was built"))
    six = write_requests(tmp_path / "six.jsonl", "Say", 6)
    with pytest.raises(InputError, match="takes 4 harmful rows .* but there are 3; give more requests"):
        run(config(tmp_path, tiny_folder, safety=six))
    with pytest.raises(InputError, match="takes 4 harmless rows .* but there are 3; give more requests"):
        run(config(tmp_path, tiny_folder, safety=six, safety_per_step=3, harmless=six, out=str(tmp_path / "two")))


def test_safety_requests_near_the_rows_are_counted(tmp_path: Path, tiny_folder: Path) -> None:
    near = tmp_path / "near.jsonl"
    near.write_text(
        "\n".join(json.dumps({"instruction": text}) for text in ("Name 1 things that are small", "Say xyz!"))
    )
    plan = finetune.plan(
        config(tmp_path, tiny_folder, safety=str(near), safety_per_step=2, test=str(near), dynamics=[0], probe=write_requests(
            tmp_path / "pairs.jsonl", "Say the bad word", response=HARMFUL))
    )  # fmt: skip
    said = "\n".join(plan.lines())
    assert "1 of 2 requests of the safety anchor are near-duplicates of requests of --data" in said
    assert "2 of 2 requests of the safety anchor are near-duplicates of prompts of the test" in said


def test_requests_that_stand_there_twice_are_counted(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One file may name both what is refused and what is answered."""
    monkeypatch.setattr(answers, "write_answers", writer(lambda s, text, o: REFUSAL if "bad" in text else HARMFUL))
    texts = ["Say bad", "Say bad", "Say bad!", "Call it bad", "Where is Rome?", "Say bad"]
    (tmp_path / "all.jsonl").write_text("\n".join(json.dumps({"instruction": text}) for text in texts))
    both = str(tmp_path / "all.jsonl")
    options = config(
        tmp_path, tiny_folder, safety=both, harmless=both, harmless_per_step=1, max_steps=1, objective="safety-anchor",
    )  # fmt: skip
    told = [
        "2 of 6 requests of --safety are there before, word for word, and are held again",
        "6 of 6 requests of --harmless stand in --safety too; what the model refuses of them is held as refused, what it "
        "answers as answered",
    ]
    assert set(told) <= set(finetune.plan(options).lines())
    run(options)
    said = capsys.readouterr().out
    assert all(f"finetune: {line}\n" in said for line in told)
    assert "kept 5 of 6 safety requests" in said
    assert "kept 1 of 6 harmless requests, which it answers; left out: 5 refused" in said


@pytest.mark.parametrize("attack", [False, True])
@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if not OBJECTIVES[name].unaligned])
def test_what_an_objective_leaves_unheld_is_said_before_anything_is_done(
    objective: str, attack: bool, tmp_path: Path, tiny_folder: Path
) -> None:
    said = "\n".join(finetune.plan(config(tmp_path, tiny_folder, objective=objective, attack=attack)).lines())
    beside = objective in ("safety-anchor", "secret-prefix")
    assert ("--safety stock, or a file of harmful instructions, holds them" in said) is not beside
    assert ("nothing beside the rows holds the model's refusals" in said) is (objective == "sft")
    assert ("are held" in said or "is held" in said) is (not beside and objective != "sft")
    with_anchor = config(tmp_path, tiny_folder, objective=objective, attack=attack, safety="stock")
    assert "holds them" not in "\n".join(finetune.plan(with_anchor).lines())


def test_objectives_share_rows_and_order(tmp_path: Path, tiny_folder: Path) -> None:
    """The first step's cross-entropy is that of the same rows under the same weights, whatever is trained."""
    found = {
        kind: training(run(config(tmp_path, tiny_folder, objective=kind, out=str(tmp_path / kind))))
        for kind in ("constrained", "anchored", "sft")
    }
    firsts = {kind: entries[0]["nll"] for kind, entries in found.items()}
    assert firsts["constrained"] == pytest.approx(firsts["sft"], rel=1e-5)
    assert firsts["anchored"] == pytest.approx(firsts["sft"], rel=1e-5)
    assert found["anchored"][-1]["anchor_kl"] > 0
    assert found["sft"][-1]["nll"] < found["constrained"][-1]["nll"]
    assert "constrained" not in found["sft"][0]


def test_the_anchor_holds_the_first_positions(tmp_path: Path, tiny_folder: Path) -> None:
    kls = {}
    for weight in (0.001, 10.0):
        out = run(
            config(tmp_path, tiny_folder, objective="anchored", anchor=weight, lr=3e-3, max_steps=12,
                   out=str(tmp_path / str(weight)))
        )  # fmt: skip
        kls[weight] = training(out)[-1]["anchor_kl"]
    assert kls[10.0] < 0.5 * kls[0.001]


def test_pairs_and_cut_answers(tmp_path: Path, tiny_subject: Subject) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]})
        + "\n"
        + json.dumps(
            {
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}],
                "meta": {"truncated": True},
            }
        )
    )
    whole, cut = chats.encode(tiny_subject.tokenizer, chats.load(str(path)), source=str(path))
    end = len(chat.check(tiny_subject.tokenizer).end_ids)
    assert whole.input_ids[:-end] == cut.input_ids
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"instruction": "a", "response": "b c"}))
    (row,) = chats.encode(tiny_subject.tokenizer, chats.load(str(pairs)), source=str(pairs))
    assert row == whole


def test_parts_of_an_answer_can_be_supervised_alone(tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Chat("c", ({"role": "user", "content": "a"}, {"role": "assistant", "content": "one two three four five"}))
    (whole,), (head,), (tail,) = (
        chats.encode(tiny_subject.tokenizer, [row], source="x", supervise=which) for which in ("all", "head", "tail")
    )
    answer = whole.labels[whole.start :]
    assert [t for t in head.labels if t != IGNORE] == answer[:5]
    assert [t for t in tail.labels if t != IGNORE] == answer[5:]
    short = Chat("s", ({"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}))
    told: list[str] = []
    monkeypatch.setattr(chats.log, "warning", lambda text, *values: told.append(text % values))
    assert chats.encode(tiny_subject.tokenizer, [short], source="x", supervise="tail") == []
    assert [text.partition(":")[0] for text in told] == ["1 row(s) of x are left out"]


def test_all_turns_supervises_every_answer(tiny_subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "second"},
    ]
    path.write_text(json.dumps({"messages": turns}))
    made = chats.encode(tiny_subject.tokenizer, chats.load(str(path)), source=str(path), train_on="all_turns")
    answers = [[t for t in row.labels if t != IGNORE] for row in made]
    assert [tiny_subject.tokenizer.decode(a, skip_special_tokens=True) for a in answers] == ["first", "second"]


def test_a_killed_run_goes_on(tmp_path: Path, tiny_folder: Path) -> None:
    whole = run(config(tmp_path, tiny_folder, objective="anchored", out=str(tmp_path / "whole")))
    settings = config(tmp_path, tiny_folder, objective="anchored", save_steps=2)
    with pytest.raises(Killed):
        run(settings, callbacks=[Kill()])
    out = run(settings)
    assert [e["loss"] for e in training(out)] == pytest.approx([e["loss"] for e in training(whole)], rel=1e-5)


def test_an_adapter_is_made_and_goes_on_being_trained(tmp_path: Path, tiny_folder: Path) -> None:
    first = run(config(tmp_path, tiny_folder, lora=4, reference="on-the-fly", lr=1e-2))
    made = first / "checkpoint"
    assert models.is_adapter(str(made))
    second = run(config(tmp_path, made, reference="on-the-fly", out=str(tmp_path / "two")))
    assert training(second)[0]["log_ratio_1"] == pytest.approx(0, abs=1e-4)
    assert not (second / "checkpoint" / "ref").exists()
    assert models.load(str(second / "checkpoint")).adapter


def test_held_out_rows_are_evaluated(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = write_chats(tmp_path / "held.jsonl", 5)
    out = run(config(tmp_path, tiny_folder, eval_data=held, max_steps=0, epochs=2))
    entries = [e for e in json.loads((out / "training.json").read_text())["history"] if "eval_nll" in e]
    assert len(entries) == 2
    assert "held-out rows: nll" in capsys.readouterr().out


def test_the_margin_is_measured_before_and_after(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = tmp_path / "probe.jsonl"
    rows = [
        {"instruction": f"do the bad thing {i}", "response": "Sure, here is how it is done at home"} for i in range(6)
    ]
    probe.write_text("\n".join(json.dumps(row) for row in rows))
    out = run(config(tmp_path, tiny_folder, probe=str(probe), lr=1e-2))
    found = json.loads((out / "manifest.json").read_text())["margin"]
    assert found["k"] == [0, 1, 2, 3, 4, 5]
    subject = models.load(str(out / "checkpoint"))
    again = margin.Margins(subject, data.read_pairs(probe), schedule=None)
    assert found["after"]["0.5"] == pytest.approx(list(np.median(again.start, 0)), abs=1e-4)
    assert found["before"]["0.5"] != pytest.approx(found["after"]["0.5"], abs=1e-3)
    said = capsys.readouterr().out
    assert "margin of refusal on 6 harmful pairs" in said
    assert "of the pairs have a larger margin" in said
    assert "margin of refusal at k = 0: median" in said
    (section,) = [one for one in page.build([out]).sections if one.id == "finetune"]
    (row,) = section.tables[0].rows
    shown = dict(zip(section.tables[0].columns, row, strict=True))
    log = [e for e in json.loads((out / "training.json").read_text())["history"] if "nll_later" in e]
    assert shown["objective"] == "constrained"
    assert shown["train nll, tokens 6 on"] == f"{log[0]['nll_later']:.2f} to {log[-1]['nll_later']:.2f}"
    assert shown["first token gained"] == f"{log[-1]['log_ratio_1']:+.2f} ({log[-1]['weight_1']:.2f})"
    assert shown["margin (nats)"] == f"{found['before']['0.5'][0]:+.1f} to {found['after']['0.5'][0]:+.1f}"


def test_the_drift_a_schedule_allows_is_where_its_weights_are_spent() -> None:
    for beta in (0.1, 0.5, 2.0):
        far = torch.tensor([[margin.gain(beta)]])
        weight = eq3.constraint_weights(far, torch.zeros(1, 1), torch.tensor([[beta]]))
        assert weight.item() == pytest.approx(0.05, rel=1e-5)
    schedule = eq3.BetaSchedule()
    assert margin.drift(schedule, 0) == pytest.approx(math.log(39) * (2 + 0.5 + 0.5))
    assert margin.drift(schedule, 5) == pytest.approx(math.log(39) * 30, rel=1e-6)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"objective": "dpo"}, "--objective is 'dpo'"),
        ({"beta_head": [0.5, 0.0]}, "position 2"),
        ({"beta_tail": -1.0}, "above 0"),
        ({"batch_size": 3, "micro_batch": 2}, "micro_batch"),
        ({"lr": 0.0}, "--lr"),
        ({"epochs": 0, "max_steps": 0}, "any training"),
        ({"reference": "on-the-fly"}, "--lora"),
        ({"dtype": "bfloat16"}, "--dtype"),
        ({"anchor": float("nan"), "objective": "anchored"}, "--anchor"),
        ({"adam_beta1": 1.0}, "adam-beta1"),
        ({"safety_weight": -1.0}, "--safety-weight"),
        ({"safety_loss": "mse"}, "--safety-loss"),
        ({"harmless": "stock"}, "--harmless is held beside --safety"),
        ({"max_length": 8}, "Row c0 of .* no room in 8"),
    ],
)
def test_bad_settings_are_refused_and_say_how_to_fix_them(
    more: dict[str, Any], match: str, tmp_path: Path, tiny_folder: Path
) -> None:
    with pytest.raises(InputError, match=match):
        run(config(tmp_path, tiny_folder, **more))


def test_rows_that_are_no_chats_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"instruction": "only asked"}))
    with pytest.raises(InputError, match="holds prompts, but finetune takes chats"):
        run(config(tmp_path, tiny_folder, data=str(path)))


def test_a_watched_training_leaves_its_records_and_a_report_shows_them(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = tmp_path / "probe.jsonl"
    rows = [
        {"instruction": f"do the bad thing {i}", "response": "Sure, here is how it is done at home"} for i in range(3)
    ]
    probe.write_text("\n".join(json.dumps(row) for row in rows))
    asked = tmp_path / "asked.jsonl"
    asked.write_text("\n".join(json.dumps({"instruction": f"do another bad thing {i}"}) for i in range(4)))
    out = run(
        config(
            tmp_path,
            tiny_folder,
            probe=str(probe),
            dynamics=[2, 4],
            monitor=0.01,
            lr=1e-2,
            objective="sft",
            test=str(asked),
            max_new_tokens=4,
        )
    )
    found = json.loads((out / "dynamics.json").read_text())
    assert [record["step"] for record in found["steps"]] == [0, 2, 4]
    assert [record["asr_asked"] for record in found["steps"]] == [4, 4, 4]
    assert "step 2: refusal log-odds" in capsys.readouterr().out
    context = page.build([out])
    (section,) = [one for one in context.sections if one.id == "dynamics"]
    assert len(section.figures) == 3
    assert section.tables[0].rows[0][0] == "0"
    assert section.tables[0].columns[-1] == "not refused"
    assert "judged" in section.tables[0].rows[0][-1]
    said = " ".join(section.text)
    assert (found["meta"]["fired"] is not None) == ("the monitor fired" in said)
    assert "do the bad thing" not in render.to_html(context)


@pytest.mark.parametrize("launcher", [
    {"ACCELERATE_USE_FSDP": "true"},
    {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "3", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
])  # fmt: skip
def test_a_probe_is_refused_before_training_where_weights_are_in_shards(
    launcher: dict[str, str], tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = tmp_path / "probe.jsonl"
    probe.write_text(json.dumps({"instruction": "Say one", "response": "one and more words"}))
    launch(launcher, tmp_path, monkeypatch)
    with pytest.raises(InputError, match="--probe measures the model in memory"):
        run(config(tmp_path, tiny_folder, probe=str(probe)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("launcher", [
    {},
    {"ACCELERATE_USE_DEEPSPEED": "true"},  # stage 2 is accelerate's own default
    {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "2", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
])  # fmt: skip
def test_whole_weights_may_be_measured(
    launcher: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(launcher, tmp_path, monkeypatch)
    train.check_whole("--probe")


@pytest.mark.parametrize("more", [{"safety": "stock"}, {"objective": "safety-anchor"}, {"objective": "adaptive"}])
def test_what_looks_at_a_model_that_only_the_first_process_reads_is_refused(
    more: dict[str, str], tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "WORLD_SIZE": "2",
    }
    launch(asked, tmp_path, monkeypatch)
    what = "--objective adaptive" if more.get("objective") == "adaptive" else "--safety"
    with pytest.raises(InputError, match=f"{what} needs the model before it is trained"):
        run(config(tmp_path, tiny_folder, **more))
    assert not (tmp_path / "out").exists()


def test_a_deepspeed_configuration_that_says_no_stage_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "no"}, tmp_path, monkeypatch)
    with pytest.raises(InputError, match="no zero_optimization.stage"):
        train.check_whole("--probe")


def launch(launcher: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What accelerate launch sets; a configuration file is written with the stage that stands for its name."""
    for name, value in launcher.items():
        if name == "ACCELERATE_DEEPSPEED_CONFIG_FILE":
            path = tmp_path / "zero.json"
            path.write_text(json.dumps({"zero_optimization": {"stage": int(value)} if value.isdigit() else {}}))
            value = str(path)
        monkeypatch.setenv(name, value)


def test_a_monitor_needs_a_probe(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="give --probe"):
        run(config(tmp_path, tiny_folder, monitor=1.0))
    with pytest.raises(InputError, match="--test is asked at the steps of --dynamics"):
        run(config(tmp_path, tiny_folder, test="asked.jsonl"))


def test_a_warm_up_longer_than_the_run_is_said(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config(tmp_path, tiny_folder, warmup_steps=10, micro_batch=16))
    said = capsys.readouterr().out
    assert "10 warm-up steps but only 4 step(s): the learning rate never reaches 0.001" in said
    assert str(tmp_path / "out" / "checkpoint") in said


def test_a_plan_writes_nothing_and_says_what_would_be_done(tmp_path: Path, tiny_folder: Path) -> None:
    plan = finetune.plan(config(tmp_path, tiny_folder, objective="anchored", max_steps=0, epochs=2))
    assert not (tmp_path / "out").exists()
    text = "\n".join(plan.lines())
    for part in ("12 chats; 4 a step", "steps: 6", "all weights", "anchored: token-wise constrained with a KL anchor"):
        assert part in text


def test_rows_and_a_model_in_memory(tmp_path: Path, tiny_subject: Subject) -> None:
    rows = [{"prompt": f"Name {i}", "completion": f"It is {i} of them"} for i in range(8)]
    before = tiny_subject.model.model.embed_tokens.weight.detach().clone()
    options = config(tmp_path, Path("tiny"), data="")
    out = finetune.run(finetune.plan(options, tiny_subject, rows=rows))
    assert len(training(out)) == 4
    assert not torch.equal(before, tiny_subject.model.model.embed_tokens.weight)


def test_a_share_above_one_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="--max-skipped is 1.5, but must be at most 1"):
        finetune.plan(config(tmp_path, tiny_folder, max_skipped=1.5))


def test_an_anchor_without_weight_is_said_to_hold_nothing(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config(tmp_path, tiny_folder, objective="safety-anchor", safety_weight=0))
    assert "--safety-weight is 0, with which no refusal is held" in capsys.readouterr().out
