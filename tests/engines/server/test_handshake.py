"""What a server is, found out before anything is asked; each that cannot be used is refused in one sentence."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from token_server import TokenServer, words
from tokendeep.engines.base import Request
from tokendeep.engines.server import client, failures
from tokendeep.engines.server.engine import ServerEngine
from tokendeep.engines.server.handshake import CHOSEN
from tokendeep.errors import InputError
from tokendeep.types import Decoding, Subject


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT", 0.01)


@pytest.fixture
def server(tiny_subject: Subject) -> Iterator[TokenServer]:
    with TokenServer(tiny_subject, answer=words) as running:
        yield running


def meet(server: TokenServer, urls: str | None = None, **more: Any) -> ServerEngine:
    return ServerEngine(urls or server.url, server.subject.tokenizer, known=server.known, **more)


def refused(server: TokenServer, urls: str | None = None, **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        meet(server, urls, **more)
    sentence = str(caught.value)
    assert re.fullmatch(r"\S.*\.", sentence), "one sentence"
    assert "Name the three" not in sentence
    return sentence


def test_what_is_found_stands_in_the_record(server: TokenServer) -> None:
    with meet(server) as engine:
        about = engine.about.dump()
        assert re.fullmatch("[0-9a-f]{12}", about.pop("greedy"))
        assert about == {
            "kind": "vllm", "version": "0.32.0", "model": "tiny", "context": 512, "ids": True, "repeats": True,
            "stops": True, "scores": True, "picks": True, "servers": 1,
        }  # fmt: skip
        assert engine.about.shortcomings == []
        assert str(engine.about) == "vllm 0.32.0, tiny, context 512"


def test_nobody_is_there(tiny_subject: Subject) -> None:
    server = TokenServer(tiny_subject).start()
    server.stop()
    assert f"{server.url} cannot be reached (Connection refused): check that the server runs" in refused(server)


def test_something_else_is_there(server: TokenServer) -> None:
    assert "has no list of models (status 404): give the address of a server of completions" in refused(
        server, server.url.replace("/v1", "/v2")
    )
    for page in ({"data": []}, {"models": 1}, [1], "hello"):
        server.pages["/v1/models"] = page
        assert "lists no models, so it is no server of completions" in refused(server)


def test_a_list_of_models_without_completions(server: TokenServer) -> None:
    server.pages["/v1/models"] = {"data": [{"id": "tiny", "owned_by": "llamacpp"}]}  # but there is no /completion
    assert "does not complete with tiny (status 404)" in refused(server)


def test_the_model_is_named(server: TokenServer) -> None:
    assert "serves no model tinny; did you mean tiny: give --engine-model" in refused(server, model="tinny")
    server.pages["/v1/models"] = {"data": [{"id": name, "owned_by": "vllm"} for name in ("tiny", "other")]}
    assert "serves other, tiny: name one with --engine-model" in refused(server)
    with meet(server, model="tiny") as engine:
        assert engine.about.model == "tiny"


def test_keys(server: TokenServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "secret"
    assert "refuses a request without a key (status 401): put the key into an environment variable" in refused(server)
    monkeypatch.setenv("THE_KEY", "wrong")
    sentence = refused(server, key_env="THE_KEY")
    assert "refuses the key in THE_KEY (status 401): check it" in sentence
    assert "wrong" not in sentence
    monkeypatch.setenv("THE_KEY", "secret")
    meet(server, key_env="THE_KEY").close()


def test_tls(server: TokenServer, tmp_path: Path, tiny_subject: Subject) -> None:
    assert "does not speak TLS: give its address with http://" in refused(server, server.url.replace("http:", "https:"))
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    file = tmp_path / "both.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*make, "-keyout", file, "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
    with file.open("a") as both:
        both.write((tmp_path / "cert.pem").read_text())
    with TokenServer(tiny_subject, answer=words, certificate=str(file)) as secret:
        assert "certificate of https://127.0.0.1" in refused(secret)
        assert "SSL_CERT_FILE" in refused(secret)
        plain = secret.url.replace("https:", "http:")
        assert f"{plain} is the address of a server that speaks TLS: give it with https://." in refused(secret, plain)


def test_why_there_is_no_connection() -> None:
    place: Any = SimpleNamespace(host="nowhere", port=80, ssl=False)
    unknown = aiohttp.ClientConnectorDNSError(place, OSError(None, "Domain name not found"))
    assert failures.words(unknown) == failures.words(socket.gaierror(-2, "x")) == "no machine of this name is known"
    assert failures.words(TimeoutError()) == "no connection within 15 seconds"
    assert failures.words(ConnectionRefusedError(111, "x")) == "Connection refused"
    assert failures.words(ValueError()) == "the connection broke, or what it says is not HTTP"


def test_ids_are_refused(server: TokenServer) -> None:
    server.faults.extend([400] * 9)
    assert "does not take a prompt of token ids (status 400: " in refused(server)


def test_ids_are_changed(server: TokenServer) -> None:
    server.lead = [0]
    assert re.search(r"went on from \d+ tokens, which are not the \d+ that it was given", refused(server))
    server.kind = "plain"
    assert "it adds or cuts some" in refused(server)


def no_counts(reply: dict[str, Any]) -> dict[str, Any]:
    return {**reply, "usage": None, "choices": [{**one, "prompt_token_ids": None} for one in reply["choices"]]}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (no_counts, "does not say how many tokens it went on from"),
        (lambda reply: {"choices": []}, "is not one of a server of its kind"),
        (lambda reply: {"error": "x"}, "is not one of a server of its kind"),
        (lambda reply: {**reply, "choices": [{**reply["choices"][0], "text": "qqqq"}]}, "do not spell the text"),
        (lambda reply: {**reply, "choices": [{**reply["choices"][0], "text": ""}]}, "do not spell the text"),
        (lambda reply: {**reply, "choices": [{**reply["choices"][0], "token_ids": [41]}]}, "stopped for length at 1"),
        (lambda reply: {**reply, "choices": [{**reply["choices"][0], "token_ids": [999] * 16}]}, "the token id 999"),
    ],
)
def test_answers_that_are_wrong(
    server: TokenServer, change: Callable[[dict[str, Any]], dict[str, Any]], why: str
) -> None:
    server.change = change
    assert why in refused(server)


def test_another_tokenizer(server: TokenServer) -> None:
    vocabulary = server.subject.tokenizer

    class Shifted:
        def decode(self, ids: list[int], **more: Any) -> str:
            return str(vocabulary.decode([(one + 1) % len(vocabulary) for one in ids], **more))

    server.tokenizer = Shifted()  # type: ignore[assignment]
    assert "it serves a model of another tokenizer than --model names" in refused(server)


def test_a_server_that_spells_nothing_has_another_tokenizer(server: TokenServer) -> None:
    class Silent:
        def decode(self, ids: list[int], **more: Any) -> str:
            return ""

    server.tokenizer = Silent()  # type: ignore[assignment]
    assert "do not spell the text" in refused(server)


def test_what_is_told_but_not_refused(server: TokenServer, caplog: pytest.LogCaptureFixture) -> None:
    turn = iter(range(10**6))
    server.answer = lambda prompt, most: [40 + next(turn) % 50 for _ in range(most)]
    with meet(server) as engine:
        assert not engine.about.repeats
    assert "greedy answers differ when asked again" in caplog.text
    server.answer, server.context = words, None
    with meet(server) as engine:
        assert engine.about.context is None
    assert "the context is not said" in caplog.text


def test_servers_must_be_alike(server: TokenServer, tiny_subject: Subject) -> None:
    with TokenServer(tiny_subject, answer=words, context=256) as other:
        assert "are not alike" in refused(server, f"{server.url},{other.url}")
    with TokenServer(tiny_subject, answer=lambda prompt, most: words(prompt[:-1], most)) as other:
        assert "answer the same question in different ways" in refused(server, f"{server.url},{other.url}")


def test_an_end_of_the_servers_own_is_no_text(server: TokenServer) -> None:
    own = server.subject.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert own not in server.known.ends
    text = server.subject.tokenizer.decode([50])
    request = Request(tuple(range(40, 60)), Decoding(max_new_tokens=6))
    with meet(server) as engine:
        server.change = lambda reply: {
            **reply, "choices": [{**reply["choices"][0], "token_ids": [50, own], "text": text, "finish_reason": "stop"}]
        }  # fmt: skip
        done = engine.submit(request).result(30)
        assert (done.ids, done.truncated) == ((50,), False)


def test_a_busy_server_is_waited_for(server: TokenServer) -> None:
    server.faults.extend([503, 429])
    meet(server).close()


@pytest.mark.parametrize("status", [403, 503])
def test_what_could_not_be_asked_is_not_what_a_server_cannot_do(server: TokenServer, status: int) -> None:
    server.rejects_when = lambda body: status if body.get("prompt_logprobs") is not None else None
    assert f"status {status}" in refused(server, max_retries=1)


@pytest.mark.parametrize("status", [400, 404, 500, 501])
def test_a_server_that_cannot_score_is_told_so(server: TokenServer, status: int) -> None:
    server.rejects_when = lambda body: status if body.get("prompt_logprobs") is not None else None
    with meet(server, max_retries=1) as engine:
        assert not engine.about.scores
    server.rejects_when = lambda body: status if body.get("logprob_token_ids") else None
    with meet(server, max_retries=1) as engine:
        assert (engine.about.scores, engine.about.picks) == (True, False)


def test_chosen_tokens_are_tried_as_many_at_once_as_are_asked_for(server: TokenServer) -> None:
    most = CHOSEN
    server.rejects_when = lambda body: 400 if len(body.get("logprob_token_ids") or ()) > most else None
    with meet(server, max_retries=1) as engine:
        assert engine.about.picks
    most = CHOSEN - 1
    with meet(server, max_retries=1) as engine:
        assert (engine.about.scores, engine.about.picks) == (True, False)


def test_words_from_all_over_the_vocabulary_are_spelt(server: TokenServer) -> None:
    asked: list[int] = []
    spell = server.post
    server.post = lambda path, body: (asked.extend(body["tokens"] if path == "/detokenize" else ()), spell(path, body))[
        1
    ]  # type: ignore[method-assign]
    meet(server).close()
    size = len(server.tokenizer)
    quarters = {4 * token // size for token in asked}
    assert quarters == {0, 1, 2, 3}


def test_texts_without_ids_are_checked(tiny_subject: Subject) -> None:
    with TokenServer(tiny_subject, kind="plain") as server:
        said = tiny_subject.tokenizer("Then bake it in a hot oven until it is brown.").input_ids
        server.answer = lambda prompt, most: said[:most]
        engine = meet(server)
        assert not engine.about.ids
        ids = tuple(tiny_subject.tokenizer("How do I bake bread?").input_ids)
        request = Request(ids, Decoding(max_new_tokens=6))
        done = engine.submit(request).result(30)
        assert done.ids == tuple(said[:6])
        server.change = lambda reply: {**reply, "usage": {**reply["usage"], "completion_tokens": 5}}
        with pytest.raises(InputError, match="ids of this one cannot be told from it"):
            engine.submit(request).result(30)
        engine.close()


def test_the_context_that_servers_cut_to_without_a_word(server: TokenServer) -> None:
    server.context = None
    with meet(server) as engine:
        server.context = 60  # what it does, and has not said
        ids = tuple(range(40, 90))
        with pytest.raises(InputError, match="its context is shorter than it says"):
            engine.submit(Request(ids, Decoding(max_new_tokens=20))).result(30)
