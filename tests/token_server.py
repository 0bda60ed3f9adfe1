"""Shared by tests of the engine on servers: a small HTTP server that continues token ids, of several kinds, with faults.

    with TokenServer(subject) as server:
        engine = ServerEngine(server.url, subject.tokenizer, known=server.known)

It answers with the subject's own greedy continuation, scores with its own logits, and does what goes wrong with real
ones: `server.faults` holds what becomes of the next requests (a status, also with headers, "drop" for a closed connection,
"drip" for an answer of blanks that never ends, bytes for a page of this text, or None).
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any

import torch

from tokendeep.engines.base import Known, Request
from tokendeep.engines.local import generate
from tokendeep.types import Decoding, Subject

Ids = list[int]
OWNERS = {"vllm": "vllm", "llamacpp": "llamacpp", "sglang": "sglang", "plain": "somebody"}


def words(prompt: list[int], most: int) -> list[int]:
    """An answer that hangs on the prompt, without a model; it never ends by itself."""
    return [40 + (7 * sum(prompt) + 3 * n) % 50 for n in range(most)]


class TokenServer:
    """A server of completions on this machine.

    Args:
        subject: what it serves.
        kind: which server it is like; a plain one gives texts without ids.
        model: what it calls the model.
        context: what it says its context is.
        key: what it wants to be shown.
        certificate: file of a key and a certificate, with which it speaks TLS.
        answer: continues ids in place of the subject's greedy answer: (prompt, most) -> ids.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        kind: str = "vllm",
        model: str = "tiny",
        context: int | None = 512,
        key: str | None = None,
        certificate: str | None = None,
        answer: Callable[[Ids, int], Ids] | None = None,
    ) -> None:
        self.subject, self.kind, self.model, self.context, self.key = subject, kind, model, context, key
        self.certificate = certificate
        self.answer = answer or self._greedy
        self.faults: deque[int | tuple[int, Mapping[str, str]] | str | bytes | None] = deque()
        self.asked: list[Mapping[str, Any]] = []  # the bodies of all completions that were answered
        self.tokenizer = subject.tokenizer  # what it spells answers with
        self.change: Callable[[dict[str, Any]], dict[str, Any]] = lambda reply: reply  # what becomes of every answer
        self.picks = True  # whether it is a version that tells log-probabilities of chosen next tokens
        self.pages: dict[str, Any] = {}  # what lies at a path in place of what is usual
        self.rejects: Callable[[Ids], bool] = lambda prompt: False  # whether it fails for a prompt, with status 400
        self.rejects_when: Callable[[Mapping[str, Any]], int | None] = lambda body: (
            None
        )  # the same by all that is asked
        self.lead: Ids = []  # put before every prompt, as a server that adds BOS does
        self.port = 0
        self.connections: set[Any] = set()
        self._server: Any = None
        self._lock = threading.RLock()

    @property
    def url(self) -> str:
        return f"http{'s' if self.certificate else ''}://127.0.0.1:{self.port}/v1"

    @property
    def known(self) -> Known:
        """What an engine knows of the subject."""
        ends = {self.subject.tokenizer.eos_token_id, self.subject.model.generation_config.eos_token_id}
        return Known(frozenset(ends), len(self.subject.tokenizer), 512)

    def start(self) -> TokenServer:
        """Serve; at the port of before where it was stopped."""
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that is gone
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Serve no longer, and close what is open."""
        old, self._server = self._server, None
        old.shutdown()
        old.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> TokenServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def prompts(self) -> list[tuple[int, ...]]:
        """The prompts of all completions that were answered."""
        return [tuple(body.get("prompt") or body["input_ids"]) for body in self.asked]

    # --- answers -----------------------------------------------------------------------------------

    def get(self, path: str) -> Any:
        """What lies at a path; None where nothing does."""
        if path in self.pages:
            return self.pages[path]
        card = {"id": self.model, "owned_by": OWNERS[self.kind], "max_model_len": self.context}
        if self.kind == "llamacpp":
            card.pop("max_model_len")
        told = {"build_info": "b9000", "default_generation_settings": {"n_ctx": self.context}}
        return {
            "/v1/models": {"object": "list", "data": [card]},
            "/version": {"version": "0.32.0"} if self.kind == "vllm" else None,
            "/props": told if self.kind == "llamacpp" else None,
            "/get_server_info": {"version": "0.5"} if self.kind == "sglang" else None,
        }.get(path)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a request; None where there is nothing at this path."""
        if path == "/detokenize" and self.kind != "plain":
            text = self.tokenizer.decode(body["tokens"])
            return {"vllm": {"prompt": text}, "llamacpp": {"content": text}, "sglang": {"text": text}}[self.kind]
        if self.kind == "llamacpp" and path == "/completion":
            return self._llamacpp(body)
        if self.kind == "sglang" and path == "/generate":
            return self._sglang(body)
        if self.kind in ("vllm", "plain") and path == "/v1/completions":
            return self._completions(body)
        return None

    def _completions(self, body: Mapping[str, Any]) -> dict[str, Any]:
        bias = next((int(one) for one in body.get("logit_bias") or {}), None)
        prompt = [*self.lead, *body["prompt"]]
        most = body["max_tokens"] if self.context is None else min(body["max_tokens"], self.context - len(prompt))
        ids, stopped = self._ids(prompt, most, bias)
        choice = {"text": self.tokenizer.decode(ids, skip_special_tokens=stopped), "index": 0}
        choice["finish_reason"] = "stop" if stopped else "length"
        if self.kind == "vllm":
            choice |= {"token_ids": ids, "prompt_token_ids": prompt}
        if body.get("prompt_logprobs") is not None:
            given = [{str(t): {"logprob": s, "rank": 1}} for t, s in zip(prompt[1:], self._scores(prompt), strict=True)]
            choice["prompt_logprobs"] = [None, *given]
        if self.picks and (tokens := body.get("logprob_token_ids")):
            assert (len(tokens), True) == (body["logprobs"], body["return_tokens_as_token_ids"])
            logps = self._logits(prompt)[-1].log_softmax(-1)
            choice["logprobs"] = {"top_logprobs": [{f"token_id:{token}": float(logps[token]) for token in tokens}]}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
        return {"object": "text_completion", "model": self.model, "choices": [choice], "usage": usage}

    def _llamacpp(self, body: Mapping[str, Any]) -> dict[str, Any]:
        bias = next((int(one) for one, _ in body.get("logit_bias") or []), None)
        prompt = [*self.lead, *body["prompt"]]
        ids, stopped = self._ids(prompt, body["n_predict"], bias)
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        told = {
            "tokens_evaluated": len(prompt),
            "tokens_predicted": len(ids),
            "stop_type": "eos" if stopped else "limit",
        }
        return {"content": text, "tokens": ids, **told}

    def _sglang(self, body: Mapping[str, Any]) -> dict[str, Any]:
        settings = body["sampling_params"]
        bias = next((int(one) for one in settings.get("logit_bias") or {}), None)
        prompt = [*self.lead, *body["input_ids"]]
        ids, stopped = self._ids(prompt, settings["max_new_tokens"], bias)
        about: dict[str, Any] = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
        about["finish_reason"] = {"type": "stop" if stopped else "length"}
        if body.get("return_logprob"):
            start = body["logprob_start_len"]
            scored = [[s, t, None] for t, s in zip(prompt[1:], self._scores(prompt), strict=True)]
            about["input_token_logprobs"] = [[None, prompt[start], None], *scored[start:]]
        return {"text": self.tokenizer.decode(ids), "output_ids": ids, "meta_info": about}

    def _ids(self, prompt: Ids, most: int, bias: int | None) -> tuple[Ids, bool]:
        """The answer, an end token at its end included, and whether it has one."""
        with self._lock:
            ids = ([] if bias is None else [bias]) + self.answer(prompt, most)
        end = next((i for i, token in enumerate(ids) if token in self.known.ends), None)
        return (ids[:most], False) if end is None or end >= most else (ids[: end + 1], True)

    def _greedy(self, prompt: Ids, most: int) -> Ids:
        if most == 1:
            return [int(self._logits(prompt)[-1].argmax())]
        done = generate(self.subject, [Request(tuple(prompt), Decoding(max_new_tokens=most))])[0]
        return [*done.ids, *([] if done.truncated else [self.subject.tokenizer.eos_token_id])]

    def _scores(self, ids: Sequence[int]) -> list[float]:
        logps = self._logits(ids)[:-1].log_softmax(-1)
        return [float(one) for one in logps.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]]

    def _logits(self, ids: Sequence[int]) -> torch.Tensor:
        with torch.no_grad(), self._lock:
            logits: torch.Tensor = self.subject.model(torch.tensor([ids])).logits[0].float()
        return logits


class _Server(ThreadingHTTPServer):
    request_queue_size = 512  # of connections that come at once; what a short queue drops is waited for for minutes


def _handler(owner: TokenServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            owner.connections.add(self.connection)

        def finish(self) -> None:
            owner.connections.discard(self.connection)
            with contextlib.suppress(OSError):
                super().finish()

        def do_GET(self) -> None:
            self._send(200, owner.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = owner.faults.popleft() if owner.faults and self.path != "/detokenize" else None
            if fault is None and owner.rejects(body.get("prompt") or []):
                fault = 400
            fault = owner.rejects_when(body) if fault is None else fault
            if fault == "drop":
                self.close_connection = True
                self.connection.close()
                return
            if fault == "drip":
                self._drip()
                return
            if isinstance(fault, bytes):
                self._write(200, fault, {})
                return
            if fault is not None:
                status, headers = fault if isinstance(fault, tuple) else (int(fault), {})
                self._send(status, {"error": {"message": f"no {body.get('prompt')}"}}, headers)
                return
            answer = owner.post(self.path, body)
            if self.server is not owner._server:  # it was stopped meanwhile
                self.close_connection = True
                return
            if answer is not None and self.path != "/detokenize":
                answer = owner.change(answer)
                owner.asked.append(body)
            self._send(200, answer)

        def _send(self, status: int, content: Any, headers: Mapping[str, str] = MappingProxyType({})) -> None:
            if owner.key and self.headers.get("Authorization") != f"Bearer {owner.key}":
                status, content = 401, {"error": "no key"}
            if content is None:
                status, content = 404, {"error": "nothing here"}
            self._write(status, json.dumps(content, default=_number).encode(), headers)

        def _drip(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # nobody listens any longer
                while owner._server is self.server:
                    self.wfile.write(b" ")
                    time.sleep(0.05)
            self.close_connection = True

        def _write(self, status: int, text: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *values: Any) -> None:
            pass

    return Handler


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else str(value)
