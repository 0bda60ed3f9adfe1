"""The engine on servers against the local one: the same ids, the same scores, nothing lost when a server fails."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch

from token_server import TokenServer
from tokendeep import chat
from tokendeep.engines.base import Request, TooLong
from tokendeep.engines.local import generate
from tokendeep.engines.server import client
from tokendeep.engines.server.engine import ServerEngine
from tokendeep.engines.server.handshake import CANARY_TOKENS
from tokendeep.errors import InputError
from tokendeep.types import Decoding, Subject


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT", 0.01)


@pytest.fixture(params=["vllm", "llamacpp", "sglang"])
def server(tiny_subject: Subject, request: pytest.FixtureRequest) -> Iterator[TokenServer]:
    with TokenServer(tiny_subject, kind=request.param) as running:
        yield running


def requests(subject: Subject, count: int = 6, longest: int = 12) -> list[Request]:
    ids = [chat.prompt_ids(subject.tokenizer, [{"role": "user", "content": f"Say {n}"}]) for n in range(count)]
    return [Request((*prompt, 40 + n), Decoding(max_new_tokens=longest)) for n, prompt in enumerate(ids)]


def engine(server: TokenServer, **more: object) -> ServerEngine:
    return ServerEngine(server.url, server.subject.tokenizer, known=server.known, **more)  # type: ignore[arg-type]


def test_the_same_answers_as_in_memory(server: TokenServer) -> None:
    asked = requests(server.subject)
    with engine(server) as servers:
        answers = [future.result(30) for future in [servers.submit(one) for one in asked]]
        assert servers.about.kind == server.kind
        assert (servers.about.context, servers.about.repeats, servers.about.stops) == (512, True, True)
        assert servers.stats.requests == len(asked)
    assert answers == generate(server.subject, asked)
    assert sorted(server.prompts()[-len(asked) :]) == sorted(one.ids for one in asked)


def test_scores_are_those_of_the_model(tiny_subject: Subject) -> None:
    ids = requests(tiny_subject, 1)[0].ids
    with torch.no_grad():
        logits = tiny_subject.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    own = [float(logits[i - 1, ids[i]]) for i in range(5, len(ids))]
    for kind in ("vllm", "sglang"):
        with TokenServer(tiny_subject, kind=kind) as server, engine(server) as servers:
            assert servers.about.scores
            assert servers.score(ids, 5).result(30) == pytest.approx(own, abs=1e-5)
    with TokenServer(tiny_subject, kind="llamacpp") as server, engine(server) as servers:
        assert not servers.about.scores
        with pytest.raises(InputError, match="does not tell the log-probabilities"):
            servers.score(ids, 5)


def test_settings_stand_in_every_request(server: TokenServer) -> None:
    ids = requests(server.subject, 1)[0].ids
    with engine(server) as servers:
        for seed in (0, 0, 1):
            servers.submit(Request(ids, Decoding(0.9, 0.6, 20, 4, seed))).result(30)
    bodies = [body.get("sampling_params") or body for body in server.asked[-3:]]
    assert [(one["temperature"], one["top_p"], one["top_k"]) for one in bodies] == [(0.9, 0.6, 20)] * 3
    seeds = [one.get("seed", one.get("sampling_seed")) for one in bodies]
    assert seeds[0] == seeds[1] != seeds[2]
    for name in ("repetition_penalty", "repeat_penalty"):
        assert all(one.get(name, 1.0) == 1.0 for one in bodies)
    ends = sorted(server.known.ends)
    assert all(one.get("stop_token_ids", ends) == ends for one in bodies)


def test_what_does_not_fit_is_refused_here(server: TokenServer) -> None:
    server.context = 100
    ids = requests(server.subject, 1)[0].ids
    with engine(server) as servers:
        before = len(server.asked)
        with pytest.raises(TooLong, match="context of 100"):
            servers.submit(Request(ids, Decoding(max_new_tokens=100)))
        assert len(server.asked) == before


def failing(server: TokenServer, faults: Sequence[int | str], **more: object) -> list[object]:
    asked = requests(server.subject)
    with engine(server, **more) as servers:
        server.faults.extend(faults)
        start = len(server.asked)
        outcome: list[object] = []
        for future in [servers.submit(one) for one in asked]:
            error = future.exception(60)
            outcome.append(error or future.result())
        server.asked[:start] = []
    server.asked[:] = [
        body for body in server.asked if body["max_tokens"] == 12
    ]  # without what a server is met with again
    return outcome


@pytest.mark.parametrize("faults", [[429, 500, 503], ["drop", "drop", "drop"], [500] * 12])
def test_a_server_that_fails_is_asked_again(tiny_subject: Subject, faults: list[int | str]) -> None:
    with TokenServer(tiny_subject) as server:
        assert failing(server, faults) == generate(tiny_subject, requests(tiny_subject))
        assert len(server.prompts()) == len(set(server.prompts())) == 6  # nothing lost, nothing twice


def test_an_answer_that_is_broken_off_is_asked_again(server: TokenServer) -> None:
    asked, broken = requests(server.subject), [True, True]

    def change(reply: dict[str, Any]) -> dict[str, Any]:
        if broken and broken.pop():
            if "choices" in reply:
                reply["choices"][0]["finish_reason"] = "abort"
            elif "stop_type" in reply:
                reply["stop_type"] = "none"
            else:
                reply["meta_info"]["finish_reason"] = {"type": "abort"}
        return reply

    with engine(server) as servers:
        server.change = change
        assert [servers.submit(one).result(60) for one in asked] == generate(server.subject, asked)
    assert not broken


def test_a_server_that_says_when_to_come_back_rests_no_less() -> None:
    host = client.Host("http://127.0.0.1:1/v1")
    waits = []
    for wait in (None, 0.0, 0.01, 100.0):
        host.resting = 0.0
        host.fail("failed", wait)
        waits.append(host.resting - time.monotonic())
    assert waits == pytest.approx([client.WAIT, 2 * client.WAIT, 4 * client.WAIT, 100.0], abs=0.009)


def test_but_not_for_ever(tiny_subject: Subject) -> None:
    with TokenServer(tiny_subject) as server:
        outcome = failing(server, [500] * 60, max_retries=2)
    assert {type(one) for one in outcome} == {InputError}
    assert str(outcome[0]).startswith(f"{server.url} failed with status 500 after 3 tries: check that the server runs")


def test_an_answer_that_takes_too_long_ends_in_one_sentence(tiny_subject: Subject) -> None:
    plain = {"answer": lambda prompt, most: [40 + (7 * sum(prompt) + 3 * n) % 50 for n in range(most)]}
    with TokenServer(tiny_subject, **plain) as server, engine(server, answer_timeout=1, max_retries=0) as servers:
        server.answer = lambda prompt, most: time.sleep(3) or [5]  # type: ignore[func-returns-value]
        with pytest.raises(InputError) as error:
            servers.submit(requests(tiny_subject, 1)[0]).result(30)
    assert str(error.value).startswith(
        f"{server.url} did not answer within 1 seconds (--answer-timeout and --in-flight of verbs with --engine, --timeout of "
        "judge and calibrate)"
    )
    assert str(error.value).count(". ") == 0


def test_a_server_that_dies_and_comes_back(tiny_subject: Subject) -> None:
    asked = requests(tiny_subject, 24)
    with TokenServer(tiny_subject) as server, engine(server, in_flight=4) as servers:
        start = len(server.asked)
        futures = [servers.submit(one) for one in asked]
        futures[3].result(30)
        server.stop()
        server.start()
        assert [one.result(60) for one in futures] == generate(tiny_subject, asked)
        assert set(server.prompts()[start:]) >= {one.ids for one in asked}


def come_back(subject: Subject, change: Callable[[TokenServer], None]) -> tuple[list[object], TokenServer]:
    """What becomes of requests whose server is another one when it comes back."""
    asked = requests(subject, 24)
    with TokenServer(subject) as server, engine(server, in_flight=4) as servers:
        futures = [servers.submit(one) for one in asked]
        futures[3].result(30)
        server.stop()
        change(server)
        time.sleep(0.05)  # all calls find out
        server.asked.clear()
        server.start()
        return [future.exception(60) or future.result() for future in futures], server


def other_words(server: TokenServer) -> None:
    server.answer = lambda prompt, most: [40 + (sum(prompt) + n) % 50 for n in range(most)]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (other_words, "it answers the same question in another way"),
        (lambda server: setattr(server, "model", "big"), "its model was tiny and is big"),
        (lambda server: setattr(server, "context", 64), "its context was 512 and is 64"),
        (lambda server: setattr(server, "kind", "llamacpp"), "its kind was vllm and is llamacpp"),
        (lambda server: server.pages.update({"/version": {"version": "1.0"}}), "its version was 0.32.0 and is 1.0"),
    ],
)
def test_another_server_that_comes_back_is_not_asked(
    tiny_subject: Subject, change: Callable[[TokenServer], None], why: str
) -> None:
    outcome, server = come_back(tiny_subject, change)
    wrong = [str(one) for one in outcome if isinstance(one, Exception)]
    assert wrong
    assert set(wrong) == {
        f"{server.url} was gone and came back as another server ({why}): start it as it was, then call again to go on; what was "
        "answered is kept."
    }
    assert [one for one in outcome if not isinstance(one, Exception)] == [
        one
        for one, again in zip(generate(tiny_subject, requests(tiny_subject, 24)), outcome, strict=True)
        if one == again
    ]
    assert all(body["max_tokens"] == CANARY_TOKENS for body in server.asked)


def test_a_server_that_comes_back_is_met_once(tiny_subject: Subject) -> None:
    outcome, server = come_back(tiny_subject, lambda server: None)
    assert outcome == generate(tiny_subject, requests(tiny_subject, 24))
    lengths = [body["max_tokens"] for body in server.asked]
    assert (lengths[0], lengths.count(CANARY_TOKENS)) == (CANARY_TOKENS, 1)


def test_an_answer_that_other_requests_have_changed_is_no_other_server(tiny_subject: Subject) -> None:
    def change(server: TokenServer) -> None:
        plain, turns = server.answer, iter([[41], [42]])
        server.answer = lambda prompt, most: [*next(turns, []), *plain(prompt, most)][:most]

    outcome, _ = come_back(tiny_subject, change)
    assert outcome == generate(tiny_subject, requests(tiny_subject, 24))


def test_several_servers_share_the_load(tiny_subject: Subject) -> None:
    asked = requests(tiny_subject, 24)
    with TokenServer(tiny_subject) as one, TokenServer(tiny_subject) as two:
        both = f"{one.url},{two.url}"
        with ServerEngine(both, tiny_subject.tokenizer, known=one.known, in_flight=2) as servers:
            assert servers.about.servers == 2
            shares = [len(server.asked) for server in (one, two)]
            answers = [future.result(30) for future in [servers.submit(each) for each in asked]]
            shares = [len(server.asked) - share for server, share in zip((one, two), shares, strict=True)]
    assert answers == generate(tiny_subject, asked)
    assert sum(shares) == 24
    assert min(shares) > 4


def test_a_closed_engine_lets_nobody_wait(tiny_subject: Subject) -> None:
    with TokenServer(tiny_subject) as server:
        servers = engine(server, in_flight=1)
        futures = [servers.submit(one) for one in requests(tiny_subject)]
        servers.close()
        servers.close()
        assert any(isinstance(future.exception(10), RuntimeError) for future in futures)
        with pytest.raises(RuntimeError):
            servers.submit(requests(tiny_subject, 1)[0])


class Body(dict[str, Any]):
    """A request's body that can be counted while it is alive."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def test_only_what_is_in_flight_is_held(tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests wait, there are no more bodies than are asked at once, and tasks for these alone."""
    alive: weakref.WeakSet[Body] = weakref.WeakSet()
    seen: list[tuple[int, int]] = []

    def put(servers: client.Client, call: client.Call) -> Future[Any]:
        plain = call.ask

        def ask(host: client.Host) -> tuple[str, Body]:
            address, body = plain(host)
            alive.add(made := Body(body))
            return address, made

        return queue(servers, replace(call, ask=ask))

    queue = client.Client.put
    monkeypatch.setattr(client.Client, "put", put)
    with TokenServer(tiny_subject) as server, engine(server, in_flight=4) as servers:

        def answer(prompt: list[int], most: int) -> list[int]:
            seen.append((len(alive), len(asyncio.all_tasks(servers._client._loop))))
            return [5] * most

        server.answer = answer
        ids = requests(tiny_subject, 1)[0].ids
        futures = [servers.submit(Request((*ids, n), Decoding(max_new_tokens=2))) for n in range(200)]
        assert [future.result(60).ids for future in futures] == [(5, 5)] * 200
        time.sleep(0.1)
        assert not alive
    assert len(seen) == 200
    assert max(bodies for bodies, _ in seen) == 4
    assert 4 <= max(tasks for _, tasks in seen) <= 12  # a connection has tasks of its own while it is made
