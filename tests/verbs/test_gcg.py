"""The verb gcg: files, restarts, going on; and its suffixes in an attack, on this model or another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attacking import ROWS, Answers, answers, attack, judge, pairs  # noqa: F401  (fixtures)
from attacking import config as attack_config
from tokendeep import chat
from tokendeep.attacks import suffix
from tokendeep.attacks.gcg import losses
from tokendeep.attacks.gcg import search as gcg
from tokendeep.errors import InputError
from tokendeep.report import page
from tokendeep.types import Prompt, Subject
from tokendeep.verbs import gcg as suffixes
from tokendeep.verbs.gcg import GcgOptions

pytestmark = pytest.mark.slow  # trains or searches in nearly every test


def config(source: Path, out: Path, **settings: Any) -> GcgOptions:
    defaults: dict[str, Any] = {
        "model": "tiny", "data": str(source), "out": str(out), "steps": 4, "width": 8, "top": 40, "suffix_tokens": 4,
        "batch_size": 4, "target_tokens": 2,
    }  # fmt: skip
    return GcgOptions(**{**defaults, **settings})


def searched(options: GcgOptions) -> Path:
    """The verb from options to folder."""
    return suffixes.run(suffixes.plan(options))


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "suffixes.jsonl").read_text().splitlines()]


def start(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suffixes.models, "check_spec", lambda *args, **more: None)
    monkeypatch.setattr(suffixes.models, "load", lambda spec, options, **more: subject)


def test_a_search_for_all_requests_and_what_it_leaves(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tiny_subject, monkeypatch)
    out = searched(config(pairs, tmp_path / "out", restarts=2, one_by_one=False))
    rows = read(out)
    assert [row["name"] for row in rows] == ["restart 1", "restart 2"]
    assert rows[0]["suffix"] != rows[1]["suffix"]
    for number, row in enumerate(rows):
        kept = json.loads((out / f"search-{number}.json").read_text())
        assert (kept["step"], len(kept["losses"]), row["candidates"]) == (4, 4, kept["candidates"])
        assert row["loss"] == kept["loss"] == min(kept["losses"])
        behaviours = suffixes.behaviours(tiny_subject, suffixes.read(config(pairs, out)), config(pairs, out))
        search = gcg.Search([tiny_subject], behaviours, gcg.Settings())
        assert search.loss(kept["best"]) == pytest.approx(row["loss"], abs=1e-4)
        assert search.text(kept["best"]) == row["suffix"]
    assert "Mix the flour" not in (out / "manifest.json").read_text()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["candidates"] == sum(row["candidates"] for row in rows)
    assert searched(config(pairs, tmp_path / "out", restarts=2, one_by_one=False)) == out  # finished: not again


def test_a_run_that_was_cut_off_goes_on(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tiny_subject, monkeypatch)
    whole = read(searched(config(pairs, tmp_path / "whole")))
    step, seen = gcg.Search.step, []

    def cut(self: Any, state: Any) -> Any:
        seen.append(state.step)
        if state.step and (tmp_path / "out").exists():  # every step is on disk before the next begins
            assert json.loads((tmp_path / "out" / "search-0.json").read_text())["step"] == state.step
        if len(seen) == 3:
            raise KeyboardInterrupt
        return step(self, state)

    monkeypatch.setattr(gcg.Search, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        searched(config(pairs, tmp_path / "out"))
    rest = read(searched(config(pairs, tmp_path / "out")))
    assert seen == [0, 1, 2, 2, 3]  # the step that was cut off is taken again, none before it
    assert [{**row, "seconds": 0} for row in rest] == [{**row, "seconds": 0} for row in whole]


def test_a_batch_that_the_memory_does_not_hold_is_tried_once(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    start(tiny_subject, monkeypatch)
    score = losses.Losses.score

    def tight(self: Any, *args: Any) -> Any:
        if len(args[-1]) > 4:
            raise torch.OutOfMemoryError("full")
        return score(self, *args)

    monkeypatch.setattr(losses.Losses, "score", tight)
    searched(config(pairs, tmp_path / "out", restarts=3, batch_size=8))
    assert "".join(capsys.readouterr()).count("does not hold 8 candidates together") == 1


def test_each_request_can_have_its_own(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers, judge: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    start(tiny_subject, monkeypatch)
    found = searched(config(pairs, tmp_path / "gcg", each=True, limit=2))
    names = {suffix.key(prompt): prompt.id for prompt in suffixes.read(config(pairs, found, limit=2))}
    rows = {names[row["for"]]: row["suffix"] for row in read(found)}
    assert set(rows) == {"bread", "plant"}
    out = attack(attack_config(pairs, tmp_path / "out", attack="none,suffix", suffixes=str(found)), tiny_subject)
    (row,) = [r for r in json.loads((out / "asr.json").read_text()) if r["attack"] == "suffix"]
    assert (row["params"]["suffix"], row["n"]) == ("its own, restart 1", 2)
    cost = json.loads((out / "manifest.json").read_text())["cost"]["suffix"]
    assert cost == {
        "candidates": sum(one["candidates"] for one in read(found)),
        "seconds": sum(one["seconds"] for one in read(found)),
        "target": "opening",
        "target_tokens": 2,
        "found_on": "tiny",
        "label": None,
    }
    one = attack(attack_config(pairs, tmp_path / "one", attack="suffix", suffixes=str(found), limit=1), tiny_subject)
    paid = json.loads((one / "manifest.json").read_text())["cost"]["suffix"]["candidates"]
    assert paid == next(r["candidates"] for r in read(found) if names[r["for"]] == "bread")  # not for those left out
    asked = {r["id"]: [{"role": "user", "content": r["instruction"] + rows.get(r["id"], "")}] for r in ROWS}
    ids = {tuple(request.ids) for request in answers.requests}
    for name in rows:
        assert tuple(chat.prompt_ids(tiny_subject.tokenizer, asked[name])) in ids  # type: ignore[arg-type]


def test_one_suffix_for_all_is_tried_on_every_request_and_reported(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers, judge: list[str]
) -> None:
    texts = [" please now", " !! sure", " at once", " go on"]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"suffix": text}) for text in texts))
    harder = chat.continuation_ids(tiny_subject.tokenizer, texts[1])
    answers.reply = lambda request: "complied" if _holds(request.ids, harder) else "refused"
    out = attack(attack_config(pairs, tmp_path / "out", attack="suffix", suffixes=str(path)), tiny_subject)
    rows = json.loads((out / "asr.json").read_text())
    assert [row["rate"] for row in rows] == [0, 1, 0, 0]
    assert rows[0]["params"]["suffix"].startswith("suffix 1 (sha ")
    assert all(text not in (out / "asr.json").read_text() for text in texts)
    assert json.loads((out / "manifest.json").read_text())["cost"] == {"suffix": {}}
    (section,) = [one for one in page.build([out]).sections if one.id == "suffix"]
    assert section.tables[0].rows[0][1:4] == ["suffix", "4", "3/3 = 100% [44%, 100%]"]
    assert section.tables[0].rows[0][4:] == ["33% ± 57.7", "25% ± 50.0"]


def _holds(ids: tuple[int, ...], part: list[int]) -> bool:
    return any(list(ids[i : i + len(part)]) == part for i in range(len(ids)))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "holds no suffix"),
        ('{"suffix": " "}', "line 1: a row is"),
        ("what", "line 1: a row is"),
        ('{"suffix": " x", "for": ["a"]}', "line 1: a row is"),
        ('{"suffix": " x", "name": 3}', "line 1: a row is"),
        ('{"suffix": " x", "name": "a"}\n{"suffix": " y", "name": "a"}', "two suffixes the same name"),
    ],
)
def test_a_file_that_holds_no_suffix_is_refused(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=match):
        suffix.load(path)


def test_suffixes_of_other_requests_are_refused() -> None:
    prompt = Prompt("a", ({"role": "user", "content": "a"},))
    with pytest.raises(InputError, match="found for another request"):
        suffix.suffix([prompt], [suffix.Suffix("x", " x", only="b")])


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"target": "harm"}, "--target is 'harm'"),
        ({"steps": 0}, "--steps is 0"),
        ({"width": 0}, "--width is 0"),
        ({"suffix_tokens": 0}, "--suffix-tokens is 0"),
        ({"opening": " "}, "--opening is empty"),
        ({"target": "refusal", "target_tokens": 5}, "compares openings of 3 tokens"),
    ],
)
def test_bad_settings_are_refused(more: dict[str, Any], match: str, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        searched(config(pairs, tmp_path / "out", **more))


def test_an_attack_with_suffixes_needs_them(pairs: Path, tmp_path: Path, tiny_subject: Subject) -> None:
    with pytest.raises(InputError, match="suffix needs --suffixes"):
        attack(attack_config(pairs, tmp_path / "out", attack="suffix"), tiny_subject)


def test_texts_of_the_user_stay_out_of_the_manifest(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tiny_subject, monkeypatch)
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"instruction": "How do I bake bread?"}))
    out = searched(config(asked, tmp_path / "out", opening="Certainly, dear", system="A persona", steps=1))
    assert "dear" not in (out / "manifest.json").read_text()
    assert "persona" not in (out / "manifest.json").read_text()


def test_further_models_are_part_of_a_run_s_identity(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tiny_subject, monkeypatch)
    settings = config(pairs, tmp_path / "out", others=[str(tiny_folder)], steps=1)
    searched(settings)
    assert searched(settings)
    (tiny_folder / "note.txt").write_text("other weights")
    with pytest.raises(InputError, match="the content of others"):
        searched(settings)
