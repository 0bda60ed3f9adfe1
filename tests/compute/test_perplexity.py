"""Perplexity against brute force: one forward pass a token, with what its window holds before it and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rowfiles import refused, write
from tokendeep import chat, data
from tokendeep.compute import perplexity
from tokendeep.errors import InputError
from tokendeep.types import IGNORE, Subject

IDS = list(range(10, 33))


def brute_force(model: Any, front: list[int], ids: list[int], window: int, stride: int) -> list[float]:
    """-log p of every token that has something before it, by the first window that holds it."""
    nats = []
    for place, token in enumerate(ids):
        start = next(s for s in range(0, len(ids), stride) if place < s + window - len(front))
        before = [*front, *ids[start:place]]
        if before:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([before])).logits[0, -1].double()
            nats.append(-float(logits.log_softmax(-1)[token]))
    return nats


@pytest.mark.parametrize("front", [[], [1], [1, 2]])
@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 1), (9, 5), (12, 3), (100, 50), (23, 11), (25, 12)])
def test_every_token_is_scored_once_behind_its_window(front: list[int], window: int, stride: int) -> None:
    rows = perplexity.windows(front, IDS, window, stride)
    scored = [label for row in rows for label in row.labels if label != IGNORE]
    assert scored == (IDS if front else IDS[1:])
    assert all(len(row.input_ids) <= window and row.input_ids[: len(front)] == front for row in rows)
    for row in rows[1:]:  # a later window: its first scored token has at least window - stride before it
        assert row.start - len(front) >= window - len(front) - stride
    assert all(row.labels[0] == IGNORE for row in rows)  # which a model could not score


@pytest.mark.parametrize(
    "texts", [["The dough rests for an hour and is baked."], ["One two three four", "x", "a b c d e f"]]
)
@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 3), (512, 256)])
def test_it_equals_brute_force(tiny_subject: Subject, texts: list[str], window: int, stride: int) -> None:
    found = perplexity.measure(tiny_subject, texts, window, stride, batch_size=2)
    nats: list[float] = []
    size = 0
    for text in texts:
        front, ids = chat.document_ids(tiny_subject.tokenizer, text)
        size += len(tiny_subject.tokenizer.decode(ids if front else ids[1:]).encode()) if front or len(ids) > 1 else 0
        nats += brute_force(tiny_subject.model, front, ids, window, stride)
    assert found.tokens == len(nats)
    assert found.nll == pytest.approx(sum(nats) / len(nats), rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(found.nll))
    assert found.bytes == size
    assert found.per_byte == pytest.approx(sum(nats) / size, rel=1e-4)
    assert (found.low is None) == (found.texts == 1)
    if found.low is not None and found.high is not None:
        assert found.low <= found.nll <= found.high


def test_a_text_of_one_token_is_left_out_and_counted(tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {"a long one": ([], IDS), "short": ([], IDS[:1])}
    monkeypatch.setattr(perplexity.chat, "document_ids", lambda tokenizer, text: ids[text])
    found = perplexity.measure(tiny_subject, ["a long one", "short"], 16, 8)
    size = len("a long one") - len(tiny_subject.tokenizer.decode(IDS[:1]))  # the first token is not scored
    assert (found.texts, found.left_out, found.tokens, found.bytes, found.begins) == (1, 1, len(IDS) - 1, size, False)
    with pytest.raises(InputError, match="No text has two tokens"):
        perplexity.measure(tiny_subject, ["short"], 16, 8)
    ids["short"] = ([1], IDS[:1])  # with a token for the beginning it is scored
    assert perplexity.measure(tiny_subject, ["short"], 16, 8).tokens == 1


def test_a_stride_that_leaves_tokens_without_others_before_them_is_refused(tiny_subject: Subject) -> None:
    with pytest.raises(InputError, match="--stride is 16, but must be below 1[456]"):
        perplexity.measure(tiny_subject, ["One two three"], 16, 16)


def test_what_a_tokenizer_puts_before_a_text_is_found(tiny_tokenizer: Any) -> None:
    class Added:
        """A tokenizer with tokens before and behind a text."""

        def __init__(self, between: bool = False) -> None:
            self.between = between

        def __call__(self, text: str, add_special_tokens: bool = True, **more: Any) -> Any:
            ids = tiny_tokenizer(text, add_special_tokens=False).input_ids
            whole = [ids[0], 2, *ids[1:]] if self.between else [1, *ids, 2]
            return type("Out", (), {"input_ids": whole if add_special_tokens else ids})

    front, ids = chat.document_ids(Added(), "One two")  # type: ignore[arg-type]
    assert (front, ids) == ([1], tiny_tokenizer("One two", add_special_tokens=False).input_ids)
    with pytest.raises(InputError, match="between those of a text"):
        chat.document_ids(Added(between=True), "One two")  # type: ignore[arg-type]


def test_a_text_file_is_one_text_and_rows_are_many(tmp_path: Path) -> None:
    assert data.read_texts(write(tmp_path, "a.txt", "One\n\nTwo\n")) == ["One\n\nTwo\n"]
    rows = [{"text": "One", "title": "t"}, {"text": " "}, {"text": "Two"}]
    assert data.read_texts(write(tmp_path, "a.jsonl", rows)) == ["One", "Two"]
    refused(
        data.read_texts,
        write(tmp_path, "b.jsonl", [{"body": "One"}]),
        "row 1",
        "no text in a column 'text', but 'body'",
    )
    refused(data.read_texts, write(tmp_path, "c.txt", " \n"), "holds no text")
    refused(data.read_texts, str(tmp_path / "none.txt"), "There is no file")
