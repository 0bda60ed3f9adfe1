"""Answers that a model writes for training rows: how they are asked for, marked and put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conftest import CONTROL, build_tokenizer, chatml
from tokendeep import chat
from tokendeep.engines import local as generation
from tokendeep.errors import InputError
from tokendeep.training import answers
from tokendeep.types import Decoding, Prompt, Subject


def test_answers_that_hit_the_length_limit_are_marked(tiny_subject: Subject, monkeypatch: Any) -> None:
    given = [("Rome lies in Italy, on the Tiber.", False), ("Rome lies in Italy, on the", True)]
    monkeypatch.setattr(answers, "write_answers", lambda *args, **more: given)
    prompts = [Prompt(name, ({"role": "user", "content": "Where is Rome?"},)) for name in "ab"]  # type: ignore[arg-type]
    assert [row.truncated for row in answers.distil(tiny_subject, prompts, 8)] == [False, True]


@pytest.mark.parametrize("kind", ["byte-level", "unigram", "llama"])
def test_answers_keep_the_space_behind_their_opening(tiny_model: Any, monkeypatch: Any, kind: str) -> None:
    tokenizer = build_tokenizer(kind, control=CONTROL, bos=None, eos="<|im_end|>", template=chatml())
    turns = [{"role": "user", "content": "How do I bake bread?"}]
    opening, whole = "Sure, here is", "Sure, here is a short list"
    ids = chat.response_ids(tokenizer, turns, whole, end=False)
    start = len(chat.response_ids(tokenizer, turns, opening, end=False))

    def generate(subject: Subject, requests: Any, *, batch_size: int, on_done: Any, on_step: Any) -> None:
        for index, request in enumerate(requests):
            assert list(request.ids[-start:]) == ids[:start]
            on_done(index, generation.Completion(tuple(ids[start:]), tokenizer.decode(ids[start:]), True))

    monkeypatch.setattr(generation, "generate", generate)
    subject = Subject(tiny_model, tokenizer, "tiny")
    assert answers.write_answers(subject, [turns, turns], Decoding(), opening) == [(whole, True)] * 2


def test_answers_are_written_fewer_at_once_where_the_memory_is_small(tiny_subject: Subject, monkeypatch: Any) -> None:
    tried: list[tuple[int, int]] = []

    def generate(subject: Subject, requests: Any, *, batch_size: int, on_done: Any, on_step: Any) -> None:
        tried.append((len(requests), batch_size))
        for index, request in enumerate(requests):
            if batch_size > 16 and index == 2:
                raise InputError("too little") from torch.OutOfMemoryError()
            on_done(index, generation.Completion(request.ids[-8:], "", False))

    monkeypatch.setattr(generation, "generate", generate)
    turns = [[{"role": "user", "content": f"How do I bake {i}?"}] for i in range(7)]
    written = answers.write_answers(tiny_subject, turns, Decoding())
    assert tried == [(7, 96), (5, 48), (3, 24), (1, 12)]
    ends = [chat.prompt_ids(tiny_subject.tokenizer, turn)[-8:] for turn in turns]
    assert [text for text, _ in written] == [
        tiny_subject.tokenizer.decode(ids, skip_special_tokens=True) for ids in ends
    ]
