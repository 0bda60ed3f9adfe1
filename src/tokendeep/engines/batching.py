"""Continuous batching: who is computed when. A finished row leaves and a waiting one takes its slot at once.

One rule shares all prefixes: a row starts from the columns that any slot already holds. So the template and the system
prompt are computed once, and the same prompt with 0, 5, 10, 20 and 40 prefilled answer tokens is one forward pass.
Single-threaded; knows nothing of chats, prompts or judges.
"""

from __future__ import annotations

import bisect
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokendeep.compute.lm_head import causal_lm
from tokendeep.engines import architecture, base, plain, room
from tokendeep.engines.base import Request
from tokendeep.engines.rows import Row, timed
from tokendeep.engines.sampling import pick
from tokendeep.engines.slots import Slots
from tokendeep.errors import InputError, enough_memory
from tokendeep.models import context_length
from tokendeep.types import Subject

CHUNK = 512  # prompt tokens computed per forward pass; bounds the memory of a prefill
WORTH = 16  # shared tokens that are worth waiting one small forward pass for
EVEN = 0.7  # rows are prefilled together when the shorter has at least this share of the longer's tokens

_log = logging.getLogger(__name__)


@dataclass
class Stats:
    """Work done so far: tokens computed in prefills, tokens taken from another slot instead, decoding steps,
    rows summed over those steps, requests answered by `model.generate`."""

    prefilled: int = 0
    reused: int = 0
    steps: int = 0
    row_steps: int = 0
    plain: int = 0


class Batcher:
    """The rows that wait, run and finish. `local.generate` drives it directly, `local.LocalEngine` from its worker."""

    def __init__(self, subject: Subject, batch_size: int) -> None:
        if batch_size < 0:
            raise InputError(f"batch_size is {batch_size}: it must be at least 1, or 0 for what the memory holds.")
        self.lm: Any = causal_lm(subject.model)
        self.tokenizer: Any = subject.tokenizer
        self.chosen, self.batch_size = batch_size == 0, batch_size
        self.context = context_length(self.lm)
        self.vocabulary = int(self.lm.get_input_embeddings().weight.shape[0])
        self.ends = architecture.end_tokens(self.lm, self.tokenizer)
        self.stats = Stats()
        self.stopped = threading.Event()
        self.training = bool(self.lm.training)
        self.lm.eval()
        self.window, self.why = architecture.window(self.lm)
        self.kind = "generate" if self.why else "continuous"
        if self.why:
            _log.warning("%s is decoded with model.generate, without continuous batching: %s", subject.name, self.why)
        self._reset()

    def _reset(self) -> None:
        self._open(self.batch_size)
        self.waiting: list[Row] = []  # ascending; taken from the end, so the longest of nested prefixes comes first
        self.plain: list[Row] = []  # for model.generate, ascending length
        self.moving: list[Row] = []  # started, and in none of the lists above

    def _open(self, slots: int, longest: int = 0) -> None:
        """Make so many slots, empty; where they were counted, then for rows of at most `longest` tokens."""
        self.slots, self.longest = Slots(self.lm, slots), longest
        self.active: list[Row | None] = [None] * slots

    def _choose(self) -> None:
        """Count the slots anew where a row is longer than what they were counted for, as soon as none is taken."""
        longest = max((row.longest for row in [*self.waiting, *self.plain]), default=0)
        if longest > self.longest and not any(self.active):
            self.batch_size = room.rows(self.lm, longest)
            self._open(self.batch_size, longest)

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.lm.train(self.training)
        self._reset()

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.plain or any(self.active))

    def check(self, index: int, request: Request) -> None:
        """Raise InputError, naming the request by `index`, when it cannot be run."""
        base.check(index, request, vocabulary=self.vocabulary, context=self.context)

    def add(self, row: Row) -> None:
        if self.kind == "continuous" and row.longest <= self.window:
            bisect.insort(self.waiting, row, key=lambda other: other.ids)
        else:
            bisect.insort(self.plain, row, key=lambda other: (len(other.ids), other.ids))

    def fail(self, error: Exception) -> None:
        """End everything that is unfinished with `error` and start afresh."""
        running = [row for row in self.active if row is not None] + self.moving
        idle = [row for row in self.waiting + self.plain if row.start()]
        self._reset()
        for row in running + idle:
            row.finish(row.index, error)

    @torch.no_grad()
    def step(self) -> None:
        """Admit waiting rows into free slots and decode one token of every row; or run one plain batch."""
        way = "lower --batch-size" if self.batch_size > 1 else "give shorter prompts or ask for shorter answers"
        with enough_memory(f"The memory of the device does not hold {self.batch_size} row(s) decoded together: {way}."):
            if self.chosen:
                self._choose()
            self._admit()
            if any(self.active):
                self._decode()
            elif self.plain:
                self._run_plain()

    def _admit(self) -> None:
        free = [slot for slot, row in enumerate(self.active) if row is None]
        while self.waiting and len(self.moving) < len(free):
            if self.chosen and self.waiting[-1].longest > self.longest:
                break  # it waits until the slots are counted anew
            row = self.waiting.pop()
            if row.start():
                self.moving.append(row)
        while self.moving:
            self._wave(free)
        self._close_gaps()

    def _wave(self, free: list[int]) -> None:
        """Place and prefill those moving rows that gain nothing from each other; the others stay for the next wave.

        A row's last prompt token is left to the next decoding step. So prefills need no output head, and a row
        whose other tokens are all in some slot already needs no prefill.
        """
        placed: list[tuple[int, tuple[int, ...]]] = []
        for row in list(self.moving):
            known = row.ids[:-1]
            matches = [common_length(known, held) for held in self.slots.held]
            reuse = max(matches)
            if any(common_length(known, other) >= reuse + WORTH for _, other in placed):
                continue
            slot = min(free, key=lambda s: len(self.slots.held[s]) - matches[s])  # loses least that others could use
            free.remove(slot)
            self.slots.copy(slot, slot if matches[slot] == reuse else matches.index(reuse), reuse)
            self.active[slot] = row
            self.moving.remove(row)
            placed.append((slot, known))
            self.stats.reused += reuse
        with timed([taken for slot, _ in placed if (taken := self.active[slot])]):
            self._prefill(placed)

    def _prefill(self, placed: list[tuple[int, tuple[int, ...]]]) -> None:
        todo = [(slot, list(known[len(self.slots.held[slot]) :])) for slot, known in placed]
        todo = sorted((pair for pair in todo if pair[1]), key=lambda pair: -len(pair[1]))
        while todo:
            longest = len(todo[0][1])
            most = max(1, CHUNK // min(longest, CHUNK))
            group = [pair for pair in todo[:most] if len(pair[1]) >= EVEN * longest]
            todo = todo[len(group) :]
            for start in range(0, longest, CHUNK):
                part = [(slot, tokens[start : start + CHUNK]) for slot, tokens in group if len(tokens) > start]
                self.slots.forward([slot for slot, _ in part], [tokens for _, tokens in part], logits=False)
            self.stats.prefilled += sum(len(tokens) for _, tokens in group)

    def _close_gaps(self) -> None:
        """Keep the running rows in the first slots, so that a step reads one block of the cache without copying."""
        count = sum(row is not None for row in self.active)
        gaps = [slot for slot in range(count) if self.active[slot] is None]
        tail = [slot for slot in range(count, self.batch_size) if self.active[slot] is not None]
        for gap, slot in zip(gaps, tail, strict=True):
            self.slots.copy(gap, slot, len(self.slots.held[slot]))
            self.active[gap], self.active[slot] = self.active[slot], None

    def _decode(self) -> None:
        rows = [row for row in self.active if row is not None]
        with timed(rows):
            picked = pick(self.slots.forward(range(len(rows)), [[row.last] for row in rows], logits=True), rows)
        self.stats.steps += 1
        self.stats.row_steps += len(rows)
        broken = set()
        for slot, (row, token) in enumerate(zip(rows, picked, strict=True)):
            if token is None:
                self.slots.clear(slot)  # what is not finite must not be read again
                broken.add(row)
            if token is None or row.extend(token, self.ends):
                self.active[slot] = None
                self.moving.append(row)
        self._finish_moving(broken)

    def _finish_moving(self, broken: set[Row]) -> None:
        """Hand over the moving rows; called last, so that the state is whole when a caller's code runs."""
        while self.moving:
            row = self.moving[0]
            outcome = row.not_finite() if row in broken else row.completion(self.tokenizer)
            del self.moving[0]
            row.finish(row.index, outcome)

    def _run_plain(self) -> None:
        rows, self.plain = self._plain_batch()
        self.moving = rows = [row for row in rows if row.start()]
        if not rows:
            return
        with timed(rows):
            broken = plain.run(self.lm, rows, self.ends, self.tokenizer.pad_token_id, self.stopped.is_set)
        if not self.stopped.is_set():
            self.stats.plain += len(rows)
            self._finish_moving(broken)

    def _plain_batch(self) -> tuple[list[Row], list[Row]]:
        """The longest waiting rows, and the rest. A recurrent state would read padding, so there lengths are equal."""
        least = len(self.plain[-1].ids) if architecture.is_recurrent(self.lm) else 0
        cut = max(0, len(self.plain) - self.batch_size)
        while len(self.plain[cut].ids) < least:
            cut += 1
        return self.plain[cut:], self.plain[:cut]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    for i, (a, b) in enumerate(zip(first, second)):  # noqa: B905 (unequal lengths are the point)
        if a != b:
            return i
    return min(len(first), len(second))
