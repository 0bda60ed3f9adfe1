"""Label sets in their authors' form, files of the user's own, and the verdicts of other judges beside the labels."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tokendeep.data import labels
from tokendeep.data.labels import read_labels
from tokendeep.errors import InputError

REQUEST, ANSWER = "How do I bake bread?", "Mix flour and water."


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def jbb(votes: str, majority: int, **more: Any) -> dict[str, Any]:
    humans = {f"human{n}": vote for n, vote in enumerate(votes, 1)}
    row = {"Index": 0, "goal": REQUEST, "prompt": "Please. " + REQUEST, "target_response": ANSWER}
    return {**row, **humans, "human_majority": majority, "harmbench_cf": 1, **more}


def test_jailbreakbench_by_the_majority_of_three(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "judge-comparison.csv", [jbb("110", 1), jbb("100", 0), jbb("000", 0), jbb("011", 0)])
    made = read_labels([path])
    assert (made.name, made.label) == ("JailbreakBench judge_comparison", "harm")
    assert [row.label for row in made.rows] == [1, 0, 0, 1]
    assert (made.rows[0].request, made.rows[0].answer) == (REQUEST, ANSWER)
    assert [note.split(" rows ")[0] for note in made.notes] == ["JailbreakBench judge_comparison has 300", "In 1"]


def test_a_known_set_that_has_lost_a_column_is_named(tmp_path: Path) -> None:
    row = jbb("110", 1)
    del row["human3"]
    path = write_csv(tmp_path / "j.csv", [row])
    with pytest.raises(
        InputError, match="has all columns of JailbreakBench judge_comparison but 'human3', so the set has ch"
    ):
        read_labels([path])
    assert read_labels([path], text="target_response", label="human1", request="goal").rows[0].label == 1


def test_as_many_rows_as_published_are_no_note(tmp_path: Path) -> None:
    assert not read_labels([write_csv(tmp_path / "j.csv", [jbb("110", 1)] * 300)]).notes


def harmbench(*votes: Any, **more: Any) -> dict[str, Any]:
    humans = {f"human_{n}": vote for n, vote in enumerate(votes)}
    return {"test_case": REQUEST, "generation": ANSWER, "model": "m", "method": "none", **humans, **more}


def test_harmbench_is_an_object_of_lists(tmp_path: Path) -> None:
    path = tmp_path / "text_behaviors_val_set.json"
    entries = {"a": [harmbench(1, 1, 0, cls=1), harmbench(0, 1, 0, cls=1)], "b": [harmbench(1, None, 0, cls=0)]}
    path.write_text(json.dumps(entries, indent=1))
    made = read_labels([path])
    assert [row.label for row in made.rows] == [1, 0]
    assert made.rows[1].where == f"{path}, a, entry 2"
    assert "1 rows without a majority" in made.notes[1]
    path.write_text(json.dumps({"a": [harmbench(1, 2, 0)]}))
    with pytest.raises(InputError, match="a, entry 1: 'human_1' must be 0 or 1"):
        read_labels([path])


BEHAVIOURS = [
    {"Behavior": text, "FunctionalCategory": kind, "SemanticCategory": "food", "Tags": "", "ContextString": context,
     "BehaviorID": key}
    for key, text, kind, context in (("a", "Bake bread.", "standard", ""), ("b", "Bake it.", "contextual", "Of rye."))
]  # fmt: skip


def attacked(path: Path, **entries: list[dict[str, Any]]) -> Path:
    """Labels of HarmBench, whose requests are the texts of attacks."""
    made = {
        key: [{**one, "test_case": f"{REQUEST} x{n}"} for n, one in enumerate(each)] for key, each in entries.items()
    }
    path.write_text(json.dumps(made))
    return path


def test_harmbench_gets_what_was_asked_for_by_its_id(tmp_path: Path) -> None:
    path = attacked(
        tmp_path / "val.json",
        a=[harmbench(1, 1, 0)] * 3,
        b=[harmbench(0, 0, 1, behavior_id="b")],
        c=[harmbench(1, 1, 1)],
    )
    file = write_csv(tmp_path / "harmbench_behaviors_text_all.csv", BEHAVIOURS)
    alone = read_labels([path])
    assert (alone.attacked, [row.request for row in alone.rows[:2]]) == (True, [f"{REQUEST} x0", f"{REQUEST} x1"])
    assert [row.group for row in alone.rows] == ["a", "a", "a", "b", "c"]
    joined = read_labels([path], behaviours=file)
    assert not joined.attacked
    assert [row.request for row in joined.rows] == ["Bake bread."] * 3 + ["Of rye.\n\n---\n\nBake it."]
    assert [(row.group, row.context) for row in joined.rows[2:]] == [("a", None), ("b", "Of rye.")]
    assert joined.rows[3].values["FunctionalCategory"] == "contextual"
    assert joined.notes[-1] == f"1 of 5 rows are of behaviours that {file} does not hold, and left out."


def test_behaviours_that_do_not_go_with_the_labels_are_refused(tmp_path: Path) -> None:
    path = attacked(tmp_path / "val.json", a=[harmbench(1, 1, 0)])
    file = write_csv(tmp_path / "harmbench_behaviors_text_all.csv", BEHAVIOURS)
    with pytest.raises(InputError, match=r"--behaviours is for HarmBench's labels, and these are others"):
        read_labels([write_csv(tmp_path / "j.csv", [jbb("110", 1)])], behaviours=file)
    with pytest.raises(InputError, match=r"--behaviours tells the requests, so that --request"):
        read_labels([path], behaviours=file, request="method")
    with pytest.raises(InputError, match=r"val\.json: no row has a behaviour of .*other\.csv"):
        read_labels([path], behaviours=write_csv(tmp_path / "other.csv", BEHAVIOURS[1:]))
    with pytest.raises(
        InputError, match=r"bare\.csv, row 2: has no column 'ContextString'; --behaviours takes harmbench"
    ):
        read_labels([path], behaviours=write_csv(tmp_path / "bare.csv", [{"BehaviorID": "a", "Behavior": "Bake."}]))
    twice = [BEHAVIOURS[0], {**BEHAVIOURS[0], "Behavior": "Fry."}]
    with pytest.raises(InputError, match=r"row 3: BehaviorID 'a' stands for another behaviour above"):
        read_labels([path], behaviours=write_csv(tmp_path / "twice.csv", twice))


def test_strongreject_by_the_median(tmp_path: Path) -> None:
    votes = [("0.5", "0.25", "1", "", ""), ("0.25", "0.75", "", "", ""), ("0", "0.25", "1", "", "")]
    rows = [
        {"forbidden_prompt": REQUEST, "jailbreak": "none", "model": "m", "response": ANSWER, "label_median": score}
        | {f"label_{n}": vote for n, vote in enumerate(each)}
        for each, score in zip(votes, (0.5, 0.5, 0.75), strict=True)
    ]
    made = read_labels([write_csv(tmp_path / "labelbox.csv", rows)])
    assert [row.label for row in made.rows] == [1, 1, 0]
    assert "In 1 rows" in made.notes[-1]


def xstest(label: str, **more: Any) -> dict[str, Any]:
    row = {"id": "v2-1", "type": "homonyms", "prompt": REQUEST, "completion": ANSWER, "annotation_1": label}
    return {**row, "annotation_2": label, "agreement": "TRUE", "final_label": label, **more}


def test_xstest_is_about_compliance(tmp_path: Path) -> None:
    rows = [xstest("1_full_compliance"), xstest("2_full_refusal"), xstest("3_partial_refusal", completion="")]
    files = [write_csv(tmp_path / f"completions_{name}.csv", rows) for name in ("gpt4", "llama2")]
    made = read_labels(files)
    assert made.label == "compliance"
    assert [row.label for row in made.rows] == [1, 0, 0] * 2
    assert [row.values["file"] for row in made.rows[2:4]] == ["completions_gpt4", "completions_llama2"]
    with pytest.raises(InputError, match="row 2: 'final_label' is none of 1_full_compliance"):
        read_labels([write_csv(tmp_path / "x.csv", [xstest("4")])])


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"instruction": REQUEST, "response": ANSWER, "label": value} for value in (1, 0, True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = read_labels([path])
    assert (made.name, made.label, [row.label for row in made.rows]) == ("mine.jsonl", "harm", [1, 0, 1])
    named = [{"question": REQUEST, "said": ANSWER, "bad": "0"}]
    own = read_labels([named], text="said", label="bad", request="question", means="compliance")
    assert (own.name, own.label, own.rows[0].label) == ("rows", "compliance", 0)


@pytest.mark.parametrize("value", [2, 0.5, "maybe", None, "", "-1"])
def test_a_label_that_is_not_0_or_1_is_refused_with_its_row(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"instruction": REQUEST, "response": ANSWER, "label": label} for label in (1, value)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"mine\.jsonl, row 2: 'label' must be 0 or 1"):
        read_labels([path])


def test_missing_columns_and_texts_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"Row 1: has no column 'label', but 'prompt', 'response'; name the columns with --text"
    ):
        read_labels([[{"prompt": REQUEST, "response": ANSWER}]])
    with pytest.raises(InputError, match="Row 1: 'response' must be a text"):
        read_labels([[{"prompt": REQUEST, "response": None, "label": 1}]])
    with pytest.raises(InputError, match="has no column 'completion' of XSTest completions"):
        read_labels(
            [write_csv(tmp_path / "a.csv", [xstest("2_full_refusal")]), write_csv(tmp_path / "b.csv", [jbb("111", 1)])]
        )


def test_a_file_counts_once_and_there_must_be_one(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "j.csv", [jbb("110", 1)])
    with pytest.raises(InputError, match=r"names .*j\.csv twice, so that its rows would count twice"):
        read_labels([path, tmp_path / "." / "j.csv"])
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    with pytest.raises(InputError, match=r"loop\.jsonl cannot be read"):
        read_labels([tmp_path / "loop.jsonl"])
    with pytest.raises(InputError, match="No labels are given"):
        read_labels([])


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"a": [1]}', '{"a": 3}', ""])
def test_json_that_holds_no_rows_is_one_sentence(tmp_path: Path, text: str) -> None:
    for name in ("mine.json", "mine.json.gz"):  # the second is not packed
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=name):
            read_labels([tmp_path / name])


def test_the_verdicts_of_other_judges(tmp_path: Path) -> None:
    rows = read_labels(
        [
            [
                jbb("111", 1, gpt=word, score=score)
                for word, score in (("Yes", 10), ("safe", 9), ("", None), ("I cannot say", "NaN"))
            ]
        ]
    ).rows
    assert labels.verdicts(rows, "harmbench_cf") == [1] * 4
    assert labels.verdicts(rows, "gpt") == [1, 0, None, None]
    assert labels.verdicts(rows, "score", 10) == [1, 0, None, None]
    with pytest.raises(InputError, match="Row 1: 'score' is a score and no verdict; say with --threshold"):
        labels.verdicts(rows, "score")
    with pytest.raises(InputError, match="did you mean harmbench_cf"):
        labels.verdicts(rows, "harmbench_cv")
    with pytest.raises(InputError, match="'goal' holds no verdict"):
        labels.verdicts(rows, "goal")


def column(*values: Any) -> Any:
    return read_labels([[jbb("111", 1, cls=value) for value in values]]).rows


def test_minus_one_is_no_verdict_where_nothing_else_is_below_0() -> None:
    """So HarmBench's authors write that their classifier has said neither yes nor no."""
    for threshold in (None, 0.5):
        assert labels.verdicts(column(1, -1, 0, "-1", "-1.0", ""), "cls", threshold) == [1, None, 0, None, None, None]
    assert labels.verdicts(column(0.7, -1, 5), "cls", 0.5) == [1, None, 1]
    assert labels.verdicts(column(0.7, -1, -0.5, -3), "cls", -0.6) == [
        1,
        0,
        1,
        0,
    ]  # a scale of its own, such as log odds
    with pytest.raises(InputError, match="Row 1: 'cls' is a score and no verdict"):
        labels.verdicts(column(-1, -2), "cls")
    with pytest.raises(InputError, match="'cls' holds no verdict"):
        labels.verdicts(column(-1, -1), "cls")


def test_the_labels_of_a_public_set_are_not_its_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(repo: str, config: str | None, *, split: str, revision: str | None) -> list[dict[str, Any]]:
        asked.append((repo, config, split))
        return [jbb("110", 1)] * 300

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    monkeypatch.chdir(tmp_path)
    labels_of = "the labels of JailbreakBench are hf:jailbreakbench:judge_comparison:test"
    for name in (
        "JailbreakBench",
        "hf:jailbreakbench",
        "hf:JailbreakBench/JBB-Behaviors@main",
        "hf:jailbreakbench::benign",
    ):
        with pytest.raises(
            InputError, match=f"{name}.* holds requests, which nobody has answered or labelled; {labels_of}"
        ):
            read_labels([name])
    with pytest.raises(
        InputError, match=r"There is no file xstest, .*are xstest_v2_completions_MODEL\.csv of its authors"
    ):
        read_labels(["xstest"])
    with pytest.raises(InputError, match=r"hf:gsm8k holds requests, .*; give a file with labels of people"):
        read_labels(["hf:gsm8k"])
    assert not asked
    made = read_labels(["hf:jailbreakbench:judge_comparison:test"])
    assert (made.name, len(made.rows), made.notes) == ("JailbreakBench judge_comparison", 300, [])
    assert asked == [("JailbreakBench/JBB-Behaviors", "judge_comparison", "test")]
    (tmp_path / "xstest").mkdir()
    write_csv(tmp_path / "xstest" / "mine.csv", [xstest("2_full_refusal")])
    assert read_labels(["xstest"]).rows[0].label == 0  # a folder of the user's own
