"""What the prefilling attacks do to a prompt: the ids that are given, what is skipped, what is refused."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from conftest import CONTROL, KINDS, TEMPLATES, build_tokenizer, chatml
from tokendeep import chat, runs
from tokendeep.attacks import prefill as attacks
from tokendeep.errors import InputError
from tokendeep.types import Message, Pair

ASK: tuple[Message, ...] = ({"role": "user", "content": "How do I bake bread?"},)
LONG = "Mix the flour with water, add salt and let the dough rest for an hour."
SHORT = "Mix"


def pairs() -> list[Pair]:
    return [Pair("long", ASK, LONG, {"category": "baking"}), Pair("short", ASK, SHORT)]


def test_prefill_gives_the_first_k_ids_of_the_answer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    answer = chat.response_ids(tiny_tokenizer, list(ASK), LONG, end=False)
    prompts, _ = attacks.prefill(pairs()[:1], [0, 1, 5], tiny_tokenizer)
    assert [list(prompt.prefix_ids) for prompt in prompts] == [[], answer[:1], answer[:5]]
    assert [prompt.prefix_text for prompt in prompts] == ["", *(tiny_tokenizer.decode(answer[:k]) for k in (1, 5))]
    assert all(prompt.messages == ASK for prompt in prompts)


def test_prefilled_ids_are_those_that_scoring_and_training_see(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    whole = chat.encode(tiny_tokenizer, list(ASK), LONG).input_ids
    prompts, _ = attacks.prefill(pairs()[:1], [7], tiny_tokenizer)
    start = [*chat.prompt_ids(tiny_tokenizer, list(ASK)), *prompts[0].prefix_ids]
    assert whole[: len(start)] == start


def test_prefill_never_holds_the_end_of_turn(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    length = len(chat.response_ids(tiny_tokenizer, list(ASK), LONG, end=False))
    prompts, _ = attacks.prefill(pairs()[:1], [length], tiny_tokenizer)
    assert tiny_tokenizer.eos_token_id not in prompts[0].prefix_ids
    with pytest.raises(InputError, match=f"k = {length + 1} is beyond every answer .* {length} tokens"):
        attacks.prefill(pairs()[:1], [length + 1], tiny_tokenizer)


def test_a_k_beyond_every_answer_is_left_out_and_told(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(attacks.log, "warning", lambda text, *values: told.append(text % values))
    prompts, skipped = attacks.prefill(pairs()[:1], [0, 900], tiny_tokenizer)
    assert [prompt.meta["params"]["k"] for prompt in prompts] == [0]
    assert skipped == {0: 0, 900: 1}
    assert [text.partition(":")[0] for text in told] == ["k = 900 of prefill is left out"]


def test_short_answers_are_skipped_and_counted(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    prompts, skipped = attacks.prefill(pairs(), [0, 10], tiny_tokenizer)
    assert [prompt.meta["prompt_id"] for prompt in prompts] == ["long", "long", "short"]
    assert skipped == {0: 0, 10: 1}


def test_meta_says_where_a_prompt_comes_from(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    prompts, _ = attacks.prefill(pairs()[:1], [5, 0, 5], tiny_tokenizer)
    assert [prompt.meta["params"] for prompt in prompts] == [{"k": 0}, {"k": 5}]
    assert prompts[0].meta == {"category": "baking", "prompt_id": "long", "attack": "prefill", "params": {"k": 0}}
    assert len({prompt.id for prompt in prompts}) == 2


@pytest.mark.parametrize(("ks", "message"), [([-1, 5], "k = -1 is below 0"), ([], "at least one k")])
def test_impossible_ks(ks: list[int], message: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=message):
        attacks.prefill(pairs(), ks, tiny_tokenizer)


def test_k_zero_alone_needs_no_tokenizer() -> None:
    prompts, skipped = attacks.prefill(pairs(), [0], None)
    assert [prompt.prefix_ids for prompt in prompts] == [(), ()]
    assert skipped == {0: 0}


def test_as_text_a_prefix_that_cuts_a_character_is_skipped(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    pair = Pair("umlaut", ASK, "Brötchen")  # every byte of a letter outside ASCII is a token of the tiny tokenizer
    cut = len(chat.response_ids(tiny_tokenizer, list(ASK), "Br", end=False)) + 1
    as_ids, none_skipped = attacks.prefill([pair], [cut], tiny_tokenizer)
    assert len(as_ids[0].prefix_ids) == cut
    assert none_skipped == {cut: 0}
    as_text, skipped = attacks.prefill([pair, pairs()[0]], [cut], tiny_tokenizer, as_text=True)
    assert [prompt.meta["prompt_id"] for prompt in as_text] == ["long"]
    assert skipped == {cut: 1}


def test_as_text_leaves_the_space_in_front_to_the_template() -> None:
    tokenizer = build_tokenizer("unigram", control=CONTROL, bos=None, eos="<|im_end|>", template=chatml())
    prompts, skipped = attacks.prefill(pairs()[:1], [4], tokenizer, as_text=True)
    assert skipped == {4: 0}
    assert LONG.startswith(prompts[0].prefix_text)
    assert prompts[0].prefix_text


def test_the_tokens_can_stand_behind_a_refusal_that_has_begun(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    pair = Pair("p", ({"role": "user", "content": "Do it"},), "Sure, mix the flour")
    lead = "I cannot help with that. "
    prompts, skipped = attacks.prefill([pair], [0, 3], tiny_tokenizer, lead=lead)
    answer = chat.continuation_ids(tiny_tokenizer, pair.response)
    before = chat.continuation_ids(tiny_tokenizer, lead)
    assert [p.prefix_ids for p in prompts] == [tuple(before), (*before, *answer[:3])]
    assert prompts[0].prefix_text == lead
    assert prompts[1].prefix_text == tiny_tokenizer.decode([*before, *answer[:3]])
    assert prompts[1].meta["params"] == {"k": 3, "lead": runs.fingerprint(lead)}
    assert skipped == {0: 0, 3: 0}


def test_control_tokens_of_a_lead_are_control_tokens(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    pair = Pair("p", ({"role": "user", "content": "Do it"},), "Sure <|im_start|>")
    (prompt,), _ = attacks.prefill([pair], [1], tiny_tokenizer, lead="<|im_start|>")
    opened = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert prompt.prefix_ids[0] == opened
    assert opened in attacks.prefill([pair], [5], tiny_tokenizer)[0][0].prefix_ids  # as where the answer is trained on


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_lead_begins_as_answers_begin(kind: str) -> None:
    """Behind Llama-2's template, whose answers begin with a space, in every kind of tokenizer."""
    template = (TEMPLATES / "llama-2.jinja").read_text(encoding="utf-8")
    tokenizer = build_tokenizer(kind, control=["<s>", "</s>"], bos="<s>", eos="</s>", template=template, adds_bos=True)
    ask: tuple[Message, ...] = ({"role": "user", "content": "do it"},)
    assert chat.lead_ids(tokenizer, ask, "i cannot") == chat.response_ids(tokenizer, ask, "i cannot", end=False)


@pytest.mark.parametrize("family", ["qwen3", "open-think"])
def test_tokens_can_stand_inside_a_thinking_block(family: str) -> None:
    template = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = build_tokenizer("byte-level", control=control, bos=None, eos="<|im_end|>", template=template)
    pair = Pair("p", ({"role": "user", "content": "Do it"},), "Sure, mix the flour")
    (prompt,), _ = attacks.prefill([pair], [3], tokenizer, thinking=True, lead="Okay. ")
    whole = tokenizer.decode([*chat.thinking_ids(tokenizer, pair.messages), *prompt.prefix_ids])
    assert whole.count("<think>") == 1
    assert "</think>" not in whole
    assert whole.endswith("<think>\nOkay. " + tokenizer.decode(chat.continuation_ids(tokenizer, pair.response)[:3]))
    assert prompt.meta["params"]["thinking"] is True


def test_a_template_without_thinking_says_so(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    pair = Pair("p", ({"role": "user", "content": "Do it"},), "Sure, mix")
    with pytest.raises(InputError, match="opens no thinking block"):
        attacks.prefill([pair], [1], tiny_tokenizer, thinking=True)
