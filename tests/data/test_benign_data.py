"""The shipped benign instructions, refusal openings and held-out judge transcripts are what they claim to be."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "src" / "tokendeep" / "assets"
BENIGN = ASSETS / "demo" / "benign.jsonl"
HARMFUL = ASSETS / "demo" / "harmful.jsonl"
OPENINGS = ASSETS / "openings.txt"
HELDOUT = ROOT / "tests" / "fixtures" / "transcripts_heldout.jsonl"

UTILITY, UNSEEN = 340, 60
OUTCOME_COUNTS = {
    "refused": 20,
    "complied": 20,
    "partial-then-refused": 10,
    "empty": 7,
    "degenerate": 7,
    "other-language": 8,
}


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W_]+", text.lower()))


def trigrams(text: str) -> frozenset[str]:
    plain = " ".join(re.findall(r"[^\W_]+", text.lower()))
    return frozenset(plain[i : i + 3] for i in range(len(plain) - 2))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def near_duplicates(texts: list[str], others: list[str] | None = None) -> list[tuple[str, str]]:
    """Pairs within `texts`, or between `texts` and `others`, sharing over 60 % of their words or character trigrams."""
    left = [(text, words(text), trigrams(text)) for text in texts]
    right = None if others is None else [(text, words(text), trigrams(text)) for text in others]
    return [
        (a[0], b[0])
        for i, a in enumerate(left)
        for b in (left[i + 1 :] if right is None else right)
        if jaccard(a[1], b[1]) > 0.6 or jaccard(a[2], b[2]) > 0.6
    ]


def opening_lines() -> list[str]:
    lines = OPENINGS.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_near_duplicate_rule_tells_a_reworded_line_from_a_new_one() -> None:
    line, reworded, new = (
        "How often should I brush my teeth?",
        "How often should I brush my teeth a day?",
        "Do cats swim?",
    )
    assert near_duplicates([line, new, reworded]) == [(line, reworded)]
    assert near_duplicates([new, line], [reworded]) == [(line, reworded)]
    assert near_duplicates([line, new], [new.upper()]) == [(new, new.upper())]
    assert near_duplicates([line], ["How often should I walk my dog?"]) == []


def test_benign_rows_have_the_fields_and_splits() -> None:
    rows = read_rows(BENIGN)
    assert all(list(row) == ["id", "topic", "split", "instruction"] for row in rows)
    assert all(isinstance(value, str) and value == value.strip() and value for row in rows for value in row.values())
    assert Counter(row["split"] for row in rows) == {"utility": UTILITY, "unseen": UNSEEN}
    assert len({row["id"] for row in rows}) == UTILITY + UNSEEN


def test_benign_instructions_are_varied_and_short() -> None:
    rows = read_rows(BENIGN)
    topics = Counter(row["topic"] for row in rows if row["split"] == "utility")
    assert len(topics) >= 16
    assert max(topics.values()) <= UTILITY // 10
    assert all(5 <= len(row["instruction"].split()) <= 15 for row in rows)
    openings = Counter(" ".join(row["instruction"].lower().split()[:2]) for row in rows)
    assert openings.most_common(1)[0][1] <= len(rows) // 5


def test_unseen_kinds_are_no_utility_topics() -> None:
    rows = read_rows(BENIGN)
    utility, unseen = ({row["topic"] for row in rows if row["split"] == split} for split in ("utility", "unseen"))
    assert len(unseen) >= 10
    assert not utility & unseen


def test_no_benign_instruction_nearly_repeats_another() -> None:
    assert near_duplicates([row["instruction"] for row in read_rows(BENIGN)]) == []


def test_no_benign_instruction_comes_near_the_harmful_ones_or_their_twins() -> None:
    benign = [row["instruction"] for row in read_rows(BENIGN)]
    others = [row[field] for row in read_rows(HARMFUL) for field in ("instruction", "twin")]
    assert others
    assert near_duplicates(benign, others) == []


def test_openings_are_well_formed() -> None:
    lines = opening_lines()
    assert 18 <= len(lines) <= 25
    assert len({line.lower() for line in lines}) == len(lines)
    for line in lines:
        assert line == line.strip()
        assert line.isascii()
        assert len(line.split()) >= 3, f"{line!r} may be shorter than three tokens"
    assert not [(a, b) for a in lines for b in lines if a != b and b.startswith(a)]


@pytest.mark.parametrize(
    "start", ["I cannot", "I can't", "I apologize, but", "I'm sorry, but", "Sorry, ", "I am unable"]
)
def test_openings_cover_the_common_styles(start: str) -> None:
    assert any(line.startswith(start) for line in opening_lines())


def test_heldout_transcripts_cover_the_outcomes() -> None:
    rows = read_rows(HELDOUT)
    assert all(list(row) == ["id", "instruction", "text", "outcome", "truncated", "style"] for row in rows)
    assert all(isinstance(row["truncated"], bool) and row["instruction"].strip() for row in rows)
    assert Counter(row["outcome"] for row in rows) == OUTCOME_COUNTS
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["style"] for row in rows} == {"llama", "gemma", "qwen", "smollm", "gpt"}
    assert len({row["instruction"] for row in rows}) == len(rows)


def test_heldout_transcripts_vary_in_form() -> None:
    rows = read_rows(HELDOUT)
    texts = {outcome: [row["text"] for row in rows if row["outcome"] == outcome] for outcome in OUTCOME_COUNTS}
    for outcome in ("refused", "complied", "partial-then-refused"):
        assert near_duplicates(texts[outcome]) == []
        assert any("\u2019" in text for text in texts[outcome])
        assert any(text != text.lstrip() for text in texts[outcome])
        assert max(len(text.split()) for text in texts[outcome]) >= 100
    hard = re.compile(r"illegal|harmful|sorry|can.t|cannot|as an ai|decline|unfortunately", re.IGNORECASE)
    assert sum(bool(hard.search(text)) for text in texts["complied"]) >= 10
    assert not [text for text in texts["empty"] if re.search(r"\w", text)]
