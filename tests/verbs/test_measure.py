"""The verb `measure` on tiny models: what it writes, resumes and refuses, and its KL against brute force."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planted import brute_force_kl
from tokendeep import chat, models
from tokendeep.compute import scoring, trees
from tokendeep.errors import InputError
from tokendeep.types import Subject
from tokendeep.verbs import measure
from tokendeep.verbs.measure import MeasureOptions


def write_pairs(path: Path, count: int = 5) -> Path:
    answers = ["Mix the flour with water, add salt and let the dough rest for an hour." for _ in range(count)]
    rows = [{"instruction": f"How do I bake bread number {i}?", "response": a} for i, a in enumerate(answers)]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def options(tmp_path: Path, model: Path, **settings: Any) -> MeasureOptions:
    data = write_pairs(tmp_path / "pairs.jsonl")
    defaults = {"data": str(data), "out": str(tmp_path / "out"), "k": [0, 3, 5], "bootstrap": 100}
    return MeasureOptions(model=str(model), **{**defaults, **settings})


def run(options: MeasureOptions) -> Path:
    return measure.run(measure.plan(options))


def test_run_writes_the_profile_of_a_model_against_its_base(
    tmp_path: Path, tiny_folder: Path, make_model: Any, tiny_subject: Subject
) -> None:
    base = tmp_path / "base"
    make_model(5).save_pretrained(base)
    tiny_subject.tokenizer.save_pretrained(base)
    settings = options(tmp_path, tiny_folder, base=str(base), benign=str(write_pairs(tmp_path / "benign.jsonl", 3)))
    profile = json.loads((run(settings) / "profile.json").read_text())
    assert set(profile) >= {"kl", "recovery", "depth", "meta"}
    assert profile["meta"]["label"] == "alignment depth"
    assert profile["kl"]["n"][0] == 5
    assert profile["kl_benign"]["n"][0] == 3
    assert len(profile["per_prompt"]["kl_benign"]) == 3
    assert profile["meta"]["clusters"] == 1  # all are near-duplicates: no interval
    assert profile["depth"]["excess_half_position"]["censored"] == "noise"
    assert profile["depth"]["excess_first5"]["value"] is not None
    row = chat.encode(
        tiny_subject.tokenizer, [{"role": "user", "content": "How do I bake bread number 0?"}],
        "Mix the flour with water, add salt and let the dough rest for an hour.",
    )  # fmt: skip
    expected = brute_force_kl(tiny_subject.model, make_model(5), row.input_ids, row.labels)[:100]
    np.testing.assert_allclose(profile["per_prompt"]["kl"][0][: len(expected)], expected, rtol=1e-3, atol=1e-5)
    assert run(settings) == Path(settings.out)  # a finished run is left as it is


def test_sequential_gives_the_same_profile(
    tmp_path: Path, tiny_folder: Path, make_model: Any, tiny_subject: Subject
) -> None:
    base = tmp_path / "base"
    make_model(5).save_pretrained(base)
    tiny_subject.tokenizer.save_pretrained(base)
    one = json.loads((run(options(tmp_path, tiny_folder, base=str(base))) / "profile.json").read_text())
    settings = options(tmp_path, tiny_folder, base=str(base), sequential=True, out=str(tmp_path / "sequential"))
    two = json.loads((run(settings) / "profile.json").read_text())
    np.testing.assert_allclose(one["kl"]["mean"], two["kl"]["mean"], rtol=1e-4)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("function", ["branch_logps", "kl"])
def test_a_run_that_was_cut_off_goes_on_where_it_was(
    tmp_path: Path, tiny_folder: Path, make_model: Any, tiny_subject: Subject, function: str, sequential: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base = tmp_path / "base"
    make_model(5).save_pretrained(base)
    tiny_subject.tokenizer.save_pretrained(base)
    settings = options(tmp_path, tiny_folder, base=str(base), batch_size=1, sequential=sequential)
    home = trees if function == "branch_logps" else scoring
    calls, real = [], getattr(home, function)

    def counted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(home, function, counted)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    cut = sorted((Path(settings.out) / "parts").iterdir())[0]
    cut.write_bytes(cut.read_bytes() + b'{"4": [0.1')  # what a killed write leaves
    run(settings)
    resumed = len(calls) - 4
    assert not (Path(settings.out) / "parts").exists()
    profile = json.loads((Path(settings.out) / "profile.json").read_text())
    calls[:] = [1] * 4  # the trap is behind
    settings = replace(settings, out=str(tmp_path / "whole"))
    run(settings)
    assert resumed == len(calls) - 4 - 3  # three calls were not made again
    whole = json.loads((Path(settings.out) / "profile.json").read_text())
    assert profile["per_prompt"] == whole["per_prompt"]


def test_an_adapter_takes_its_base_and_is_labelled_so(tmp_path: Path, tiny_adapter: Path) -> None:
    profile = json.loads((run(options(tmp_path, tiny_adapter)) / "profile.json").read_text())
    assert profile["meta"]["label"] == "adapter against its base"
    assert profile["kl"]["mean"][0] > 0


@pytest.mark.parametrize("sequential", [False, True])
def test_an_adapter_stays_on_its_own_base_when_compared_with_another(
    tmp_path: Path, tiny_adapter: Path, tiny_folder: Path, make_model: Any, tiny_subject: Subject, sequential: bool
) -> None:
    other = tmp_path / "other"
    make_model(5).save_pretrained(other)
    tiny_subject.tokenizer.save_pretrained(other)
    settings = options(tmp_path, tiny_adapter, base=str(other), sequential=sequential)
    profile = json.loads((run(settings) / "profile.json").read_text())
    assert profile["meta"]["label"] == "alignment depth"
    row = chat.encode(
        tiny_subject.tokenizer, [{"role": "user", "content": "How do I bake bread number 0?"}],
        "Mix the flour with water, add salt and let the dough rest for an hour.",
    )  # fmt: skip
    adapted = models.load(str(tiny_adapter)).model
    expected = brute_force_kl(adapted, make_model(5), row.input_ids, row.labels)[:100]
    np.testing.assert_allclose(profile["per_prompt"]["kl"][0][: len(expected)], expected, rtol=1e-3, atol=1e-5)


def test_an_adapter_and_its_own_base_are_one_model_in_memory(
    tmp_path: Path, tiny_adapter: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], models.load
    monkeypatch.setattr(models, "load", lambda spec, **more: loads.append(spec) or load(spec, **more))
    settings = options(tmp_path, tiny_adapter, base=str(tiny_folder))
    profile = json.loads((run(settings) / "profile.json").read_text())
    assert loads == [str(tiny_adapter)]
    assert profile["meta"]["label"] == "adapter against its base"


def test_a_base_that_is_gone_is_replaced_by_the_one_given(
    tmp_path: Path, tiny_adapter: Path, tiny_folder: Path, caplog: Any
) -> None:
    moved = tmp_path / "deeper" / "moved"
    moved.parent.mkdir()
    tiny_folder.rename(moved)
    with caplog.at_level("WARNING", logger="tokendeep"):
        profile = json.loads((run(options(tmp_path, tiny_adapter, base=str(moved))) / "profile.json").read_text())
    assert profile["meta"]["label"] == "adapter against its base"
    assert "takes its place" in caplog.text


def test_without_base_there_is_a_recovery_profile_alone(tmp_path: Path, tiny_folder: Path, capsys: Any) -> None:
    profile = json.loads((run(options(tmp_path, tiny_folder)) / "profile.json").read_text())
    assert profile["kl"] is None
    assert profile["depth"]["share_first5"]["value"] is None
    assert len(profile["recovery"]["log_odds"]) == len(profile["recovery"]["k"])
    assert "no base" in capsys.readouterr().out


@pytest.mark.parametrize(("behind", "positions"), [(3, 100), (2, 100), (3, 8)])
def test_a_k_takes_answers_of_k_and_of_an_opening(
    tmp_path: Path, tiny_folder: Path, tiny_subject: Subject, capsys: Any, behind: int, positions: int
) -> None:
    settings = options(tmp_path, tiny_folder, positions=positions)
    answer = json.loads(Path(settings.data).read_text().splitlines()[0])
    whole = chat.response_ids(
        tiny_subject.tokenizer, [{"role": "user", "content": answer["instruction"]}], answer["response"], end=False
    )
    reach = min(len(whole), positions)
    k = reach - behind
    profile = json.loads((run(replace(settings, k=[0, k])) / "profile.json").read_text())
    said = capsys.readouterr().out
    if behind == 3:
        assert profile["recovery"]["n"][profile["recovery"]["k"].index(k)] == 5
        assert f"k = {k} left out" not in said
    else:
        assert k not in profile["recovery"]["k"]
        assert (
            f"k = {k} left out: the longest has {len(whole)} tokens, and k + 3 are needed, for the 3 behind k" in said
        )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": [-1]}, "--k"),
        ({"k": [100000]}, "k = 100000"),
        ({"positions": 2}, "--positions"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"openings": "nowhere.txt"}, "nowhere.txt"),
        ({"base": "./no/folder"}, "no/folder"),
    ],
)
def test_bad_settings_end_in_one_sentence(
    tmp_path: Path, tiny_folder: Path, settings: dict[str, Any], words: str
) -> None:
    made = options(tmp_path, tiny_folder, **settings)
    with pytest.raises(InputError) as caught:
        run(made)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_longer_than_the_context_is_named(tmp_path: Path, tiny_folder: Path) -> None:
    settings = options(tmp_path, tiny_folder, positions=600)
    data = Path(settings.data)
    row = {"id": "loaf", "instruction": "How do I bake bread?", "response": "Mix the flour with water. " * 80}
    left_out = {"instruction": "How do I bake a cake?", "response": "Mix.", "meta": {"harmless": True}}
    rows = [json.dumps(left_out), data.read_text(), json.dumps(row)]
    data.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(InputError, match=r"^Row loaf of .*pairs\.jsonl: .*512"):
        run(settings)


@pytest.mark.parametrize("named", [False, True])
def test_an_adapter_that_trains_biases_is_compared_with_a_loaded_base(
    named: bool, tmp_path: Path, tiny_folder: Path, tiny_subject: Subject, make_model: Any, capsys: Any
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from tokendeep import chat

    biased = make_model(attention_bias=True)
    biased.save_pretrained(tiny_folder)
    adapted = get_peft_model(
        biased, LoraConfig(r=4, target_modules=["q_proj"], bias="all", init_lora_weights=False, task_type="CAUSAL_LM")
    )
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_folder)
    with torch.no_grad():
        for name, weights in adapted.named_parameters():
            if name.endswith(".bias"):
                weights += 0.5
    adapted.save_pretrained(tmp_path / "adapter")
    settings = options(tmp_path, tmp_path / "adapter", base=str(tiny_folder) if named else None)
    profile = json.loads((run(settings) / "profile.json").read_text())
    row = chat.encode(
        tiny_subject.tokenizer, [{"role": "user", "content": "How do I bake bread number 0?"}],
        "Mix the flour with water, add salt and let the dough rest for an hour.",
    )  # fmt: skip
    own, base = models.load(str(tmp_path / "adapter")).model, models.load(str(tiny_folder)).model
    expected = brute_force_kl(own, base, row.input_ids, row.labels)[:100]
    np.testing.assert_allclose(profile["per_prompt"]["kl"][0][: len(expected)], expected, rtol=1e-3, atol=1e-5)
    assert profile["meta"]["label"] == "adapter against its base"
    assert "bias='all' trains biases beneath the adapter" in capsys.readouterr().out


def test_columns_are_named_of_the_benign_rows_too(tmp_path, tiny_folder):
    for name in ("asked.jsonl", "benign.jsonl"):
        (tmp_path / name).write_text('{"ask": "A?", "say": "One two three."}\n')
    settings = options(tmp_path, tiny_folder, data=str(tmp_path / "asked.jsonl"), benign=str(tmp_path / "benign.jsonl"))
    plan = measure.plan(replace(settings, columns=["instruction=ask", "response=say"]))
    assert [pair.response for pair in (*plan.pairs, *plan.benign)] == ["One two three."] * 2


def test_perplexity_of_texts_stands_in_profile_report_and_terminal(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokendeep.records import Profile
    from tokendeep.report import page, render

    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": f"Bread number {n} rests, and then it is baked."}) + "\n" for n in range(4))
    )
    out = run(options(tmp_path, tiny_folder, text=str(texts), window=16))
    found = Profile.load(out).perplexity
    assert found is not None
    assert (found.texts, found.window, found.stride) == (4, 16, 8)
    assert f"perplexity of 4 texts: {found.perplexity:.2f}" in capsys.readouterr().out
    text = render.to_markdown(page.build([out]))
    assert f"{found.perplexity:.2f} \\[" in text
    assert "texts.jsonl (" in text
    texts.write_text(json.dumps({"text": "Another."}))
    with pytest.raises(InputError, match="the content of text"):
        run(options(tmp_path, tiny_folder, text=str(texts), window=16))


def test_a_task_is_scored_and_compared(
    tmp_path: Path, tiny_folder: Path, make_model: Any, tiny_subject: Subject
) -> None:
    from tokendeep.records import Profile
    from tokendeep.report import page, render
    from tokendeep.verbs import compare

    rows = [{"question": f"What is {n} and 1?", "answer": f"It is\n#### {n + 1}"} for n in range(5)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = tmp_path / "other"
    make_model(5).save_pretrained(other)
    tiny_subject.tokenizer.save_pretrained(other)
    given = {"utility_data": str(tmp_path / "gsm8k.jsonl"), "utility_metric": "gsm8k", "utility_tokens": 4}
    one = run(options(tmp_path, tiny_folder, **given, limit=4))
    two = run(options(tmp_path, other, **given, limit=4, out=str(tmp_path / "two")))
    found = Profile.load(one).utility
    assert found is not None
    assert (found.metric, found.score, found.n) == ("gsm8k", 0.0, 4)
    text = render.to_markdown(page.build([one, two]))
    assert "| gsm8k | 4 | 0.000" in text
    made = compare.plan(compare.CompareOptions(str(one), str(two)))
    assert [(t.row.attack, t.row.n, t.row.difference) for t in made.tests] == [("gsm8k", 4, 0.0)]
    with pytest.raises(InputError, match="no number behind ####"):
        measure.plan(options(tmp_path, tiny_folder, **{**given, "utility_data": str(tmp_path / "pairs.jsonl")}))
