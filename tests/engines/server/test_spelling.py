"""An answer counts only where its token ids spell the text beside them, whatever the server."""

from __future__ import annotations

from typing import Any

import pytest

from tokendeep import chat
from tokendeep.engines.base import Request
from tokendeep.engines.server import answers
from tokendeep.engines.server.dialects import Ask, Reply
from tokendeep.errors import InputError
from tokendeep.types import Decoding, Subject

REFUSAL = "The capital of France is Paris, of course, and I refuse."


@pytest.fixture
def tokenizer(tiny_subject: Subject) -> Any:
    return tiny_subject.tokenizer


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def completed(
    tokenizer: Any, ids: tuple[int, ...], text: str, prompt: tuple[int, ...] = (40,), stopped: bool = True
) -> tuple[int, ...]:
    """The ids that are taken of an answer."""
    longest = 500 if stopped else len(ids)
    ask = Ask(Request(prompt, Decoding(max_new_tokens=longest)), "m", frozenset({tokenizer.eos_token_id}), 0)
    return answers.completion(tokenizer, ask, Reply(text, stopped, ids, prompt), len(tokenizer)).ids


def test_ids_outside_the_vocabulary(tokenizer: Any) -> None:
    for wrong in (len(tokenizer), 999, -1):
        with pytest.raises(InputError, match=f"the token id {wrong}, which the model's vocabulary of {len(tokenizer)}"):
            completed(tokenizer, (*ids_of(tokenizer, "Paris"), wrong), "Paris")


def test_ids_that_spell_another_text(tokenizer: Any) -> None:
    control = sorted(chat.ids.control_ids(tokenizer))
    paris = ids_of(tokenizer, "Paris")
    for ids, text in (
        ((), "Paris"),
        ((tokenizer.eos_token_id,), "Paris"),
        ((tokenizer.eos_token_id, *paris), "Lyon"),
        (paris, REFUSAL),
        (ids_of(tokenizer, REFUSAL), "Paris"),
        (paris, ""),
        ((*paris, tokenizer.eos_token_id), "Paris<|im"),
        (tuple(control), "Paris"),
        ((*control, *paris), "Paris Paris"),
        (paris, "Pari"),
        ((control[0],) * 400, tokenizer.decode(control[:1]) * 300 + "Paris"),
    ):
        with pytest.raises(InputError, match="do not spell the text"):
            completed(tokenizer, ids, text)


def test_an_end_is_shown_or_not(tokenizer: Any) -> None:
    paris, end = ids_of(tokenizer, "Paris"), tokenizer.eos_token_id
    for text in ("Paris", f"Paris{tokenizer.decode([end])}"):
        assert completed(tokenizer, (*paris, end), text) == paris
    assert completed(tokenizer, (end,), "") == ()


def test_control_tokens_are_shown_or_not(tokenizer: Any) -> None:
    mark = next(one for one in sorted(chat.ids.control_ids(tokenizer)) if one != tokenizer.eos_token_id)
    ids = (*ids_of(tokenizer, "A"), mark, *ids_of(tokenizer, "B"))
    for text in ("AB", f"A{tokenizer.decode([mark])}B"):
        assert completed(tokenizer, ids, text) == ids


def test_blanks_at_the_seam_do_not_count(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, " Paris is\n")
    for text in (" Paris is\n", "Paris is", "Paris is\n"):
        assert completed(tokenizer, ids, text) == ids


def test_an_answer_that_is_cut_inside_a_character(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, "Paris \U0001f642")
    half = ids[: len(ids_of(tokenizer, "Paris ")) + 2]
    assert "\ufffd" in tokenizer.decode(half)
    for text in ("Paris", "Paris ", "Paris \ufffd"):
        assert completed(tokenizer, half, text, stopped=False) == half


def test_an_answer_that_ends_a_character_of_its_prompt(tokenizer: Any) -> None:
    whole = ids_of(tokenizer, "I \U0001f642 Paris")
    cut = len(ids_of(tokenizer, "I ")) + 2
    prompt, ids = whole[:cut], whole[cut:]
    for text in ("\U0001f642 Paris", "\ufffd\ufffd Paris", " Paris"):  # each a way of servers with it
        assert completed(tokenizer, ids, text, prompt) == ids
    assert completed(tokenizer, ids, "I \U0001f642 Paris", prompt) == ids  # as vLLM has it: all of the prompt as well
    for text in ("\U0001f643 Paris", "I \U0001f642 Lyon"):
        with pytest.raises(InputError, match="do not spell the text"):
            completed(tokenizer, ids, text, prompt)
    with pytest.raises(InputError, match="do not spell the text"):
        completed(tokenizer, ids_of(tokenizer, "Paris"), "I Paris", ids_of(tokenizer, "I "))
