"""What a search drives answers to: an opening, unless the user asks for more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokendeep.attacks.gcg.behaviours import behaviour
from tokendeep.errors import InputError
from tokendeep.types import Subject
from tokendeep.verbs import gcg
from tokendeep.verbs.gcg import GcgOptions, aim, first_sentence

ANSWER = "1. Mix the flour with water. Then let it rest.\nBake it."


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (ANSWER, "1. Mix the flour with water."),
        ("Sure, here is how: first do this", "Sure, here is how:"),
        ("Sure! Here is a list. More", "Sure! Here is a list."),
        ("No end here\nsecond line.", "No end here"),
        ("\n\n  A start of 3.5 litres is enough. Yes", "A start of 3.5 litres is enough."),
        ("当然可以。第一步", "当然可以。"),
        ("Rome", "Rome"),
    ],
)
def test_the_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first


def options(folder: Path, rows: list[dict[str, str]], **more: object) -> GcgOptions:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return GcgOptions(model="tiny", data=str(path), out=str(folder / "out"), **more)  # type: ignore[arg-type]


def aims(chosen: GcgOptions) -> list[str]:
    return [aim(prompt, chosen) for prompt in gcg.read(chosen)]


def test_pairs_are_driven_to_an_opening(tmp_path: Path) -> None:
    rows = [{"instruction": "Bread?", "response": ANSWER}]
    assert aims(options(tmp_path, rows)) == ["1. Mix the flour with water."]
    assert aims(options(tmp_path, rows, target_tokens=30)) == [ANSWER]  # cut to 30 tokens by `behaviour`
    assert aims(options(tmp_path, [{"goal": "Bread?", "target": "Sure. Two sentences."}])) == ["Sure. Two sentences."]
    assert aims(options(tmp_path, [{"instruction": "Bread?"}])) == [gcg.OPENING]


def test_harmless_rows_are_not_searched_for(tmp_path: Path) -> None:
    rows = [{"instruction": "A?", "label": "safe"}, {"instruction": "B?", "label": "unsafe"}]
    assert [p.messages[0]["content"] for p in gcg.read(options(tmp_path, rows))] == ["B?"]


def test_a_run_of_earlier_versions_on_pairs_is_another_run(tmp_path: Path) -> None:
    """They drove to the whole answer; on data without answers nothing has changed."""
    chosen = options(tmp_path, [{"instruction": "Bread?", "response": ANSWER}])
    recorded = gcg.GcgPlan(chosen, gcg.read(chosen)).place.config
    assert recorded is not None
    assert recorded["reach"] == "first sentence"
    for other in (
        options(tmp_path, [{"instruction": "B?", "response": ANSWER}], target_tokens=3),
        options(tmp_path, [{"instruction": "B?"}]),
    ):
        recorded = gcg.GcgPlan(other, gcg.read(other)).place.config
        assert recorded is not None
        assert "reach" not in recorded


def test_only_what_is_aimed_at_must_be_written_by_the_tokenizer(tiny_subject: Subject) -> None:
    messages = [{"role": "user", "content": "Bread?"}]
    whole = behaviour(tiny_subject, "Row 1", messages, "Mix the flour", tokens=2)  # type: ignore[arg-type]
    longer = behaviour(tiny_subject, "Row 1", messages, "Mix the flour, then rest", tokens=2)  # type: ignore[arg-type]
    assert whole.wanted == longer.wanted
    assert len(whole.wanted) == 2
    with pytest.raises(InputError, match="tokens are asked for|tokens, but 500"):
        behaviour(tiny_subject, "Row 1", messages, "Mix", tokens=500)  # type: ignore[arg-type]
