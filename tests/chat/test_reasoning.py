"""Thoughts in what a model wrote, and the blocks that templates open, in the markup of each family."""

from __future__ import annotations

import pytest

from conftest import TEMPLATES, build_tokenizer
from tokendeep import chat
from tokendeep.chat import reasoning
from tokendeep.errors import InputError

THOUGHT = "The user asks about bread. I cannot help with knives, but bread is fine."
HARMONY = "<|start|>assistant<|channel|>final<|message|>"
MARKS = [
    *reasoning.MARKS.items(),
    ("<|channel|>analysis<|message|>", f"<|end|>{HARMONY}"),
    (reasoning.ANALYSIS, "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>"),
    ("<|start|>assistant<|channel|>commentary<|message|>", HARMONY),
    ("analysis", "assistantfinal"),  # gpt-oss without its control tokens
]


@pytest.mark.parametrize(("opens", "closes"), MARKS)
def test_the_answer_stands_behind_the_thought(opens: str, closes: str) -> None:
    assert chat.answer(f"{opens}{THOUGHT}{closes}Bake it.") == "Bake it."
    assert chat.answer(f"\n{opens}{THOUGHT}{closes}\n\n{opens}Well.{closes}Bake it.") == "Bake it."
    assert chat.answer(f"{THOUGHT}{closes}Bake it.", opened=True) == "Bake it."
    assert chat.answer(f"{opens}{THOUGHT}{closes}") == ""


@pytest.mark.parametrize(("opens", "closes"), [*MARKS, ("thought\n", "")])  # Gemma without its control tokens
def test_a_thought_that_is_not_ended_is_no_answer(opens: str, closes: str) -> None:
    assert chat.answer(opens + THOUGHT) is None
    assert chat.answer(f" \n{opens}{THOUGHT}") is None
    assert chat.answer(f"{opens}{THOUGHT}{closes or '</think>'}\n{opens or '<think>'}{THOUGHT}") is None or not closes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Bake it.",
        "Write <think> to let it think.",
        "analysis of bread: it rises.",
        "Analysis: good.",
        "thought of it",
    ],
)
def test_an_answer_without_thoughts_is_left_as_it_is(text: str) -> None:
    assert chat.answer(text) == text
    assert chat.answer(text, opened=True) is None


@pytest.mark.parametrize(("opens", "closes"), reasoning.MARKS.items())
def test_blocks_of_every_family_are_closed_or_opened(opens: str, closes: str) -> None:
    assert reasoning.closing(f"ASK {opens}\n") == f"\n{closes}\n\n"
    assert reasoning.closing(f"ASK {opens}\n\n{closes}\n") == ""
    assert reasoning.inside(f"ASK {opens}\n", "") == f"ASK {opens}\n"
    assert reasoning.inside(f"ASK {opens}\n\n{closes}\n\n", "") == f"ASK {opens}\n"
    assert reasoning.inside("ASK ", f"{opens}\n\n{closes}\n\n") == f"ASK {opens}\n"


def test_gpt_oss_thinks_in_a_channel_of_its_own() -> None:
    assert reasoning.inside("<|start|>assistant", reasoning.FINAL) == "<|start|>assistant" + reasoning.ANALYSIS
    with pytest.raises(InputError, match="opens no thinking block"):
        reasoning.inside("<|start|>assistant", "")


@pytest.mark.parametrize(
    ("marks", "thought"),
    [
        (["[THINK]", "[/THINK]"], "[THINK]well[/THINK]"),
        (["<|channel>", "<channel|>"], "<|channel>thought\nwell<channel|>"),
        (["<|channel|>", "<|message|>", "<|start|>"], f"{reasoning.ANALYSIS}well{HARMONY}"),
    ],
)
def test_control_tokens_that_mark_a_thought_are_shown(marks: list[str], thought: str) -> None:
    """A tokenizer that leaves control tokens out would join the thought with the answer."""
    template = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")
    control = ["<|im_start|>", "<|im_end|>", *marks]
    tokenizer = build_tokenizer("byte-level", control=control, bos=None, eos="<|im_end|>", template=template)
    ids = tokenizer(f"<|im_start|>{thought}Bake it.<|im_end|>").input_ids
    assert thought.startswith(marks[0])
    assert chat.decode(tokenizer, ids) == f"{thought}Bake it."
    assert chat.answer(chat.decode(tokenizer, ids)) == "Bake it."
    plain = tokenizer("<|im_start|>Bake it.<|im_end|>").input_ids
    assert chat.decode(tokenizer, plain) == tokenizer.decode(plain, skip_special_tokens=True) == "Bake it."


@pytest.mark.parametrize(
    "text",
    [
        "thought\nprovoking question! Sure, first you ...",
        "analysis(of the data) shows a rise.",
        "Sure, here is the form:\n<thought>\nwrite what you think here",
    ],
)
def test_words_of_an_answer_open_no_thought(text: str) -> None:
    assert reasoning.answer(text) == text
