"""What our engine on servers costs itself, as requests grow to 100,000, and what the whole attack through it costs: against a
server that answers at once.

    make bench-client
    python benchmarks/client.py --requests 1000 10000 --tokens 64

The server is a process of its own that reads nothing but the length of an answer and writes prepared bytes, so what is counted
is the CPU time of this process alone, all its threads together. Each number of requests is asked in two ways, each in a process
of its own: all at once (a queue of that length), and as they are finished (nothing is kept but what is on its way). Few requests
are asked again and again, so that Python's collections of garbage, which come once in thousands of them, are in every figure.

The second table is of `tokendeep attack` from its first line to its last, the imports, the handshake and the report's figures
included: CPU time of a process of its own, an answer, by the number of answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared import in_a_process, peak_memory

ATTACKS = (100, 400, 1_500)  # answers of a whole attack
GROWN = 1.1  # of the CPU time of an answer between the first two of these, between the last two
NUMBERS = (1_000, 3_000, 10_000, 30_000, 100_000)
AGAIN = 10_000  # requests that are asked at least, in rounds
AIM = 1500  # requests a second of CPU time
LINEAR = 0.9  # of the speed at the smallest number of requests, at the largest
GROWTH = 20.0  # MB more at the largest number than at 10,000
SENTENCE = "The quick brown fox jumps over the lazy dog and looks back at the green hills of the valley. "


# --- the server ------------------------------------------------------------------------------------


class Canned(asyncio.Protocol):
    """HTTP/1.1 with connections that are kept: the answer prepared for `max_tokens`, the ids of the prompt repeated."""

    LENGTH, LONGEST = re.compile(rb"(?i)content-length: *(\d+)"), re.compile(rb'"max_tokens": *(\d+)')
    PROMPT = re.compile(rb'"prompt": *\[([^]]*)\]')

    def __init__(self, answers: dict[int, tuple[bytes, bytes]]) -> None:
        self.answers, self.buffer = answers, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = self.LENGTH.search(self.buffer, 0, end)
            stop = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < stop:
                return
            self.transport.write(self.reply(self.buffer[:end], self.buffer[end + 4 : stop]))
            self.buffer = self.buffer[stop:]

    def reply(self, head: bytes, body: bytes) -> bytes:
        if head.startswith(b"GET /v1/models "):
            return _http(b'{"data": [{"id": "canned", "owned_by": "vllm", "max_model_len": 8192}]}')
        longest, prompt = self.LONGEST.search(body), self.PROMPT.search(body)
        if not (head.startswith(b"POST /v1/completions ") and longest and prompt) or b"logit_bias" in body:
            return _http(b"{}", b"404 Not Found")
        ids, text = self.answers[int(longest[1])]
        return _http(
            b'{"choices": [{"index": 0, "finish_reason": "stop", "text": %b, "token_ids": [%b], "prompt_token_ids": [%b]}], '
            b'"usage": {"prompt_tokens": %d, "completion_tokens": %b}}'
            % (text, ids, prompt[1], prompt[1].count(b",") + 1, longest[1])
        )


def _http(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def serve(answers: dict[int, tuple[bytes, bytes]], told: Any) -> None:
    """Serve until the process is ended; `told` is sent the port."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Canned(answers), "127.0.0.1", 0, backlog=4096)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


# --- the client ------------------------------------------------------------------------------------


def all_at_once(engine: Any, requests: Any) -> None:
    for future in [engine.submit(one) for one in requests]:
        future.result()


def as_finished(engine: Any, requests: Any) -> None:
    """No more than twice as many at once as are in flight, and nothing is kept."""
    room, failed = threading.Semaphore(2 * engine._client.in_flight), []

    def done(future: Future[Any]) -> None:
        room.release()
        if future.exception():
            failed.append(future.exception())

    for request in requests:
        room.acquire()
        engine.submit(request).add_done_callback(done)
    for _ in range(2 * engine._client.in_flight):
        room.acquire()
    if failed:
        raise failed[0]


def resident() -> float:
    """MB that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def canned(tokenizer: Any, args: argparse.Namespace) -> Iterator[tuple[str, list[int]]]:
    """The address of a server, and ids to make prompts of."""
    from tokendeep.engines.server.handshake import CANARY_TOKENS

    ids = tokenizer(SENTENCE * (1 + max(args.prompt, args.tokens) // 15)).input_ids
    end = tokenizer.eos_token_id
    answers = {n: (ids[: n - 1], tokenizer.decode(ids[: n - 1])) for n in (1, CANARY_TOKENS, args.tokens)}
    prepared = {
        n: (json.dumps([*some, end])[1:-1].encode(), json.dumps(text).encode()) for n, (some, text) in answers.items()
    }
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(prepared, theirs), daemon=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1", ids
    finally:
        server.terminate()


def one(way: str, count: int, args: argparse.Namespace) -> dict[str, float]:
    """Figures of one number of requests, in this process."""
    from tokendeep import models
    from tokendeep.engines.base import Known, Request
    from tokendeep.engines.server.engine import ServerEngine
    from tokendeep.types import Decoding

    tokenizer = models.load_tokenizer("smollm2")
    known = Known(frozenset({tokenizer.eos_token_id}), len(tokenizer), 8192)
    decoding = Decoding(temperature=0.9, top_p=0.6, max_new_tokens=args.tokens)
    with (
        canned(tokenizer, args) as (url, ids),
        ServerEngine(url, tokenizer, known=known, in_flight=args.in_flight) as engine,
    ):
        as_finished(engine, (Request((1, n), decoding) for n in range(5 * args.in_flight)))  # connections, imports
        before, held, rounds = (time.perf_counter(), time.process_time()), resident(), max(1, AGAIN // count)
        for _ in range(rounds):
            requests = (Request((*ids[: args.prompt - 2], n // 1000, n % 1000), decoding) for n in range(count))
            {"queue": all_at_once, "flow": as_finished}[way](engine, requests)
        wall, cpu = time.perf_counter() - before[0], time.process_time() - before[1]
        assert engine.stats.tokens >= rounds * count * (args.tokens - 1)
    return {"wall": wall / rounds, "cpu": cpu / rounds, "held": held, "peak": peak_memory()}


def whole(count: int, args: argparse.Namespace) -> dict[str, float]:
    """Figures of `tokendeep attack` with so many answers, in this process, all that it has done before included."""
    import tokendeep
    from tokendeep import models

    with canned(models.load_tokenizer("smollm2"), args) as (url, _), tempfile.TemporaryDirectory() as out:
        rows = [{"id": f"{n}", "instruction": f"Write down line {n}. {SENTENCE * 4}"} for n in range(count)]
        before = time.perf_counter()
        rates = tokendeep.attack(
            "smollm2", rows, attack="none", engine=url, max_new_tokens=args.tokens, out=f"{out}/attack"
        )
        wall, cpu = time.perf_counter() - before, time.process_time()
        assert [sum(rate.outcomes.values()) for rate in rates] == [count], rates
    return {"wall": wall, "cpu": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, nargs="*", default=NUMBERS)
    parser.add_argument("--prompt", type=int, default=100, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--in-flight", type=int, default=1000)
    parser.add_argument("--attacks", type=int, nargs="*", default=ATTACKS, help="answers of the whole attack")
    parser.add_argument("--one", choices=("queue", "flow", "attack"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        count = args.requests[0]
        print(json.dumps(whole(count, args) if args.one == "attack" else one(args.one, count, args)))
        return
    if args.requests:
        engines(args)
    if args.attacks:
        attacks(args)


def attacks(args: argparse.Namespace) -> None:
    """The second table."""
    print("the whole attack")
    spent = {}
    for count in args.attacks:
        got = in_a_process(__file__, "--one", "attack", "--requests", str(count), "--tokens", str(args.tokens))
        spent[count] = got["cpu"]
        print(
            f"{count:>7} answers: {got['cpu']:6.1f} s of CPU time, {1000 * got['cpu'] / count:.1f} ms an answer "
            f"({got['wall']:.0f} s by the clock)",
            flush=True,
        )
    steps = [(spent[more] - spent[less]) / (more - less) for less, more in zip(spent, list(spent)[1:], strict=False)]
    for less, more, step in zip(spent, list(spent)[1:], steps, strict=False):
        print(f"each answer from {less} to {more}: {1000 * step:.1f} ms of CPU time, {1 / step:.0f} a second")
    if len(steps) > 1:
        print(f"the last of these takes {steps[-1] / steps[0]:.2f} of the first (aim {GROWN} and below)")


def engines(args: argparse.Namespace) -> None:
    """The first table."""
    found: dict[str, dict[int, dict[str, float]]] = {"queue": {}, "flow": {}}
    sizes = ["--prompt", str(args.prompt), "--tokens", str(args.tokens), "--in-flight", str(args.in_flight)]
    for way, figures in found.items():
        for count in args.requests:
            got = figures[count] = in_a_process(__file__, "--one", way, "--requests", str(count), *sizes)
            print(
                f"{way} {count:>7} requests: {count / got['cpu']:6.0f} a second of CPU time ({count / got['wall']:.0f} by the "
                f"clock), memory {got['held']:.0f} MB before, {max(got['held'], got['peak']):.0f} at most",
                flush=True,
            )
    least, most = min(args.requests), max(args.requests)
    slowest = min(count / got["cpu"] for figures in found.values() for count, got in figures.items())
    print(f"slowest: {slowest / AIM:.2f} of {AIM} requests a second of CPU time (aim 1)")
    for way, figures in found.items():
        ratio = (most / figures[most]["cpu"]) / (least / figures[least]["cpu"])
        print(f"{way}: at {most} requests {ratio:.2f} of the speed at {least} (aim {LINEAR} and up)")
    flow = found["flow"]
    some = min(flow, key=lambda count: abs(count - 10_000))
    print(
        f"flow: {flow[most]['peak'] - flow[some]['peak']:.0f} MB more at {most} than at {some} (aim below {GROWTH:.0f})"
    )


if __name__ == "__main__":
    main()
