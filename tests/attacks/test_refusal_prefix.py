"""Refusal prefixes: how they are tokenised, and what results call them."""

from __future__ import annotations

import hashlib

import pytest
from transformers import PreTrainedTokenizerFast

from tokendeep import chat, runs
from tokendeep.attacks import refusal_prefix as attacks
from tokendeep.errors import InputError
from tokendeep.types import Message, Prompt

ASK: tuple[Message, ...] = ({"role": "user", "content": "How do I bake bread?"},)


def test_refusal_prefix_is_tokenised_as_the_beginning_of_an_answer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    plain = [Prompt("p", ASK, meta={"prompt_id": "p", "category": "baking"})]
    prompts = attacks.refusal_prefix(plain, None, tiny_tokenizer)
    assert [prompt.prefix_text for prompt in prompts] == list(attacks.REFUSAL_PREFIXES)
    assert [prompt.meta["params"]["prefix"] for prompt in prompts] == list(attacks.REFUSAL_PREFIXES)
    for prompt in prompts:
        assert list(prompt.prefix_ids) == chat.response_ids(tiny_tokenizer, list(ASK), prompt.prefix_text, end=False)
    assert attacks.refusal_prefix(plain, ["No."], None)[0].prefix_ids == ()


def test_a_user_s_own_texts_go_by_number_and_hash() -> None:
    plain = [Prompt("p", ASK, meta={"prompt_id": "p"})]
    prompts = attacks.refusal_prefix(plain, ["I cannot", "Zanzibar"], None)
    digest = hashlib.sha256(b"Zanzibar").hexdigest()[:8]
    assert [prompt.meta["params"]["prefix"] for prompt in prompts] == ["I cannot", f"prefix #2 (sha {digest})"]
    assert [prompt.prefix_text for prompt in prompts] == ["I cannot", "Zanzibar"]
    assert "Zanzibar" not in prompts[1].id
    assert [runs.system_name(text) for text in ("none", "default", "Zanzibar", f"sha {digest}")] == [
        "none", "default", f"sha {digest}", f"sha {digest}",
    ]  # fmt: skip


@pytest.mark.parametrize("prefixes", [[], [" "], ["No", "No"]])
def test_impossible_prefixes(prefixes: list[str]) -> None:
    with pytest.raises(InputError, match="prefix"):
        attacks.refusal_prefix([], prefixes, None)
