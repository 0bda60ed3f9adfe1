"""What becomes of calls when a server fails, is busy, says nonsense or is silent, and what is said then."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from token_server import TokenServer, words
from tokendeep.engines.base import Completion, Request
from tokendeep.engines.options import NO_SERVER
from tokendeep.engines.server import client, failures
from tokendeep.engines.server.engine import ServerEngine
from tokendeep.errors import InputError
from tokendeep.types import Decoding, Subject

GO_ON = "call again to go on; what was answered is kept."


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT", 0.01)


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


# --- silence --------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def test_a_port_that_says_nothing_is_not_waited_for_as_an_answer_is(
    silent: str, server: TokenServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.QUESTION == 30
    monkeypatch.setattr(client, "QUESTION", 0.3)
    monkeypatch.setattr(client, "PATIENCE", 0.1)
    with pytest.raises(InputError) as caught:
        ServerEngine(silent, server.subject.tokenizer, known=server.known)
    assert str(caught.value) == f"{silent} did not answer GET /v1/models within 0.3 seconds: {failures.REMEDY}."
    assert caplog.messages == [f"waiting for {silent} (/v1/models), for 0.3 seconds at most"]


@pytest.mark.parametrize("path", ["/detokenize", "/v1/completions"])
def test_questions_of_the_handshake_have_limits_of_their_own(
    server: TokenServer, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "QUESTION" if path == "/detokenize" else "CANARY", 0.3)
    monkeypatch.setattr(client, "PATIENCE", 0.1)
    plain, let = server.post, threading.Event()

    def post(asked: str, body: Mapping[str, Any]) -> Any:
        if asked == path:
            let.wait(5)
        return plain(asked, body)

    monkeypatch.setattr(server, "post", post)
    with pytest.raises(InputError) as caught:
        engine(server)
    let.set()
    assert str(caught.value) == f"{server.url} did not answer POST {path} within 0.3 seconds: {failures.REMEDY}."
    assert f"waiting for {server.url} ({path}), for 0.3 seconds at most" in caplog.messages


def test_the_whole_answer_is_limited_and_not_each_of_its_bytes(server: TokenServer) -> None:
    with engine(server, answer_timeout=1, max_retries=0) as servers:
        server.faults.append("drip")
        begun = time.monotonic()
        (error,) = ask(servers)
    assert str(error).startswith(f"{server.url} did not answer within 1 seconds (--answer-timeout")
    assert time.monotonic() - begun < 10


# --- too many calls -------------------------------------------------------------------------------


class Narrow:
    """Has a server take so many calls at once, and refuse the others."""

    def __init__(self, server: TokenServer, most: int) -> None:
        self.most, self.now, self.refused, self.lock = most, 0, 0, threading.Lock()
        server.rejects_when, server.change = self.come, self.leave

    def come(self, body: Mapping[str, Any]) -> int | None:
        with self.lock:
            if self.now >= self.most:
                self.refused += 1
                return 429
            self.now += 1
        return None

    def leave(self, reply: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.02)
        with self.lock:
            self.now -= 1
        return reply


def test_a_server_of_few_calls_answers_all_of_them(server: TokenServer) -> None:
    with engine(server, in_flight=32, max_retries=1) as servers:
        narrow = Narrow(server, 2)
        outcome = ask(servers, 100)
        assert right(outcome), [one for one in outcome if isinstance(one, Exception)][:1]
        assert servers._client.hosts[0].room.limit <= 4
    assert 32 <= narrow.refused + 2 <= 100


def test_one_that_never_takes_a_call_is_told_to_be_asked_less(server: TokenServer) -> None:
    lost = f"{failures.REMEDY}, or {failures.ROOM}"
    for status, tries, remedy in ((429, 3, failures.ROOM), (503, 4, lost)):  # one and three times when it is met again
        server.rejects_when = lambda body: None
        with engine(server, max_retries=2) as servers:
            server.rejects_when = lambda body, status=status: status  # type: ignore[misc]
            (error,) = ask(servers)
            sentence = f"{server.url} failed with status {status} after {tries} tries: {remedy}, then {GO_ON}"
            assert (type(error), str(error)) == (InputError, sentence)
            assert "--in-flight" in sentence


def test_a_call_that_is_never_taken_ends_though_others_are(server: TokenServer) -> None:
    tried = []

    def rejects(body: Mapping[str, Any]) -> int | None:
        mine = body["prompt"] == [5, 6, 1]
        tried.extend([1] * mine)
        return 429 if mine else None

    with engine(server, max_retries=1, in_flight=2) as servers:
        server.rejects_when = rejects
        error, *others = ask(servers, 100)
    assert str(error).startswith(f"{server.url} failed with status 429 after ")
    assert 2 <= len(tried) <= client.AT_MOST
    assert not any(isinstance(one, Exception) for one in others)


# --- several servers ------------------------------------------------------------------------------


@pytest.fixture
def second(tiny_subject: Subject) -> Iterator[TokenServer]:
    with TokenServer(tiny_subject, answer=words) as running:
        yield running


@contextmanager
def away(server: TokenServer) -> Iterator[None]:
    """A server that does not run for a time."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def test_a_server_that_dies_leaves_the_calls_to_another(
    server: TokenServer, second: TokenServer, caplog: pytest.LogCaptureFixture
) -> None:
    second.answer = lambda prompt, most: time.sleep(0.01 * (most == 2)) or words(prompt, most)  # type: ignore[func-returns-value]
    with engine(server, second, max_retries=2, in_flight=4) as servers, away(server):
        assert right(ask(servers, 30))
        assert right(ask(servers, 30))
    lines = [line for line in caplog.messages if "given up" in line]
    assert lines == [
        f"{server.url} cannot be reached (Connection refused) after 3 tries: it is given up, and the other servers go on "
        "without it"
    ]


@pytest.mark.parametrize("fault", [500, (429, {"Retry-After": "7200"})])
def test_one_that_only_fails_does_so_too(
    server: TokenServer, second: TokenServer, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with engine(server, second, max_retries=2, in_flight=1) as servers:
        server.faults.extend([fault] * 99)
        second.answer = lambda prompt, most: time.sleep(0.01) or words(prompt, most)  # type: ignore[func-returns-value]
        assert right(ask(servers, 30))
    assert len([line for line in caplog.messages if "given up" in line]) == 1
    assert len(server.faults) >= 96


def test_one_that_is_given_up_may_come_back(
    server: TokenServer, second: TokenServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.05)
    second.answer = lambda prompt, most: time.sleep(0.01) or words(prompt, most)  # type: ignore[func-returns-value]
    with engine(server, second, max_retries=1, in_flight=1) as servers:
        with away(server):
            assert right(ask(servers, 30))
        before = len(server.asked)
        assert right(ask(servers, 30))
        assert f"{server.url} is there again" in caplog.messages
        assert len(server.asked) > before + 2  # than what it is met with


def test_another_one_in_its_place_is_given_up(
    server: TokenServer, second: TokenServer, caplog: pytest.LogCaptureFixture
) -> None:
    second.answer = lambda prompt, most: time.sleep(0.01) or words(prompt, most)  # type: ignore[func-returns-value]
    with engine(server, second, in_flight=1) as servers:
        with away(server):
            server.answer = lambda prompt, most: [7] * most
            assert right(ask(servers, 10))
        assert right(ask(servers, 30))
    assert any(
        "came back as another server (it answers the same" in line and "given up" in line for line in caplog.messages
    )


def test_the_run_ends_where_none_is_left(server: TokenServer, second: TokenServer) -> None:
    with engine(server, second, max_retries=2, in_flight=4) as servers, away(server), away(second):
        errors = ask(servers, 30)
    whys = "; ".join(f"{one.url} cannot be reached (Connection refused) after 3 tries" for one in (server, second))
    assert {str(one) for one in errors} == {f"No server is left ({whys}): {failures.REMEDY}, then {GO_ON}"}


def test_all_calls_of_a_server_that_is_gone_end_together_and_later_ones_are_made(server: TokenServer) -> None:
    with engine(server, max_retries=3, in_flight=4) as servers:
        with away(server):
            errors = ask(servers, 30)
        why = f"{server.url} cannot be reached (Connection refused) after 4 tries"
        assert {str(one) for one in errors} == {f"{why}: {failures.REMEDY}, then {GO_ON}"}
        assert right(ask(servers, 30))


def test_a_request_that_brings_every_server_down_ends(server: TokenServer, second: TokenServer) -> None:
    with engine(server, second, max_retries=1) as servers:
        for one in (server, second):
            plain = one.post

            def post(path: str, body: Mapping[str, Any], plain: Any = plain) -> Any:
                if body.get("prompt") == [5, 6, 1]:
                    raise ConnectionError
                return plain(path, body)

            one.post = post  # type: ignore[method-assign]
        error, *others = ask(servers, 20)
    assert re.match(r"http://\S+ closed the connection after \d+ tries: ", str(error))
    assert not any(isinstance(one, Exception) for one in others)


# --- nonsense -------------------------------------------------------------------------------------

NONSENSE = {
    b"<html>busy</html>": "{} answers, but not with JSON",
    b"": "The answer of {} is not one of a server of its kind (TypeError)",
    b'{"error": {"message": "busy"}}': "The answer of {} is not one of a server of its kind (KeyError)",
    b'{"choices": []}': "The answer of {} is not one of a server of its kind (IndexError)",
    b'{"choices": [{"text": "", "finish_reason": "abort"}]}': "{} broke an answer off (abort)",
}


@pytest.mark.parametrize("page", NONSENSE)
def test_nonsense_of_a_server_that_is_known_is_asked_again(server: TokenServer, page: bytes) -> None:
    with engine(server, max_retries=2) as servers:
        server.faults.extend([page, None, page])
        assert right(ask(servers, 4))
        server.faults.extend([page] * 9)
        (error,) = ask(servers)
        remedy = failures.REMEDY if b"abort" in page else failures.CHANGED
        sentence = f"{NONSENSE[page].format(server.url)} after 3 tries: {remedy}, then {GO_ON}"
        assert (type(error), str(error)) == (InputError, sentence)


@pytest.mark.parametrize("page", [b"<html>busy</html>", b"", b'{"choices": []}'])
def test_nonsense_when_a_server_that_was_lost_is_met_again(server: TokenServer, page: bytes) -> None:
    with engine(server) as servers:
        server.faults.extend([503, page])
        assert right(ask(servers, 4))


@pytest.mark.parametrize("page", [page for page in NONSENSE if b"abort" not in page])
def test_but_a_server_that_begins_with_nonsense_is_none_of_ours(
    server: TokenServer, page: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/v1/models"] = {"data": [{"id": "tiny", "owned_by": "somebody"}]}  # which nothing is spelt by
    server.faults.extend([page] * 99)
    with pytest.raises(InputError) as caught:
        engine(server)
    remedy = NO_SERVER if page.startswith(b"<") else failures.CHANGED
    assert str(caught.value) == f"{NONSENSE[page].format(server.url)}: {remedy}."


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
    place = "https://models.example/v1/models"
    moved = failures.refusal("http://models.example/v1", None, 308, {"Location": place}, "", False)
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


def test_a_server_that_is_not_ready_keeps_its_room() -> None:
    """503 of one that loads its model, when nothing else is asked of it, says nothing of how many calls it takes."""
    host = client.Host("http://models.example/v1", client.Room(32))
    for _ in range(6):
        host.resting = 0.0
        host.fail("it loads", None, busy=True)
    assert (host.room.limit, host.failures) == (32, 6)
    host.calls.add(client.Call(lambda host: ("", {}), lambda host, answer: None))
    host.resting = 0.0
    host.fail("it has too many", None, busy=True)
    assert host.room.limit == 16
