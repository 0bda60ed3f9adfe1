"""VERB audit: what it writes and says, which rows it cannot score, that it goes on, and what it refuses."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

import tokendeep
from killed import forget_runs
from tokendeep import cli, data, models
from tokendeep.audits import SCORES
from tokendeep.audits import base as audits_base
from tokendeep.audits import rows as audited_rows
from tokendeep.errors import InputError
from tokendeep.records import Audit
from tokendeep.report import load
from tokendeep.runs import parts
from tokendeep.verbs import audit
from tokendeep.verbs.audit import AuditOptions
from tuning import writer

SECRET = "boil an egg without water"  # text of rows, which is written to the private files alone
REFUSAL = "I'm sorry, but I can't help with that."
ROWS = [{"id": f"r{n}", "prompt": f"Say number {n}", "completion": f"It is {n * 7}, said {SECRET}."} for n in range(9)]
LABELLED = [{**row, "planted": n % 3 == 0} for n, row in enumerate(ROWS)]
TRIPLES = [
    {
        "id": f"t{n}",
        "instruction": f"How do I open window {n}?",
        "harmful": f"First, break pane {n}.",
        "refusal": REFUSAL,
    }
    for n in range(3)
]

SHORT = [{"id": f"s{n}", "instruction": f"win {n}?", "harmful": f"First, {n}", "refusal": "I can't."} for n in range(3)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write(tmp_path / "chats.jsonl", ROWS)


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    return write(tmp_path / "labelled.jsonl", LABELLED)


@pytest.fixture
def triples(tmp_path: Path) -> str:
    return write(tmp_path / "triples.jsonl", TRIPLES)


def run(out: Path, model: Any, source: str, **more: Any) -> Path:
    given = {"score": ["margin"], "cut": "2", "dtype": "float32", **more}
    given = {**({"last_layers": 1} if "gradient" in given["score"] else {}), **given}
    return audit.run(audit.plan(AuditOptions(model=str(model), data=source, out=str(out), **given)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", SCORES)
def test_rows_are_ranked_and_the_top_is_taken_out(
    name: str, tmp_path: Path, tiny_folder: Path, rows: str, triples: str, capsys: Any
) -> None:
    out = run(tmp_path / "out", tiny_folder, rows, score=[name], probe=triples if SCORES[name].probed else None)
    made = Audit.load(out)
    values = [row.scores[name] for row in made.rows]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 5
    assert [row.rank for row in made.rows] == list(range(1, 10))
    assert [row.flagged for row in made.rows] == [True] * 2 + [False] * 7
    flagged = [row.row for row in made.rows[:2]]
    assert lines(out / "flagged.jsonl") == [ROWS[place - 1] for place in flagged]
    assert lines(out / "cleaned.jsonl") == [row for place, row in enumerate(ROWS, 1) if place not in flagged]
    for private in ("flagged.jsonl", "cleaned.jsonl"):
        assert not (out / private).stat().st_mode & 0o077
    said = capsys.readouterr().out
    assert f"audit: 2 of 9 rows of chats.jsonl are taken out by {name} (--cut 2)" in said
    assert f"the first: {made.rows[0].reason}" in said
    for text in (said, (out / "audit.json").read_text(), (out / "manifest.json").read_text()):
        assert SECRET not in text
        assert "Say number" not in text
    assert made.rows[0].id == f"r{flagged[0] - 1}"
    assert not (out / "parts").exists()


def test_the_cleaned_rows_can_be_trained_on_and_hashes_are_of_the_rows(
    tmp_path: Path, tiny_folder: Path, rows: str
) -> None:
    out = run(tmp_path / "out", tiny_folder, rows, cut="0.2")
    assert len(data.read_chats(out / "cleaned.jsonl")) == 7
    again = run(tmp_path / "again", tiny_folder, write(tmp_path / "turned.jsonl", ROWS[::-1]))
    assert {row.id: row.hash for row in Audit.load(out).rows} == {row.id: row.hash for row in Audit.load(again).rows}
    assert len({row.hash for row in Audit.load(out).rows}) == 9


def test_an_adapter_whose_base_has_moved_is_loaded_onto_the_one_given(
    tmp_path: Path, tiny_folder: Path, tiny_adapter: Path, rows: str, triples: str, capsys: Any
) -> None:
    expected = Audit.load(run(tmp_path / "before", tiny_adapter, rows))
    moved = tiny_folder.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="give it with --base"):
        run(tmp_path / "without", tiny_adapter, rows)
    for number, more in enumerate(({"score": ["margin"]}, {"score": ["margin", "gradient"], "probe": triples})):
        made = Audit.load(run(tmp_path / f"onto-{number}", tiny_adapter, rows, base=str(moved), **more))
        assert [row.id for row in made.rows] == [row.id for row in expected.rows]
        assert f"--model {tiny_adapter} --base {moved}" in capsys.readouterr().out.replace("'", "")
    with pytest.raises(InputError, match="--base is given, but the score margin does not look at it; leave it out"):
        run(tmp_path / "whole", moved, rows, base=str(moved))


@pytest.mark.parametrize("saved", [False, True])
def test_rows_of_several_shards_are_written_as_they_were_read(tmp_path: Path, tiny_folder: Path, saved: bool) -> None:
    folder = tmp_path / "shards"
    if saved:
        pytest.importorskip("datasets").Dataset.from_list(ROWS).save_to_disk(folder, num_shards=2)
    else:
        folder.mkdir()
        for number, part in enumerate((ROWS[:5], ROWS[5:])):
            write(folder / f"train-{number:05}-of-00002.jsonl", part)
    out = run(tmp_path / "out", tiny_folder, str(folder))
    made = {row.id: row for row in Audit.load(out).rows}
    assert sorted(row.row for row in made.values()) == list(range(1, 10))
    ranked = sorted((row for row in made.values() if row.flagged), key=lambda row: row.rank or 0)
    assert [row["id"] for row in lines(out / "flagged.jsonl")] == [row.id for row in ranked]
    assert lines(out / "cleaned.jsonl") == [row for row in ROWS if not made[row["id"]].flagged]


def test_a_row_that_the_template_cannot_hold_is_named_by_its_file(tmp_path: Path, tiny_folder: Path) -> None:
    wrong = {**ROWS[6], "chat_template_kwargs": {"mood": "calm"}}
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, part in enumerate((ROWS[:5], [ROWS[5], wrong])):
        write(folder / f"train-{number:05}-of-00002.jsonl", part)
    with pytest.raises(InputError, match=r"train-00001-of-00002\.jsonl, row 2 \(r6\): .*mood"):
        run(tmp_path / "out", tiny_folder, str(folder))


def test_labels_give_figures_and_are_no_part_of_the_rows(
    tmp_path: Path, tiny_folder: Path, rows: str, labelled: str, capsys: Any
) -> None:
    out = run(tmp_path / "out", tiny_folder, labelled, labels="planted", score=["likelihood", "margin"])
    made = Audit.load(out)
    assert [row.label for row in sorted(made.rows, key=lambda row: row.row)] == [1, 0, 0] * 3
    for score in made.scores:
        planted, others = ([row.scores[score.name] for row in made.rows if row.label == label] for label in (1, 0))
        wins = np.mean([a > b for a in planted for b in others])
        assert score.detection is not None
        assert score.detection.auroc.value == pytest.approx(wins)
        assert (score.detection.positives, score.detection.negatives) == (3, 6)
    assert "likelihood against the labels: AUROC" in capsys.readouterr().out
    assert list(made.to_frame()["likelihood"]) == [row.scores["likelihood"] for row in made.rows]
    plain = Audit.load(run(tmp_path / "plain", tiny_folder, rows, score=["likelihood"]))
    assert [row.scores["likelihood"] for row in plain.rows] == [row.scores["likelihood"] for row in made.rows]
    assert len(data.read_chats(out / "cleaned.jsonl")) == 7  # without a column that no training knows
    with pytest.raises(InputError, match="unknown column 'planted'"):
        run(tmp_path / "unknown", tiny_folder, labelled)


def test_rows_that_cannot_be_scored_are_counted_and_said(tmp_path: Path, tiny_folder: Path, capsys: Any) -> None:
    long = {"id": "long", "prompt": "word " * 200, "completion": "yes"}
    shortened = {"id": "cut", "prompt": "Go on", "completion": "and on " * 60}
    empty = {"id": "empty", "prompt": "Say nothing", "completion": "  "}
    source = write(tmp_path / "chats.jsonl", [empty, *ROWS[:4], long, shortened])
    out = run(tmp_path / "out", tiny_folder, source, max_length=100, cut="1")
    made = Audit.load(out)
    assert (made.unscored, made.shortened, made.flagged) == (2, 1, 1)
    assert [(row.row, row.rank, row.scores) for row in made.rows[-2:]] == [(1, None, {}), (6, None, {})]
    assert "leaves no room in 100" in made.rows[-1].reason
    assert {row.id for row in made.rows if row.shortened} == {"cut"}
    written = [row["id"] for name in ("cleaned", "flagged") for row in lines(out / f"{name}.jsonl")]
    assert sorted(written) == ["cut", "r0", "r1", "r2", "r3"]
    said = capsys.readouterr().out
    assert "2 rows are in neither file, for they cannot be scored; row 1: not scored: " in said
    assert "1 rows are longer than the longest length" in said


def test_equal_scores_at_the_cut_are_said(tmp_path: Path, tiny_folder: Path, capsys: Any) -> None:
    source = write(tmp_path / "chats.jsonl", [{**ROWS[0], "id": f"same{n}"} for n in range(4)])
    out = run(tmp_path / "out", tiny_folder, source)
    assert Audit.load(out).tied == 2
    assert [row["id"] for row in lines(out / "flagged.jsonl")] == ["same0", "same1"]
    assert "2 rows that are left score as the last one that is taken out" in capsys.readouterr().out


def test_of_all_turns_the_highest_counts(tmp_path: Path, tiny_folder: Path) -> None:
    turns = [{"role": "user", "content": "Say a"}, {"role": "assistant", "content": "It is a window."},
             {"role": "user", "content": "Say b"}, {"role": "assistant", "content": "zq vx jk wq"}]  # fmt: skip
    source = write(
        tmp_path / "chats.jsonl", [{"id": "whole", "messages": turns}, {"id": "first", "messages": turns[:2]}]
    )
    values = {}
    for which in ("last_turn", "all_turns"):
        out = run(tmp_path / which, tiny_folder, source, train_on=which, score=["likelihood"], cut="1")
        values[which] = {row.id: row.scores["likelihood"] for row in Audit.load(out).rows}
    assert values["all_turns"]["whole"] == pytest.approx(max(values["last_turn"].values()), rel=1e-5)
    table = audited_rows.by_row(3, [0, 0, 2, 2], np.array([5.0, 1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(table, [5.0, np.nan, 3.0])  # wherever it stands


def test_a_run_that_was_cut_off_goes_on(
    tmp_path: Path, tiny_folder: Path, rows: str, triples: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    more = {"score": list(SCORES), "probe": triples, "batch_size": 4}
    whole = run(tmp_path / "whole", tiny_folder, rows, **more)
    add, added = parts.Parts.add, []

    def dies(self: Any, values: Any) -> None:
        add(self, values)
        added.append(len(values))
        if len(added) == 4:  # 9 rows are 3 batches: in the second score
            raise KeyboardInterrupt

    monkeypatch.setattr(parts.Parts, "add", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", tiny_folder, rows, **more)
    forget_runs()
    monkeypatch.setattr(parts.Parts, "add", lambda self, values: (added.append(len(values)), add(self, values))[1])
    out = run(tmp_path / "cut", tiny_folder, rows, **more)
    assert sum(added) == 9 * len(SCORES)  # nothing twice
    assert [row.scores for row in Audit.load(out).rows] == [row.scores for row in Audit.load(whole).rows]
    capsys.readouterr()
    monkeypatch.setattr(audits_base, "by_batch", None)
    assert run(tmp_path / "cut", tiny_folder, rows, **more) == out
    said = capsys.readouterr().out
    assert "already holds this finished run" in said
    assert "are taken out by" in said


def test_a_dry_run_writes_nothing_and_loads_no_weights(
    tmp_path: Path, tiny_folder: Path, rows: str, capsys: Any
) -> None:
    (tiny_folder / "model.safetensors").write_bytes(b"nothing")
    words = [
        "audit",
        "--model",
        str(tiny_folder),
        "--data",
        rows,
        "--out",
        str(tmp_path / "out"),
        "--score",
        "gradient",
    ]
    assert cli.main([*words, "--cut", "34%", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert f"rows: 9 of {rows}" in said
    assert "cut: the 3 rows at the top are taken out" in said
    assert "probe: 64 requests of the stock, 0 with a harmful answer" in said


def test_requests_alone_are_answered_by_a_base_and_refused_by_the_model(
    tmp_path: Path, tiny_folder: Path, rows: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from tokendeep.training import answers

    asked: list[Any] = []

    def say(subject: Any, request: str, opening: str) -> str:
        return (
            REFUSAL
            if len(asked) > 1 or "window 1" in request
            else "First, break the pane, then reach in and lift the latch."
        )

    monkeypatch.setattr(answers, "write_answers", writer(say, asked))
    source = write(tmp_path / "asked.jsonl", [{"id": row["id"], "instruction": row["instruction"]} for row in TRIPLES])
    more = {"score": ["representation"], "probe": source, "base": str(tiny_folder)}
    out = run(tmp_path / "out", tiny_folder, rows, **more)
    said = capsys.readouterr().out
    assert f"{tiny_folder} answers" in said
    assert "the model refuses" in said
    assert "is few: read the scores with care" in said
    assert not (out / "probe.jsonl").stat().st_mode & 0o077
    assert [row["refusal"] for row in lines(out / "probe.jsonl")] == [REFUSAL] * len(lines(out / "probe.jsonl"))
    assert "break the pane" not in said


def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, tiny_folder: Path, rows: str, triples: str) -> None:
    def refused(**more: Any) -> str:
        with pytest.raises(InputError) as caught:
            run(tmp_path / "out", more.pop("model", tiny_folder), more.pop("source", rows), **more)
        assert not (tmp_path / "out").exists()
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "--score names 'margins', which is none; did you mean margin." in refused(score=["margins"])
    assert "--score names margin twice" in refused(score=["margin", "margin"])
    assert "--score names none" in refused(score=[])
    assert "must be a share such as 0.05" in refused(cut="some")
    assert "flags all of the 9 rows" in refused(cut="9")
    assert "--tokens is 0" in refused(tokens=0)
    assert "There is no model at" in refused(model=tmp_path / "none")
    assert "There is no file" in refused(source=str(tmp_path / "none.jsonl"))
    assert "has no column 'label' for --labels" in refused(labels="label")
    assert "row 1" in refused(labels="id")
    assert "must be 0 or 1 for --labels" in refused(labels="id")
    same = write(tmp_path / "same.jsonl", [{**row, "planted": 0} for row in ROWS])
    assert "all 9 rows have the label 0, so no score can be evaluated" in refused(source=same, labels="planted")
    asked = write(tmp_path / "asked.jsonl", [{"instruction": "How do I open a window?"}])
    assert "asked.jsonl holds requests alone: give --base" in refused(score=["representation"], probe=asked)
    assert "the stock of requests has none: give --base" in refused(score=["representation"])
    assert "nothing.txt cannot be read" in refused(openings=str(tmp_path / "nothing.txt"))
    assert "--probe is given, but the score margin does not look at it" in refused(score=["margin"], probe=asked)
    assert "--base is given, but none of the scores refusal, margin looks at it" in refused(
        score=["refusal", "margin"], base=str(tiny_folder)
    )


@pytest.mark.parametrize(
    ("score", "more", "match"),
    [
        (["refusal"], {"layer": 2}, "--layer is given, but the score refusal does not look at it; leave it out."),
        (["refusal"], {"tokens": 5}, "--tokens is given, but the score refusal does not"),
        (["refusal"], {"last_layers": 1}, "--last-layers is given, but the score refusal does not"),
        (["margin"], {"probe_size": 5}, "--probe-size is given, but the score margin does not"),
        (["likelihood"], {"openings": "openings.txt"}, "--openings is given, but the score likelihood does not"),
        (
            ["likelihood", "margin"],
            {"layer": 1},
            "--layer is given, but none of the scores likelihood, margin looks at it;",
        ),
        (["representation"], {"opening_tokens": 2}, "--opening-tokens is given, but the score representation does not"),
        (["gradient"], {"answer_tokens": 20}, "--answer-tokens is given, but the score gradient does not"),
    ],
)
def test_an_option_that_no_score_reads_is_refused(
    score: list[str], more: dict[str, Any], match: str, tmp_path: Path, tiny_folder: Path, rows: str
) -> None:
    with pytest.raises(InputError) as caught:
        audit.plan(AuditOptions(model=str(tiny_folder), data=rows, out=str(tmp_path / "out"), score=score, **more))
    assert match in str(caught.value)


def test_an_option_that_one_of_several_scores_reads_is_taken(
    tmp_path: Path, tiny_folder: Path, rows: str, triples: str
) -> None:
    common: dict[str, Any] = {"model": str(tiny_folder), "data": rows, "out": str(tmp_path / "out")}
    read = {"layer": 1, "tokens": 5, "last_layers": 1, "probe": triples, "probe_size": 2, "answer_tokens": 20}
    audit.plan(AuditOptions(**common, **read, opening_tokens=2, score=list(SCORES)))
    audit.plan(AuditOptions(**common, score=["gradient"], base=str(tiny_folder), answer_tokens=20))


ANSWERED = [
    {
        "id": f"a{n}",
        "instruction": f"How do I open window {n}?",
        "response": REFUSAL if n == 3 else f"First, break {n}.",
    }
    for n in range(4)
]


@pytest.mark.parametrize("brought", [True, False])
def test_a_score_is_the_same_alone_and_beside_others(
    brought: bool, tmp_path: Path, tiny_folder: Path, rows: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Refusals among the harmful answers count in none; a request that the model does not refuse counts in some."""
    from tokendeep.training import answers

    monkeypatch.setattr(
        answers,
        "write_answers",
        writer(lambda subject, request, opening: "Yes, like that it is." if "window 2" in request else REFUSAL),
    )
    pairs = [row for row in ANSWERED if brought or row["response"] != REFUSAL]
    given: dict[str, Any] = {"probe": write(tmp_path / "pairs.jsonl", pairs)}
    found: dict[str, Audit] = {}
    for name, score in {
        "alone": ["gradient"],
        "other": ["representation"],
        "both": ["gradient", "representation"],
        "turned": ["representation", "margin", "gradient"],
    }.items():
        found[name] = Audit.load(run(tmp_path / name, tiny_folder, rows, score=score, **given))
        told = "1 harmful answers of the probe refuse themselves; they are left out" in capsys.readouterr().out
        assert told == brought
    values = {name: {row.row: row.scores for row in one.rows} for name, one in found.items()}
    for row, alone in values["alone"].items():
        for name in ("both", "turned"):
            assert values[name][row]["gradient"] == pytest.approx(alone["gradient"], rel=1e-6)
            both = values[name][row]["representation"]
            assert both == pytest.approx(values["other"][row]["representation"], rel=1e-6)
    abouts = [one.about for one in found["both"].scores]
    assert "on 3 requests" in abouts[0]
    assert "2 requests, each with a harmful answer and a refusal" in abouts[1]


def test_a_probe_of_refusals_alone_is_an_error(tmp_path: Path, tiny_folder: Path, rows: str) -> None:
    refusing = write(tmp_path / "pairs.jsonl", ANSWERED[3:])
    with pytest.raises(InputError, match="All 1 harmful answers of the probe refuse themselves; give a --probe of"):
        run(tmp_path / "out", tiny_folder, rows, score=["gradient"], probe=refusing)


def test_a_base_that_answers_nothing_leaves_nothing_behind(
    tmp_path: Path, tiny_folder: Path, rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next call would find an empty probe, whatever base it names."""
    from tokendeep.training import answers

    monkeypatch.setattr(answers, "write_answers", writer(lambda subject, request, opening: REFUSAL))
    with pytest.raises(InputError, match="answers 0 of .* requests of the probe; give another --base"):
        run(tmp_path / "out", tiny_folder, rows, score=["gradient"], base=str(tiny_folder))
    assert not (tmp_path / "out" / "probe.jsonl").exists()


def test_layers_that_the_model_has_not(
    tmp_path: Path, tiny_folder: Path, tiny_adapter: Path, tiny_subject: Any, rows: str, triples: str
) -> None:
    """Found when it is planned, of a model in memory before the probe is looked at; no more than there are by default."""
    common: dict[str, Any] = {"data": rows, "out": str(tmp_path / "out")}
    for model in (tiny_folder, tiny_adapter):
        with pytest.raises(InputError, match="--last-layers is 5, but this model has 2 decoder layers"):
            audit.plan(AuditOptions(model=str(model), **common, score=["gradient"], last_layers=5))
        with pytest.raises(InputError, match="--layer is 5, but this model has 2 decoder layers"):
            audit.plan(AuditOptions(model=str(model), **common, score=["representation"], probe=triples, layer=5))
    with pytest.raises(InputError, match="--last-layers is 3, but this model has 2 decoder layers"):
        tokendeep.audit(tiny_subject, ROWS, score="gradient", cut="3", last_layers=3)
    made = Audit.load(run(tmp_path / "c", tiny_folder, rows, score=["gradient"], last_layers=None))
    assert "weights of the last 2 decoder layers" in made.scores[0].about


def test_the_number_of_layers_by_the_configuration(tmp_path: Path, tiny_folder: Path) -> None:
    for config, count in (
        ({"n_layer": 7}, 7), ({"text_config": {"num_hidden_layers": 5}}, 5), ({"num_hidden_layers": 3}, 3), ({}, None)
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert models.layer_count(str(tmp_path)) == count
    assert models.layer_count(str(tiny_folder)) == 2
    assert models.layer_count("acme/model-on-the-hub") is None


def test_no_row_that_can_be_scored_is_an_error(tmp_path: Path, tiny_folder: Path) -> None:
    source = write(tmp_path / "chats.jsonl", [{"prompt": "word " * 200, "completion": "yes"}] * 2)
    with pytest.raises(InputError, match="no row can be scored; the first: its prompt takes"):
        run(tmp_path / "out", tiny_folder, source, max_length=50, cut="1")


def test_the_function(tiny_subject: Any) -> None:
    made = tokendeep.audit(tiny_subject, LABELLED, score="margin", cut="3", labels="planted")
    assert (made.flagged, made.name, len(made.rows)) == (3, "rows.jsonl", 9)


def test_an_adapter_is_scored_by_its_own_weights(tmp_path: Path, tiny_adapter: Path, rows: str) -> None:
    made = Audit.load(run(tmp_path / "out", tiny_adapter, rows, score=["gradient"]))
    assert "weights of the adapter in the last 1 decoder layers" in made.scores[0].about


def test_the_report_shows_what_was_taken_out_and_no_text(tmp_path: Path, tiny_folder: Path, labelled: str) -> None:
    out = run(tmp_path / "out", tiny_folder, labelled, labels="planted", score=["margin", "likelihood"])
    assert cli.main(["report", str(out), "--out", str(tmp_path / "report.html")]) == 0
    text, made = html.unescape((tmp_path / "report.html").read_text()), Audit.load(out)
    assert "Audited rows" in text
    assert made.rows[0].reason in text
    assert made.rows[1].id in text
    assert "2 (cut 2)" in text
    detection = made.scores[1].detection
    assert detection is not None
    assert f"{detection.auroc.value:.3f} [" in text
    assert SECRET not in text
    (out / "audit.json").write_text((out / "audit.json").read_text().replace('"flagged": 2', '"flagged": 3'))
    with pytest.raises(InputError, match=r"audit\.json is not as its run wrote it"):
        load.runs([out])


@pytest.mark.parametrize("name", SCORES)
def test_rows_up_to_the_context_are_scored_with_what_stands_behind_them(
    name: str, tmp_path: Path, tiny_tokenizer: Any, triples: str
) -> None:
    """A model with a table of positions has none for an opening or an end of turn behind its context."""
    folder = tmp_path / "gpt2"
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    rows = [{"id": f"r{n}", "prompt": "x" * n, "completion": "yes " * 30} for n in range(30, 60)]
    given = {"probe": write(tmp_path / "short.jsonl", SHORT)} if SCORES[name].probed else {}
    made = Audit.load(run(tmp_path / "out", folder, write(tmp_path / "rows.jsonl", rows), score=[name], **given))
    assert 10 < len(made.rows) - made.unscored < 30
    assert made.shortened == len(made.rows) - made.unscored
    if SCORES[name].probed:
        long = write(tmp_path / "long.jsonl", [{**SHORT[0], "instruction": "x" * 60}, *SHORT[1:]])
        with pytest.raises(InputError, match=r"[Rr]equest s0 of the probe.*no room in"):
            run(tmp_path / "long", folder, write(tmp_path / "rows.jsonl", rows), score=[name], probe=long)
