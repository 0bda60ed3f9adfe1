"""What the checks of the defence `rethink` cost, and what sharing columns of the key-value cache saves of it.

    python benchmarks/rethink.py MODEL pairs.jsonl --rows 12 --k 100

Answers so many requests behind k given tokens: undefended, defended, and defended with no column taken from another row.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from tokendeep import chat, models, read_pairs
from tokendeep.defences import rethink
from tokendeep.engines import batching
from tokendeep.engines.base import Completion, Request
from tokendeep.engines.local import LocalEngine
from tokendeep.types import Decoding, Subject


def requests(subject: Subject, path: str, rows: int, k: int, length: int) -> list[Request]:
    """The first so many rows whose answers have k tokens."""
    made = []
    for pair in read_pairs(path):
        turns = chat.with_system(list(pair.messages), "none")
        answer = chat.response_ids(subject.tokenizer, turns, pair.response, end=False)
        if len(answer) >= k and len(made) < rows:
            ids = (*chat.prompt_ids(subject.tokenizer, turns), *answer[:k])
            made.append(Request(ids, Decoding(max_new_tokens=length), given=k))
    return made


def measured(subject: Subject, asked: list[Request], options: rethink.RethinkOptions | None) -> tuple[float, int, int]:
    """Seconds; tokens computed in prefills, and tokens taken from other rows."""

    async def answers() -> list[Completion]:
        async def ask(request: Request) -> Completion:
            return await asyncio.wrap_future(engine.submit(request))

        defended = rethink.wrap(ask, subject.tokenizer, options) if options else ask
        return list(await asyncio.gather(*map(defended, asked)))

    with LocalEngine(subject, 24) as engine:
        start = time.perf_counter()
        asyncio.run(answers())
        return time.perf_counter() - start, engine.stats.prefilled, engine.stats.reused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("pairs")
    for name, value in (("rows", 12), ("k", 100), ("length", 48)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    subject = models.load(given.model)
    asked = requests(subject, given.pairs, given.rows, given.k, given.length)
    measured(subject, asked[:2], None)  # the first steps are slower
    shared = batching.common_length
    for name, options in (
        ("undefended", None),
        ("rethink", rethink.RethinkOptions()),
        ("rethink, nothing shared", rethink.RethinkOptions()),
    ):
        batching.common_length = shared if "nothing" not in name else lambda first, second: 0
        seconds, prefilled, reused = measured(subject, asked, options)
        print(
            f"{name}: {len(asked)} answers, {seconds:.1f} s, {prefilled} tokens prefilled, {reused} taken from other rows"
        )


if __name__ == "__main__":
    main()
