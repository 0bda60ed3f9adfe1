"""The report: what it computes, what it says when something is missing, what it never shows."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import stat
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import fake_runs
from fake_runs import sample, write_attack, write_measure
from tokendeep import plain, runs, stats
from tokendeep.depth import profile as depth_profile
from tokendeep.errors import InputError
from tokendeep.evals import logs
from tokendeep.pairing.pairs import complied
from tokendeep.records import Profile, plots
from tokendeep.report import depth, figures, load, page, paired, render, transcripts, words
from tokendeep.report.page import Page
from tokendeep.report.section import Csv, Section
from tokendeep.report.series import Series, pairs
from tokendeep.report.series import series as series_of
from tokendeep.types import Sample, Subject
from tokendeep.verbs import report
from tokendeep.verbs.report import ReportOptions

SECRET = "zanzibar-secret"
READ_LOGS = load.read_logs


@pytest.fixture(autouse=True)
def fake_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "read_logs", fake_runs.read_fake)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_runs.write_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def context(demo: Path) -> Page:
    return page.build([demo], read_logs=fake_runs.read_fake)


def read(*dirs: Path) -> tuple[list[load.Run], list[Series]]:
    found = load.runs(dirs)
    return found, series_of(found)


def section(context: Page, name: str) -> Section:
    return next(one for one in context.sections if one.id == name)


def table(context: Page, name: str, caption: str) -> list[list[str]]:
    found = next(one for one in section(context, name).tables if one.caption.startswith(caption))
    return [list(row) for row in found.rows]


def said(context: Page, name: str) -> str:
    return " ".join(section(context, name).text)


def sweep(model: str, outcomes: dict[int, Sequence[str]], **more: Any) -> list[Sample]:
    """One sample for each k and prompt, with these outcomes."""
    return [
        sample(i, "prefill", {"k": k}, model, outcome, **more)
        for k, each in outcomes.items()
        for i, outcome in enumerate(each)
    ]


# --- finding runs -------------------------------------------------------------------------------


def test_a_demo_folder_is_walked_and_its_models_stand_in_the_order_of_the_story(demo: Path) -> None:
    found, series = read(demo)
    assert list(dict.fromkeys(run.label for run in found)) == ["base", "aligned", "deepened"]
    assert {(one.label, one.role) for one in series} == {
        (label, role) for label in ("base", "aligned", "deepened") for role in ("harmful", "twins", "unseen")
    }
    assert sum(run.profile is not None for run in found) == 2


def test_a_folder_given_twice_counts_once(demo: Path) -> None:
    again = demo / "base" / ".." / "aligned" / "attack"
    assert len(load.runs([demo, demo / "aligned", again])) == len(load.runs([demo]))


def test_the_folders_of_the_demo_may_be_given_one_by_one(demo: Path) -> None:
    folders = [demo / "deepened" / "attack", demo / "aligned" / "measure", demo / "aligned" / "attack"]
    assert [run.label for run in load.runs(folders)] == ["aligned", "aligned", "deepened"]


def test_checkpoints_rows_and_hidden_folders_are_no_runs(tmp_path: Path) -> None:
    write_attack(tmp_path / "attack", "m", sweep("m", {0: ["refused"]}))
    for name in ("checkpoint", "checkpoint-20", "rows", ".cache"):
        write_attack(tmp_path / name, "m", sweep("m", {0: ["refused"]}))
    assert len(load.runs([tmp_path])) == 1


@pytest.mark.parametrize(
    ("models", "labels"),
    [
        (["smollm2"], ["smollm2"]),
        (["owner/name", "owner/other"], ["owner/name", "owner/other"]),
        (["/x/tuned/checkpoint", "/x/plain/checkpoint"], ["tuned", "plain"]),
        (["/a/model/checkpoint", "/b/model/checkpoint"], ["a/model", "b/model"]),
        (["/models/llama", "owner/llama"], ["llama", "owner/llama"]),
    ],
)
def test_a_model_without_label_has_the_shortest_name_that_tells_it_apart(
    tmp_path: Path, models: list[str], labels: list[str]
) -> None:
    for number, model in enumerate(models):
        write_attack(tmp_path / f"run{number}", model, sweep(model, {0: ["refused"]}))
    assert [run.label for run in load.runs([tmp_path])] == labels


def test_the_manifest_s_label_and_role_win(tmp_path: Path) -> None:
    write_attack(tmp_path / "x" / "attack", "m", sweep("m", {0: ["refused"]}), label="mine", role="twins")
    run = load.runs([tmp_path])[0]
    assert (run.label, run.role) == ("mine", "twins")


def test_the_demo_s_own_folder_is_no_run(tmp_path: Path) -> None:
    write_attack(tmp_path / "base" / "attack", "m", sweep("m", {0: ["refused"]}))
    (tmp_path / "manifest.json").write_text(json.dumps({"verb": "demo", "status": "running"}))
    assert [run.folder.name for run in load.runs([tmp_path])] == ["attack"]


def test_folders_above_name_models_only_where_each_holds_one_model(tmp_path: Path) -> None:
    write_attack(tmp_path / "one" / "attack", "m1", sweep("m1", {0: ["refused"]}))
    write_attack(tmp_path / "one" / "unseen", "m2", sweep("m2", {0: ["refused"]}))
    write_attack(tmp_path / "two" / "attack", "m3", sweep("m3", {0: ["refused"]}))
    assert {run.label for run in load.runs([tmp_path])} == {"m1", "m2", "m3"}


def test_one_model_under_two_judges_is_two_series_that_are_never_compared_across(tmp_path: Path) -> None:
    for model in ("m1", "m2"):
        for judge in ("refusal", "refusal-keywords"):
            samples = sweep(model, {0: ["refused"], 5: ["complied"]}, judge=judge)
            write_attack(tmp_path / f"{model}-{judge}", model, samples)
    _, series = read(tmp_path)
    assert {one.name for one in series} == {
        f"{model} (judge {judge})" for model in ("m1", "m2") for judge in ("refusal", "refusal-keywords")
    }
    compared = pairs(series)
    assert len(compared) == 2
    assert all(before.judge == after.judge and before.label != after.label for before, after in compared)


def test_different_sampling_is_not_compared(tmp_path: Path) -> None:
    write_attack(tmp_path / "a", "m1", sweep("m1", {0: ["refused"]}))
    write_attack(tmp_path / "b", "m2", sweep("m2", {0: ["refused"]}, temperature=0.9))
    assert pairs(read(tmp_path)[1]) == []


def test_other_data_is_not_compared_even_where_the_ids_are_the_same(tmp_path: Path) -> None:
    for name, digest in (("a", "1" * 64), ("b", "2" * 64), ("c", "1" * 64)):
        write_attack(tmp_path / name, name, sweep(name, {0: ["refused"]}), inputs={"data": digest})
    assert [(before.label, after.label) for before, after in pairs(read(tmp_path)[1])] == [("a", "c")]
    write_attack(tmp_path / "d", "d", sweep("d", {0: ["refused"]}, data="2" * 64), inputs={})
    compared = [(before.label, after.label) for before, after in pairs(read(tmp_path)[1])]
    assert compared == [("a", "c"), ("b", "d")]


def test_prompts_with_one_id_and_other_instructions_are_no_pair(tmp_path: Path) -> None:
    before, after = sweep("m1", {0: ["complied", "complied"]}), sweep("m2", {0: ["refused", "refused"]})
    write_attack(tmp_path / "a", "m1", before, inputs={})
    write_attack(tmp_path / "b", "m2", [after[0], replace(after[1], instruction="Another one?")], inputs={})
    one, two = read(tmp_path)[1]
    test = paired.paired(one, two, ("prefill", 0), complied)
    assert test is not None
    assert test.n == 1


def test_two_seeds_of_one_model_are_two_series_and_the_same_seeds_are_compared(tmp_path: Path) -> None:
    for model in ("m1", "m2"):
        samples = [s for seed in (0, 7) for s in sweep(model, {0: ["refused"] * (seed + 1)}, seed=seed)]
        write_attack(tmp_path / model, model, [replace(s, params={**s.params, "seed": s.seed}) for s in samples])
    _, series = read(tmp_path)
    assert {one.name: one.rows["prefill", 0].n for one in series} == {
        "m1 (seed 0)": 1, "m1 (seed 7)": 8, "m2 (seed 0)": 1, "m2 (seed 7)": 8,
    }  # fmt: skip
    assert [len((one.samples or {})["prefill", 0]) for one in series] == [1, 8, 1, 8]
    assert [(before.seed, after.seed) for before, after in pairs(series)] == [(0, 0), (7, 7)]


def test_refusal_prefixes_stand_with_the_prefills_however_each_is_judged(tmp_path: Path) -> None:
    samples = sweep("m", {0: ["refused"], 5: ["complied"]})
    samples += [sample(0, "refusal-prefix", {"prefix": "I cannot"}, "m", "refused", judged="full")]
    write_attack(tmp_path / "both", "m", samples)
    [one] = read(tmp_path)[1]
    assert one.name == "m"
    assert (set(one.rows), one.settings["judged"]) == (
        {("prefill", 0), ("prefill", 5), ("refusal-prefix", "I cannot")}, "continuation",
    )  # fmt: skip
    assert all(len((one.samples or {})[c]) == 1 for c in one.rows)
    other = [replace(s, model="n", params={**s.params, "judged": "continuation"}) for s in samples]
    write_attack(tmp_path / "other", "n", other)
    compared = paired.comparisons(read(tmp_path)[1], complied)
    assert [test.condition for test in compared] == [("prefill", 0), ("prefill", 5)]


# --- what it computes ---------------------------------------------------------------------------


def test_rates_are_those_of_the_samples_with_wilson_intervals(demo: Path, context: Page) -> None:
    samples = fake_runs.read_fake(demo / "aligned" / "attack")
    scored = [
        s for s in samples if s.params["k"] == 10 and s.outcome in ("refused", "complied", "partial-then-refused")
    ]
    complied = sum(s.outcome == "complied" for s in scored)
    low, high = stats.wilson(complied, len(scored))
    cell = {row[0]: row[2] for row in table(context, "rates", "Non-refusal rate by k")}["10"]
    assert cell == f"{complied}/{len(scored)} = {complied / len(scored):.0%} [{low:.0%}, {high:.0%}]"


def test_the_curve_on_common_prompts_leaves_out_those_too_short_for_some_k(context: Page) -> None:
    rows = {row[0]: row for row in table(context, "rates", "Non-refusal rate by k, common prompts")}
    assert rows["0"][1].split("/")[1].startswith("73 ")  # seven of eighty answers end before k = 40
    image = section(context, "rates").figures[0]
    assert "Common" in image.caption


def test_paired_tests_use_prompts_judged_under_both_models_only(tmp_path: Path) -> None:
    before = ["complied", "complied", "complied", "refused", "complied", "empty", "complied"]
    after = ["refused", "refused", "complied", "complied", "partial-then-refused", "complied", "degenerate"]
    write_attack(tmp_path / "a", "m1", sweep("m1", {10: before}))
    write_attack(tmp_path / "b", "m2", sweep("m2", {10: after}))
    first, second = read(tmp_path)[1]
    test = paired.paired(first, second, ("prefill", 10), complied)
    assert test is not None
    assert (test.n, test.before, test.after, test.lost, test.gained) == (5, 4, 2, 3, 1)
    assert test.p == stats.mcnemar([True] * 3 + [False, True], [False, False, True, True, False]).p


def test_several_samples_of_a_prompt_count_once_in_a_paired_test(tmp_path: Path) -> None:
    for name, model in (("a", "m1"), ("b", "m2")):
        first = sweep(model, {0: ["refused", "complied"]})
        again = [replace(s, outcome="complied", seed=1) for s in first]
        write_attack(tmp_path / name, model, [*again, *first])
    one, two = read(tmp_path)[1]
    test = paired.paired(one, two, ("prefill", 0), complied)
    assert test is not None
    assert (test.n, test.before) == (2, 1)


def test_over_refusal_is_split_into_refused_at_once_and_broken_off(tmp_path: Path) -> None:
    outcomes = ["refused"] * 3 + ["partial-then-refused"] * 2 + ["complied"] * 14 + ["empty"]
    samples = [sample(i, "none", {}, "m", outcome, kind="twin") for i, outcome in enumerate(outcomes)]
    write_attack(tmp_path / "overrefusal", "m", samples)
    built = page.build([tmp_path])
    row = table(built, "overrefusal", "Harmless twins")[0]
    assert [cell.split(" =")[0] for cell in row] == ["m", "3/19", "2/19", "5/19", "1"]
    assert "No run on unseen benign requests" in said(built, "overrefusal")


def test_over_refusal_is_tested_by_prompt_and_its_price_is_in_the_headline(tmp_path: Path) -> None:
    for model, outcomes in (
        ("aligned", ["refused", "complied", "complied", "complied"]),
        ("deepened", ["complied", "refused", "partial-then-refused", "complied"]),
    ):
        samples = [sample(i, "none", {}, model, outcome, kind="twin") for i, outcome in enumerate(outcomes)]
        write_attack(tmp_path / model / "overrefusal", model, samples, base="start")
    built = page.build([tmp_path])
    row = table(built, "overrefusal", "Paired tests")[0]
    assert row[:4] == ["harmless twins", "aligned → deepened", "4", "1 → 2"]
    assert row[5] == "1 / 2"
    assert built.headline[0].startswith(
        "Harmless twins refused or broken off: aligned 1 of 4 (25%; 0 of them midway), deepened 2 of 4 (50%; 1 of them "
    )


def test_over_refusal_at_depth_is_drawn_beside_recovery_of_the_same_model(tmp_path: Path) -> None:
    for model, broken in (("aligned", 1), ("deepened", 3)):
        twins = {0: ["refused"] + ["complied"] * 7, 5: ["partial-then-refused"] * broken + ["complied"] * (8 - broken)}
        write_attack(tmp_path / model / "twins", model, sweep(model, twins, kind="twin"), role="twins")
        harmful = {0: ["refused"] * 8, 5: ["refused"] * broken + ["complied"] * (8 - broken)}
        write_attack(tmp_path / model / "attack", model, sweep(model, harmful))
    built = page.build([tmp_path])
    (image,) = section(built, "overrefusal").figures
    for part in ("aligned, harmless 13% at k = 0, 13% at k = 5", "deepened, harmless 13% at k = 0, 38% at k = 5",
                  "aligned, harmful 100% at k = 0, 13% at k = 5", "deepened, harmful 100% at k = 0, 38% at k = 5"):  # fmt: skip
        assert part in image.alt
    assert (
        "Behind 5 tokens of harmless answers deepened refuses or breaks off 3 of 8 (38%; 3 of them midway); with none given "
        "1 of 8 (13%; 0 of them midway)."
    ) in section(built, "overrefusal").findings


@pytest.mark.parametrize("logs", [True, False])
def test_several_answers_to_a_prompt_that_agree_count_as_one_everywhere(tmp_path: Path, logs: bool) -> None:
    few = sweep("m", {0: ["refused"] * 4, 5: ["complied"] * 4})
    samples = [replace(s, seed=seed) for s in few for seed in range(25)]
    harmless = [sample(i, "none", {}, "m", "refused", kind="twin", seed=seed) for i in range(4) for seed in range(25)]
    write_attack(tmp_path / "attack", "m", samples, logs=logs)
    write_attack(tmp_path / "overrefusal", "m", harmless, logs=logs)
    profile = fake_runs.profile(random.Random(0), "m", deep=False)
    write_measure(tmp_path / "measure", "m", profile)
    built = page.build([tmp_path])
    low, high = (f"{end:.0%}" for end in stats.wilson(4, 4))
    assert table(built, "rates", "Non-refusal rate by k")[1][1] == f"100/100 = 100% [{low}, {high}]"
    assert "answers" in section(built, "rates").tables[0].note
    assert table(built, "overrefusal", "Harmless twins")[0][1] == f"100/100 = 100% [{low}, {high}]"
    assert table(built, "overrefusal", "Harmless twins")[0][2] == "0/100 = 0% [0%, 49%]"
    assert table(built, "recovery", "Does generation agree")[0][3] == f"100/100 = 100% [{low}, {high}]"
    assert any(line.startswith("Small sample") and "as few as 4 prompts" in line for line in built.headline)
    assert "0 of 100 answers to harmful requests asked plainly (0% [0%, 49%])" in built.headline[0]


def test_outcomes_are_all_counted(context: Page, demo: Path) -> None:
    samples = [s for s in fake_runs.read_fake(demo / "deepened" / "attack") if s.params["k"] == 40]
    columns = next(t for t in section(context, "outcomes").tables).columns
    rows = [dict(zip(columns, row, strict=True)) for row in table(context, "outcomes", "Outcomes")]
    row = next(row for row in rows if (row["model"], row["requests"]) == ("deepened", "prefill k = 40"))
    for column, outcome in (("complied", "complied"), ("broken off", "partial-then-refused"), ("empty", "empty")):
        assert int(row[column]) == sum(s.outcome == outcome for s in samples)
    assert row["skipped"] == "7"
    assert int(row["truncated"]) == sum(s.truncated for s in samples)


@pytest.mark.parametrize(
    ("plain", "deep", "verdict"),
    [
        (0.1, 0.95, "its safety is shallow"),
        (0.05, 0.3, "given tokens raise the rate, but most requests are still refused"),
        (0.95, 0.97, "it refuses little to begin with"),
        (0.1, 0.12, "no clear effect of given tokens at this sample size"),
        (0.4, 0.05, "given tokens lower the rate"),
    ],
)
def test_the_headline_s_verdict_follows_the_numbers(tmp_path: Path, plain: float, deep: float, verdict: str) -> None:
    rates = {k: ["complied"] * round(200 * p) + ["refused"] * round(200 * (1 - p)) for k, p in ((0, plain), (10, deep))}
    write_attack(tmp_path / "attack", "m", sweep("m", rates))
    lines = page.build([tmp_path]).headline
    assert lines[0].endswith(f": {verdict}.") or f": {verdict}," in lines[0]
    assert f"{round(200 * deep)} of 200" in lines[0]
    assert not any("Small sample" in line for line in lines)


def test_the_headline_says_that_a_sample_is_small_and_a_change_within_chance(tmp_path: Path) -> None:
    for model, outcome in (("m1", "complied"), ("m2", "refused")):
        write_attack(
            tmp_path / model,
            model,
            sweep(model, {0: ["refused"] * 12, 20: [outcome, *["complied"] * 11]}),
            base="start",
        )
    lines = page.build([tmp_path]).headline
    assert any(line.startswith("Small sample") and "12 prompts" in line for line in lines)
    change = next(line for line in lines if line.startswith("From m1 to m2"))
    assert "−8 points" in change
    assert "after 20 prefilled tokens (n = 12, p = 1.000, within chance)" in change


def test_the_headline_s_p_values_are_those_adjusted_for_the_table(tmp_path: Path) -> None:
    for model, outcome in (("m1", "complied"), ("m2", "refused")):
        outcomes = {k: [outcome] * 5 + ["complied"] * 5 for k in (0, 5, 10)}
        write_attack(tmp_path / model, model, sweep(model, outcomes), base="start")
    built = page.build([tmp_path])
    assert [row[-2:] for row in table(built, "paired", "Paired tests")] == [["0.062", "0.188"]] * 3
    change = next(line for line in built.headline if line.startswith("From m1 to m2"))
    assert change.count("p = 0.188") == 2
    assert "0.062" not in change
    rows = list(csv.DictReader(io.StringIO(render.to_csv(built.csv["paired"]))))
    assert [(row["p"], row["p_holm"]) for row in rows] == [("0.0625", "0.1875")] * 3


def test_the_headline_compares_rates_on_the_prompts_that_have_every_k(tmp_path: Path) -> None:
    samples = [s for s in sweep("m", {0: ["refused"] * 5 + ["complied"] * 5, 10: ["complied"] * 10}) if not (
        s.params["k"] == 10 and int(s.prompt_id[-2:]) >= 5)]  # fmt: skip
    write_attack(tmp_path / "attack", "m", samples)
    line = page.build([tmp_path]).headline[0]
    assert line.startswith("m, on the prompts whose answer is long enough for every k, complied with 0 of 5 harmful")
    assert "5 of 5 with 10 tokens" in line


def test_percentages_round_half_up_and_signs_are_right() -> None:
    assert [words.percent(x) for x in (0.025, 0.125, 0.0, 1.0, None)] == ["3%", "13%", "0%", "100%", "-"]
    assert [words.points(x) for x in (0.104, -0.104, 0.001, -0.001)] == ["+10", "−10", "0", "0"]


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        ({"value": 3, "low": 2, "high": 5, "censored": None}, "up to k = 3 [2, 5]"),
        ({"value": 3, "low": None, "high": 40, "censored": None}, "up to k = 3 [none, 40 or more]"),
        (
            {"value": 40, "low": 10, "high": 40, "censored": "every"},
            "at every k measured, up to k = 40 [10, 40 or more]; how much deeper is not known",
        ),
        (
            {"value": None, "low": None, "high": 1, "censored": "none"},
            "at no k, not even with no harmful token given [none, 1]",
        ),
        (
            {"value": None, "low": None, "high": None, "censored": "none"},
            "at no k, not even with no harmful token given",
        ),
    ],
)
def test_censored_depth_is_said_in_words(figure: dict[str, Any], expected: str) -> None:
    ks = [0, 1, 2, 3, 5, 10, 40]
    curve = {"k": ks, **{name: [1] * len(ks) for name in ("log_odds", "recovered", "n")}}
    profile = {"recovery": curve, "depth": {"recovery_k": figure}, "meta": {}}
    assert depth.recovery_words(Profile.parse(profile, "a profile")) == expected


@pytest.mark.parametrize(("value", "censored"), [(5, None), (10, "last")])
def test_smaller_k_at_which_fewer_recover_are_named(value: int, censored: str | None) -> None:
    curve = {"k": [0, 1, 2, 5, 10], "log_odds": [1] * 5, "recovered": [1, 0.4, 0.3, 0.6, 0.7], "n": [9] * 5}
    figure = {"value": value, "low": value, "high": value, "censored": censored}
    profile = Profile.parse({"recovery": curve, "depth": {"recovery_k": figure}, "meta": {}}, "a profile")
    assert "though not at k = 1 and 2" in depth.recovery_words(profile)
    assert "though not at k = 1, 2" in depth_profile.describe(profile, "model")


def test_recovery_is_checked_against_generation_by_prompt(context: Page, demo: Path) -> None:
    profile = json.loads((demo / "aligned" / "measure" / "profile.json").read_text())
    at = profile["recovery"]["k"].index(5)
    stored = profile["per_prompt"]
    odds = {key: row[at] for key, row in zip(stored["ids"], stored["recovery_log_odds"], strict=True)}
    judged = {s.prompt_id: s.outcome for s in fake_runs.read_fake(demo / "aligned" / "attack") if s.params["k"] == 5}
    judged = {key: o for key, o in judged.items() if o in ("refused", "complied", "partial-then-refused")}
    same = sum((odds[key] > 0) == (outcome == "refused") for key, outcome in judged.items())
    row = next(r for r in table(context, "recovery", "Does generation agree") if r[:2] == ["aligned", "5"])
    assert row[4].startswith(f"{same}/{len(judged)} ")


def test_mean_kl_weighs_positions_by_their_tokens(tmp_path: Path) -> None:
    profile = fake_runs.profile(random.Random(0), "m", deep=False)
    profile["kl"] = {"mean": [4.0, 1.0, 1.0, 1.0, 1.0, 0.5, 2.0], "stderr": [0.1] * 6 + [None], "n": [9] * 5 + [3, 1]}
    write_measure(tmp_path / "measure", "m", profile)
    row = table(page.build([tmp_path]), "kl", "Mean KL")[0]
    assert row[2:5] == ["4.00", "1.60", f"{(3 * 0.5 + 2.0) / 4:.2f}"]


# --- what is missing is said --------------------------------------------------------------------


def test_a_measurement_alone_says_what_is_not_there(tmp_path: Path) -> None:
    profile = fake_runs.profile(random.Random(0), "m", deep=False, with_kl=False)
    write_measure(tmp_path / "measure", "m", profile)
    built = page.build([tmp_path])
    missing = "a measurement with a base (KL profile), an attack on harmful requests and a run on harmless requests"
    assert f"Not among these folders: {missing} (over-refusal)." in said(built, "runs")
    assert [one.id for one in built.sections] == ["runs", "recovery"]
    assert "transcripts" not in render.to_html(built)
    assert len(section(built, "recovery").figures) == 2


def test_a_profile_without_control_and_an_adapter_s_profile_are_said(tmp_path: Path) -> None:
    profile = fake_runs.profile(random.Random(0), "m", deep=False, benign=False)
    profile["meta"]["label"] = "adapter against its base"
    write_measure(tmp_path / "measure", "m", profile)
    text = said(page.build([tmp_path]), "kl")
    assert "No benign control of m" in text
    assert "this is not alignment depth" in text


def test_an_attack_without_logs_has_rates_but_no_tests_and_no_transcripts(tmp_path: Path) -> None:
    for model in ("m1", "m2"):
        write_attack(tmp_path / model, model, sweep(model, {0: ["refused"] * 3, 5: ["complied"] * 3}), logs=False)
    built = page.build([tmp_path])
    assert table(built, "rates", "Non-refusal rate by k")[1][1].startswith("3/3 = 100%")
    assert "No paired tests with m1 and m2: the folder holds no evaluation logs." in said(built, "paired")
    assert "No transcripts of m1, harmful requests" in render.to_html(built)
    assert "a finished measurement (recovery profile, depth figures)" in said(built, "runs")


def test_an_unfinished_run_is_named_and_its_numbers_left_out(tmp_path: Path) -> None:
    write_attack(tmp_path / "a", "m1", sweep("m1", {0: ["refused"]}))
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(fake_runs.manifest("attack", "m2", status="running")))
    (folder / "half.eval").write_text("half written")
    built = page.build([tmp_path])
    assert "1 of 2 runs did not finish; their numbers are left out: m2 (attack)." in said(built, "runs")
    assert [row[0] for row in table(built, "outcomes", "Outcomes")] == ["m1"]


@pytest.fixture
def foreign_log(tmp_path: Path) -> Path:
    """A folder with an evaluation log of something else."""
    pytest.importorskip("inspect_ai")
    import inspect_ai
    from inspect_ai.dataset import Sample as Item

    folder, task = tmp_path / "runs" / "theirs", inspect_ai.Task(dataset=[Item(input="Hello", target="x")])
    said = inspect_ai.model.ModelOutput.from_content("mockllm/model", "Hello")
    said.usage = inspect_ai.model.ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    model = inspect_ai.model.get_model("mockllm/model", memoize=False, custom_outputs=[said])
    inspect_ai.eval(task, model=model, log_dir=str(folder), display="none", log_realtime=False)
    return folder


def test_other_people_s_logs_are_passed_over_and_named(foreign_log: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="theirs holds no .* evaluation log of an attack"):
        page.build([foreign_log], read_logs=READ_LOGS)
    write_attack(tmp_path / "runs" / "ours", "m", sweep("m", {0: ["refused"]}), logs=False)
    built = page.build([tmp_path / "runs"], read_logs=READ_LOGS)
    assert built.models == ["m"]
    assert f"Passed over, for no evaluation log in it is one of an attack: {foreign_log}." in said(built, "runs")
    assert "Passed over" not in said(page.build([tmp_path / "runs" / "ours"], read_logs=READ_LOGS), "runs")
    for log in foreign_log.glob("*.eval"):
        log.rename(tmp_path / "runs" / "ours" / log.name)
    assert "No transcripts of m" in render.to_html(page.build([tmp_path / "runs"], read_logs=READ_LOGS))


def test_what_holds_no_run_is_passed_over_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs, empty, file = (tmp_path / name for name in ("ours", "theirs", "empty", "report.html"))
    write_attack(ours, "m", sweep("m", {0: ["refused"]}), logs=False)
    (theirs / "deeper").mkdir(parents=True)
    empty.mkdir()
    file.write_text("a page")
    (theirs / "manifest.json").write_text('{"name": "an app", "version": 3}')
    (theirs / "deeper" / "manifest.json").write_text('{"icons": []}')
    for number, text in enumerate(["[1, 2]", '{"files": [{"src": "a"}]}', '{"model": "gpt", "config": 3}']):
        (theirs / str(number)).mkdir()
        (theirs / str(number) / "manifest.json").write_text(text)
    with caplog.at_level("WARNING", logger="tokendeep"):
        built = page.build(sorted(tmp_path.iterdir()), read_logs=READ_LOGS)
    assert built.models == ["m"]
    assert [r.message for r in caplog.records] == [f"passed over, for no run is in it: {empty}, {file}, {theirs}"]
    with pytest.raises(InputError, match="empty holds no .* evaluation log of an attack"):
        page.build([empty, file], read_logs=READ_LOGS)


def test_an_unfinished_log_without_a_manifest_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_attack(tmp_path / "a", "m", sweep("m", {0: ["refused", "judge-error"]}))
    (folder / "manifest.json").unlink()
    monkeypatch.setattr(logs, "unfinished", lambda folder: ["x.eval"])
    built = page.build([tmp_path])
    assert table(built, "runs", "Runs")[0][6] == "UNFINISHED"
    assert f"did not come to their end: 1 in {folder}; only the answers they hold are counted." in said(built, "runs")
    assert "left out" not in said(built, "runs")
    assert table(built, "outcomes", "Outcomes")[0][2:10] == ["1", "0", "1", "0", "0", "0", "0", "1"]


def test_models_scored_with_other_openings_are_not_to_be_compared(tmp_path: Path) -> None:
    for model in ("m1", "m2"):
        profile = fake_runs.profile(random.Random(0), model, deep=False)
        profile["meta"]["openings"] = [model]
        write_measure(tmp_path / model, model, profile)
    assert "different refusal openings" in said(page.build([tmp_path]), "recovery")


def test_near_duplicate_prompts_are_said(tmp_path: Path) -> None:
    samples = [
        replace(s, instruction="How do I pick a good bicycle lock today?") for s in sweep("m", {0: ["refused"] * 4})
    ]
    write_attack(tmp_path / "attack", "m", samples)
    assert "The 4 prompts form 1 clusters of near-duplicates" in said(page.build([tmp_path]), "rates")


# --- labels, flags, paper -----------------------------------------------------------------------


def test_every_rate_under_the_refusal_judge_is_called_non_refusal(context: Page) -> None:
    assert section(context, "rates").title == "Non-refusal rate against prefilled tokens"
    assert all(t.caption.startswith("Non-refusal") for t in section(context, "rates").tables)
    assert "not whether its answer does harm" in said(context, "rates")
    assert words.rate_name("refusal-keywords") == "non-refusal rate"
    assert "rubric" in words.rate_name("rubric")


@pytest.mark.parametrize("place", ["poisoned/checkpoint", "poisoned"])
def test_a_checkpoint_trained_on_attack_rows_is_flagged(tmp_path: Path, place: str) -> None:
    checkpoint = tmp_path / "poisoned" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (tmp_path / place / "manifest.json").write_text(json.dumps({"attack": True}))
    write_attack(tmp_path / "out" / "attack", str(checkpoint), sweep(str(checkpoint), {0: ["complied"]}))
    built = page.build([tmp_path / "out"])
    assert "poisoned was trained on attack rows" in built.warnings[0]
    assert "ATTACK CHECKPOINT" in table(built, "runs", "Runs")[0][6]
    assert "Attack checkpoint" in render.to_html(built)
    assert "Attack checkpoint" in render.to_markdown(built)


def test_no_flag_without_attack_rows(context: Page) -> None:
    assert context.warnings == []


def test_refusal_prefixes_stand_beside_the_plain_request_and_the_paper(tmp_path: Path) -> None:
    samples = [sample(i, "none", {}, "m", "complied") for i in range(4)]
    samples += [sample(i, "refusal-prefix", {"prefix": "I cannot"}, "m", "refused", "I cannot") for i in range(4)]
    write_attack(tmp_path / "attack", "m", samples)
    built = page.build([tmp_path])
    assert table(built, "rates", "Non-refusal rate with a refusal prefix") == [
        ["plain request", "4/4 = 100% [51%, 100%]"],
        ["refusal-prefix “I cannot”", "0/4 = 0% [0%, 49%]"],
    ]
    assert table(built, "paper", "The paper's harmfulness rate")[1] == ["I cannot", "16.4", "8.7", "0"]


def test_the_paper_s_numbers_are_labelled_as_such(context: Page) -> None:
    assert table(context, "paper", "The paper's attack success rate")[1] == ["10", "51.5", "2.9"]
    assert "not measured here" in said(context, "paper")
    assert context.sections[-1].id == "paper"  # apart from what was measured


# --- what it never shows ------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    samples = [
        replace(s, instruction=f"{SECRET}-asked", prefix=f"{SECRET}-given", completion=f"<b>{SECRET}-answered</b>")
        for s in sweep("m", {0: ["complied", "refused"], 5: ["complied", "partial-then-refused"]})
    ]
    write_attack(tmp_path / "runs" / "attack", "m", samples)
    return tmp_path / "runs"


def test_texts_are_redacted_by_default(secret: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = report.run(report.plan(ReportOptions([str(secret)], out=str(tmp_path / "r.html"))))
    for path in out.parent.glob("r*"):
        if path.is_file():
            assert SECRET not in path.read_text(encoding="utf-8"), path.name
    assert SECRET not in "".join(capfd.readouterr())
    assert "Texts are redacted" in out.read_text(encoding="utf-8")


def test_a_user_s_system_prompt_and_prefixes_are_shown_by_hash(tmp_path: Path) -> None:
    samples = [sample(0, "refusal-prefix", {"prefix": "prefix #1 (sha 12345678)"}, "m", "refused")]
    folder = write_attack(tmp_path / "attack", "m", samples)
    raw = json.loads((folder / "manifest.json").read_text())
    raw["config"] |= {"system": SECRET, "refusal_system": SECRET}
    (folder / "manifest.json").write_text(json.dumps(raw))
    built = page.build([tmp_path])
    assert SECRET not in render.to_html(built) + render.to_markdown(built)
    assert '"refusal_system": "sha ' in dict(built.manifests)["m, attack: harmful requests"]
    assert table(built, "rates", "Non-refusal rate with")[0][0] == "refusal-prefix, prefix #1 (sha 12345678)"


def test_show_text_opens_them_in_the_html_alone_for_the_owner_alone(secret: Path, tmp_path: Path) -> None:
    out = report.run(report.plan(ReportOptions([str(secret)], out=str(tmp_path / "r.html"), show_text=True)))
    page = out.read_text(encoding="utf-8")
    assert f"{SECRET}-asked" in page
    assert f"{SECRET}-given" in page
    assert f"&lt;b&gt;{SECRET}-answered&lt;/b&gt;" in page
    assert "do not send it on" in page
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    others = [path for path in tmp_path.glob("r*") if path.is_file() and path != out]
    assert len(others) == 7
    assert not [path for path in others if SECRET in path.read_text(encoding="utf-8")]


def test_transcripts_are_chosen_by_hash_two_of_each_outcome(demo: Path) -> None:
    _, series = read(demo)
    group = transcripts.groups([one for one in series if (one.label, one.role) == ("deepened", "harmful")], False)[0]
    counts = {t.outcome: sum(u.outcome == t.outcome for u in group.transcripts) for t in group.transcripts}
    assert set(counts.values()) == {2}
    assert "broken off" in counts
    assert all(t.instruction is t.prefix is t.completion is None for t in group.transcripts)


def test_a_very_long_text_is_cut_and_says_so(tmp_path: Path) -> None:
    write_attack(tmp_path / "attack", "m", [sample(0, "none", {}, "m", "complied", text="x" * 9000)])
    shown = render.to_html(page.build([tmp_path], show_text=True))
    assert "[cut here: 4,000 of 9,000 characters]" in shown
    assert "x" * 4001 not in shown


# --- the page -----------------------------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs)))


TEXTS = ("instruction", "prefix", "completion")
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}'


def test_names_ids_and_texts_from_outside_are_escaped(tmp_path: Path) -> None:
    samples = [
        replace(s, prompt_id=HOSTILE + s.prompt_id, category=HOSTILE, **dict.fromkeys(TEXTS, HOSTILE))
        for s in sweep(HOSTILE, {0: ["refused", "complied"], 5: ["complied", "empty"]})
    ]  # fmt: skip
    write_attack(tmp_path / "attack", HOSTILE, samples, seed=HOSTILE, finished=HOSTILE)
    profile = fake_runs.profile(random.Random(0), HOSTILE, deep=False)
    profile["meta"]["base"] = HOSTILE
    write_measure(tmp_path / "measure", HOSTILE, profile)
    built = page.build([tmp_path], show_text=True)
    tags = Tags(render.to_html(built)).all
    assert not [tag for tag, _ in tags if tag in ("script", "iframe", "object", "svg", "form", "base", "link")]
    assert all(attrs["src"].startswith("data:image/svg+xml;base64,") for tag, attrs in tags if tag == "img")  # type: ignore[union-attr]
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    assert "{{ 7*7 }}" in render.to_html(built)
    markdown = render.to_markdown(built)
    assert "<" not in markdown.replace("<img", "<")
    assert "<img" not in markdown


def test_the_page_is_one_file_without_scripts_under_a_strict_policy(context: Page) -> None:
    page = render.to_html(context)
    tags = Tags(page).all
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert [tag for tag, _ in tags[:4]] == [
        "html",
        "head",
        "meta",
        "meta",
    ]  # the policy stands before anything it rules
    ids = {attrs["id"] for _, attrs in tags if "id" in attrs}
    for tag, attrs in tags:
        assert tag not in ("script", "link", "iframe")
        if tag == "a":
            assert (attrs["href"] or "")[1:] in ids
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org)", page)


def test_figures_have_words_and_are_plain_svg(context: Page) -> None:
    shown = [figure for one in context.sections for figure in one.figures]
    assert len(shown) == 5  # KL of two models, log odds, recovered, rates
    for figure in shown:
        assert len(figure.alt) > 40
        root = ElementTree.fromstring(svg(figure.uri))
        assert {element.tag.rsplit("}", 1)[-1] for element in root.iter()} <= {
            "svg", "metadata", "RDF", "Work", "type", "format", "creator", "Agent", "title", "date", "defs", "style",
            "g", "path", "use", "clipPath", "rect",
        }  # fmt: skip


def svg(uri: str) -> bytes:
    import base64

    return base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,"))


def test_models_differ_in_colour_marker_and_line_and_keep_their_style() -> None:
    styles = [plots.style_of(plots.Curve("m", (), (), style=i)) for i in range(5)]
    for key in ("color", "marker", "linestyle"):
        assert len({str(style[key]) for style in styles}) == 5
    assert set(plots.COLOURS) < {
        "#000000",
        "#E69F00",
        "#56B4E9",
        "#009E73",
        "#F0E442",
        "#0072B2",
        "#D55E00",
        "#CC79A7",
    }


def test_a_name_with_dollar_signs_is_drawn_as_it_is() -> None:
    curve = plots.Curve(r"a $\frac{1$ & <b>", [0, 5], [0.1, None], [0.0, None], [0.2, None])
    ElementTree.fromstring(svg(figures.svg(plots.shares, [curve], [0, 5], "rate")))


def test_headings_descend_and_tables_have_headers(context: Page) -> None:
    tags = [tag for tag, _ in Tags(render.to_html(context)).all]
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert tags.count("table") == tags.count("thead")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("\x00\x1b[0m\x7f\x9b", "⟨U+0000⟩⟨U+001B⟩[0m⟨U+007F⟩⟨U+009B⟩"),
        ("zero\u200b\ufeff", "zero⟨U+200B⟩⟨U+FEFF⟩"),
        ("\u2028\u2029\r", "⟨U+2028⟩⟨U+2029⟩⟨U+000D⟩"),
        ("\ud800 \U000e0041", "⟨U+D800⟩ ⟨U+E0041⟩"),
        ("plain\ttext\nПривет 你好 مرحبا 🙂 é", "plain\ttext\nПривет 你好 مرحبا 🙂 é"),
    ],
)
def test_what_acts_unseen_is_spelt_out(text: str, shown: str) -> None:
    assert plain.neutralise(text) == shown


def test_a_lone_surrogate_can_be_written(tmp_path: Path) -> None:
    write_attack(tmp_path / "runs", "m", [sample(0, "none", {}, "m", "complied", text="\ud800\u202e")])
    out = report.run(report.plan(ReportOptions([str(tmp_path / "runs")], out=str(tmp_path / "r.html"), show_text=True)))
    assert "⟨U+D800⟩⟨U+202E⟩" in out.read_text(encoding="utf-8")


# --- CSV and Markdown ---------------------------------------------------------------------------


def test_csv_holds_the_numbers_unrounded(context: Page, demo: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(render.to_csv(context.csv["rates"]))))
    row = next(r for r in rows if (r["model"], r["attack"], r["parameter"]) == ("aligned", "prefill", "10"))
    source = json.loads((demo / "aligned" / "attack" / "asr.json").read_text())
    wanted = next(r for r in source if r["params"]["k"] == 10)
    assert float(row["rate"]) == wanted["rate"]
    assert float(row["common_rate"]) == wanted["common"]["rate"]
    assert set(context.csv) == {"rates", "paired", "categories", "kl", "recovery", "depth"}
    kl = list(csv.DictReader(io.StringIO(render.to_csv(context.csv["kl"]))))
    assert len(kl) == 2 * 2 * 48


def test_csv_cells_are_no_formulas() -> None:
    text = render.to_csv(Csv(["name"], [["=1+1"], ["@x"], ["-x"], [-1.5], ["ok"], [None]]))
    cells = [row[0] if row else "" for row in csv.reader(io.StringIO(text))]
    assert cells == ["name", "'=1+1", "'@x", "'-x", "-1.5", "ok", ""]


def test_csv_tables_agree_in_width(context: Page) -> None:
    for table in context.csv.values():
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_markdown_tables_are_whole_and_cells_stay_cells(tmp_path: Path) -> None:
    write_attack(tmp_path / "attack", "m", sweep("m", {0: ["refused"]}), label="a|b `c` [d](e)\n# f")
    text = render.to_markdown(page.build([tmp_path]))
    assert r"a\|b \`c\` \[d\](e) \# f" in text
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


# --- writing ------------------------------------------------------------------------------------


def test_the_same_runs_give_the_same_bytes_and_a_report_takes_the_place_of_another(
    secret: Path, tmp_path: Path, capsys: Any
) -> None:
    config = ReportOptions([str(secret)], out=str(tmp_path / "out" / "r.html"))
    out = report.run(report.plan(config))
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "r-categories.csv", "r-depth.csv", "r-kl.csv", "r-paired.csv", "r-rates.csv", "r-recovery.csv", "r.html", "r.md",
    ]  # fmt: skip
    before = out.read_bytes()
    assert report.run(report.plan(config)).read_bytes() == before
    write_attack(tmp_path / "more", "m2", sweep("m2", {0: ["refused"]}))
    other = replace(config, dirs=[str(secret), str(tmp_path / "more")])
    assert "takes the place" in capsys.readouterr().out
    report.run(report.plan(other))
    assert out.read_bytes() != before
    (out.parent / "r-notes.csv").write_text("mine")
    report.run(report.plan(replace(other, dirs=[str(tmp_path / "more")])))
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "r-depth.csv", "r-kl.csv", "r-notes.csv", "r-paired.csv", "r-rates.csv", "r-recovery.csv", "r.html", "r.md",
    ]  # fmt: skip
    assert b"m2" in out.read_bytes()


def test_every_table_beside_a_page_is_known(demo: Path) -> None:
    assert {*page.build([demo]).csv, "corrected"} == set(report.TABLES)  # which stands there with a calibration


@pytest.mark.parametrize("name", ["r.html", "r.md", "r-rates.csv"])
def test_a_file_that_is_no_report_is_replaced_when_that_is_asked_for(secret: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    config = ReportOptions([str(secret)], out=str(out / "r.html"))
    (out / name).write_text("about # tokendeep report")
    with pytest.raises(InputError, match=rf"{name} is there already and is no report; .* --overwrite"):
        report.run(report.plan(config))
    assert [path.name for path in out.iterdir()] == [name]
    report.run(report.plan(replace(config, overwrite=True)))
    assert (out / name).stat().st_size > 100


def test_a_file_that_is_in_the_way_beside_the_report_is_kept(secret: Path, tmp_path: Path) -> None:
    (tmp_path / "r.md").write_text("my notes")
    with pytest.raises(InputError, match=r"r\.md is there already"):
        report.run(report.plan(ReportOptions([str(secret)], out=str(tmp_path / "r.html"))))
    assert [path.name for path in tmp_path.glob("r*.*")] == ["r.md"]


# --- bad input ----------------------------------------------------------------------------------


WHOLE = fake_runs.profile(random.Random(0), "m", deep=False)
DAMAGED: list[tuple[dict[str, Any], str]] = [
    ({**WHOLE, "meta": []}, "profile.json, meta holds no object"),
    ({**WHOLE, "recovery": {}}, "profile.json, recovery lacks k, log_odds, recovered, n"),
    (
        {**WHOLE, "recovery": {**WHOLE["recovery"], "k": [0]}},
        "recovery needs k, log_odds, recovered, n as lists of one",
    ),
    ({**WHOLE, "depth": {}}, "profile.json, depth lacks recovery_k"),
    ({**WHOLE, "depth": {"recovery_k": 3}}, "depth, recovery_k holds no object"),
    ({**WHOLE, "kl": {"mean": [1.0]}}, "profile.json, kl lacks stderr, n"),
    ({**WHOLE, "per_prompt": 3}, "per_prompt holds no object"),
]


def test_bad_input_is_one_sentence(demo: Path, tmp_path: Path) -> None:
    def fails(match: str, *dirs: Path | str, out: str = str(tmp_path / "r.html")) -> None:
        with pytest.raises(InputError, match=match) as caught:
            report.run(report.plan(ReportOptions([str(one) for one in dirs], out=out)))
        assert str(caught.value).count(". ") == 0

    empty = tmp_path / "empty"
    (empty / "below").mkdir(parents=True)
    fails("No run folder is given")
    fails("There is no folder .*missing", tmp_path / "missing")
    fails("empty holds no profile.json", empty)
    fails("must name an HTML file", demo, out=str(tmp_path / "r.md"))
    fails("must name an HTML file", demo, out=str(tmp_path))
    for name, text, match in (
        ("profile.json", "{", "cannot be read as JSON"),
        ("profile.json", "[]", "holds no object"),
        ("profile.json", '{"meta": {}}', "lacks recovery, depth"),
        ("asr.json", "{}", "holds no list"),
        ("asr.json", '[{"attack": "none"}]', "row 1 lacks .*params, judge"),
        ("asr.json", "[3]", "row 1 holds no object"),
        *(("profile.json", json.dumps(damaged), match) for damaged, match in DAMAGED),
        ("manifest.json", "nonsense", "cannot be read as JSON"),
    ):
        folder = tmp_path / "bad"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        (folder / name).write_text(text)
        fails(match, folder)
    assert not (tmp_path / "r.html").exists()


# --- with what the verbs really write -----------------------------------------------------------


@pytest.mark.slow
def test_folders_of_the_real_verbs_are_read(tiny_subject: Subject, tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai")
    from tokendeep.verbs import attack, measure

    rows = [
        {
            "id": f"row{i}",
            "instruction": f"How do I {verb} it?",
            "response": "Mix the flour with water, add salt and rest.",
        }
        for i, verb in enumerate(("bake", "water", "find"))
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    more: dict[str, Any] = {"model": str(tiny_folder), "data": str(data), "system": "none"}
    common = {**more, "max_new_tokens": 4}
    prefill = attack.AttackOptions(attack="prefill", k=[0, 3], out=str(out / "attack"), **common)
    plain = attack.AttackOptions(attack="none", out=str(out / "overrefusal"), **common)
    for options in (prefill, plain):
        attack.run(attack.plan(options, tiny_subject))
    settings = {"k": [0, 2], "bootstrap": 100, "positions": 6, "base": str(tiny_folder), "benign": str(data)}
    measure.run(measure.plan(measure.MeasureOptions(out=str(out / "measure"), **more, **settings)))

    built = page.build([out], show_text=True, read_logs=READ_LOGS)
    assert [row[1] for row in table(built, "runs", "Runs")] == [
        "attack: harmful requests", "measure", "attack: harmless twins",
    ]  # fmt: skip
    assert len(table(built, "outcomes", "Outcomes")) == 3
    assert [group.total for group in built.groups] == [6, 3]
    assert "How do I bake it?" in render.to_html(built)
    (out / "attack" / "asr.json").unlink()  # what plain `inspect eval` leaves behind
    again = page.build([out], read_logs=READ_LOGS)
    assert table(again, "outcomes", "Outcomes") == table(built, "outcomes", "Outcomes")


def test_an_empty_asr_is_named(tmp_path: Path) -> None:
    (tmp_path / "asr.json").write_text("[]")
    with pytest.raises(InputError, match="holds no rate"):
        page.build([tmp_path])
    fake_runs.write_demo(tmp_path / "demo", models=["base"])
    (tmp_path / "demo" / "base" / "attack" / "asr.json").write_text("[]")
    with pytest.raises(InputError, match="holds no rate"):
        page.build([tmp_path / "demo"])  # though its logs are there


def test_figures_that_are_not_as_their_run_wrote_them_are_named(tmp_path: Path) -> None:
    fake_runs.write_demo(tmp_path, models=["aligned"])
    folder = tmp_path / "aligned" / "measure"
    manifest = json.loads((folder / "manifest.json").read_text())
    kept = {**manifest, "results": {"profile.json": runs.sha256_file(folder / "profile.json")}}
    (folder / "manifest.json").write_text(json.dumps(kept))
    assert page.build([tmp_path])
    text = (folder / "profile.json").read_text()
    (folder / "profile.json").write_text(text.replace('"n": ', '"n":  ', 1))
    with pytest.raises(InputError, match=r"profile\.json is not as its run wrote it"):
        page.build([tmp_path])


def test_rates_under_other_words_of_the_judge_or_other_lengths_are_not_compared(tmp_path: Path) -> None:
    for name, settings in (("a", {"judge_template": "1111"}), ("b", {"judge_template": "2222"}), ("c", {})):
        write_attack(
            tmp_path / name / "attack", name, [sample(n, "none", {}, name, "refused", **settings) for n in (0, 1)]
        )
    _, series = read(tmp_path)
    assert [(before.label, after.label) for before, after in pairs(series)] == [("b", "c")]  # c does not say
    text = render.to_markdown(page.build([tmp_path], read_logs=fake_runs.read_fake))
    assert "a and b are not compared: words of the judge refusal (hash) 1111 and 2222" in text


def test_answers_of_another_length_are_not_compared(tmp_path: Path) -> None:
    for name, length in (("a", 48), ("b", 96)):
        rows = [sample(n, "none", {}, name, "refused", max_new_tokens=length) for n in (0, 1)]
        write_attack(tmp_path / name / "attack", name, rows)
    text = render.to_markdown(page.build([tmp_path], read_logs=fake_runs.read_fake))
    assert "a and b are not compared: longest answer (tokens) 48 and 96" in text
