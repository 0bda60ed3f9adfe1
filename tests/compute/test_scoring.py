"""Scoring against brute force in float64, and against itself under other batches, chunks and orders."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from planted import brute_force_kl
from tokendeep import models
from tokendeep.compute import lm_head, scoring
from tokendeep.errors import InputError
from tokendeep.types import IGNORE, Encoded, Subject

PROMPT = list(range(10, 30))


def rows(count: int = 9, shared: bool = True) -> list[Encoded]:
    draw = random.Random(0)
    made = []
    for _ in range(count):
        prompt = [*PROMPT, *draw.choices(range(4, 300), k=draw.randint(1, 6))]
        if not shared:
            prompt = draw.choices(range(4, 300), k=len(prompt))
        answer = draw.choices(range(4, 300), k=draw.randint(1, 12))
        made.append(Encoded(prompt + answer, [IGNORE] * len(prompt) + answer))
    return made


@pytest.fixture
def pair(make_model: Any, tiny_tokenizer: Any) -> tuple[Subject, Subject]:
    return Subject(make_model(0), tiny_tokenizer, "p"), Subject(make_model(1), tiny_tokenizer, "q")


@pytest.mark.parametrize("shared", [True, False])
def test_kl_equals_brute_force_in_float64(pair: tuple[Subject, Subject], shared: bool) -> None:
    p, q = pair
    data = rows(shared=shared)
    for row, ours in zip(data, scoring.token_kl(p, q, data, batch_size=4), strict=True):
        expected = brute_force_kl(p.model, q.model, row.input_ids, row.labels)
        assert expected.min() > 0.1  # the two models do differ
        torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-5)


def test_logps_equal_the_models_own_log_softmax(pair: tuple[Subject, Subject]) -> None:
    data = rows()
    for row, ours in zip(data, scoring.token_logps(pair[0], data, batch_size=4), strict=True):
        with torch.no_grad():
            logits = pair[0].model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].double()
        keep = [i for i, label in enumerate(row.labels[1:]) if label != IGNORE]
        expected = torch.stack([logits[i].log_softmax(-1)[row.labels[i + 1]] for i in keep])
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)


def test_kl_of_a_model_with_itself_is_zero(pair: tuple[Subject, Subject]) -> None:
    assert torch.cat(scoring.token_kl(pair[0], pair[0], rows())).abs().max() < 1e-5


def test_batch_chunk_padding_and_order_change_nothing(pair: tuple[Subject, Subject], monkeypatch: Any) -> None:
    data = rows()
    expected = scoring.token_kl(*pair, data, batch_size=1)
    order = [4, 0, 8, 2, 6, 1, 7, 3, 5]
    monkeypatch.setattr(lm_head, "chunk_rows", lambda model: 5)
    shuffled = scoring.token_kl(*pair, [data[i] for i in order], batch_size=9)
    for place, index in enumerate(order):
        torch.testing.assert_close(shuffled[place], expected[index], rtol=1e-4, atol=1e-5)


def test_the_common_beginning_is_run_once(pair: tuple[Subject, Subject], monkeypatch: Any) -> None:
    seen = []
    own = pair[0].model.model.forward
    monkeypatch.setattr(
        pair[0].model.model, "forward", lambda *a, **k: seen.append(k["input_ids"].shape) or own(*a, **k)
    )
    data = rows(4)
    scoring.token_logps(pair[0], data, batch_size=4)
    width = max(len(row.input_ids) for row in data)
    assert seen == [(1, len(PROMPT)), (4, width - len(PROMPT))]


def test_batches_with_one_beginning_run_it_once_for_all_of_them(
    pair: tuple[Subject, Subject], monkeypatch: Any
) -> None:
    data = rows(8)
    expected = scoring.token_logps(pair[0], data, batch_size=1)  # a batch of one row shares nothing
    seen = []
    own = pair[0].model.model.forward
    monkeypatch.setattr(
        pair[0].model.model, "forward", lambda *a, **k: seen.append(k["input_ids"].shape) or own(*a, **k)
    )
    values = scoring.token_logps(pair[0], data, batch_size=2)
    assert [shape[0] for shape in seen].count(1) == 1
    for ours, alone in zip(values, expected, strict=True):
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-5)


def test_a_batch_with_another_beginning_runs_its_own(pair: tuple[Subject, Subject]) -> None:
    short, other = rows(4), []
    for row in rows(4):
        ids = [7, *row.input_ids[1:], *range(20, 60)]
        other.append(Encoded(ids, [*row.labels, *ids[len(row.labels) :]]))
    data = short + other  # sorted by length: the batches begin with one, then with the other
    values = scoring.token_logps(pair[0], data, batch_size=4)
    for ours, row in zip(values, data, strict=True):
        torch.testing.assert_close(ours, scoring.token_logps(pair[0], [row])[0], rtol=1e-4, atol=1e-5)


def test_an_adapter_is_compared_with_its_base_without_a_second_model(tiny_subject: Subject, make_model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    base = make_model(0)
    model = get_peft_model(tiny_subject.model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted = Subject(model.eval(), tiny_subject.tokenizer, "adapted", adapter="folder")
    data = rows()
    one = scoring.token_kl(adapted, None, data)
    two = scoring.token_kl(adapted, Subject(base, tiny_subject.tokenizer, "base"), data)
    assert torch.cat(one).max() > 0.01
    torch.testing.assert_close(torch.cat(one), torch.cat(two), rtol=1e-4, atol=1e-5)


def test_a_captured_model_gives_the_same_kl_with_its_decoder_gone(
    pair: tuple[Subject, Subject], make_model: Any
) -> None:
    data = rows()
    expected = torch.cat(scoring.token_kl(*pair, data))
    left = scoring.capture(Subject(make_model(0), pair[0].tokenizer, "p"), data, batch_size=3)
    assert sum(p.numel() for p in left.shell.parameters()) <= 2 * 320 * 32
    torch.testing.assert_close(torch.cat(scoring.captured_kl(left, pair[1], data, 4)), expected, rtol=1e-4, atol=1e-5)


def test_different_vocabularies_are_refused(pair: tuple[Subject, Subject], make_model: Any) -> None:
    other = Subject(make_model(0, vocab_size=322), pair[0].tokenizer, "other")
    with pytest.raises(InputError, match="vocabular"):
        scoring.token_kl(pair[0], other, rows())


def test_nan_stops_with_the_row_named(pair: tuple[Subject, Subject]) -> None:
    data = rows(3)
    data[1].input_ids[22] = 301
    pair[0].model.model.embed_tokens.weight.data[301] = float("nan")
    pair[0].model.lm_head.weight = torch.nn.Parameter(torch.nan_to_num(pair[0].model.lm_head.weight.data.clone()))
    with pytest.raises(InputError, match=r"row 2\b"):
        scoring.token_logps(pair[0], data, batch_size=1)


def test_a_row_without_supervised_tokens_is_refused(pair: tuple[Subject, Subject]) -> None:
    with pytest.raises(InputError, match="Row 2"):
        scoring.token_logps(pair[0], [rows(1)[0], Encoded([5, 6, 7], [IGNORE] * 3)])


def test_reference_of_a_model_without_adapter_is_an_error(pair: tuple[Subject, Subject]) -> None:
    with pytest.raises(InputError), models.reference(pair[0].model):
        pass
