"""parity: two engines on the same ids, one of them a server that is right, or wrong on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tokendeep
from attacking import pairs  # noqa: F401
from token_server import TokenServer
from tokendeep import chat, models
from tokendeep.engines.server import client
from tokendeep.errors import InputError
from tokendeep.records import Parity
from tokendeep.types import Subject
from tokendeep.verbs import parity as verb
from tokendeep.verbs.parity import ParityOptions, next_place


@pytest.fixture
def server(tiny_subject: Subject) -> Iterator[TokenServer]:
    with TokenServer(tiny_subject) as running:
        yield running


def options(pairs: Path, folder: Path, *engines: str, **more: Any) -> ParityOptions:
    return ParityOptions(model=str(folder), data=str(pairs), engine=list(engines), k=[0, 5], max_new_tokens=8, **more)


def test_the_same_model_has_the_same_answers(
    server: TokenServer, pairs: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb.run(verb.plan(options(pairs, tiny_folder, "local", server.url, out=str(tmp_path / "out"))))
    record = Parity.load(tmp_path / "out")
    assert (record.engines, record.same, len(record.rows)) == (
        ["local", "vllm 0.32.0"],
        5,
        5,
    )  # one answer is too short
    assert record.scored == sum(row.tokens for row in record.rows)
    assert record.largest_difference is not None
    assert record.largest_difference < 1e-4
    assert "parity: 5 of 5 greedy answers of local and vllm 0.32.0 are the same\n" in capsys.readouterr().out


def test_a_difference_is_found_where_it_is(server: TokenServer, pairs: Path, tiny_folder: Path) -> None:
    right = server._greedy

    def wrong(prompt: list[int], most: int) -> list[int]:
        ids = right(prompt, most)
        return [*ids[:2], 50, *ids[3:]] if "bread" in server.tokenizer.decode(prompt) else ids

    server.answer = wrong
    record = verb.parity(verb.plan(options(pairs, tiny_folder, "local", server.url)))
    apart = [row for row in record.rows if row.differs_at is not None]
    assert [(row.id, row.k, row.differs_at) for row in apart] == [("bread", 0, 3), ("bread", 5, 3)]
    assert all(row.gap is not None and row.gap > 0 for row in apart)  # the local one took the likeliest token
    assert record.same == 3


def test_a_row_that_fills_the_context_is_scored_but_for_its_last_token(
    tiny_subject: Subject, tiny_folder: Path
) -> None:
    row = {"instruction": "How do I bake bread?"}
    prompt = len(chat.prompt_ids(tiny_subject.tokenizer, [{"role": "user", "content": row["instruction"]}]))
    with TokenServer(
        tiny_subject, context=prompt + 64, answer=lambda ids, most: [40 + n % 50 for n in range(most)]
    ) as server:
        urls = [server.url, server.url.replace("127.0.0.1", "localhost")]
        record = tokendeep.parity(str(tiny_folder), [row], urls, k=[0], max_new_tokens=64)
    assert (record.rows[0].tokens, record.scored, record.largest_difference) == (64, 63, 0)


def test_the_server_is_met_before_the_weights_are_loaded(
    pairs: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr(client, "WAIT", 0.01)
    with pytest.raises(InputError, match="cannot be reached"):
        verb.parity(verb.plan(options(pairs, tiny_folder, "local", "http://127.0.0.1:9/v1")))


def test_as_a_function_and_with_an_engine_that_does_not_score(tiny_subject: Subject, tiny_folder: Path) -> None:
    rows = [{"instruction": "How do I bake bread?"}]
    with TokenServer(tiny_subject, kind="llamacpp") as server:
        record = tokendeep.parity(str(tiny_folder), rows, ["local", server.url], k=[0], max_new_tokens=4)
    assert record.same == 1
    assert record.scored == 0
    assert record.largest_difference is None
    assert len(record.to_frame()) == 1


@pytest.mark.parametrize(
    ("engines", "more", "why"),
    [
        (["local"], {}, "--engine is given 1 times, but two are compared"),
        (["local", "nowhere"], {}, "nowhere is neither local nor an address"),
        (["local", "http://a/v1"], {"k": [-1]}, "--k holds no number"),
        (["local", "http://a/v1"], {"k": [400]}, "has 400 tokens: give smaller --k"),
        (["http://b/v1", "http://a/v1"], {"dtype": "float32"}, "--dtype is for weights that are loaded here"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    engines: list[str], more: dict[str, Any], why: str, pairs: Path, tiny_folder: Path
) -> None:
    given = {"k": [0, 5], "max_new_tokens": 8, **more}
    with pytest.raises(InputError, match=why):
        verb.plan(ParityOptions(model=str(tiny_folder), data=str(pairs), engine=engines, **given))


def test_places() -> None:
    assert next_place((1, 2), (1, 2)) is None
    assert [next_place((1, 2), other) for other in ((1, 3), (1,), (1, 2, 3), (5, 2))] == [2, 2, 3, 1]
