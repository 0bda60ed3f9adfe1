"""The report's comparison of attacks: rates, costs and paired tests against counts made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_runs
from tokendeep import report, stats
from tokendeep.types import Sample


def answers(attack: str, params: dict[str, Any], broken: Sequence[int], n: int = 12, **more: Any) -> list[Sample]:
    """One answer of 4 tokens and .5 s to each of n requests, of which `broken` are complied with."""
    made = [
        fake_runs.sample(i, attack, params, "smollm2", "complied" if i in broken else "refused", **more)
        for i in range(n)
    ]
    return [replace(one, tokens=4, seconds=0.5) for one in made]


def write(folder: Path, samples: Sequence[Sample], **manifest: Any) -> Path:
    config = {"model": "smollm2", "data": "/d/pairs.jsonl", "rank_length": 10, **manifest.pop("config", {})}
    return fake_runs.write_attack(folder, "smollm2", samples, config=config, **{"label": "deepened", **manifest})


def built(*dirs: Path) -> dict[str, Any]:
    return report.build(dirs, read=fake_runs.read_fake)


def section(context: dict[str, Any]) -> Any:
    return next((one for one in context["sections"] if one.id == "battery"), None)


def test_each_attack_stands_with_its_cost_for_a_request(tmp_path: Path) -> None:
    given = answers("prefill", {"k": 5}, [0, 1]) + answers("prefill", {"k": 10}, [0, 1, 2])
    cost = {"rank-prefill": {"passes": 240, "seconds": 18.0, "scorer": "base"}}
    walked = write(tmp_path / "walked", answers("rank-prefill", {}, range(9)), cost=cost)
    table = section(built(write(tmp_path / "given", given), walked)).tables[0]
    assert [row[:2] for row in table.rows] == [
        ["prefill k = 5", "deepened"],
        ["prefill k = 10", "deepened"],
        ["rank-prefill by an unaligned model", "deepened"],
    ]
    assert [row[2].split(" [")[0] for row in table.rows] == ["2/12 = 17%", "3/12 = 25%", "9/12 = 75%"]
    assert [row[3:] for row in table.rows] == [["4", "-", "0.5"], ["4", "-", "0.5"], ["4", "20 forward passes", "2.0"]]


def test_a_search_by_rank_is_tested_against_the_nearest_prefill_and_against_repetition(tmp_path: Path) -> None:
    plain = answers("prefill", {"k": 5}, range(12)) + answers("prefill", {"k": 10}, [0, 1])
    again = [
        one for seed in (0, 1) for one in answers("none", {}, [seed, 2 + seed], seed=seed, temperature=1.0)
    ]  # broken at least once: 0, 1, 2, 3
    walked = write(tmp_path / "walked", answers("rank-prefill", {}, [0, *range(2, 12)]), cost={})
    context = built(write(tmp_path / "given", plain), write(tmp_path / "again", again), walked)
    rows = section(context).tables[1].rows
    x, y = [i in (0, 1) for i in range(12)], [i == 0 or i > 1 for i in range(12)]
    first = stats.mcnemar(x, y)
    second = stats.mcnemar([i < 4 for i in range(12)], y)
    assert [row[2] for row in rows] == ["prefill k = 10", "plain request, any of 2 samples at temperature 1"]
    assert [row[3:6] for row in rows] == [["12", "17%", "92%"], ["12", "33%", "92%"]]
    low, high = sorted([first.p, second.p])
    assert [row[-1] for row in rows] == [f"{min(1, 2 * low):.3f}", f"{max(2 * low, high):.3f}"]
    (line,) = [line for line in context["headline"] if "falls to" in line]
    assert line.startswith(
        "deepened falls to adaptive attacks: rank-prefill (92% of 12 not refused, prefill k = 10 17%"
    )


def test_an_attack_that_does_no_better_is_not_called_a_fall(tmp_path: Path) -> None:
    plain = answers("prefill", {"k": 10}, range(10))
    walked = write(tmp_path / "walked", answers("rank-prefill", {}, [0, 1]), cost={})
    headline = built(write(tmp_path / "given", plain), walked)["headline"]
    assert not [line for line in headline if "falls to adaptive" in line]
    assert [line for line in headline if line.startswith("deepened is not shown to fall further to rank-prefill (17%")]


def test_a_difference_within_chance_is_no_fall(tmp_path: Path) -> None:
    plain = write(tmp_path / "given", answers("prefill", {"k": 10}, [0, 1]))
    walked = write(tmp_path / "walked", answers("rank-prefill", {}, [0, 1, 2]), cost={})
    headline = built(plain, walked)["headline"]
    assert not [line for line in headline if "falls to adaptive" in line]


def test_other_models_and_other_data_are_no_plain_version(tmp_path: Path) -> None:
    other_model = write(tmp_path / "a", answers("prefill", {"k": 10}, [0]), label="aligned")
    other_data = write(tmp_path / "b", answers("prefill", {"k": 10}, [0]), inputs={"data": "0" * 64})
    found = section(
        built(other_model, other_data, write(tmp_path / "w", answers("rank-prefill", {}, range(12)), cost={}))
    )
    assert [table.caption.split(",")[0] for table in found.tables] == ["Not refused", "Not refused"]


def test_a_text_before_the_tokens_is_tested_against_the_tokens_alone(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", answers("prefill", {"k": 5}, [0]) + answers("prefill", {"k": 10}, [1]))
    begun = write(tmp_path / "begun", answers("prefill", {"k": 10, "lead": "sha 12345678"}, range(6)))
    assert section(built(plain, begun)).tables[-1].rows[0][1:6] == [
        "prefill k = 10 behind a text (sha 12345678)", "prefill k = 10", "12", "8%", "50%",
    ]  # fmt: skip


def test_the_best_suffix_counts_and_all_are_paid_for(tmp_path: Path) -> None:
    def tried(folder: str, broken: list[list[int]], target: str) -> Path:
        samples = [one for i, some in enumerate(broken) for one in answers("suffix", {"suffix": f"s{i}"}, some)]
        cost = {"suffix": {"candidates": 1200, "seconds": 60.0, "target": target}}
        return write(tmp_path / folder, samples, cost=cost)

    found = section(built(tried("a", [[0], [1, 2]], "opening, 3 tokens"), tried("b", [list(range(8)), []], "refusal")))
    assert [[row[0], row[2].split(" [")[0], *row[3:]] for row in found.tables[0].rows] == [
        ["suffix, target opening, 3 tokens, best of 2", "2/12 = 17%", "8", "100 candidates", "6.0"],
        ["suffix, target refusal, best of 2", "8/12 = 67%", "8", "100 candidates", "6.0"],
    ]
    assert found.tables[1].rows[0][1:6] == [
        "suffix, target refusal, best of 2", "suffix, target opening, 3 tokens, best of 2", "12", "17%", "67%",
    ]  # fmt: skip


def test_plain_prefilling_alone_has_no_such_section(tmp_path: Path) -> None:
    assert section(built(fake_runs.write_demo(tmp_path / "demo"))) is None


def test_runs_on_several_data_sets_are_told_apart_by_file(tmp_path: Path) -> None:
    for name, digest in (("one", "1" * 64), ("two", "2" * 64)):
        given = {"config": {"data": f"/d/{name}.jsonl"}, "inputs": {"data": digest}}
        write(tmp_path / name, answers("prefill", {"k": 5}, [0]) + answers("none", {}, [0]), **given)
        write(tmp_path / f"s{name}", answers("suffix", {"suffix": "s"}, [0]), **given)
    context = built(*(tmp_path / folder for folder in ("one", "sone", "two", "stwo")))
    text = report.to_markdown(context)
    assert "| k | deepened (data one.jsonl) | deepened (data two.jsonl) |" in text
    assert [row[0] for one in context["sections"] if one.id == "suffix" for row in one.tables[0].rows] == [
        "deepened on one.jsonl", "deepened on two.jsonl",
    ]  # fmt: skip
    assert [table.caption for table in section(context).tables] == [
        "Not refused, and the cost, on one.jsonl (11111111)", "Not refused, and the cost, on two.jsonl (22222222)",
    ]  # fmt: skip
