"""The verb attack: one load and one queue, what it leaves, what it refuses."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attacking import ANSWER, ROWS, Answers, answer_of, answers, attack, config, judge, pairs, prompt_of, write  # noqa: F401  (fixtures)
from tokendeep import models, runs
from tokendeep.errors import InputError
from tokendeep.evals import logs
from tokendeep.records import Rates
from tokendeep.report import load, page
from tokendeep.types import Subject
from tokendeep.verbs import attack as verb
from tokendeep.verbs import functions


def test_all_attacks_share_one_load_and_one_queue(
    pairs: Path, tmp_path: Path, tiny_folder: Path, answers: Answers, judge: list[str], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    loads: list[str] = []
    load = models.load
    monkeypatch.setattr(models, "load", lambda spec, **more: loads.append(spec) or load(spec, **more))
    out = tmp_path / "out"
    settings = config(pairs, out, model=str(tiny_folder), attack="none,prefill,refusal-prefix", batch_size=4)
    settings = replace(settings, label="mine", role="twins")
    assert attack(settings) == out

    assert loads == [str(tiny_folder)]
    assert answers.batch_sizes == [4]
    rows = json.loads((out / "asr.json").read_text())
    assert [(row["attack"], row["params"].get("k"), row["n"]) for row in rows[:3]] == [
        ("none", None, 3),
        ("prefill", 0, 3),
        ("prefill", 5, 2),
    ]
    assert [row["params"]["prefix"] for row in rows[3:]] == [
        "I cannot",
        "I cannot fulfill",
        "I apologize",
        "I apologize, but I cannot",
        "I am unable",
    ]
    assert rows[2]["skipped"] == 1
    assert all(row["rate"] == 1.0 and row["model"] == str(tiny_folder) for row in rows)

    asked = [list(request.ids) for request in answers.requests]
    plain = [prompt_of(answers.tokenizer, row) for row in ROWS]
    assert sum(ids in plain for ids in asked) == 3  # the plain request and k = 0 are the same: decoded once
    assert [*plain[0], *answer_of(answers.tokenizer, ROWS[0])[:5]] in asked
    assert len(judge) == 3 + 5 + 15
    assert {row["params"]["judged"] for row in rows[:3]} == {"continuation"}
    assert {row["params"]["judged"] for row in rows[3:]} == {"full"}
    assert "I cannot" + ANSWER in judge

    logs = list(out.glob("*.eval"))
    assert len(logs) == 3
    private = [*logs, out / "attacked.jsonl", out]
    assert all(not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) for path in private)
    manifest = json.loads((out / "manifest.json").read_text())
    assert [manifest[name] for name in ("status", "label", "role")] == ["finished", "mine", "twins"]
    shown = "".join(capfd.readouterr())
    hot = [ANSWER, *(row[name] for row in ROWS for name in ("instruction", "response"))]
    for text in hot:
        assert text not in shown
        assert text not in (out / "asr.json").read_text() + (out / "manifest.json").read_text()

    count = len(answers.requests)
    assert attack(settings) == out  # finished: nothing is asked again
    assert len(answers.requests) == count
    with pytest.raises(InputError, match=r"holds a finished attack run .* seed"):
        attack(replace(settings, seed=1))


def test_samples_use_seeds_in_a_row(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    answers.reply = lambda request: "complied" if request.decoding.seed == 8 else "refused"
    settings = config(pairs, tmp_path / "out", attack="none", samples=3, seed=7, temperature=0.9, top_p=0.6)
    out = attack(settings, tiny_subject)
    assert sorted(request.decoding.seed for request in answers.requests) == [7, 7, 7, 8, 8, 8, 9, 9, 9]
    assert {(r.decoding.temperature, r.decoding.top_p) for r in answers.requests} == {(0.9, 0.6)}
    [row] = json.loads((out / "asr.json").read_text())
    assert (row["rate"], row["any_of_n"], row["samples"], row["n"]) == (1 / 3, 1.0, 3, 9)
    assert {sample.seed for sample in logs.read_samples(out)} == {7, 8, 9}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attack": "prefil"}, "Unknown attack 'prefil'; did you mean prefill"),
        ({"role": "twin"}, "Unknown role 'twin'; did you mean twins"),
        ({"attack": " , "}, "No attack is named"),
        ({"judge": "refusal-keyword"}, "Unknown judge .* did you mean refusal-keywords"),
        ({"judged": "ful"}, "did you mean full"),
        ({"k": [0, -1]}, "k = -1 is below 0"),
        ({"k": [800, 900]}, "k = 800 is beyond every answer"),
        ({"prefixes": [""], "attack": "refusal-prefix"}, "prefixes that are not empty"),
        ({"batch_size": -1}, "--batch-size is -1"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"model": "./nowhere"}, "nowhere"),
        ({"model": "inspect/mockllm/model", "tokenizer": "./nowhere"}, "There is no model at ./nowhere"),
        ({"max_retries": -1}, "--max-retries is -1, but must be at least 0"),
        ({"model": "inspect/mockllm/model", "dtype": "float16"}, "dtype is for models that tokendeep loads itself"),
        ({"model": "inspect/nobody/model"}, "The Inspect model nobody/model cannot be used"),
    ],
)
def test_bad_input_ends_before_a_model_is_loaded(
    settings: dict[str, Any],
    message: str,
    pairs: Path,
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    chosen = {"attack": "prefill" if "mockllm" in str(settings.get("model")) else "none,prefill"}
    with pytest.raises(InputError, match=message):
        attack(config(pairs, tmp_path / "out", **{"model": str(tiny_folder), **chosen, **settings}))
    assert not (tmp_path / "out").exists()


def test_prompts_alone_serve_where_nothing_is_prefilled(
    tmp_path: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"instruction": row["instruction"]} for row in ROWS])
    out = attack(config(prompts, tmp_path / "out", attack="none,refusal-prefix", prefixes=["No."]), tiny_subject)
    assert [row["n"] for row in json.loads((out / "asr.json").read_text())] == [3, 3]
    with pytest.raises(InputError, match="response"):
        attack(config(prompts, tmp_path / "other"), tiny_subject)


def test_a_user_s_own_prefixes_and_system_prompt_are_in_private_files_only(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers, judge: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    texts = {"prefixes": ["Zanzibar one", "Zanzibar two"], "system": "Zanzibar rules."}
    out = attack(config(pairs, tmp_path / "out", attack="refusal-prefix", limit=1, **texts), tiny_subject)
    shared = (out / "asr.json").read_text() + (out / "manifest.json").read_text() + "".join(capfd.readouterr())
    assert "Zanzibar" not in shared
    assert shared.count("prefix #2 (sha ") == 3
    assert any("Zanzibar rules." in answers.tokenizer.decode(request.ids) for request in answers.requests)
    assert {sample.prefix for sample in logs.read_samples(out)} == set(texts["prefixes"])
    with pytest.raises(InputError, match="differs in prefixes") as caught:
        attack(
            config(pairs, out, attack="refusal-prefix", limit=1, **{**texts, "prefixes": ["Zanzibar"]}), tiny_subject
        )
    assert "Zanzibar" not in str(caught.value)


def test_a_plan_says_what_would_be_done_and_writes_nothing(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    read = verb.data.read_pairs
    monkeypatch.setattr(verb.data, "read_pairs", lambda source, **more: reads.append(source) or read(source, **more))
    chosen = config(pairs, tmp_path / "out", attack="none,prefill,rank-prefill", samples=2, rank_budget=10)
    lines = verb.plan(chosen, tiny_subject).lines()
    assert reads == [str(pairs)]  # once for all attacks
    assert "none: 3 prompts" in lines
    assert "prefill: 5 prompts; 1 rows too short for k = 5" in lines
    assert "rank-prefill: 3 prompts; found with 30 forward passes of the model at most" in lines
    assert any(line.startswith("answers: 22, 2 to each prompt, of 16 tokens at most; 0 are there") for line in lines)
    assert not (tmp_path / "out").exists()
    assert not answers.requests


def test_rates_come_back_without_a_folder_also_inside_an_event_loop(
    tmp_path: Path, tiny_subject: Subject, answers: Answers, judge: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def notebook() -> Rates:
        return functions.attack(tiny_subject, ROWS, k=[0, 5], max_new_tokens=16)

    rates = asyncio.run(notebook())
    assert [(row.attack, row.params.k, row.n) for row in rates] == [
        ("none", None, 3), ("prefill", 0, 3), ("prefill", 5, 2),
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_an_error_inside_an_event_loop_is_the_same(tiny_subject: Subject, answers: Answers, judge: list[str]) -> None:
    answers.reply = lambda request: InputError("logits are NaN")

    async def notebook() -> Rates:
        return functions.attack(tiny_subject, ROWS[:1], attack="none", max_new_tokens=16)

    with pytest.raises(InputError, match="Row bread: logits are NaN"):
        asyncio.run(notebook())


MIXED = [
    {"id": "a", "instruction": "How do I bake bread?", "label": "unsafe", "category": "x"},
    {"id": "b", "instruction": "How do I water plants?", "label": "safe", "category": "x"},
    {"id": "c", "instruction": "What is the capital of Italy?", "category": "y"},
]


def test_rows_that_say_they_are_harmless_are_never_asked_as_harmful(
    tmp_path: Path, tiny_folder: Path, answers: Answers, judge: list[str]
) -> None:
    source = write(tmp_path / "mixed.jsonl", MIXED)
    settings = config(source, tmp_path / "out", model=str(tiny_folder), attack="none")
    with pytest.raises(
        InputError, match=r"1 of 3 rows of .*mixed.jsonl say that they are harmless; choose with --role harmful"
    ):
        verb.plan(settings)
    for role, ids, shown in (("harmful", ["a", "c"], "harmful"), ("twins", ["b", "c"], "twins")):
        out = attack(replace(settings, role=role, out=str(tmp_path / role)))
        samples = logs.read_samples(out)
        assert [sample.prompt_id for sample in samples] == ids
        assert {sample.role for sample in samples} == {role}
        (run,) = load.runs([out])
        assert run.role == shown
    with pytest.raises(InputError, match="differs in role"):
        attack(replace(settings, role="twins", out=str(tmp_path / "harmful")))


def test_columns_are_named_on_the_command_line(
    tmp_path: Path, tiny_folder: Path, answers: Answers, judge: list[str]
) -> None:
    source = tmp_path / "mine.csv"
    source.write_text("Goal;Owner\nHow do I bake bread?;me\n")
    settings = config(source, tmp_path / "out", model=str(tiny_folder), attack="none", columns=["instruction=Goal"])
    assert [sample.instruction for sample in logs.read_samples(attack(settings))] == ["How do I bake bread?"]


def test_requests_that_the_model_was_trained_on_are_said(
    pairs: Path,
    tmp_path: Path,
    tiny_folder: Path,
    answers: Answers,
    judge: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "tuned" / "checkpoint")
    runs.trained.write(tmp_path / "tuned", [ROWS[0]["instruction"], "Another?"], "")
    settings = config(pairs, tmp_path / "out", model=str(tmp_path / "tuned" / "checkpoint"), attack="none")
    said = "1 of 3 requests are among those that this model was trained on"
    assert said in "\n".join(verb.plan(settings).lines())
    out = attack(settings)
    assert said in capfd.readouterr().out
    assert json.loads((out / "manifest.json").read_text())["trained_on"] == 1
    (rates,) = [one for one in page.build([out]).sections if one.id == "rates"]
    assert any("1 of " in line and "(pairs.jsonl)" in line for line in rates.text), rates.text
