"""A request on its way: what it has written so far, where its draws come from, what it cost."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tokendeep import chat, runs
from tokendeep.engines.base import Completion, Request
from tokendeep.errors import InputError


@dataclass(eq=False)
class Row:
    """A request on its way: `finish(index, completion or error)` is called once, `start()` False drops it."""

    index: int
    request: Request
    finish: Callable[[int, Completion | Exception], None]
    start: Callable[[], bool] = lambda: True
    written: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None
    seconds: float = 0.0
    chances: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        decoding = self.request.decoding
        if decoding.temperature > 0:  # keyed by content: neither the batch nor the order changes the draws
            key = runs.seed(f"{decoding.seed}|{self.request.ids}", 8) >> 1
            self.generator = torch.Generator().manual_seed(key)

    @property
    def ids(self) -> tuple[int, ...]:
        return self.request.ids

    @property
    def last(self) -> int:
        """The token that the next one follows."""
        return self.written[-1] if self.written else self.ids[-1]

    @property
    def longest(self) -> int:
        """Tokens this row can grow to."""
        return len(self.ids) + self.request.decoding.max_new_tokens

    @property
    def full(self) -> bool:
        return len(self.written) >= self.request.decoding.max_new_tokens

    def extend(self, token: int, ends: frozenset[int]) -> bool:
        """Append `token`; True when the row is finished."""
        if token not in ends:
            self.written.append(token)
        return token in ends or self.full

    def completion(self, tokenizer: Any) -> Completion:
        """What has been written, as a result."""
        text = chat.decode(tokenizer, self.written)
        return Completion(tuple(self.written), text, self.full, self.seconds, self.chances)

    def not_finite(self) -> InputError:
        """The error for logits that are NaN or infinite."""
        return InputError(
            f"Request {self.index}: the model's logits are NaN or infinite after {len(self.ids) + len(self.written)} "
            "tokens; check its weights, or load it in float32 or bfloat16."
        )


@contextmanager
def timed(rows: Sequence[Row]) -> Iterator[None]:
    """Divide the time that this takes among the rows."""
    start = time.perf_counter()
    yield
    share = (time.perf_counter() - start) / max(1, len(rows))
    for row in rows:
        row.seconds += share
