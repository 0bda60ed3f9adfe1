"""The engine that asks servers: requests of token ids go in, completions come out, as with the local one.

Knows nothing of chats but the questions of its handshake, and nothing of attacks or judges.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, replace
from typing import Any

from tokendeep import runs
from tokendeep.engines import base
from tokendeep.engines.base import Completion, Known, Request
from tokendeep.engines.options import ANSWER, IN_FLIGHT, EngineOptions, addresses
from tokendeep.engines.server import answers, handshake
from tokendeep.engines.server.client import Call, Client, Host
from tokendeep.engines.server.dialects import Ask, parsed
from tokendeep.errors import InputError
from tokendeep.models import Outline

log = logging.getLogger(__name__)


@dataclass
class Stats:
    """Work done so far."""

    requests: int = 0
    tokens: int = 0
    scored: int = 0


class ServerEngine:
    """Takes requests from any thread and has them answered by one server or several.

    Args:
        urls: addresses, separated by commas.
        tokenizer: the model's own; nothing else of the model is needed.
        model: what the servers call it; found out where they serve one only.
        known: what is known of the model without its weights: ends, vocabulary, context.
        key_env: name of the environment variable that holds the servers' key.
        answer_timeout: seconds that one answer may take.

    Attributes:
        about: what the handshake has found out.

    Raises:
        InputError: a server is not there, is none of completions, or serves another model.
    """

    kind, why = "server", None

    def __init__(
        self,
        urls: str,
        tokenizer: Any,
        *,
        known: Known,
        model: str | None = None,
        key_env: str | None = None,
        in_flight: int = IN_FLIGHT,
        answer_timeout: float = ANSWER,
        max_retries: int = 6,
    ) -> None:
        self.tokenizer, self.known, self.stats = tokenizer, known, Stats()
        self._client = Client(addresses(urls), key_env, in_flight, max_retries, answer_timeout)
        try:
            self.about, answered = handshake.meet(self._client, tokenizer, known, model)
        except BaseException:
            self._client.close()
            raise
        self._client.meet = lambda host: handshake.again(self._client, host, tokenizer, known, self.about, answered)
        for sentence in self.about.shortcomings:
            log.warning("%s: %s", urls, sentence)
        self.context = min(known.context, self.about.context or known.context)
        self._dialect = handshake.dialect(self.about.kind)
        self._submitted = 0

    def submit(self, request: Request) -> Future[Completion]:
        """Queue one request; its future gets the completion, or the error that ended it.

        Raises:
            InputError: it cannot be run, at once (the index counts submissions from 0).
            RuntimeError: the engine is closed.
        """
        if request.choices and not self.about.picks:
            raise InputError(
                "This server does not tell the chances of chosen tokens: serve the model with a vLLM of 0.32 or later, or load "
                "it here, without a server."
            )
        base.check(self._submitted, request, vocabulary=self.known.vocabulary, context=self.context)
        self._submitted += 1
        ask = Ask(request, self.about.model, self.known.ends, draw(request) if request.decoding.temperature > 0 else 0)

        def body(host: Host) -> tuple[str, Mapping[str, Any]]:
            return self._dialect.address(host), {**self._dialect.body(ask), **self._choosing(request.choices)}

        def read(host: Host, answer: Mapping[str, Any]) -> Completion:
            told = parsed(self._dialect.read, answer, host.url)
            done = answers.completion(self.tokenizer, ask, told, self.known.vocabulary)
            done = replace(done, chances=self._chances(host, answer, request.choices))
            self.stats.requests, self.stats.tokens = self.stats.requests + 1, self.stats.tokens + len(done.ids)
            return done

        return self._client.put(Call(body, read))

    def _choosing(self, choices: tuple[int, ...]) -> Mapping[str, Any]:
        """What is sent beside a request whose first token's chances are asked for."""
        if not choices:
            return {}
        assert self._dialect.choosing is not None
        return self._dialect.choosing(choices)

    def _chances(self, host: Host, answer: Mapping[str, Any], choices: tuple[int, ...]) -> tuple[float, ...]:
        """The chances of chosen tokens against each other, from their log-probabilities among all."""
        read = self._dialect.read_next
        if not choices or read is None:
            return ()
        logps = parsed(lambda told: read(told, choices), answer, host.url)
        most = max(logps)
        weights = [math.exp(one - most) for one in logps]
        return tuple(one / sum(weights) for one in weights)

    def score(self, ids: Sequence[int], start: int) -> Future[tuple[float, ...]]:
        """Log-probabilities, in nats, of `ids[start:]`, each given all the ids before it.

        Raises:
            InputError: the ids do not fit, or the server does not score what it is given.
        """
        dialect, given = self._dialect, tuple(ids)
        if dialect.score_body is None or dialect.read_scores is None:
            raise InputError(
                f"A server of the kind {self.about.kind} does not tell the log-probabilities of given tokens: serve the model "
                "with vLLM or SGLang, or measure it in memory."
            )
        if not 0 < start < len(given) or len(given) + 1 > self.context:
            raise InputError(
                f"Tokens from {start} on of {len(given)} cannot be scored: there must be one before them, and together "
                f"they must be fewer than the server's context of {self.context}."
            )
        body, scores = dialect.score_body, dialect.read_scores

        def ask(host: Host) -> tuple[str, Mapping[str, Any]]:
            return dialect.address(host), body(self.about.model, given, start)

        def read(host: Host, answer: Mapping[str, Any]) -> tuple[float, ...]:
            found = tuple(parsed(lambda told: scores(told, given, start), answer, host.url))
            self.stats.scored += len(given) - start
            return found

        return self._client.put(Call(ask, read))

    def score_next(self, ids: Sequence[int], tokens: Sequence[int]) -> Future[tuple[float, ...]]:
        """Log-probabilities, in nats, of each of `tokens` as what comes next behind `ids`.

        Only where `about.picks`; unlike with `score` a server need not read again what it has read before.
        """
        dialect, given, asked = self._dialect, tuple(ids), tuple(tokens)
        if not 0 < len(given) < self.context:
            raise InputError(
                f"What follows {len(given)} tokens cannot be scored: they must be fewer than the server's context of "
                f"{self.context}."
            )
        assert dialect.next_body is not None
        assert dialect.read_next is not None
        body, scores = dialect.next_body, dialect.read_next

        def read(host: Host, answer: Mapping[str, Any]) -> tuple[float, ...]:
            found = tuple(parsed(lambda told: scores(told, asked), answer, host.url))
            self.stats.scored += len(asked)
            return found

        return self._client.put(Call(lambda host: (dialect.address(host), body(self.about.model, given, asked)), read))

    def close(self) -> None:
        """Break off; unfinished requests get a RuntimeError. Calling it again does nothing."""
        self._client.close()

    def __enter__(self) -> ServerEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Served:
    """A model on servers in the place of a Subject, for whoever only has answers written."""

    tokenizer: Any
    engine: ServerEngine

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_done: Callable[[int, Completion], None],
        on_step: Callable[[int], None],
        batch_size: int = 0,
    ) -> None:
        """Complete all requests, as `local.generate` does; how many at once is the engine's business."""
        numbers = {self.engine.submit(request): number for number, request in enumerate(requests)}
        tokens = 0
        for future in as_completed(numbers):
            done = future.result()
            on_done(numbers[future], done)
            on_step(tokens := tokens + len(done.ids))


def connect(options: EngineOptions, tokenizer: Any, outline: Outline, max_retries: int = 6) -> ServerEngine:
    """The engine that a verb's options name. Raises InputError as ServerEngine does."""
    more = {
        "model": options.engine_model, "key_env": options.api_key_env, "in_flight": options.in_flight,
        "answer_timeout": options.answer_timeout,
    }  # fmt: skip
    known = known_of(outline, tokenizer)
    return ServerEngine(options.engine, tokenizer, known=known, max_retries=max_retries, **more)  # type: ignore[arg-type]


def known_of(outline: Outline, tokenizer: Any) -> Known:
    """What an engine has to know of a model, from its outline."""
    from tokendeep.engines.architecture import ends_of

    return Known(ends_of(outline.ends, tokenizer), max(outline.vocabulary, len(tokenizer)), outline.context)


def draw(request: Request) -> int:
    """The seed of a request's draws, keyed by content as those of the local engine: rows do not share their draws."""
    return runs.seed(f"{request.decoding.seed}|{request.ids}") >> 1
