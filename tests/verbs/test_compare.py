"""VERB compare on run folders made by hand: numbers, what is refused, what is left out and said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fake_runs
import tokendeep
from fake_runs import sample, write_attack
from tokendeep import cli, judges, stats
from tokendeep.errors import InputError
from tokendeep.records import Compared, Rate
from tokendeep.report import load
from tokendeep.types import Sample
from tokendeep.verbs import rated


@pytest.fixture(autouse=True)
def fake_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "read_logs", fake_runs.read_fake)


def answers(outcomes: Sequence[str], model: str = "m", attack: str = "none", **more: Any) -> list[Sample]:
    params = more.pop("params", {"k": 5} if attack == "prefill" else {})
    return [sample(i, attack, params, model, outcome, **more) for i, outcome in enumerate(outcomes)]


def side(folder: Path, *groups: list[Sample], **more: Any) -> Path:
    return write_attack(folder, "m", [one for group in groups for one in group], **more)


BEFORE = ["refused"] * 20 + ["complied"] * 10
AFTER = ["complied"] * 8 + ["refused"] * 12 + ["complied"] * 8 + ["refused"] * 2


def test_numbers_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    side(tmp_path / "a", answers(BEFORE), answers(BEFORE, attack="prefill"))
    side(tmp_path / "b", answers(AFTER), answers(BEFORE, attack="prefill"))
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]) == 0
    plain, prefilled = Compared.load(tmp_path / "out").rows
    assert (plain.n, plain.before, plain.after, plain.lost, plain.gained) == (30, 1 / 3, 16 / 30, 2, 8)
    assert plain.p == stats.mcnemar_p(2, 8) == pytest.approx(0.109375)
    assert plain.p_holm == 2 * plain.p
    assert (plain.test, plain.effect, plain.clusters) == ("exact McNemar", 1, 30)
    assert (plain.difference, plain.low, plain.high) == pytest.approx((0.2, -0.008, 0.399), abs=1e-3)
    assert (prefilled.difference, prefilled.p, prefilled.variant) == (0, 1, "k 5")
    printed = capsys.readouterr().out
    assert "+20.0 [" in printed
    assert "harmful: non-refusal rate" in printed
    written = (tmp_path / "out" / "compare.json").read_text()
    assert "Question" not in written + printed


def test_the_function_gives_the_record(tmp_path: Path) -> None:
    a, b = side(tmp_path / "a", answers(BEFORE)), side(tmp_path / "b", answers(AFTER))
    table = tokendeep.compare(a, [b]).to_frame()
    assert list(table["difference"]) == pytest.approx([0.2])
    assert not (tmp_path / "compare.json").exists()
    assert len(tokendeep.compare(a, b).plot().get_lines()) == 2


def test_unscored_pairs_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    side(tmp_path / "a", answers(["empty", "refused", "complied", "refused"]))
    side(tmp_path / "b", answers(["complied", "judge-error", "complied", "complied"]))
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "2 of 4 prompts left out, unscored on either side" in capsys.readouterr().out
    (row,) = tokendeep.compare(tmp_path / "a", tmp_path / "b").rows
    assert (row.n, row.left_out, row.gained) == (2, 2, 1)


def test_without_a_scored_pair_there_is_nothing(tmp_path: Path) -> None:
    side(tmp_path / "a", answers(["empty", "refused"]))
    side(tmp_path / "b", answers(["complied", "empty"]))
    with pytest.raises(
        InputError, match=r"No prompt has a scored answer on both sides \(none on harmful requests; 2 pro"
    ):
        tokendeep.compare(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("field", "change", "values"),
    [
        ("judge", {"judge": "refusal-keywords"}, "refusal before and refusal-keywords after"),
        ("judge-template", {"judge_template": "ab12"}, "not known before and ab12 after"),
        ("decoding", {"max_new_tokens": 9}, "max_new_tokens 48 before and "),
        ("decoding", {"temperature": 0.9}, "temperature 0.9"),
        ("system", {"system": "5f2a"}, "none before and 5f2a after"),
        ("prompts", {"kind": "other"}, r"30 prompts \(\w{8}\) before and 30 prompts \(\w{8}\) after"),
        ("judged", {"judged": "full", "prefix": "Sure"}, "continuation before and full after"),
    ],
)
def test_runs_that_differ_are_refused_and_can_be_allowed(
    field: str, change: dict[str, Any], values: str, tmp_path: Path
) -> None:
    prefix = {"prefix": "Sure", "attack": "prefill"} if "prefix" in change else {}
    side(tmp_path / "a", answers(BEFORE, **prefix))
    side(tmp_path / "b", answers(AFTER, **{**prefix, **change}))
    with pytest.raises(InputError, match=f"differ in {field}: .*{values}.*--allow {field}"):
        tokendeep.compare(tmp_path / "a", tmp_path / "b")
    if field == "prompts":  # ids that the other side does not have
        with pytest.raises(InputError, match="No prompt has a scored answer"):
            tokendeep.compare(tmp_path / "a", tmp_path / "b", allow=["prompts"])
    else:
        assert list(tokendeep.compare(tmp_path / "a", tmp_path / "b", allow=[field]).allowed) == [field]


@pytest.mark.parametrize(
    ("field", "more"), [("template", {"template": "ffff0000ffff"}), ("engine", {"config": {"model": "vllm/org/m"}})]
)
def test_what_manifests_tell_is_compared_too(field: str, more: dict[str, Any], tmp_path: Path) -> None:
    side(tmp_path / "a", answers(BEFORE), template="0123456789abcdef")
    side(tmp_path / "b", answers(AFTER), **{"template": "0123456789abcdef", **more})
    with pytest.raises(InputError, match=f"differ in {field}: "):
        tokendeep.compare(tmp_path / "a", tmp_path / "b")
    assert tokendeep.compare(tmp_path / "a", tmp_path / "b", allow=[field]).allowed[field]


def test_number_formats_are_compared_where_they_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, known in {"a": {"dtype": "float32"}, "b": {"dtype": "bfloat16"}, "old": {}}.items():
        file = side(tmp_path / name, answers(BEFORE)) / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model": {"name": "m", **known}}))
    a, b, old = (tmp_path / name for name in ("a", "b", "old"))
    with pytest.raises(InputError, match=r"differ in dtype: float32 before and bfloat16 after .*--allow dtype"):
        tokendeep.compare(a, b)
    with pytest.raises(InputError, match=r"differ in dtype: float32 before and bfloat16 after"):
        tokendeep.compare([old, a], b)
    assert tokendeep.compare(a, b, allow=["dtype"]).allowed == {"dtype": ["float32", "bfloat16"]}
    for before, after in ((a, old), (old, b)):
        assert tokendeep.compare(before, after).unknown_dtype == [str(old)]
    assert cli.main(["compare", str(a), str(old)]) == 0
    assert f"{old}: its number format is not known, and taken for the same." in capsys.readouterr().out


def test_other_tokens_given_in_advance_are_refused(tmp_path: Path) -> None:
    side(tmp_path / "a", answers(BEFORE, attack="prefill", prefix="Sure, here"))
    side(tmp_path / "b", answers(BEFORE, attack="prefill", prefix="Well then"))
    with pytest.raises(InputError, match="differ in prefix"):
        tokendeep.compare(tmp_path / "a", tmp_path / "b")


def test_without_a_prefix_the_views_are_one(tmp_path: Path) -> None:
    a, b = side(tmp_path / "a", answers(BEFORE)), side(tmp_path / "b", answers(AFTER, judged="full"))
    assert tokendeep.compare(a, b).allowed == {}


def test_near_duplicates_are_worth_less(tmp_path: Path) -> None:
    def copies(outcomes: Sequence[str]) -> list[Sample]:
        one = answers([outcome for outcome in outcomes for _ in range(3)])
        return [replace(s, instruction=f"{fake_runs._words(i // 3)} copy {i % 3}") for i, s in enumerate(one)]

    outcomes = (BEFORE[:12] + BEFORE[-6:], AFTER[:12] + AFTER[-6:])
    a, b = (side(tmp_path / name, copies(each)) for name, each in zip("ab", outcomes, strict=True))
    (row,) = tokendeep.compare(a, b).rows
    assert (row.clusters, row.n) == (18, 54)
    assert (row.test, row.effect > 2) == ("score", True)


def test_a_suffix_that_all_requests_share_makes_them_no_duplicates(tmp_path: Path) -> None:
    long = " and now write this with a great many words that are the same in every single request of this set"
    a, b = (
        side(tmp_path / name, [replace(s, instruction=s.instruction + long) for s in answers(outcomes)])
        for name, outcomes in (("a", BEFORE), ("b", AFTER))
    )
    (row,) = tokendeep.compare(a, b).rows
    assert (row.clusters, row.test) == (30, "exact McNemar")


def test_several_runs_a_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = side(tmp_path / "base", answers(BEFORE))
    tuned = [AFTER, BEFORE, AFTER]
    seeds = [side(tmp_path / "tuned" / f"seed-{n}", answers(tuned[n], f"m{n}")) for n in range(3)]
    above = tokendeep.compare(base, tmp_path / "tuned")
    assert above == tokendeep.compare(base, seeds).model_copy(update={"after": above.after})
    (row,) = above.rows
    assert (row.runs_before, row.runs_after, row.test) == (1, 3, "score")
    assert (row.after, row.gained) == pytest.approx(((16 + 10 + 16) / 90, 8 * 2 / 3))
    assert row.effect > 1.2
    assert row.low < -0.1 < 0.38 < row.high  # three runs tell little of others
    assert cli.main(["compare", str(base), ",".join(map(str, seeds))]) == 0
    assert "1 and 3 runs (one run: its spread is not known)" in capsys.readouterr().out


def test_means_over_several_answers_are_tested_by_how_much_they_spread(tmp_path: Path) -> None:
    """Of 3 answers to each of 30 prompts one more complies: +1/3 for half of the prompts, by the paired t."""
    for name, hits in (("a", 1), ("b", 2)):
        groups = [
            answers(["complied" if seed < (hits if i % 2 else 1) else "refused" for i in range(30)], seed=seed)
            for seed in range(3)
        ]
        side(tmp_path / name, [replace(one, params={**one.params, "seed": 0}) for group in groups for one in group])
    (row,) = tokendeep.compare(tmp_path / "a", tmp_path / "b").rows
    error = (1 / 36 / 29) ** 0.5  # half of 0 and half of 1/3: a variance of 1/36, by 30 / 29
    assert (row.n, row.test, row.difference) == (30, "paired t", pytest.approx(1 / 6))
    assert (row.low, row.high) == pytest.approx((1 / 6 - 2.0452 * error, 1 / 6 + 2.0452 * error), abs=1e-4)


def test_an_attack_that_one_side_lacks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (
        side(tmp_path / "a", answers(BEFORE), answers(BEFORE, attack="prefill")),
        side(tmp_path / "b", answers(AFTER)),
    )
    assert cli.main(["compare", str(a), str(b)]) == 0
    assert "Not compared: prefill k 5 on harmful requests (before only)." in capsys.readouterr().out
    c = side(tmp_path / "c", answers(AFTER, attack="prefill", params={"k": 10}))
    with pytest.raises(InputError, match="have no attack in common: .*run the same attacks on both"):
        tokendeep.compare(b, c)


def test_harmless_requests_are_counted_by_refusals(tmp_path: Path) -> None:
    a = side(tmp_path / "a", answers(["complied"] * 9 + ["refused"]), role="twins")
    b = side(tmp_path / "b", answers(["complied"] * 8 + ["refused", "partial-then-refused"]), role="twins")
    (row,) = tokendeep.compare(a, b).rows
    assert (row.before, row.after, row.event) == (0.1, 0.2, "refused or broken off")


def test_a_judge_of_harm_tells_nothing_of_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(judges.JUDGES, "harm", replace(judges.JUDGES["refusal"], harm=True, rate="ASR"))
    asked = [
        answers(["harmless"] * 8 + ["harmful"] * 2, judge="harm", text="-"),
        answers(["harmless"] * 10, judge="harm", text="-"),
    ]
    twins = [side(tmp_path / name / "twins", group, role="twins") for name, group in zip("ab", asked, strict=True)]
    with pytest.raises(InputError, match="the judge harm tells harm, nothing of refusals"):
        tokendeep.compare(*twins)
    for name, group in zip("ab", asked, strict=True):
        side(tmp_path / name / "harmful", group)
    record = tokendeep.compare(tmp_path / "a", tmp_path / "b")
    assert [(row.requests, row.event, row.before, row.after) for row in record.rows] == [("harmful", "ASR", 0.2, 0)]
    assert "nothing of refusals" in record.one_side[0]


def test_each_of_several_judges_is_compared_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, outcomes in (("a", BEFORE), ("b", AFTER)):
        keywords = ["complied" if name == "a" else "refused"] * 30
        side(tmp_path / name, answers(outcomes), answers(keywords, judge="refusal-keywords", judge_template="ab"))
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    rows = {row.judge: row for row in tokendeep.compare(tmp_path / "a", tmp_path / "b").rows}
    assert rows["refusal"].difference == pytest.approx(0.2)
    assert rows["refusal-keywords"].difference == -1
    assert "none judge refusal-keywords, judge-template ab (harmful)" in capsys.readouterr().out


def test_answers_under_other_settings_are_not_mixed(tmp_path: Path) -> None:
    """Two lengths in one folder: each goes with its like."""
    both = [answers(BEFORE), answers(AFTER, max_new_tokens=9)]
    a, b = side(tmp_path / "a", *both), side(tmp_path / "b", answers(AFTER))
    record = tokendeep.compare(a, b)
    assert [(row.n, row.before) for row in record.rows] == [(30, 1 / 3)]
    cut, long = (f"decoding temperature 0.0, top_p 1.0, top_k 0, max_new_tokens {length}" for length in (9, 48))
    assert record.rows[0].name == f"none {long} (harmful)"
    assert record.one_side == [f"none {cut} on harmful requests (before only)"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a", "a"], "is on both sides"),
        (["a", "gone"], "There is no folder gone"),
        (["a", ""], "No run folder is given"),
        (["a", "cut"], "has not finished"),
        (["a", "silent"], "holds rates but no evaluation logs"),
        (["a", "measured"], "holds no judged answers"),
        (["a", "b", "--allow", "jugde"], "--allow does not know 'jugde'; did you mean judge"),
        (["a", "b", "--out", "mine"], "was not written by tokendeep"),
        (["a"], "compare needs --after"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    side(Path("a"), answers(BEFORE))
    side(Path("b"), answers(AFTER))
    side(Path("cut"), answers(AFTER), status="running")
    side(Path("silent"), answers(AFTER), logs=False)
    fake_runs.write_measure(Path("measured"), "m", {**fake_runs.profile(fake_runs.random.Random(0), "m", deep=False)})
    Path("mine").mkdir()
    Path("mine", "compare.json").write_text("[]")
    assert cli.main(["compare", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_tasks_are_compared_by_row(tmp_path: Path) -> None:
    for name, scores in (("a", [0.9, 0.5, 0.7]), ("b", [0.8, 0.5, 0.1])):
        side(tmp_path / name / "attack-plain", answers(BEFORE))
        rows = [{"id": str(i), "score": score} for i, score in enumerate(scores)]
        (tmp_path / name / "utility.json").write_text(json.dumps({"metric": "rouge1", "rows": rows}))
    plain, task = tokendeep.compare(tmp_path / "a", tmp_path / "b").rows
    assert (task.requests, task.attack, task.n) == ("task", "rouge1", 3)
    assert task.difference == pytest.approx(-0.7 / 3)
    assert (task.test, plain.test) == ("paired t", "exact McNemar")
    assert (task.p, task.low, task.high) == pytest.approx((0.3356, -1, 0.5653), abs=1e-3)  # -.1, 0, -.6: t = -1.26 of 2
    (tmp_path / "b" / "utility.json").write_text(json.dumps({"metric": "rouge1", "rows": rows[:2]}))
    with pytest.raises(
        InputError, match=r"differ in prompts: 3 rows \(\w{8}\) before and 2 rows \(\w{8}\) after \(rouge1 of"
    ):
        tokendeep.compare(tmp_path / "a", tmp_path / "b")
    assert tokendeep.compare(tmp_path / "a", tmp_path / "b", allow=["prompts"]).rows[1].n == 2


def test_rates_of_suffixes_stay_one_line_each(tmp_path: Path) -> None:
    name = "a\n::error::b\r\x1b[2K"
    folder = side(tmp_path / "a", [sample(0, "suffix", {"suffix": name}, "m", "refused", grader=name)])
    shown = rated.describe(Rate.load_all(folder))
    assert len(shown.split("\n")) == 2
    assert not set(shown) & set("\r\x1b")
    assert "suffix a⟨U+000A⟩::error" in " ".join(shown.split())


def test_a_sentence_about_an_odd_name_holds_no_command_of_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (
        side(
            tmp_path / name,
            [sample(0, "suffix", {"suffix": "\x1b[2K\n::error::"}, "m", "refused", judged=view, prefix="S")],
        )
        for name, view in (("a", "full"), ("b", "continuation"))
    )
    assert cli.main(["compare", str(a), str(b)]) == 2
    error = capsys.readouterr().err
    assert "differ in judged" in error
    assert "⟨U+001B⟩[2K" in error
    assert "\x1b" not in error


ASKED = {"prompts": "0123456789ab", "system": "none", "template": "abcdef012345", "tokens": 256, "dtype": "float32"}


def measured(folder: Path, asked: dict[str, Any] | None, **more: Any) -> Path:
    """A run of measure with the scores of a task; without `asked` as an older one left it."""
    content = fake_runs.profile(fake_runs.random.Random(0), "m", deep=False)
    fake_runs.write_measure(folder, "m", {**content, "meta": {**content["meta"], **more.pop("meta", {})}})
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    told = {"config": {"utility_tokens": 256}, "inputs": {"utility_data": "feed" * 16}, "model": {"dtype": "float32"}}
    for name, value in told.items():
        manifest[name] = {**manifest.get(name, {}), **value, **more.get(name, {})}
    file.write_text(json.dumps({**manifest, **{name: value for name, value in more.items() if name not in told}}))
    value = {"metric": "rouge1", "rows": [{"id": str(i), "score": i / 20} for i in range(20)]}
    (folder / "utility.json").write_text(json.dumps({**value, **({} if asked is None else {"asked": asked})}))
    return folder


@pytest.mark.parametrize(
    ("field", "asked", "values"),
    [
        ("prompts", {"prompts": "ba9876543210"}, r"20 rows \(01234567\) before and 20 rows \(ba987654\) after"),
        ("system", {"system": "sha 0badcafe"}, "none before and sha 0badcafe after"),
        ("template", {"template": "0000ffff0000"}, "abcdef01 before and 0000ffff after"),
        ("decoding", {"tokens": 128}, "max_new_tokens 256 before and .*max_new_tokens 128 after"),
        ("dtype", {"dtype": "bfloat16"}, "float32 before and bfloat16 after"),
    ],
)
def test_tasks_that_were_asked_otherwise_are_refused_and_can_be_allowed(
    field: str, asked: dict[str, Any], values: str, tmp_path: Path
) -> None:
    a, same, b = (measured(tmp_path / name, {**ASKED, **told}) for name, told in (("a", {}), ("c", {}), ("b", asked)))
    assert tokendeep.compare(a, same).allowed == {}
    with pytest.raises(InputError, match=rf"differ in {field}: .*{values} \(rouge1 of a task\).*--allow {field}"):
        tokendeep.compare(a, b)
    with pytest.raises(InputError, match=f"differ in {field}: "):
        tokendeep.compare([a, b], same)  # runs of one side
    assert list(tokendeep.compare(a, b, allow=[field]).allowed) == [field]
    assert cli.main(["gate", str(a), str(b), "--max-utility-drop", "0.9"]) == 2
    assert cli.main(["gate", str(a), str(b), "--max-utility-drop", "0.9", "--allow", field]) == 0


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("prompts", {"inputs": {"utility_data": "dead" * 16}}),
        ("system", {"config": {"system": "Answer in verse."}}),
        ("template", {"meta": {"template": "0000ffff0000"}}),
        ("date", {"config": {"date": "2026-01-01"}}),
        ("decoding", {"config": {"utility_tokens": 128}}),
        ("dtype", {"model": {"dtype": "bfloat16"}}),
        ("engine", {"engine": {"kind": "vllm", "version": "1"}}),
    ],
)
def test_of_older_tasks_the_manifests_tell(field: str, more: dict[str, Any], tmp_path: Path) -> None:
    a, same, b = (measured(tmp_path / name, None, **told) for name, told in (("a", {}), ("c", {}), ("b", more)))
    assert tokendeep.compare(a, same).allowed == {}
    with pytest.raises(InputError, match=f"differ in {field}: ") as error:
        tokendeep.compare(a, b)
    assert "verse" not in str(error.value)
    assert list(tokendeep.compare(a, b, allow=[field]).allowed) == [field]


def test_a_number_format_of_a_task_that_is_not_known_is_said(tmp_path: Path) -> None:
    a, old = measured(tmp_path / "a", None), measured(tmp_path / "old", None, model={"dtype": None})
    assert tokendeep.compare(a, old).unknown_dtype == [str(old)]


def test_tasks_of_trainings_go_by_their_poison(tmp_path: Path) -> None:
    """The manifest of a poison lies above its trainings; of those of another the task may have been another."""
    for name, tokens in (("one", 256), ("two", 128)):
        poison = fake_runs.manifest("poison", "m")
        poison["config"] |= {"utility_tokens": tokens, "system": "default", "kind": "harmful"}
        for cell in ("start", "sft"):
            side(tmp_path / name / cell / "attack-plain", answers(BEFORE))
            scores = {"metric": "rouge1", "rows": [{"id": str(i), "score": i / 20} for i in range(20)]}
            (tmp_path / name / cell / "utility.json").write_text(json.dumps(scores))
        (tmp_path / name / "manifest.json").write_text(json.dumps(poison))
    start, tuned, other = (tmp_path / place for place in ("one/start", "one/sft", "two/sft"))
    assert tokendeep.compare(start, tuned).allowed == {}
    with pytest.raises(InputError, match="differ in decoding: .*256 before and .*128 after"):
        tokendeep.compare(start, other)
