"""Shared by tests of models that run elsewhere: a small HTTP server with OpenAI's chat endpoint, and Inspect's way to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from inspect_ai.model import ModelAPI, ModelOutput, ModelUsage, RetryDecision, modelapi

from tokendeep.evals.served import BEGINNING

Turns = list[dict[str, Any]]
AFTER = " and more"  # what the server writes behind any other beginning than the canary's


def continuing(turns: Turns) -> str:
    """The answer of a server that goes on from a final assistant message."""
    if turns[-1]["role"] != "assistant":
        return "Hello there"
    return "] twelve" if turns[-1]["content"] == BEGINNING else AFTER


def echoing(turns: Turns) -> str:
    """The same with the beginning in front, as llama.cpp's server has it."""
    return (turns[-1]["content"] if turns[-1]["role"] == "assistant" else "") + continuing(turns)


def ignoring(turns: Turns) -> str:
    """A new turn, whatever stands last."""
    return "Hello there"


@contextmanager
def serve(reply: Callable[[Turns], str | int]) -> Iterator[tuple[str, list[Turns]]]:
    """A server's address, and the conversations that it is asked to go on with; a number is a status that it fails with."""
    asked: list[Turns] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept alive, as those of real servers are

        def do_POST(self) -> None:
            turns = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
            asked.append(turns)
            answer = reply(turns)
            status = answer if isinstance(answer, int) else 200
            content = _completion(str(answer)) if status == 200 else {"error": {"message": turns[-1]["content"]}}
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *values: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def _completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}


class Failed(Exception):
    """A status that is no success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status_code = status


@modelapi(name="http")
def http() -> type[ModelAPI]:
    """A provider that needs no package: inspect/http/ADDRESS."""
    return Plain


class Plain(ModelAPI):
    """Posts the conversation as it is, through a client that keeps its connections."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.client = httpx.AsyncClient(timeout=60, trust_env=False)

    async def aclose(self) -> None:
        await self.client.aclose()

    async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> ModelOutput:
        text = await self.post([{"role": message.role, "content": message.text} for message in input])
        output = ModelOutput.from_content(self.model_name, text)
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output

    async def post(self, turns: Turns) -> str:
        response = await self.client.post(f"{self.model_name}/chat/completions", json={"messages": turns})
        if response.status_code != 200:
            raise Failed(response.status_code, response.text)
        return str(response.json()["choices"][0]["message"]["content"])

    def should_retry(self, ex: BaseException) -> bool | RetryDecision:
        return isinstance(ex, Failed) and ex.status_code in (429, 500)
