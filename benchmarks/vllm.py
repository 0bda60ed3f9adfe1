"""Our engine on a real vLLM server against a bare client of the same requests, and its answers against those in memory.

    make bench-vllm                            # sets a vLLM for CPUs up in an environment of its own, prints the ratio
    python benchmarks/vllm.py URL              # a server of the packaged model in float32 that runs already

Both clients send the same token ids with the same settings and as many requests at once, in turns; what differs is all that the
engine does beside: the queue, repeats, checks of what came back, text and ids. Then, with a server started here stopped, the
engine in memory and the continuous batching of transformers answer the same requests, in turns too, each warmed up, on as many
threads as OMP_NUM_THREADS says: one in the Makefile, as the server has.

The third ratio is of the whole `tokendeep attack` in a process of its own, from its first line to its last (imports, handshake,
judging, log and figures included), against a bare client of the same requests, in turns, once all of them have been asked before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from tokendeep import chat, models
from tokendeep.engines.base import Request
from tokendeep.engines.local import generate
from tokendeep.engines.server import engine as server
from tokendeep.engines.server.dialects import COMPLETIONS, Ask
from tokendeep.types import Decoding

VERBS = ("Describe", "Explain", "Compare", "Draw", "Paint", "Sell", "Praise", "Repair")
THINGS = ("a bridge", "an apple", "two rivers", "a violin", "the moon", "a bakery", "old maps", "a garden")
MANNERS = (
    *("briefly", "at length", "to a child", "in a letter", "with numbers", "as a poet", "in a list", "from memory"),
    *("politely", "in plain words", "for a museum", "in the rain", "step by step", "without haste"),
    *("to a friend", "at night"),
)
AIM = 0.95
TURNS = 3


def requests(tokenizer: Any, count: int, tokens: int) -> list[Request]:
    """Different short requests, all answered up to the same length."""
    return asking(tokenizer, [f"{verb} {thing}." for verb in VERBS for thing in THINGS][:count], tokens)


def asking(tokenizer: Any, texts: list[str], tokens: int) -> list[Request]:
    ids = [chat.prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    return [Request(tuple(one), Decoding(max_new_tokens=tokens)) for one in ids]


def ours(engine: server.ServerEngine, asked: list[Request]) -> list[tuple[int, ...]]:
    return [future.result().ids for future in [engine.submit(one) for one in asked]]


def bare(engine: server.ServerEngine, asked: list[Request], in_flight: int) -> list[Any]:
    """The same bodies, posted by nothing but a session and a semaphore."""
    host = engine._client.hosts[0]
    bodies = [COMPLETIONS.body(Ask(one, engine.about.model, engine.known.ends, 0)) for one in asked]

    async def every() -> list[Any]:
        free = asyncio.Semaphore(in_flight)

        async def one(session: aiohttp.ClientSession, body: dict[str, Any]) -> Any:
            async with free, session.post(COMPLETIONS.address(host), json=body) as response:
                return await response.json()

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await asyncio.gather(*(one(session, body) for body in bodies))

    return asyncio.run(every())


def rate(work: Any, count: int) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def whole(engine: server.ServerEngine, url: str, tokenizer: Any, args: argparse.Namespace) -> None:
    """Print how fast `tokendeep attack` is as a whole against the bare client of the same requests."""
    texts = [f"{verb} {thing} {manner}." for manner in MANNERS for verb in VERBS for thing in THINGS][: args.attack]
    asked = asking(tokenizer, texts, args.tokens)
    speeds: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "instructions.jsonl")
        rows.write_text("".join(json.dumps({"id": str(n), "instruction": text}) + "\n" for n, text in enumerate(texts)))
        words = f"attack --model smollm2 --engine {url} --data {rows} --attack none"
        more = f"--max-new-tokens {args.tokens} --in-flight {args.in_flight}"
        command = [sys.executable, "-m", "tokendeep", *words.split(), *more.split()]
        found = bare(engine, asked, args.in_flight)  # what a server keeps of prompts it has from here on for both
        for turn in range(TURNS):
            out = f"{folder}/attack-{turn}"
            attack = partial(subprocess.run, [*command, "--out", out], check=True, capture_output=True)
            through = rate(attack, len(asked))
            speeds.append((through, rate(lambda: bare(engine, asked, args.in_flight), len(asked))))
        answers = answers_of(Path(folder, "attack-0"))
    given = {n: reply["choices"][0]["text"].strip() for n, reply in enumerate(found)}
    same = sum(answers[str(n)].strip() == text for n, text in given.items())
    print(f"the whole attack, {len(asked)} answers: {same} of them those of the bare client")
    if same < 0.95 * len(asked):
        sys.exit("the two do not ask the same: no ratio")
    for one, two in speeds:
        print(f"  {one:.2f} answers a second; {two:.2f} through the bare client")
    ratio = statistics.median(one / two for one, two in speeds)
    print(
        f"ratio: {ratio:.2f} (median of {TURNS} turns, aim {AIM}); it hangs on the number of answers: starting takes seconds"
    )


def answers_of(folder: Path) -> dict[str, str]:
    """The answers of an attack's only log, by the ids of their instructions."""
    from inspect_ai.log import read_eval_log

    (log,) = folder.rglob("*.eval")
    samples = read_eval_log(str(log)).samples or []
    return {str(sample.id): sample.output.completion for sample in samples}


def paged(subject: Any, asked: list[Request], ends: list[int]) -> list[tuple[int, ...]]:
    """The same answers by transformers' own continuous batching (a paged cache)."""
    from transformers import GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=asked[0].decoding.max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
    )
    found = subject.model.generate_batch([list(one.ids) for one in asked], settings)
    by_prompt = {tuple(one.prompt_ids): tuple(one.generated_tokens) for one in found.values()}
    return [by_prompt[one.ids] for one in asked]


def same(one: list[tuple[int, ...]], other: list[tuple[int, ...]], ends: frozenset[int]) -> str:
    """How many answers are alike, but for the token that ends them."""
    cut = [[token for token in answer if token not in ends] for answer in (*one, *other)]
    return f"{sum(a == b for a, b in zip(cut[: len(one)], cut[len(one) :], strict=True))} of {len(one)}"


def served(url: str, subject: Any, asked: list[Request], args: argparse.Namespace) -> float:
    """Answers a second through our engine, after its ratio to the bare client is printed."""
    known = server.known_of(models.outline("smollm2"), subject.tokenizer)
    with server.ServerEngine(url, subject.tokenizer, known=known, in_flight=args.in_flight) as engine:
        print(f"server: {engine.about}")
        answers = ours(engine, asked)  # also what warms the server up
        here = [answer.ids for answer in generate(subject, asked)]
        print(f"{same(answers, here, known.ends)} greedy answers are those of the engine in memory")
        speeds = []
        for _ in range(args.rounds):
            one = rate(lambda: ours(engine, asked), len(asked))
            two = rate(lambda: bare(engine, asked, args.in_flight), len(asked))
            speeds.append((one, two))
            print(f"  {one:.2f} answers a second through the engine, {two:.2f} through the bare client")
    ratio = statistics.median(one / two for one, two in speeds)
    print(f"ratio: {ratio:.2f} (median of {args.rounds} rounds, aim {AIM})")
    if args.attack:
        with server.ServerEngine(url, subject.tokenizer, known=known, in_flight=args.in_flight) as engine:
            whole(engine, url, subject.tokenizer, args)
    return statistics.median(one for one, _ in speeds)


def in_memory(subject: Any, asked: list[Request], through: float, rounds: int) -> None:
    """Print how fast the engine in memory is against the server and against transformers' continuous batching."""
    known = server.known_of(models.outline("smollm2"), subject.tokenizer)
    here = [answer.ids for answer in generate(subject, asked)]  # warms up
    other = paged(subject, asked, sorted(known.ends))
    print(
        f"{same(other, here, known.ends)} answers of transformers' continuous batching are those of the engine in memory"
    )
    speeds = []
    for _ in range(rounds):
        one = rate(lambda: generate(subject, asked), len(asked))
        two = rate(lambda: paged(subject, asked, sorted(known.ends)), len(asked))
        speeds.append((one, two))
        print(f"  {one:.2f} answers a second in memory, {two:.2f} by continuous batching")
    local = statistics.median(one for one, _ in speeds)
    print(f"in memory: {local:.2f} answers a second, {local / through:.2f} of the server's (aim {AIM})")
    print(
        f"ratio to continuous batching: {statistics.median(one / two for one, two in speeds):.2f} (median of {rounds} rounds)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("server", help="the address of a server, or the program vllm, which is started then")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--attack", type=int, default=1024, help="answers of the whole attack, at most 1,024; 0: none")
    args = parser.parse_args()
    subject = models.load("smollm2", dtype="float32")
    asked = requests(subject.tokenizer, args.requests, args.tokens)
    in_memory(subject, asked, through(args, subject, asked), args.rounds)


def through(args: argparse.Namespace, subject: Any, asked: list[Request]) -> float:
    """Answers a second through our engine on the server that is given, or started here and stopped again."""
    if args.server.startswith("http"):
        return served(args.server, subject, asked, args)
    os.environ["TOKENDEEP_VLLM"] = args.server
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from real_servers import VllmServer

    with tempfile.TemporaryDirectory() as folder:
        started = VllmServer(models.smollm2_folder(), Path(folder, "vllm.log")).start()
        try:
            return served(started.url, subject, asked, args)
        finally:
            started.stop()


if __name__ == "__main__":
    main()
