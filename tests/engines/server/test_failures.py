"""What becomes of calls when a server fails, is busy, says nonsense or is silent, and what is said then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from token_server import TokenServer
from tokendeep.engines.base import Completion, Request
from tokendeep.engines.server import client, failures
from tokendeep.engines.server.engine import ServerEngine
from tokendeep.errors import InputError
from tokendeep.types import Decoding, Subject

GO_ON = "call again to go on; what was answered is kept."


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT", 0.01)


def words(prompt: list[int], most: int) -> list[int]:
    """An answer that hangs on the prompt, without a model; it never ends by itself."""
    return [40 + (7 * sum(prompt) + 3 * n) % 50 for n in range(most)]


@pytest.fixture
def server(tiny_subject: Subject) -> Iterator[TokenServer]:
    with TokenServer(tiny_subject, answer=words) as running:
        yield running


def engine(*servers: TokenServer, **more: Any) -> ServerEngine:
    first = servers[0]
    urls = ",".join(one.url for one in servers)
    return ServerEngine(urls, first.subject.tokenizer, known=first.known, **more)


def ask(servers: ServerEngine, count: int = 1) -> list[Completion | BaseException]:
    """What becomes of requests."""
    futures = [servers.submit(Request((5, 6, n), Decoding(max_new_tokens=2))) for n in range(1, count + 1)]
    return [future.exception(30) or future.result() for future in futures]


def answers(count: int) -> list[Completion]:
    return [Completion(ids, "", True) for ids in (tuple(words([5, 6, n], 2)) for n in range(1, count + 1))]


def right(outcome: list[Completion | BaseException]) -> bool:
    """Whether all requests were answered, each with its own answer."""
    ids = [one.ids if isinstance(one, Completion) else one for one in outcome]
    return ids == [one.ids for one in answers(len(outcome))]


# --- when to come back ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7),
        ("1.5", 1.5),
        ("600", 600),
        ("-3", 0),
        ("", None),
        ("²", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_seconds_to_come_back_after(said: str, seconds: float | None) -> None:
    assert failures.pause({"Retry-After": said}) == seconds


@pytest.mark.parametrize("zone", ["GMT", "-0000", "+0000"])
def test_a_date_to_come_back_at(zone: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90)).replace("+0000", zone)
    assert failures.pause({"Retry-After": date}) == pytest.approx(90, abs=2)
    assert failures.pause({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert failures.pause({"Retry-After": "Wed, 99 Oct 2015 07:28:00 GMT"}) is None


def test_a_server_is_not_asked_before_it_allows_it() -> None:
    host = client.Host("http://127.0.0.1:1/v1")
    host.fail("failed", 600.0)
    assert host.resting - time.monotonic() == pytest.approx(600, abs=1)


def test_nobody_waits_for_more_than_an_hour(server: TokenServer) -> None:
    with engine(server) as servers:
        server.faults.append((429, {"Retry-After": "7200"}))
        (error,) = ask(servers)
    sentence = f"{server.url} failed with status 429 and wants to be left alone for 2.0 hours: call again then"
    assert (type(error), str(error)) == (InputError, f"{sentence}; what was answered is kept.")
    server.faults.append((429, {"Retry-After": "7200"}))
    with pytest.raises(InputError) as caught:
        engine(server)
    assert str(caught.value) == f"{sentence}."


# --- what is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "said"),
    [
        (
            "https://127.0.0.1/v1/completions?key=1",
            "to https://127.0.0.1/v1/completions (status 307): give the address",
        ),
        ("https://else.where:8443/v1", "to https://else.where:8443/v1 (status 307): give the address that it names."),
        ("/v1/completions2", "to /v1/completions2 (status 307): give the address that it names."),
    ],
)
def test_a_redirect_is_quoted(server: TokenServer, location: str, said: str) -> None:
    with engine(server) as servers:
        server.faults.append((307, {"Location": location}))
        (error,) = ask(servers)
    assert str(error).startswith(f"{server.url} sends requests on {said}")
    server.faults.append((307, {"Location": location}))
    with pytest.raises(InputError, match="sends requests on to"):
        engine(server)


def test_a_redirect_to_encryption_says_how_to_give_the_address() -> None:
    host = client.Host("http://models.example/v1")
    moved = failures.refusal(host, None, 308, {"Location": "https://models.example/v1/models"}, "", False)
    assert str(moved) == (
        "http://models.example/v1 sends requests on to https://models.example/v1/models (status 308): give it with https://."
    )


def test_nothing_is_kept_before_anything_was_asked(server: TokenServer) -> None:
    server.faults.extend([402] * 9)
    with pytest.raises(InputError) as refused:
        engine(server)
    assert str(refused.value) == f"{server.url} refused a request with status 402: {failures.REASON}."
    server.faults.clear()
    server.faults.extend([500] * 9)
    with pytest.raises(InputError) as failed:
        engine(server, max_retries=1)
    assert str(failed.value) == f"{server.url} failed with status 500 after 2 tries: {failures.REMEDY}."
    server.stop()
    with pytest.raises(
        InputError, match=r"Connection refused\): check that the server runs and has room for the request\.$"
    ):
        engine(server)
    server.start()


def test_but_afterwards_it_is(server: TokenServer) -> None:
    with engine(server, max_retries=0) as servers:
        for status in (402, 500):
            server.faults.append(status)
            (error,) = ask(servers)
            assert str(error).endswith(f", then {GO_ON}")
