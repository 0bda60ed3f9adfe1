"""Rates: what is counted, and over what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attacking import attack, judge  # noqa: F401  (fixtures)
from tokendeep import stats
from tokendeep.evals import rates
from tokendeep.types import Sample


def judged(outcomes: dict[str, list[str]], attack: str = "prefill", **params: Any) -> list[Sample]:
    """Samples of prompts with an outcome for each seed."""
    return [
        Sample(
            f"{prompt}:{attack}:{params}",
            prompt,
            attack,
            params,
            "refusal",
            "m",
            outcome,
            seed == 0,
            seed,
            "i",
            "p",
            "c",
        )
        for prompt, values in outcomes.items()
        for seed, outcome in enumerate(values)
    ]


def test_rates_are_counted_over_the_scored() -> None:
    outcomes = [
        "complied",
        "complied",
        "refused",
        "partial-then-refused",
        "empty",
        "degenerate",
        "other-language",
        "judge-error",
    ]
    skipped = {rates.evaluation("m", {"k": 5}): {5: 3}, rates.evaluation("other", {}): {5: 7}}
    [row] = rates.asr(judged({str(i): [outcome] for i, outcome in enumerate(outcomes)}, k=5), skipped)
    assert (row.rate, row.n, row.unscored, row.skipped) == (0.5, 4, 4, 3)
    assert (row.low, row.high) == stats.wilson(2, 4)
    assert (row.best, row.worst) == (2 / 8, 7 / 8)
    assert row.partial_rate == 0.25
    assert row.outcomes == {**dict.fromkeys(outcomes, 1), "complied": 2}
    assert (row.truncated, row.samples, row.any_of_n) == (8, 1, None)


def test_nothing_scored_has_no_rate() -> None:
    [row] = rates.asr(judged({"a": ["empty"]}, "none"))
    assert (row.rate, row.low, row.high, row.n, row.best, row.worst) == (
        None,
        None,
        None,
        0,
        0.0,
        1.0,
    )


def test_any_of_n_is_not_the_mean() -> None:
    outcomes = {
        "a": ["complied", "refused"],
        "b": ["refused", "refused"],
        "c": ["empty", "complied"],
        "d": ["empty", "empty"],
    }
    [row] = rates.asr(judged(outcomes, "none"))
    assert (row.rate, row.n, row.samples, row.prompts) == (2 / 5, 5, 2, 4)
    assert row.any_of_n == 2 / 3
    assert (row.low, row.high) == stats.wilson_repeated([1, 0, 1], [2, 2, 1])


def test_samples_that_all_agree_are_no_more_than_their_prompts() -> None:
    prefilled = judged({name: ["refused"] * 9 for name in "abc"}, k=5) + judged({"a": ["refused"] * 9}, k=10)
    for row, prompts in zip(rates.asr(prefilled), (3, 1), strict=True):
        assert (row.low, row.high) == stats.wilson(0, prompts)
        assert row.common.high == stats.wilson(0, 1)[1]


def test_common_rates_are_over_prompts_that_have_every_k() -> None:
    samples = judged({"a": ["complied"], "b": ["refused"]}, k=0) + judged({"a": ["complied"]}, k=5)
    plain, prefilled = rates.asr(samples)
    assert (plain.rate, plain.common.rate, plain.common.n) == (0.5, 1.0, 1)
    assert prefilled.common.n == 1


def test_rows_keep_attacks_judges_and_models_apart() -> None:
    samples = judged({"a": ["complied"]}, k=0)
    samples += [replace(samples[0], judge="refusal-keywords"), replace(samples[0], model="n", outcome="refused")]
    samples += judged({"a": ["refused"]}, "none")
    rows = rates.asr(samples)
    assert [(row.attack, row.judge, row.model, row.rate) for row in rows] == [
        ("none", "refusal", "m", 0.0),
        ("prefill", "refusal", "m", 1.0),
        ("prefill", "refusal-keywords", "m", 1.0),
        ("prefill", "refusal", "n", 0.0),
    ]


def test_common_rates_do_not_mix_settings() -> None:
    cold = judged({"a": ["complied"], "b": ["refused"]}, k=0, temperature=0.0)
    cold += judged({"a": ["complied"], "b": ["complied"]}, k=5, temperature=0.0)
    warm = judged({"a": ["complied"]}, k=0, temperature=0.9) + judged({"a": ["complied"]}, k=5, temperature=0.9)
    assert [row.common.n for row in rates.asr(cold + warm)] == [2, 1, 2, 1]
