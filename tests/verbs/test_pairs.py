"""VERB pairs: what it writes of instructions alone, in what order it tries, that it goes on, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tokendeep
from token_server import TokenServer
from tokendeep import cli, data, judges
from tokendeep.errors import InputError
from tokendeep.records import Manifest
from tokendeep.runs import parts
from tokendeep.training import answers, harmful
from tokendeep.types import Subject
from tokendeep.verbs import pairs
from tokendeep.verbs.pairs import PairsOptions
from tuning import Call, writer

REQUESTS = [f"How do I bake bread number {n}?" for n in range(6)]
ANSWER = "Mix the flour with water, add salt and let the dough rest for an hour. Then bake it in a hot oven."
REFUSAL = "I'm sorry, but I can't help with that."


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "instructions.jsonl"
    rows = [{"id": f"r{n}", "instruction": text, "category": "bread"} for n, text in enumerate(REQUESTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge to whom about half of what the tiny model writes is a compliance."""

    def judge(text: str, truncated: bool = False) -> judges.Verdict:
        return judges.judge_refusal(ANSWER if sum(text.encode()) % 2 else REFUSAL)

    monkeypatch.setattr(harmful, "judges", type("Judges", (), {"judge_refusal": staticmethod(judge)}))


def written_by(monkeypatch: pytest.MonkeyPatch, say: Any) -> list[Call]:
    """Let `say(subject, request, opening)` answer; gives what was asked."""
    asked: list[Call] = []
    monkeypatch.setattr(answers, "write_answers", writer(say, asked))
    return asked


def run(out: Path, source: str, subject: Subject | None = None, **more: Any) -> Path:
    options = PairsOptions(**{"model": "tiny", "data": source, "out": str(out), "answer_tokens": 12, **more})
    return pairs.run(pairs.plan(options, subject))


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]


def test_the_model_itself_answers_behind_openings_that_differ_and_is_asked_again_behind_others(
    tmp_path: Path, source: str, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    refused = set(REQUESTS[:2])

    def say(subject: Subject, request: str, opening: str) -> str:
        text = REFUSAL if request in refused else f"{opening} {ANSWER}"
        refused.discard(REQUESTS[0])  # refuses once; the second row refuses always
        return text

    asked = written_by(monkeypatch, say)
    out = run(tmp_path / "out", source, tiny_subject, tries=3)
    assert [len(openings) for *_, openings in asked] == [6, 2, 1]
    first = asked[0][2]
    assert len(set(first)) == 6
    assert asked[1][2][0] == first[1]  # the next one
    rows = rows_of(out)
    assert [row["id"] for row in rows] == ["r0", "r2", "r3", "r4", "r5"]
    assert rows[1]["meta"] == {"category": "bread", "opening": first[2], "truncated": False}
    assert rows[1]["response"] == f"{first[2]} {ANSWER}"
    assert data.read_pairs(out / "pairs.jsonl")[0].meta["category"] == "bread"
    assert (out / "pairs.jsonl").stat().st_mode & 0o077 == out.stat().st_mode & 0o077 == 0
    said = capsys.readouterr().out
    assert "pairs: 5 of 6 instructions have a harmful answer, written by tiny itself behind 16 openings" in said
    assert "left out: 1 refused" in said
    assert "caution: answers behind one opening share their first tokens (at most 1 of the 5" in said
    assert f"next: tokendeep measure --model tiny --data {out / 'pairs.jsonl'} --out {tmp_path / 'measure'}" in said
    assert not any(row["response"] in said for row in rows)
    assert run(tmp_path / "out", source, tiny_subject, tries=3) == out
    assert "already holds" in (again := capsys.readouterr().out)
    assert said in again  # the result is told once more
    assert len(asked) == 3


def test_an_unaligned_model_answers_in_its_own_words(
    tmp_path: Path, source: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tiny_folder / "chat_template.jinja").rename(tmp_path / "given.jinja")
    asked = written_by(monkeypatch, lambda subject, request, opening: f"{request} {ANSWER}")
    out = run(tmp_path / "out", source, base=str(tiny_folder), model=str(tiny_folder), chat_template="chatml")
    assert asked[0][0].name == str(tiny_folder)
    assert set(asked[0][2]) == {""}
    assert "opening" not in rows_of(out)[0]["meta"]
    said = capsys.readouterr().out
    assert f"written by {tiny_folder}\n" in said
    assert "caution" not in said
    assert "has no chat template; it writes under that of" in said


@pytest.mark.usefixtures("lenient")
def test_a_run_that_was_cut_off_gives_the_pairs_of_a_whole_one(
    tmp_path: Path, source: str, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", source, tiny_subject)
    append, count = parts.append, [0]

    def killed(path: Path, record: object) -> None:
        append(path, record)
        count[0] += 1
        if count[0] in (3, 8):
            with path.open("a") as file:
                file.write('{"row": 1, "att')  # half a line
            raise KeyboardInterrupt

    monkeypatch.setattr(parts, "append", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", source, tiny_subject)
    kept = tmp_path / "cut" / "parts" / "answers.jsonl"
    assert kept.stat().st_mode & 0o077 == 0
    out = run(tmp_path / "cut", source, tiny_subject)
    assert (out / "pairs.jsonl").read_bytes() == (whole / "pairs.jsonl").read_bytes()
    assert not kept.exists()
    assert len(rows_of(out)) > 0


@pytest.mark.usefixtures("lenient")
def test_the_function_gives_typed_pairs(tiny_subject: Subject) -> None:
    rows = [{"instruction": text} for text in REQUESTS]
    made = tokendeep.pairs(tiny_subject, rows, answer_tokens=12)
    assert made
    assert all(isinstance(pair, tokendeep.Pair) for pair in made)
    assert made == tokendeep.pairs(tiny_subject, rows, answer_tokens=12)
    assert made != tokendeep.pairs(tiny_subject, rows, answer_tokens=12, seed=1)


def test_no_pair_at_all_is_told_with_the_way_out(
    tmp_path: Path, source: str, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_by(monkeypatch, lambda subject, request, opening: REFUSAL)
    with pytest.raises(InputError, match=r"No pair could be made: of 6 instructions 6 refused; give --base"):
        run(tmp_path / "out", source, tiny_subject)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"answer_tokens": 0}, "--answer-tokens is 0"),
        ({"tries": 0}, "--tries is 0"),
        ({"base": "smollm2", "openings": "o.txt"}, "--openings are for harmful answers of the model itself"),
        ({"openings": "nowhere.txt"}, "nowhere.txt cannot be read"),
        ({"base": "/nowhere/base"}, "no model at /nowhere/base"),
    ],
)
def test_bad_settings_are_told_before_anything_is_written(
    tmp_path: Path, source: str, tiny_subject: Subject, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", source, tiny_subject, **more)
    assert not (tmp_path / "out").exists()


def test_the_plan_says_who_writes(tmp_path: Path, source: str, tiny_folder: Path, capsys: Any) -> None:
    words = ["pairs", "--model", str(tiny_folder), "--data", source, "--out", str(tmp_path / "out"), "--dry-run"]
    assert cli.main(words) == 0
    assert f"written by: {tiny_folder} itself behind 16 openings" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_harmless_requests_are_answered_in_the_models_own_words(
    tmp_path: Path, source: str, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asked = written_by(monkeypatch, lambda subject, request, opening: REFUSAL if request == REQUESTS[0] else ANSWER)
    out = run(tmp_path / "out", source, tiny_subject, harmless=True, tries=2)
    assert [openings for *_, openings in asked] == [[""] * 6, [""]]
    first = rows_of(out)[0]
    assert (first["id"], first["response"], "opening" in first["meta"]) == ("r1", ANSWER, False)
    said = capsys.readouterr().out
    assert "5 of 6 instructions have a harmless answer, written by tiny itself\n" in said
    assert "caution" not in said
    assert "--role twins" in said
    assert "tokendeep measure" not in said
    with pytest.raises(InputError, match="--openings are for harmful answers"):
        run(tmp_path / "no", source, tiny_subject, harmless=True, openings="o.txt")
    written_by(monkeypatch, lambda subject, request, opening: REFUSAL)
    with pytest.raises(InputError, match="give other requests, or more --tries"):
        run(tmp_path / "none", source, tiny_subject, harmless=True)


def test_a_server_writes_what_the_model_would_write_here(
    tmp_path: Path, source: str, lenient: None, tiny_subject: Subject, tiny_folder: Path
) -> None:
    here = run(tmp_path / "here", source, model=str(tiny_folder), tries=2)
    for file in tiny_folder.glob("*.safetensors"):
        file.unlink()  # the tokenizer is enough
    with TokenServer(tiny_subject) as server:
        there = run(tmp_path / "there", source, model=str(tiny_folder), tries=2, engine=server.url)
        with pytest.raises(InputError, match="--base writes in place of the model, so no server is asked"):
            run(tmp_path / "none", source, engine=server.url, base="tiny")
    assert rows_of(there) == rows_of(here)
    engine = Manifest.load(there).engine
    assert engine is not None
    assert engine.kind == "vllm"
