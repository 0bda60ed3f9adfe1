"""Refusal openings as token ids."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import build_tokenizer
from tokendeep.depth import openings
from tokendeep.errors import InputError


def test_openings_are_cut_merged_and_short_ones_dropped(tiny_tokenizer: Any) -> None:
    ids = openings.opening_ids(tiny_tokenizer, ["I cannot help", "I cannot assist", "I"], 3)
    assert all(len(opening) == 3 for opening in ids)
    assert len(set(ids)) == len(ids)
    behind = tiny_tokenizer("x\n\nI cannot help", add_special_tokens=False).input_ids[1:]
    assert tuple(behind[:3]) not in ids  # the blank line takes two of the three tokens: "I" alone is no refusal
    assert tuple(behind[:5]) in openings.opening_ids(tiny_tokenizer, ["I cannot help"], 5)
    with pytest.raises(InputError, match="opening"):
        openings.opening_ids(tiny_tokenizer, ["I"], 9)


def test_openings_continue_a_text_where_the_tokenizer_begins_one_with_a_space() -> None:
    tokenizer = build_tokenizer("llama", control=["<s>", "</s>", "<unk>"], bos="<s>", eos="</s>", template="")
    ids = openings.opening_ids(tokenizer, ["I cannot help with that", "I'm sorry, I can't"], 4)
    begin = tokenizer.convert_tokens_to_ids("\u2581")
    assert begin not in {opening[0] for opening in ids}
    answer = tokenizer("x\nI cannot help with that", add_special_tokens=False).input_ids
    head = tokenizer("x\n", add_special_tokens=False).input_ids
    assert tuple(answer[len(head) :][:4]) in ids  # what a model writes behind a line break


def test_openings_that_ordinary_answers_share_are_left_out(tiny_tokenizer: Any, capsys: Any) -> None:
    shared = len(tiny_tokenizer("I'm", add_special_tokens=False).input_ids)
    ids = openings.opening_ids(tiny_tokenizer, ["I'm sorry, I can't assist", "I cannot help"], shared)
    assert tuple(tiny_tokenizer("I'm", add_special_tokens=False).input_ids) not in ids
    assert "left out" in capsys.readouterr().out
