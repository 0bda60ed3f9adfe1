"""The demo's own instructions: counts, format, separation of train and test, closeness of the harmless twins."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from importlib.resources import files
from itertools import combinations

import pytest

DEMO = files("tokendeep") / "assets" / "demo"
CATEGORIES = {
    "illegal-activity",
    "hate-violence",
    "malware",
    "physical-harm",
    "economic-harm",
    "fraud",
    "adult-content",
    "political-manipulation",
    "privacy",
    "unlicensed-advice",
}
FIELDS = ["id", "category", "split", "instruction", "twin"]
TEXTS = ("instruction", "twin")
MAX_WORDS, MAX_PAIRS = 0.5, 0.3  # Jaccard similarity of word sets and of word-pair sets above which texts are too near
OUT_OF_SCOPE = {"suicide", "suicidal", "self-harm", "myself", "bomb", "nuclear", "anthrax", "bioweapon", "explosive"}
MINORS = {"child", "children", "kid", "kids", "teen", "teens", "teenager", "minor", "minors", "boy", "girl", "pupil"}


def words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())


@cache
def shingles(text: str, n: int) -> frozenset[tuple[str, ...]]:
    tokens = words(text)
    return frozenset(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def similarity(a: str, b: str, n: int) -> float:
    first, second = shingles(a, n), shingles(b, n)
    return len(first & second) / max(1, len(first | second))


def near(a: str, b: str) -> bool:
    return similarity(a, b, 1) > MAX_WORDS or similarity(a, b, 2) > MAX_PAIRS


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    text = (DEMO / "harmful.jsonl").read_bytes().decode("utf-8")  # strict: invalid UTF-8 raises
    assert text.endswith("\n")
    assert "\r" not in text
    assert not text.startswith("\ufeff")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_rows_have_the_five_fields_as_clean_text(rows: list[dict[str, str]]) -> None:
    for row in rows:
        assert list(row) == FIELDS
        for field in FIELDS:
            value = row[field]
            assert isinstance(value, str)
            assert value
            assert value == " ".join(value.split())


def test_counts_per_category_and_split(rows: list[dict[str, str]]) -> None:
    assert len(rows) == 240
    expected = {(category, split): n for category in CATEGORIES for split, n in (("train", 16), ("test", 8))}
    assert Counter((row["category"], row["split"]) for row in rows) == expected


def test_ids_are_unique_and_name_their_category(rows: list[dict[str, str]]) -> None:
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert re.fullmatch(re.escape(row["category"]) + r"-\d\d", row["id"])


@pytest.mark.parametrize("field", TEXTS)
def test_lengths(rows: list[dict[str, str]], field: str) -> None:
    assert not [row["id"] for row in rows if not 6 <= len(row[field].split()) <= 16]


def test_near_duplicate_rule_tells_variants_from_other_texts() -> None:
    text = "How can I steal a bicycle that is locked outside a station?"
    assert near(text, "How can I steal a bike that is locked outside a station?")
    assert near(text, "A bicycle is locked outside a station: how can I steal that?")
    assert not near(text, "How can I bake a cake that is soft inside?")


@pytest.mark.parametrize("field", TEXTS)
def test_no_near_duplicates_across_or_within_splits(rows: list[dict[str, str]], field: str) -> None:
    assert not [(a["id"], b["id"]) for a, b in combinations(rows, 2) if near(a[field], b[field])]


def test_no_text_of_the_test_rows_is_near_any_text_of_the_train_rows(rows: list[dict[str, str]]) -> None:
    train = [(row["id"], row[field]) for row in rows if row["split"] == "train" for field in TEXTS]
    test = [(row["id"], row[field]) for row in rows if row["split"] == "test" for field in TEXTS]
    assert not [(a, b) for a, seen in train for b, unseen in test if near(seen, unseen)]


def test_a_twin_differs_from_its_instruction_but_shares_its_words(rows: list[dict[str, str]]) -> None:
    for row in rows:
        instruction, twin = set(words(row["instruction"])), set(words(row["twin"]))
        assert instruction != twin, row["id"]
        assert len(instruction & twin) >= 4, row["id"]
        assert similarity(row["instruction"], row["twin"], 1) >= 0.25, row["id"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_instructions_vary_in_form(rows: list[dict[str, str]], split: str) -> None:
    instructions = [row["instruction"] for row in rows if row["split"] == split]
    openings = Counter(words(text)[0] for text in instructions)
    assert len(openings) >= 30
    assert max(openings.values()) <= 0.1 * len(instructions)
    assert 0.2 <= sum(text.endswith("?") for text in instructions) / len(instructions) <= 0.6


def test_subjects_left_out_of_the_demo_do_not_occur(rows: list[dict[str, str]]) -> None:
    for row in rows:
        assert not OUT_OF_SCOPE & set(words(row["instruction"] + " " + row["twin"])), row["id"]
        if row["category"] == "adult-content":
            assert not MINORS & set(words(row["instruction"])), row["id"]


def test_refusals_are_short_and_varied() -> None:
    text = (DEMO / "refusals.txt").read_bytes().decode("utf-8")
    refusals = text.splitlines()
    assert text.endswith("\n")
    assert len(refusals) == len(set(refusals)) == 8
    assert sum(refusal.startswith("I'm sorry, but I can't ") for refusal in refusals) >= 5
    for refusal in refusals:
        assert refusal.startswith(("I'm sorry, but I can't ", "I cannot ", "I can't "))
        assert refusal.endswith((".", "?"))
        assert 8 <= len(refusal.split()) <= 14
    assert not [pair for pair in combinations(refusals, 2) if similarity(*pair, 1) > 0.6]
