"""The verbs as functions: models and rows in memory or by name, records in memory, also inside a running event loop."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tokendeep
from tokendeep import data
from tokendeep.errors import InputError
from tokendeep.types import Subject
from tokendeep.verbs import functions
from tokendeep.verbs.attack import AttackOptions
from tokendeep.verbs.memory import loaded_model

ANSWER = "Mix the flour with water, add salt and let the dough rest for an hour."
PAIRS = [{"instruction": f"How do I bake bread number {i}?", "response": ANSWER} for i in range(4)]
CHATS = [
    {"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": ANSWER}]} for i in range(8)
]
TRIPLES = [
    {"instruction": row["instruction"], "harmful": ANSWER, "refusal": "I cannot help with that."} for row in PAIRS
]
QUICK: dict[str, Any] = {"k": [0, 3], "bootstrap": 100, "positions": 20}


def test_names_may_be_one_text_as_on_the_command_line() -> None:
    given = {"columns": "instruction=Goal,response=Target", "grid": "greedy,temperature=0.7", "prefixes": "Sorry, no"}
    assert functions._checked(AttackOptions, "attack", given) == {
        "columns": ["instruction=Goal", "response=Target"], "grid": ["greedy", "temperature=0.7"],
        "prefixes": ["Sorry, no"],
    }  # fmt: skip


def no_folder_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    return scratch


def test_the_names_of_the_contract_are_importable() -> None:
    promised = [
        *(
            "BetaSchedule",
            "response_positions",
            "constrained_nll",
            "constraint_weights",
            "judge_refusal",
            "read_prompts",
        ),
        *("read_pairs", "read_triples", "read_chats", "load", "token_logps", "token_kl", "measure", "attack", "deepen"),
        *("finetune", "poison", "ConstrainedSFTTrainer", "ConstrainedSFTConfig", "InputError", "Subject", "Pair"),
    ]
    for name in promised:
        assert getattr(tokendeep, name)
        assert name in dir(tokendeep)
    assert Path(tokendeep.__file__).with_name("py.typed").exists()
    with pytest.raises(AttributeError):
        tokendeep.nothing_of_that_name  # noqa: B018


def test_measure_in_memory(
    tiny_subject: Subject, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = no_folder_left(tmp_path, monkeypatch)
    base = (make_model(5), tiny_subject.tokenizer)
    profile = tokendeep.measure(tiny_subject, PAIRS, base=base, benign=PAIRS[:2], **QUICK)
    assert profile.kl is not None
    assert (profile.prompts, profile.recovery.k[:1], profile.kl.n[0]) == (4, [0], 4)
    frame = profile.to_frame()
    assert set(frame["curve"]) == {"kl", "kl_benign", "recovery"}
    assert profile.plot().get_xlabel()
    assert not list(scratch.iterdir())


def test_rows_and_models_are_taken_in_every_form(tiny_folder: Path, tiny_subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in PAIRS))
    profiles = [
        tokendeep.measure(model, rows, **QUICK)
        for model, rows in (
            (str(tiny_folder), path),
            (tiny_folder, str(path)),
            (tiny_subject, data.read_pairs(path)),
            ((tiny_subject.model, tiny_subject.tokenizer), tuple(PAIRS)),
            (tokendeep.load(tiny_folder, dtype="float32"), iter(PAIRS)),
        )
    ]
    for profile in profiles[1:]:
        assert profile.recovery == profiles[0].recovery


def test_a_folder_is_written_only_where_it_is_named_and_belongs_to_these_weights(
    tiny_subject: Subject, make_model: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    one = tokendeep.measure(tiny_subject, PAIRS, out=out, **QUICK)
    assert (out / "manifest.json").exists()
    assert tokendeep.measure(tiny_subject, PAIRS, out=out, **QUICK) == one  # a finished run is read
    with pytest.raises(InputError, match="differs"):
        tokendeep.measure((make_model(7), tiny_subject.tokenizer), PAIRS, out=out, **QUICK)


def test_attack_in_memory(tiny_subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = no_folder_left(tmp_path, monkeypatch)
    rates = tokendeep.attack(tiny_subject, PAIRS, attack="none,prefill", k=[3], max_new_tokens=4)
    assert {(rate.attack, rate.params.k) for rate in rates} == {("none", None), ("prefill", 3)}
    assert len(rates.to_frame()) == len(rates)
    assert not list(scratch.iterdir())


def test_another_template_or_adapter_is_another_model(tiny_subject: Subject, tiny_adapter: Path) -> None:
    from peft import PeftModel

    model = PeftModel.from_pretrained(copy.deepcopy(tiny_subject.model), str(tiny_adapter))
    worded = copy.deepcopy(tiny_subject.tokenizer)
    worded.chat_template = "Be kind. " + worded.chat_template
    names = [loaded_model((model, tokenizer))[0] for tokenizer in (tiny_subject.tokenizer, worded)]
    model.base_model.disable_adapter_layers()
    names.append(loaded_model((model, tiny_subject.tokenizer))[0])
    assert len(set(names)) == 3
    model.base_model.enable_adapter_layers()
    assert loaded_model((model, copy.deepcopy(tiny_subject.tokenizer)))[0] == names[0]


def test_what_a_notebook_shows_is_short(tiny_subject: Subject) -> None:
    assert "Llama" not in repr(tiny_subject)
    profile = tokendeep.measure(tiny_subject, PAIRS, **(QUICK | {"k": 1}))
    assert profile.recovery.k == [1]
    assert len(repr(profile)) < 2500
    rates = tokendeep.attack(tiny_subject, PAIRS, attack="prefill", k="0,1", max_new_tokens=4)
    assert [line.partition(":")[0] for line in repr(rates).splitlines()] == ["Rates", "prefill 0", "prefill 1"]


def test_inside_a_running_event_loop(tiny_subject: Subject) -> None:
    async def both() -> None:
        assert tokendeep.measure(tiny_subject, PAIRS, **QUICK).prompts == 4
        assert tokendeep.attack(tiny_subject, PAIRS, attack="none", max_new_tokens=4)[0].attack == "none"

    asyncio.run(both())


@pytest.mark.parametrize(
    ("rows", "options", "parts"),
    [
        (PAIRS, {"position": 20}, ["measure has no option position", "did you mean positions"]),
        (PAIRS, {"k": "0,five"}, ["k is '0,five'", "whole numbers"]),
        (PAIRS, {"k": [-1]}, ["-1", "none below 0"]),
        ([*PAIRS, {"instruction": "Boil?"}], {}, ["pairs, row 5", "'response'"]),
        ([], {}, ["pairs", "empty"]),
        ("nowhere.jsonl", {}, ["nowhere.jsonl"]),
        (["Boil?"], {}, ["pairs", "Row 1", "not a dict"]),
        (PAIRS[0], {}, ["pairs", "not a list of dicts"]),
        (5, {}, ["pairs", "not a list of dicts"]),
        (None, {}, ["measure needs data"]),
        (PAIRS, {"data": "pairs.jsonl"}, ["data", "leave the keyword out"]),
    ],
)
def test_mistakes_are_one_sentence(tiny_subject: Subject, rows: Any, options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        tokendeep.measure(tiny_subject, rows, **options)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize("model", [None, 5, (1, 2, 3)])
def test_what_is_no_model_is_told(model: Any) -> None:
    with pytest.raises(InputError, match=f"The model is {type(model).__name__}; give what load returns"):
        tokendeep.measure(model, PAIRS, **QUICK)


def test_a_tokenizer_that_knows_more_than_the_model_is_told(tiny_subject: Subject) -> None:
    tiny_subject.tokenizer.add_tokens(["<|extra|>"])
    rows = [{"instruction": "Say <|extra|>", "response": "Yes, <|extra|> and so on, and on"}]
    for model in (tiny_subject, (tiny_subject.model, tiny_subject.tokenizer)):
        with pytest.raises(InputError, match="knows 321 tokens but the model only 320: use its own one"):
            tokendeep.measure(model, rows, k=[0])


def test_frames_and_numbers_of_numpy_are_taken(tiny_subject: Subject) -> None:
    frame = pd.DataFrame(PAIRS)
    frame.loc[0, "category"] = "baking"  # empty in the other lines
    options = {**QUICK, "k": np.array(QUICK["k"]), "positions": np.int64(QUICK["positions"])}
    profile = tokendeep.measure(tiny_subject, frame, **options)
    assert profile.recovery == tokendeep.measure(tiny_subject, PAIRS, **QUICK).recovery


@pytest.mark.slow
def test_training_in_memory(
    tiny_subject: Subject, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = no_folder_left(tmp_path, monkeypatch)
    small = {"max_steps": 2, "micro_batch": 4, "lr": 1e-3}
    tuned = tokendeep.finetune(tiny_folder, CHATS, batch_size=4, warmup_steps=0, **small)
    assert tuned.training.steps == 2
    assert len(tuned.to_frame()) >= 1
    assert tuned.plot().get_ylabel()
    assert tokendeep.measure(tuned.subject, PAIRS, **QUICK).prompts == 4
    deepened = tokendeep.deepen(tiny_subject, TRIPLES, CHATS, safety_rows=4, utility_rows=4, **small)
    assert deepened.subject is tiny_subject
    assert not list(scratch.iterdir())


@pytest.mark.slow
def test_poison_in_memory(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = no_folder_left(tmp_path, monkeypatch)
    small = {"max_steps": 1, "batch_size": 4, "micro_batch": 4, "max_new_tokens": 4, "count": 4}
    table = tokendeep.poison(
        tiny_folder, PAIRS, [{"instruction": "Boil an egg?"}], objectives=["sft", "constrained"], **small
    )
    assert {line.objective for line in table} >= {"sft", "constrained"}
    assert len(table.to_frame()) >= 2
    assert not list(scratch.iterdir())
