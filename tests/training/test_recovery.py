"""Safety-recovery rows: which tokens carry loss, how k is drawn, how rows are weighted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokendeep import chat, data
from tokendeep.errors import InputError
from tokendeep.training import recovery
from tokendeep.training.rows import show
from tokendeep.types import IGNORE, Chat
from tuning import HARMFUL, REFUSAL, ordinary, triple

OPTIONS = recovery.RecoveryOptions(safety_rows=4, utility_rows=8)


def test_a_recovery_row_is_prompt_context_refusal_by_ids(tiny_tokenizer: Any) -> None:
    t = triple()
    prompt = chat.prompt_ids(tiny_tokenizer, t.messages)
    harmful = chat.response_ids(tiny_tokenizer, t.messages, HARMFUL, end=False)
    refusal = chat.response_ids(tiny_tokenizer, t.messages, REFUSAL)
    row = recovery.recovery_row(tiny_tokenizer, t, 7)
    assert row.input_ids == prompt + harmful[:7] + refusal
    assert row.labels == [IGNORE] * (len(prompt) + 7) + refusal


def test_context_never_crosses_the_end_of_the_harmful_answer(tiny_tokenizer: Any) -> None:
    t = triple()
    row = recovery.recovery_row(tiny_tokenizer, t, 10_000)
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    start = len(chat.prompt_ids(tiny_tokenizer, t.messages))
    context = [i for i, label in zip(row.input_ids[start:], row.labels[start:], strict=True) if label == IGNORE]
    assert context == chat.response_ids(tiny_tokenizer, t.messages, HARMFUL, end=False)
    assert end not in context
    assert max(recovery.draw_context(0, 0, i, 9, 0.0, 100) for i in range(300)) == 9


def test_k_is_zero_half_the_time_and_else_uniform() -> None:
    draws = [recovery.draw_context(0, epoch, row, 500, 0.5, 100) for epoch in range(20) for row in range(500)]
    counts = Counter(draws)
    assert abs(counts[0] / len(draws) - 0.5) < 0.02
    positive = np.array([k for k in draws if k])
    assert (positive.min(), positive.max()) == (1, 100)
    observed = np.histogram(positive, bins=10, range=(0.5, 100.5))[0]
    expected = len(positive) / 10
    assert ((observed - expected) ** 2 / expected).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = .001
    assert all(recovery.draw_context(0, 0, i, 500, 1.0, 100) == 0 for i in range(50))


def test_draws_are_fresh_each_epoch_and_the_same_for_the_same_key() -> None:
    first, again, second = ([recovery.draw_context(0, e, i, 500, 0.5, 100) for i in range(50)] for e in (0, 0, 1))
    assert first == again
    assert first != second


def test_every_step_holds_the_ratio_and_epochs_cover_all_rows(tiny_tokenizer: Any) -> None:
    plan = recovery.plan_rows(
        tiny_tokenizer, [triple(i) for i in range(8)], [ordinary(i) for i in range(5)], OPTIONS, steps=4
    )
    steps = [[p for p in plan if p.step == s] for s in range(4)]  # 8 triples x 2 epochs / 4
    assert [len(step) for step in steps] == [12] * 4
    assert all(sum(p.group == "safety" for p in step) == 4 for step in steps)
    first_epoch = Counter(p.source for step in steps[:2] for p in step if p.group == "safety")
    assert first_epoch == Counter(f"t{i}" for i in range(8))


def test_step_weights_by_hand() -> None:
    rows = [("safety", 3), ("safety", 1), ("utility", 10), ("utility", 30)]
    assert recovery.step_weights(rows, 0.2, "tokens") == pytest.approx([0.05, 0.05, 0.02, 0.02])
    assert recovery.step_weights(rows, 0.2, "rows") == pytest.approx([0.1, 0.1, 0.4, 0.4])
    assert recovery.step_weights(rows, 0.2, "batch") == pytest.approx([1 / 44] * 4)


def test_weights_of_a_planned_step_add_up_to_alpha(tiny_tokenizer: Any) -> None:
    plan = recovery.plan_rows(tiny_tokenizer, [triple()], [ordinary()], OPTIONS, steps=1)
    totals: Counter[str] = Counter()
    for p in plan:
        totals[p.group] += p.weight * sum(label != IGNORE for label in p.labels)  # type: ignore[assignment]
    assert totals == {"safety": pytest.approx(0.2), "utility": pytest.approx(0.8)}


def test_a_cut_utility_row_supervises_the_rest_only(tiny_tokenizer: Any) -> None:
    whole, cut = (recovery.utility_row(tiny_tokenizer, ordinary(), c) for c in (0.0, 0.5))
    assert whole.input_ids == cut.input_ids
    supervised = [sum(label != IGNORE for label in row.labels) for row in (whole, cut)]
    assert 0 < supervised[1] < supervised[0]
    assert cut.labels[-1] == whole.labels[-1]


def test_the_end_of_an_answer_that_was_cut_off_is_not_learnt(tiny_tokenizer: Any, tmp_path: Path) -> None:
    whole, cut = ordinary(), replace(ordinary(), truncated=True)
    data.write_rows(tmp_path / "chats.jsonl", [whole, replace(cut, id="cut")])
    read = data.read_chats(tmp_path / "chats.jsonl")
    assert [row.truncated for row in read] == [False, True]
    rows = [recovery.utility_row(tiny_tokenizer, row, 0.0) for row in read]
    end = chat.response_ids(tiny_tokenizer, whole.messages[:1], "Rome is in Italy.")[
        len(chat.response_ids(tiny_tokenizer, whole.messages[:1], "Rome is in Italy.", end=False)) :
    ]
    assert end
    assert rows[0].labels == rows[1].labels + end


def test_rendering_marks_exactly_the_supervised_tokens(tiny_tokenizer: Any) -> None:
    text = show(tiny_tokenizer, recovery.recovery_row(tiny_tokenizer, triple(), 3))
    marked = "".join(piece.split("⟧")[0] for piece in text.split("⟦")[1:])
    assert marked == REFUSAL + "<|im_end|>"


@pytest.mark.parametrize("p_zero", [0.5, 1.0])
def test_a_row_that_does_not_fit_is_left_out_whatever_is_drawn(tiny_tokenizer: Any, p_zero: float) -> None:
    long = replace(triple(3), harmful=" ".join([HARMFUL] * 8))
    room = len(chat.prompt_ids(tiny_tokenizer, long.messages)) + 50
    triples = [triple(), long, triple(1)]
    fitting, _, skipped = recovery.usable(
        tiny_tokenizer, triples, [ordinary()], replace(OPTIONS, p_zero=p_zero), max_length=room,
        sources=("mine.jsonl", "chats.jsonl"),
    )  # fmt: skip
    if p_zero == 1:
        assert fitting == triples
        return
    assert fitting == [triples[0], triples[2]]
    assert len(skipped["data"]) == 1
    assert skipped["data"][0].startswith("Row t3 of mine.jsonl, with 100 harmful tokens: Prompt and context")


def test_a_utility_row_that_does_not_fit_is_left_out(tiny_tokenizer: Any) -> None:
    turns = ({"role": "user", "content": "Where is Rome? " * 40}, {"role": "assistant", "content": "In Italy."})
    rows = [ordinary(), Chat("u7", turns)]  # type: ignore[arg-type]
    more: Any = {"max_length": 200, "sources": ("mine.jsonl", "chats.jsonl")}
    _, left, skipped = recovery.usable(tiny_tokenizer, [triple()], rows, replace(OPTIONS, utility_rows=1), **more)
    assert left == rows[:1]
    assert skipped["utility"][0].startswith("Row u7 of chats.jsonl: Prompt and context")
    _, left, skipped = recovery.usable(tiny_tokenizer, [triple()], rows, replace(OPTIONS, utility_rows=0), **more)
    assert (left, skipped["utility"]) == ([], [])
    ended = replace(triple(), refusal="No.<|im_end|>")
    with pytest.raises(InputError, match=r"^Row t0 of mine\.jsonl, with \d+ harmful tokens: The answer spells"):
        recovery.usable(tiny_tokenizer, [ended], rows, OPTIONS, **more)
