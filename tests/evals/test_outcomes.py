"""What can be shared of an attack: outcomes by the hashes of requests, without text, joined by who has the same data."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import tokendeep
from attacking import ANSWER, ROWS, Answers, answers, attack, config, pairs  # noqa: F401  (fixtures)
from tokendeep.errors import InputError
from tokendeep.evals import outcomes
from tokendeep.records import Manifest, Outcomes, Rate
from tokendeep.types import Prompt, Subject
from tokendeep.verbs import judge as verb
from tokendeep.verbs.judge import JudgeOptions


def of(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()


@pytest.fixture
def out(pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers) -> Path:
    answers.reply = lambda request: ANSWER
    return attack(config(pairs, tmp_path / "out", attack="none,prefill", k=[4]), tiny_subject)


def test_rows_are_joined_by_the_hash_of_the_request(out: Path, pairs: Path) -> None:
    rows = Outcomes.load(out)
    asked = [of(row["instruction"]) for row in ROWS]
    assert [row.prompt for row in rows if row.attack == "none"] == asked
    assert {row.prompt for row in rows} == set(asked)
    theirs = Outcomes.load(out).to_frame()
    ours = {of(prompt.messages[-1]["content"]): prompt.id for prompt in tokendeep.read_prompts(pairs)}
    assert [ours[one] for one in theirs["prompt"]] == list(theirs["id"])
    assert list(theirs[theirs["attack"] == "prefill"]["k"]) == [4.0] * (len(rows) - len(ROWS))
    for rate in Rate.load_all(out):
        assert sum(row.value or 0 for row in rows if row.attack == rate.attack) == rate.complied


def test_a_name_may_hold_any_end_of_line(out: Path) -> None:
    path = out / Outcomes.FILE
    rows = Outcomes.load(out)
    first = rows[0].model_copy(update={"id": "one\u2028two"})
    path.write_text("".join(f"{one.model_dump_json()}\n" for one in (first, *rows[1:])), encoding="utf-8")
    assert [one.id for one in Outcomes.load(out)] == ["one\u2028two", *(one.id for one in rows[1:])]


def test_it_holds_no_text(out: Path) -> None:
    text = (out / Outcomes.FILE).read_text()
    words = {word for row in ROWS for word in row["instruction"].split() if len(word) > 4}
    assert words
    assert not any(word in text for word in words)
    assert ANSWER[:20] not in text


def test_what_an_attack_puts_behind_the_request_is_not_hashed(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers
) -> None:
    answers.reply = lambda request: ANSWER
    (tmp_path / "s.jsonl").write_text('{"suffix": " now!"}\n')
    settings = {"attack": "suffix", "suffixes": str(tmp_path / "s.jsonl")}
    out = attack(config(pairs, tmp_path / "out", **settings), tiny_subject)
    asked = [of(row["instruction"]) for row in ROWS]
    assert [row.prompt for row in Outcomes.load(out)] == asked
    verb.run(verb.plan(JudgeOptions(str(out), judge="refusal-keywords")), show=False)
    rows = Outcomes.load(out)
    assert sorted(row.prompt for row in rows) == sorted(asked * 2)
    assert {row.judge for row in rows} == {"refusal", "refusal-keywords"}
    assert "outcomes.jsonl" in Manifest.load(out).results


def test_a_run_of_an_older_version_is_judged_without_it(out: Path) -> None:
    (out / Outcomes.FILE).unlink()
    verb.run(verb.plan(JudgeOptions(str(out), judge="refusal-keywords")), show=False)
    assert not (out / Outcomes.FILE).exists()


def test_a_damaged_file_is_named(out: Path) -> None:
    (out / Outcomes.FILE).write_text("{}\n")
    with pytest.raises(InputError, match=r"outcomes.jsonl, line 1 lacks prompt"):
        Outcomes.load(out)
    (out / Outcomes.FILE).write_text("{\n")
    with pytest.raises(InputError, match=r"outcomes.jsonl cannot be read as JSON lines"):
        Outcomes.load(out)


def test_prompts_of_a_program_need_no_meta() -> None:
    user = ({"role": "user", "content": " How? "},)
    system = ({"role": "system", "content": "Be brief."},)
    prompts = [Prompt("a", user), Prompt("b", user, meta={"prompt_id": "c"}), Prompt("d", system)]  # type: ignore[arg-type]
    assert outcomes.keys(prompts) == {"a": of("How?"), "c": of("How?"), "d": of("")}
