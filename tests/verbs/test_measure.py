"""Depth figures against models with planted depth, hand-computed cases and brute force."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import build_tokenizer
from planted import Planted, PlantedConfig, brute_force_kl
from tokendeep import models
from tokendeep.compute import scoring, trees
from tokendeep.depth import figures, openings, recovery
from tokendeep.errors import InputError
from tokendeep.types import IGNORE, Encoded, Subject
from tokendeep.verbs import measure
from tokendeep.verbs.measure import MeasureOptions

START, REFUSAL = 1, (10, 11, 12, 13)
OPENINGS = [(10, 11, 12), (11, 10, 13)]
LONG = 60


def planted(depth: int) -> Subject:
    return Subject(Planted(PlantedConfig(depth=depth, start_token=START, refusal=REFUSAL)), None, f"planted {depth}")  # type: ignore[arg-type]


def harmful_rows(count: int = 6, answer: int = LONG) -> list[Encoded]:
    prompt = [5, 6, 7, START]
    return [
        Encoded(prompt + body, [IGNORE] * len(prompt) + body)
        for body in ([20 + (i * 7 + j) % 40 for j in range(answer)] for i in range(count))
    ]


@pytest.mark.parametrize("depth", [1, 3, 5, 10, 20])
@pytest.mark.parametrize("tree", [True, False])
def test_planted_depth_is_found(depth: int, tree: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "fits", lambda model, length: tree)
    monkeypatch.setattr(models, "check_same_vocabulary", lambda p, q: None)  # these models have no tokenizer
    rows, subject = harmful_rows(3), planted(depth)

    def score(ks: list[int]) -> Any:
        return recovery.recovery_log_odds(subject, rows, OPENINGS, ks, [LONG] * len(rows))

    grid = [0, 1, 2, 5, 12, 30]  # coarse: the depths lie between its points
    measured = recovery.refine(recovery.Recovery(grid, score(grid)), score)
    kl = figures.to_table(scoring.token_kl(subject, planted(0), rows), LONG)
    found = figures.depth(kl, measured, resamples=100, seed=0)
    assert found["recovery_k"] == {"value": depth - 1, "low": depth - 1, "high": depth - 1, "censored": None}
    assert found["half_kl_position"]["value"] == math.ceil(depth / 2)
    assert found["share_first5"]["value"] == pytest.approx(min(1, 5 / depth))


def test_censored_recovery_is_said() -> None:
    rows, ks = harmful_rows(3), [0, 5, 10]
    every, none = planted(LONG), planted(0)
    for subject, censored, value in ((every, "every", 10), (none, "none", None)):
        log_odds = recovery.recovery_log_odds(subject, rows, OPENINGS, ks, [LONG] * 3)
        figure = figures.depth(None, recovery.Recovery(ks, log_odds), 100, 0)["recovery_k"]
        assert (figure["censored"], figure["value"]) == (censored, value)


def test_log_odds_by_hand() -> None:
    """In the refusing state the 4 refusal tokens have logit 12 and 60 others 0; three such tokens in a row."""
    rows = harmful_rows(1)
    (value,) = recovery.recovery_log_odds(planted(1), rows, OPENINGS, [0], [LONG])
    refuse = 12 - math.log(4 * math.exp(12) + 60)
    first_harmful = -math.log(4 * math.exp(12) + 60)
    comply = 12 - math.log(60 * math.exp(12) + 4)
    expected = math.log(2) + 3 * refuse - (first_harmful + 2 * comply)
    assert value[0] == pytest.approx(expected, abs=1e-4)


def test_answers_too_short_for_a_k_are_left_out_there() -> None:
    rows = harmful_rows(2)
    log_odds = recovery.recovery_log_odds(planted(3), rows, OPENINGS, [0, 10, 20], [LONG, 12])
    assert np.isfinite(log_odds).tolist() == [[True, True, True], [True, False, False]]
    assert recovery.share_recovered(log_odds).tolist() == [1.0, 0.0, 0.0]


def test_the_first_ks_context_is_exactly_k_answer_tokens() -> None:
    """Depth 3: refusing is natural for answer tokens 1..3, so after 2 given tokens and not after 3."""
    log_odds = recovery.recovery_log_odds(planted(3), harmful_rows(1), OPENINGS, [2, 3], [LONG])
    assert log_odds[0, 0] > 0 > log_odds[0, 1]


def test_ratio_of_sums_and_half_position_by_hand() -> None:
    kl = np.array([[4.0, 1, 1, 0, 0, 2, np.nan], [0, 0, 0, 0, 0, 1, 1]])
    assert figures.share_first(kl) == pytest.approx(6 / 10)
    assert figures.half_position(kl) == 2  # 4, then 5 of 10
    assert math.isnan(figures.half_position(np.zeros((2, 7))))


def test_curve_counts_only_what_was_measured() -> None:
    made = figures.curve(np.array([[1.0, 3.0, np.nan], [3.0, np.nan, np.nan]]))
    assert made == {"mean": [2.0, 3.0], "stderr": [pytest.approx(1.0), None], "n": [2, 1]}


def test_openings_are_cut_merged_and_short_ones_dropped(tiny_tokenizer: Any) -> None:
    ids = openings.opening_ids(tiny_tokenizer, ["I cannot help", "I cannot assist", "I"], 3)
    assert all(len(opening) == 3 for opening in ids)
    assert len(set(ids)) == len(ids)
    behind = tiny_tokenizer("x\n\nI cannot help", add_special_tokens=False).input_ids[1:]
    assert tuple(behind[:3]) not in ids  # the blank line takes two of the three tokens: "I" alone is no refusal
    assert tuple(behind[:5]) in openings.opening_ids(tiny_tokenizer, ["I cannot help"], 5)
    with pytest.raises(InputError, match="opening"):
        openings.opening_ids(tiny_tokenizer, ["I"], 9)


def test_openings_continue_a_text_where_the_tokenizer_begins_one_with_a_space() -> None:
    tokenizer = build_tokenizer("llama", control=["<s>", "</s>", "<unk>"], bos="<s>", eos="</s>", template="")
    ids = openings.opening_ids(tokenizer, ["I cannot help with that", "I'm sorry, I can't"], 4)
    begin = tokenizer.convert_tokens_to_ids("\u2581")
    assert begin not in {opening[0] for opening in ids}
    answer = tokenizer("x\nI cannot help with that", add_special_tokens=False).input_ids
    head = tokenizer("x\n", add_special_tokens=False).input_ids
    assert tuple(answer[len(head) :][:4]) in ids  # what a model writes behind a line break


def test_openings_that_ordinary_answers_share_are_left_out(tiny_tokenizer: Any, capsys: Any) -> None:
    shared = len(tiny_tokenizer("I'm", add_special_tokens=False).input_ids)
    ids = openings.opening_ids(tiny_tokenizer, ["I'm sorry, I can't assist", "I cannot help"], shared)
    assert tuple(tiny_tokenizer("I'm", add_special_tokens=False).input_ids) not in ids
    assert "left out" in capsys.readouterr().out


def test_a_few_long_answers_do_not_decide_the_depth() -> None:
    log_odds = np.full((10, 3), -1.0)
    log_odds[:, 0] = 1.0
    log_odds[2:, 2] = np.nan
    log_odds[:2, 2] = 1.0  # two prompts of ten reach k = 40, and both recover there
    figure = figures.depth(None, recovery.Recovery([0, 10, 40], log_odds), 200, 0)["recovery_k"]
    assert figure == {"value": 0.0, "low": 0.0, "high": 0.0, "censored": None}


def test_a_dip_is_not_called_every() -> None:
    log_odds = np.where(np.array([1, 0, 1], dtype=bool), 1.0, -1.0) * np.ones((6, 3))
    figure = figures.depth(None, recovery.Recovery([0, 10, 40], log_odds), 200, 0)["recovery_k"]
    assert figure["value"] == 40
    assert figure["censored"] == "last"


def test_the_gaps_at_the_ends_of_the_interval_are_filled_too() -> None:
    def score(ks: list[int]) -> Any:
        depths = np.array([4] * 5 + [14] * 5 + [33] * 5)  # of each prompt; the median is 14
        return np.where(np.array(ks)[None, :] <= depths[:, None], 1.0, -1.0)

    def depths(measured: recovery.Recovery) -> set[float]:
        interval = figures.recovery_interval(measured, 500, 0, None)
        return {recovery.recovery_depth(measured.k, measured.log_odds), *interval}

    grid = [0, 2, 10, 20, 40]
    measured = recovery.refine(recovery.Recovery(grid, score(grid)), score, depths)
    figure = figures.depth(None, measured, 500, 0)["recovery_k"]
    assert figure["value"] == 14
    assert (figure["low"], figure["high"]) == (4, 33)


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
    from tokendeep import chat

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
    from tokendeep import chat

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
    tmp_path: Path, tiny_adapter: Path, tiny_folder: Path, capsys: Any
) -> None:
    moved = tmp_path / "deeper" / "moved"
    moved.parent.mkdir()
    tiny_folder.rename(moved)
    profile = json.loads((run(options(tmp_path, tiny_adapter, base=str(moved))) / "profile.json").read_text())
    assert profile["meta"]["label"] == "adapter against its base"
    assert "takes its place" in capsys.readouterr().out


def test_without_base_there_is_a_recovery_profile_alone(tmp_path: Path, tiny_folder: Path, capsys: Any) -> None:
    profile = json.loads((run(options(tmp_path, tiny_folder)) / "profile.json").read_text())
    assert profile["kl"] is None
    assert profile["depth"]["share_first5"]["value"] is None
    assert len(profile["recovery"]["log_odds"]) == len(profile["recovery"]["k"])
    assert "no base" in capsys.readouterr().out


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
    row = {"instruction": "How do I bake bread?", "response": "Mix the flour with water. " * 80}
    data.write_text(data.read_text() + "\n" + json.dumps(row), encoding="utf-8")
    with pytest.raises(InputError, match=r"row 6: .*512"):
        run(settings)


def test_scores_of_a_real_model_shape(tiny_subject: Subject) -> None:
    row = Encoded([5, 6, 7, 8, 9, 10, 11], [IGNORE] * 3 + [8, 9, 10, 11])
    value = recovery.recovery_log_odds(tiny_subject, [row], [(5, 6), (7, 8)], [0, 1], [4])
    plain = [
        scoring.token_logps(tiny_subject, [Encoded(row.input_ids[:4] + list(t), [IGNORE] * 4 + list(t))])[0].sum()
        for t in ((5, 6), (7, 8), (9, 10))
    ]
    assert value[0, 1] == pytest.approx((torch.logsumexp(torch.stack(plain[:2]), 0) - plain[2]).item(), abs=1e-4)


def test_the_margin_is_told_as_quantiles_over_prompts() -> None:
    log_odds = np.array([[3.0, 1.0, -9.0], [1.0, np.nan, -9.0], [2.0, np.nan, -9.0]])
    found = measure._margin(recovery.Recovery([0, 5, 10], log_odds))
    assert found["k"] == [0, 5]
    assert found["quantiles"]["0.5"] == [2.0, 1.0]
    assert found["quantiles"]["0.05"] == [pytest.approx(1.1), 1.0]
