"""Published prompts: found by their hash alone, in whatever file holds them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tokendeep.errors import InputError
from tokendeep.judges import JUDGES, wordings
from tokendeep.judges.base import Judge, Rubric, Wording
from tokendeep.runs import sha256_text

CARD, OTHER = "Bread:\n{behavior}\n\nSaid:\n{generation} \n\nAnswer:", "[BREAD]: {behavior}\n{generation}\nAnswer:"
WORDING = Wording(
    "the bakers' card", {sha256_text(CARD): "card", sha256_text(OTHER): "repository"}, "behavior", "generation"
)
PYTHON = (
    f"import json\nPROMPT = {{\n    'about': 'bread',\n    'prompt': '''{OTHER}''',\n    'other': '''{{x}}'''\n}}\n"
)
README = f"---\nlicense: mit\n---\n# Card\n```[python]\nPROMPT = {{\n  \"prompt\": '''{CARD}''',\n}}\n```\nDon't.\n"
FILES = {
    "prompt.txt": CARD,
    "with a last line break.txt": CARD + "\n",
    "of Windows.txt": CARD.replace("\n", "\r\n"),
    "README.md": README,
    "prompts.json": json.dumps({"other": "x", "judge": CARD}),
    "card.ipynb": json.dumps({"cells": [{"source": ["x = 1\n"]}, {"source": README.splitlines(keepends=True)}]}),
    "both.py": PYTHON + f"CARD = {CARD!r}\n",
}


def find(file: Path) -> tuple[str, str]:
    """What a judge of that wording takes from a file."""
    made = wordings.equipped(
        Judge(None, rate="", about="", rubric=Rubric("", lambda reply: None, (), wording=WORDING)), file
    )
    assert made.rubric is not None
    return made.rubric.text, made.rubric.called


@pytest.mark.parametrize("name", FILES)
def test_a_wording_is_found_wherever_it_stands_and_the_preferred_of_two_is_taken(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name], newline="")
    assert find(tmp_path / name) == (CARD, "card")
    (tmp_path / name).write_text(FILES[name], newline="", encoding="utf-8-sig")
    assert find(tmp_path / name) == (CARD, "card")


def test_the_other_wording_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "eval_utils.py").write_text(PYTHON)
    assert find(tmp_path / "eval_utils.py") == (OTHER, "repository")


@pytest.mark.parametrize("name", ["harmbench", "harmbench-val", "wildguard", "strongreject-ft"])
def test_a_judge_goes_by_the_hash_of_the_wording_it_was_given(name: str, tmp_path: Path) -> None:
    judge = JUDGES[name]
    assert judge.rubric is not None
    assert judge.rubric.wording is not None
    assert judge.template is None
    own = replace(judge.rubric.wording, known={sha256_text(CARD): "card"})
    (tmp_path / "card").write_text(CARD)
    made = wordings.equipped(replace(judge, rubric=replace(judge.rubric, wording=own)), tmp_path / "card")
    words = CARD + (f"\nversion {judge.version}" if judge.version > 1 else "")
    assert made.template == sha256_text(words)[:16]
    assert all(len(digest) == 64 for digest in judge.rubric.wording.known)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            CARD.replace(" \n", "\n").encode(),
            r"holds no known wording .* \(card .{16}, repository .{16}; the file itself",
        ),
        (("    " + CARD.replace("\n", "\n    ")).encode(), "take the unchanged file from the bakers' card"),
        (b"\xff\xfe{", "is no text in UTF-8"),
        (b"[" * 4000, "holds no known wording"),
        (None, "There is no file"),
    ],
)
def test_a_prompt_that_differs_by_a_blank_is_another_one(content: bytes | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        find(file)
