"""The provider: exact ids, what it continues, what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    get_model,
)
from inspect_ai.tool import ToolInfo
from transformers import LlamaForCausalLM

from attacking import ROWS, Answers, answer_of, answers, config, prompt_of  # noqa: F401  (fixtures)
from conftest import CONTROL, TEMPLATES, build_tokenizer, chatml
from tokendeep import chat
from tokendeep.engines import local as generation
from tokendeep.errors import InputError
from tokendeep.evals import provider
from tokendeep.evals.provider import live_model, prefill_route
from tokendeep.types import Decoding, Subject


def ask(model: Model, *messages: Any, config: GenerateConfig = GenerateConfig(), tools: Any = ()) -> ModelOutput:  # noqa: B008
    """One request to the provider itself, without Inspect's own layers."""
    import asyncio

    return asyncio.run(model.api.generate(list(messages), list(tools), "none", config))  # type: ignore[arg-type,return-value]


def test_prefix_ids_follow_the_prompt_exactly(tiny_subject: Subject, answers: Answers) -> None:
    odd = [*answer_of(answers.tokenizer, ROWS[0])[:2], 301, 45]  # no text gives these ids
    question = ChatMessageUser(content=ROWS[0]["instruction"])
    for given in (odd, " ".join(map(str, odd))):
        ask(live_model(tiny_subject), question, ChatMessageAssistant(content="?", metadata={"prefix_ids": given}))
        assert list(answers.requests[-1].ids) == [*prompt_of(answers.tokenizer, ROWS[0]), *odd]


def test_a_final_assistant_message_is_continued_from_its_text(tiny_subject: Subject, answers: Answers) -> None:
    prefix = ChatMessageAssistant(content=ROWS[0]["response"])
    ask(live_model(tiny_subject), ChatMessageUser(content=ROWS[0]["instruction"]), prefix)
    whole = [*prompt_of(answers.tokenizer, ROWS[0]), *answer_of(answers.tokenizer, ROWS[0])]
    assert list(answers.requests[-1].ids) == whole


def test_system_and_earlier_turns_reach_the_template(tiny_subject: Subject, answers: Answers) -> None:
    turns = [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Good morning"),
        ("user", "How do I bake bread?"),
    ]
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    ask(live_model(tiny_subject), *(kinds[role](content=text) for role, text in turns))
    expected = chat.prompt_ids(answers.tokenizer, [{"role": role, "content": text} for role, text in turns])
    assert list(answers.requests[-1].ids) == expected


def test_beginning_of_sequence_stands_once(make_model: Callable[..., LlamaForCausalLM], answers: Answers) -> None:
    control = ["<s>", *CONTROL]
    tokenizer = build_tokenizer(
        "byte-level", control=control, bos="<s>", eos="<|im_end|>", template="{{ bos_token }}" + chatml(), adds_bos=True
    )
    subject = Subject(make_model(vocab_size=420), tokenizer, "with-bos")
    ask(live_model(subject), ChatMessageUser(content="Hello"))
    assert answers.requests[-1].ids.count(tokenizer.bos_token_id) == 1
    assert answers.requests[-1].ids[0] == tokenizer.bos_token_id


def test_the_continuation_is_what_the_model_writes_next(tiny_subject: Subject) -> None:
    prefix = answer_of(tiny_subject.tokenizer, ROWS[0])[:6]
    start = (*prompt_of(tiny_subject.tokenizer, ROWS[0]), *prefix)
    [expected] = generation.generate(tiny_subject, [generation.Request(start, Decoding(max_new_tokens=12))])
    model = live_model(tiny_subject, batch_size=2)
    said = ChatMessageAssistant(content="Mix", metadata={"prefix_ids": prefix})
    output = ask(model, ChatMessageUser(content=ROWS[0]["instruction"]), said, config=GenerateConfig(max_tokens=12))
    model.api.close()
    head = tiny_subject.tokenizer.decode(prefix)
    assert head + output.completion == tiny_subject.tokenizer.decode([*prefix, *expected.ids], skip_special_tokens=True)
    assert output.stop_reason == ("max_tokens" if expected.truncated else "stop")
    assert output.usage is not None
    assert (output.usage.input_tokens, output.usage.output_tokens) == (len(start), len(expected.ids))


def test_continuation_keeps_the_space_that_decoding_alone_loses(
    make_model: Callable[..., LlamaForCausalLM], answers: Answers
) -> None:
    tokenizer = build_tokenizer("unigram", control=CONTROL, bos=None, eos="<|im_end|>", template=chatml())
    answers.tokenizer, answers.reply = tokenizer, lambda request: "help with that"
    subject = Subject(make_model(vocab_size=420), tokenizer, "unigram")
    prefix = chat.response_ids(tokenizer, [{"role": "user", "content": "Hello"}], "I cannot", end=False)
    said = ChatMessageAssistant(content="I cannot", metadata={"prefix_ids": prefix})
    output = ask(live_model(subject), ChatMessageUser(content="Hello"), said)
    assert output.completion == " help with that"


def test_sampling_settings_are_explicit_and_greedy_by_default(tiny_subject: Subject, answers: Answers) -> None:
    hello = ChatMessageUser(content="Hello")
    ask(live_model(tiny_subject), hello)
    given = GenerateConfig(temperature=0.9, top_p=0.6, top_k=50, max_tokens=7, seed=3)
    ask(live_model(tiny_subject), hello, config=given)
    assert [request.decoding for request in answers.requests] == [Decoding(), Decoding(0.9, 0.6, 50, 7, 3)]


def test_length_limit_is_a_stop_reason(tiny_subject: Subject, answers: Answers) -> None:
    hello = ChatMessageUser(content="Hello")
    assert ask(live_model(tiny_subject), hello, config=GenerateConfig(max_tokens=2)).stop_reason == "max_tokens"
    assert ask(live_model(tiny_subject), hello).stop_reason == "stop"


@pytest.mark.parametrize("setting", [{"stop_seqs": ["x"]}, {"num_choices": 2}, {"frequency_penalty": 0.5}])
def test_settings_it_does_not_have_are_refused(setting: Any, tiny_subject: Subject, answers: Answers) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        ask(live_model(tiny_subject), ChatMessageUser(content="Hello"), config=GenerateConfig(**setting))
    with pytest.raises(InputError, match="no tools"):
        ask(live_model(tiny_subject), ChatMessageUser(content="Hello"), tools=[ToolInfo(name="t", description="d")])


def test_wrong_model_options_name_the_right_ones(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="Unknown model option 'dtpye'; did you mean dtype"):
        get_model(f"tokendeep/{tiny_folder}", memoize=False, dtpye="float32")
    with pytest.raises(InputError, match="setting of the task"):
        get_model(f"tokendeep/{tiny_folder}", memoize=False, system="none")
    with pytest.raises(InputError, match="nowhere"):
        get_model(f"tokendeep/{tiny_folder}/nowhere", memoize=False)


def test_how_a_model_takes_a_prefill(tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prefill_route(live_model(tiny_subject)) == "ids"
    assert prefill_route(get_model("mockllm/model")) == "text"  # whether it continues it is asked: evals.served
    monkeypatch.setattr(provider, "CLOSING", {"mockllm"})
    with pytest.raises(InputError, match=r"'mockllm' closes a final assistant message, so the prefill would be lost"):
        prefill_route(get_model("mockllm/model"))
    assert prefill_route(get_model("mockllm/model"), continues=True) == "text"
    with pytest.raises(InputError, match="continues is for models that run elsewhere"):
        prefill_route(live_model(tiny_subject), continues=True)


def test_the_provider_goes_on_inside_a_thinking_block(tiny_subject: Subject, answers: Answers) -> None:
    template = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    tokenizer = copy.deepcopy(tiny_subject.tokenizer)
    tokenizer.chat_template = template
    model = live_model(replace(tiny_subject, tokenizer=tokenizer))
    turn = ChatMessageAssistant(content="Hm", metadata={"prefix_ids": [7, 8], "thinking": True})
    ask(model, ChatMessageUser(content="Hi"), turn)
    assert list(answers.requests[-1].ids) == [*chat.thinking_ids(tokenizer, [{"role": "user", "content": "Hi"}]), 7, 8]
