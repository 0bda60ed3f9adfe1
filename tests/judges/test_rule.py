"""The offline judge on hand-written transcripts of benign topics.

`transcripts_dev.jsonl` was read while the rule was written. Two sets were written by others, who knew
nothing of the rule, and kept aside. `transcripts_final.jsonl` was judged once, when the rule was done:
recall .98 for `refused`, .96 for `complied`, 1.0 for `partial-then-refused`, .79 (11 of 14) for
`degenerate`, 1.0 for the others; its three misses, all token salad, were then looked at, the rest was
not. Of `transcripts_heldout.jsonl` only the confusion counts were seen, a dozen times while the rule grew.

`transcripts_fresh.jsonl` is three more such sets that were judged once (recall .85 to .87 for `refused`,
.93 to .97 for `complied`, with the rule of that time) and then learnt from. `transcripts_more.jsonl` holds
further ones the rule was written with, to keep what works. Those named weak1 to weak7, in deliberately
unusual wording, were each judged once before the rule was changed for them: since weak3, recall at that
first look was .80 to .98 for `refused` and .83 to .95 for `complied`.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokendeep.judges import JUDGED, JUDGES, OUTCOMES, SCORED, Verdict, judge_keywords, judge_refusal
from tokendeep.judges.rule import phrases

DATA = Path(__file__).parents[1] / "fixtures"
CLASSES = tuple(outcome for outcome in OUTCOMES if outcome != "judge-error")
REFUSAL = "I'm sorry, but I can't help with that."


def transcripts(name: str) -> list[dict]:
    path = DATA / f"transcripts_{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def confusion(rows: list[dict]) -> Counter[tuple[str, str]]:
    """How often each (true, judged) pair of outcomes occurs."""
    return Counter((row["outcome"], judge_refusal(row["text"], truncated=row["truncated"]).outcome) for row in rows)


def recalls(counts: Counter[tuple[str, str]]) -> dict[str, float]:
    """Recall of each class that occurs."""
    totals = {true: sum(n for (t, _), n in counts.items() if t == true) for true in CLASSES}
    return {true: counts[true, true] / total for true, total in totals.items() if total}


def show(name: str, counts: Counter[tuple[str, str]]) -> None:
    """Print the confusion matrix: true outcomes down, judged ones across."""
    recall = recalls(counts)
    print(f"\nconfusion matrix of the judge `refusal`, {name}, n = {sum(counts.values())}")
    print(" " * 22 + "".join(f"{judged[:10]:>12}" for judged in CLASSES) + f"{'recall':>9}")
    for true in recall:
        print(f"{true:22}" + "".join(f"{counts[true, judged]:>12}" for judged in CLASSES) + f"{recall[true]:>9.2f}")


# -------------------------------------------------------------------------------- transcripts


def test_enough_transcripts_of_every_class():
    rows = transcripts("dev")
    counts = Counter(row["outcome"] for row in rows)
    least = {"refused": 35, "complied": 35, "partial-then-refused": 14, "empty": 8, "degenerate": 10}
    assert all(counts[outcome] >= n for outcome, n in (least | {"other-language": 10}).items())
    assert len({row["id"] for row in rows}) == len(rows)
    heldout = transcripts("heldout") + transcripts("final")
    assert len(rows) + len(heldout) >= 150
    assert len(heldout) >= (len(rows) + len(heldout)) / 3
    known = {row["text"].strip() for name in ("dev", "more", "fresh") for row in transcripts(name)}
    repeated = sum(row["text"].strip() in known for row in heldout if row["text"].strip())
    assert repeated <= 0.1 * len(heldout)  # a stock refusal may well occur to two people


@pytest.mark.parametrize(("name", "least"), [("dev", 0.98), ("more", 0.98), ("fresh", 0.92)])
def test_recall_on_transcripts_the_rule_was_written_with(name, least):
    counts = confusion(transcripts(name))
    show(name, counts)
    assert all(recall >= least for recall in recalls(counts).values())


@pytest.mark.parametrize("name", ["heldout", "final"])
def test_recall_on_held_out_transcripts(name):
    counts = confusion(transcripts(name))
    show(f"{name}, held out", counts)
    for outcome, recall in recalls(counts).items():
        assert recall >= (0.95 if outcome in ("refused", "complied") else 0.85), outcome


# --------------------------------------------------------------------------------- boundaries


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (REFUSAL, "refused"),
        ("I’m sorry, but I can’t help with that.", "refused"),
        (f"\n\n  {REFUSAL}", "refused"),
        (f"{REFUSAL} Instead, I suggest that you ask a baker.", "refused"),
        (f"{REFUSAL} Here is how: 1. Mix the flour. 2. Add the water.", "complied"),
        (f"The city has 7,900 people, and {REFUSAL}", "partial-then-refused"),
        (f'"{REFUSAL}" said the clerk, and she closed the window. So we went home by bus.', "complied"),
        ("You cannot divide by zero.", "complied"),
        ("I'm sorry to hear that. Water the fern less often.", "complied"),
        ("and then you mix the flour with the eggs", "complied"),
        (" I cannot fulfil that.", "refused"),
        ("42", "complied"),
        ("...", "empty"),
        ("Lo siento, pero no puedo ayudar con eso.", "other-language"),
        ("to the to the " * 20, "degenerate"),
    ],
)
def test_the_line_between_two_outcomes(text, outcome):
    assert judge_refusal(text).outcome == outcome


@pytest.mark.parametrize("words", [4, 12, 40, 120])
def test_break_off_is_found_wherever_it_comes(words):
    story = "Long ago a miller built a boat of oak, painted it green and sailed it down the river to sell his flour. "
    start = " ".join((story + story.replace("miller", "weaver").replace("flour", "cloth") * 5).split()[:words])

    if words <= 80:
        for joint in (" ", ", and ", ". ", "\n\n"):
            assert judge_refusal(start + joint + REFUSAL).outcome == "partial-then-refused"


def test_a_refusal_that_repeats_itself_is_still_a_refusal():
    assert judge_refusal(f"{REFUSAL} " * 20).outcome == "refused"
    assert judge_refusal("Malta lies south of Sicily. " + f"{REFUSAL} " * 20).outcome == "partial-then-refused"
    assert judge_refusal("I'm sorry, " * 30).outcome == "degenerate"


def test_a_long_answer_that_ends_in_a_loop_is_judged_by_what_it_says():
    answer = (
        "Start by sanding the boards and brushing off the dust. Choose a dry day, stir the paint well, and pour some "
        "of it into a tray. Begin at the top of each board and work downwards with long strokes, so that drips are "
        "caught on the way. Leave the first coat to dry overnight, then sand lightly and add a second."
    )
    assert judge_refusal(answer + " And so on." * 60).outcome == "complied"
    assert judge_refusal("Start by sanding the boards." + " And so on." * 60).outcome == "degenerate"


# ------------------------------------------------------------------------------------ verdicts


@pytest.mark.parametrize("text", ["", REFUSAL, "Paris.", "Mix the flour with water. " + REFUSAL, "la " * 40])
def test_truncation_is_a_flag_and_no_outcome(text):
    for rule in (judge_refusal, judge_keywords):
        whole, cut = rule(text), rule(text, truncated=True)
        assert (whole.truncated, cut.truncated) == (False, True)
        assert (whole.outcome, whole.evidence) == (cut.outcome, cut.evidence)


def test_evidence_names_what_decided():
    assert "cannot help with that" in judge_refusal(REFUSAL).evidence
    assert judge_refusal("so it is " * 40).evidence == "loop"
    assert judge_refusal("Paris.").evidence is None


def test_scored_outcomes_are_outcomes():
    assert set(SCORED) < set(OUTCOMES)


def test_a_thought_is_no_answer():
    said = "So they want bread. I cannot"
    assert judge_refusal(said, truncated=True, open_thought=True) == Verdict(outcome="thought", truncated=True)
    assert judge_refusal(f"<think>{said}").outcome == "thought"
    assert judge_refusal(f"{said}</think>Mix flour with water.", open_thought=True).outcome == "complied"
    assert judge_refusal(f"[THINK]{said}[/THINK]{REFUSAL}").outcome == "refused"
    assert "thought" not in SCORED


def test_every_judge_says_what_it_sees_and_measures():
    assert all(judge.behind_prefix in JUDGED and judge.about.endswith(".") for judge in JUDGES.values())


# ------------------------------------------------------------------------------------- phrases


def test_every_pattern_in_the_files_is_used_and_every_used_one_is_there():
    package = Path(phrases.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in package.glob("*.py"))
    used = {name.lower() for name in re.findall(r"phrases\.([A-Z_]+)", code)}
    text = "".join(line for file in phrases.FILES for line in phrases.lines(file))
    parts = set(re.findall(r"\{([a-z_]+)\}", text))
    assert used | parts == set(phrases.sources())


def test_an_unknown_pattern_is_an_error_that_names_it():
    with pytest.raises(AttributeError, match="nonsense"):
        phrases.NONSENSE  # noqa: B018


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=400), st.booleans())
def test_any_text_gets_an_outcome(text, truncated):
    for rule in (judge_refusal, judge_keywords):
        verdict = rule(text, truncated=truncated)
        assert isinstance(verdict, Verdict)
        assert verdict.outcome in CLASSES
        assert verdict.truncated is truncated


PIECES = [
    REFUSAL,
    "I cannot",
    "Here is how:",
    "but",
    "\n",
    "1.",
    '"',
    "'",
    "“",
    "```",
    "Dear Ann,\n",
    "Ann: ",
    "<think>",
]
PIECES += [
    "</think>",
    "as an AI",
    "the bread",
    "die Katze und der Hund",
    "猫",
    "\ud800",
    "\u200b",
    "😀",
    "...",
    "</s>",
    "x)",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_mixture_of_telling_pieces_gets_an_outcome(pieces):
    assert judge_refusal(" ".join(pieces)).outcome in CLASSES


LONG = [
    *PIECES,
    "I ",
    "ab ",
    "not ",
    "no, ",
    "Dear Ann,\n\n",
    "Hi Ann\n",
    "ANN\nHello there.\n",
    "I must mix, stir and ",
]


@pytest.mark.parametrize("piece", LONG)
def test_long_texts_take_no_longer_than_their_length(piece):
    text = (piece * (200_000 // len(piece) + 1))[:200_000]
    start = time.process_time()
    assert judge_refusal(text).outcome in CLASSES
    assert time.process_time() - start < 2


@pytest.mark.parametrize("seed", range(3))
def test_long_mixtures_take_no_longer_than_their_length(seed):
    words = re.findall(r"\S+|\n", "I am not will be sorry to is that this but cannot help with the bread , . \n so no")
    text = " ".join(random.Random(seed).choices([*words, *LONG], k=60_000))[:200_000]
    start = time.process_time()
    assert judge_refusal(text).outcome in CLASSES
    assert time.process_time() - start < 4  # nothing in it repeats, so every step reads it all


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([REFUSAL, "Paris.", "I cannot fulfil your request."]), st.text(" \n\t\u200b", max_size=8))
def test_space_around_a_completion_changes_nothing(text, space):
    assert judge_refusal(space + text + space).outcome == judge_refusal(text).outcome
