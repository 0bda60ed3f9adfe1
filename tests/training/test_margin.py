"""Margins of refusal: what of an answer they are measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tokendeep import chat
from tokendeep.errors import InputError
from tokendeep.training.margin import TOKENS, Margins
from tokendeep.types import Pair, Subject

ASKED = ({"role": "user", "content": "How do I water the plants at home?"},)
PAIRS = [Pair("a", ASKED, "Sure, here is a short list: First, open the window.")]  # type: ignore[arg-type]


@pytest.mark.parametrize("left", [9, 7, 5, 3])
def test_an_answer_that_is_cut_is_measured_as_far_as_it_goes(left: int, tiny_subject: Subject) -> None:
    whole = Margins(tiny_subject, PAIRS, schedule=None).start
    prompt = len(chat.prompt_ids(tiny_subject.tokenizer, PAIRS[0].messages))
    cut = Margins(tiny_subject, PAIRS, schedule=None, max_length=prompt + left).start
    known = [k for k in range(whole.shape[1]) if k + TOKENS <= left]
    assert known
    np.testing.assert_allclose(cut[0, known], whole[0, known], rtol=1e-4)
    assert np.isnan(np.delete(cut[0], known)).all()


def test_answers_are_cut_at_the_context(tiny_subject: Subject, make_model: Callable[..., Any]) -> None:
    prompt = len(chat.prompt_ids(tiny_subject.tokenizer, PAIRS[0].messages))
    short = replace(tiny_subject, model=make_model(max_position_embeddings=prompt + 7))
    found = Margins(short, PAIRS, schedule=None, max_length=512).start
    np.testing.assert_array_equal(found, Margins(tiny_subject, PAIRS, schedule=None, max_length=prompt + 7).start)
    none = replace(tiny_subject, model=make_model(max_position_embeddings=prompt + 2))
    with pytest.raises(InputError, match=rf"within {prompt + 2} \(the model's context\)"):
        Margins(none, PAIRS, schedule=None)


def test_answers_that_are_cut_too_short_are_named(tiny_subject: Subject) -> None:
    prompt = len(chat.prompt_ids(tiny_subject.tokenizer, PAIRS[0].messages))
    with pytest.raises(InputError, match=rf"no answer has {TOKENS} tokens within {prompt + 2} \(--max-length\)"):
        Margins(tiny_subject, PAIRS, schedule=None, max_length=prompt + 2)
