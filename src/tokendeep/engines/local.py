"""Batched generation in process, from exact prefix token ids, for any Hugging Face causal model.

Decoding is continuous: a finished row leaves the batch and a waiting one takes its place at once.
Every row lives in a *slot* of one preallocated key-value cache, left-aligned: column c of a slot holds
the token at position c, so nothing is ever shifted and a row can start from the columns that any other
slot already holds. That one rule shares all prefixes: the template and system prompt are computed
once, and the same prompt with 0, 5, 10, 20 and 40 prefilled answer tokens is one forward pass.

Only `Decoding` decides how tokens are picked: a checkpoint's generation_config gives its end tokens and
nothing else (no repetition penalty, no temperature); the token that ends a turn in the chat template is one
as well. Knows nothing else of chats, and nothing of prompts or judges.
"""

from __future__ import annotations

import atexit
import bisect
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tokendeep import chat, runs
from tokendeep.compute.lm_head import causal_lm
from tokendeep.errors import InputError, memory_full
from tokendeep.models.loading import context_length
from tokendeep.types import Decoding, Subject

CHUNK = 512  # prompt tokens computed per forward pass; bounds the memory of a prefill
WORTH = 16  # shared tokens that are worth waiting one small forward pass for
EVEN = 0.7  # rows are prefilled together when the shorter has at least this share of the longer's tokens
NARROW = range(4, 49)  # rows of a float32 product for which MKL is up to 3 times faster the other way round
LINGER = 0.005  # seconds an idle engine waits for more requests before it starts, so that prefixes are shared

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """Continue exactly these token ids (prompt and prefilled answer tokens, no padding)."""

    ids: tuple[int, ...]
    decoding: Decoding


@dataclass(frozen=True)
class Completion:
    """What the model wrote: `ids` without the end token; `truncated` when the length limit cut it.

    `seconds` is the row's share of the time of the batches it was in: over all rows it sums to the model's time.
    """

    ids: tuple[int, ...]
    text: str
    truncated: bool
    seconds: float = field(default=0.0, compare=False)


@dataclass
class Stats:
    """Work done so far: tokens computed in prefills, tokens taken from another slot instead, decoding steps,
    rows summed over those steps, requests answered by `model.generate`."""

    prefilled: int = 0
    reused: int = 0
    steps: int = 0
    row_steps: int = 0
    plain: int = 0


def generate(
    subject: Subject,
    requests: Sequence[Request],
    *,
    batch_size: int = 16,
    on_done: Callable[[int, Completion], None] | None = None,
) -> list[Completion]:
    """Complete all `requests`; results in their order.

    Greedy rows equal `model.generate` up to rounding; sampled rows depend on their own ids and seed only, not
    on the rows they happen to share a batch with. Runs in the calling thread, so Ctrl-C ends it at once.

    Args:
        subject: model and tokenizer.
        requests: what to continue and how.
        batch_size: rows decoded together.
        on_done: called with (index, completion) as each request finishes.

    Raises:
        InputError: a request is empty, has ids outside the vocabulary, impossible decoding settings, does not fit
            the model's context, or its logits become NaN or infinite; the message gives its index. Or the memory
            does not hold `batch_size` rows.
    """
    results: list[Completion | None] = [None] * len(requests)

    def finish(index: int, outcome: Completion | Exception) -> None:
        if isinstance(outcome, Exception):
            raise outcome
        results[index] = outcome
        if on_done is not None:
            on_done(index, outcome)

    with _Batcher(subject, batch_size) as batcher:
        for index, request in enumerate(requests):
            batcher.check(index, request)
        for index, request in enumerate(requests):
            batcher.add(_Row(index, request, finish))
        while batcher.busy:
            batcher.step()
    return [result for result in results if result is not None]


class Engine:
    """Takes requests from any thread and decodes them together in one worker thread.

    The more requests wait, the more prefixes are shared: give it several times `batch_size` at once.

    Attributes:
        kind: "continuous", or "generate" where the architecture only allows `model.generate` (`why` says why).
            A request longer than a model's sliding window takes `model.generate` in a continuous engine too;
            `stats.plain` counts the requests answered that way.
        stats: work done so far.
    """

    def __init__(self, subject: Subject, batch_size: int = 16) -> None:
        self._batcher = _Batcher(subject, batch_size)
        self.kind, self.why, self.stats = self._batcher.kind, self._batcher.why, self._batcher.stats
        self._inbox: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._submitted = 0
        self._worker = threading.Thread(target=self._work, name="tokendeep-generation", daemon=True)
        self._worker.start()
        atexit.register(self.close)  # a daemon thread must not be inside torch while the interpreter goes away

    def submit(self, request: Request) -> Future[Completion]:
        """Queue one request; its future gets the completion, or the error that ended it.

        Raises:
            InputError: as `generate`, at once (the index counts submissions from 0).
            RuntimeError: the engine is closed.
        """
        future: Future[Completion] = Future()

        def finish(_: int, outcome: Completion | Exception) -> None:
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        with self._lock:
            if self._batcher.stopped.is_set():
                raise RuntimeError("This generation engine is closed.")
            self._batcher.check(self._submitted, request)
            self._inbox.put(_Row(self._submitted, request, finish, future.set_running_or_notify_cancel))
            self._submitted += 1
        return future

    def close(self) -> None:
        """Stop after the current step; unfinished requests get a RuntimeError. Calling it again does nothing."""
        with self._lock:
            if self._batcher.stopped.is_set():
                return
            self._batcher.stopped.set()
            self._inbox.put(None)
        self._worker.join()
        self._batcher.close()
        atexit.unregister(self.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while not self._batcher.stopped.is_set():
            try:
                self._receive()
                self._batcher.step()
            except Exception as error:  # whatever broke the step, nobody may wait for ever
                self._batcher.fail(error)
        while not self._inbox.empty():
            self._take(self._inbox.get())
        self._batcher.fail(RuntimeError("The generation engine was closed before this request was finished."))

    def _receive(self) -> None:
        """Move what has been submitted into the batcher; wait for something only when there is nothing to do."""
        if not self._batcher.busy:
            self._take(self._inbox.get())
            time.sleep(LINGER)
        while not self._inbox.empty():
            self._take(self._inbox.get())

    def _take(self, row: _Row | None) -> None:
        if row is not None:
            self._batcher.add(row)


@dataclass(eq=False)
class _Row:
    """A request on its way: `finish(index, completion or error)` is called once, `start()` False drops it."""

    index: int
    request: Request
    finish: Callable[[int, Completion | Exception], None]
    start: Callable[[], bool] = lambda: True
    written: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        decoding = self.request.decoding
        if decoding.temperature > 0:  # keyed by content: neither the batch nor the order changes the draws
            key = runs.seed(f"{decoding.seed}|{self.request.ids}", 8) >> 1
            self.generator = torch.Generator().manual_seed(key)

    @property
    def ids(self) -> tuple[int, ...]:
        return self.request.ids

    @property
    def longest(self) -> int:
        """Tokens this row can grow to."""
        return len(self.ids) + self.request.decoding.max_new_tokens


class _Batcher:
    """Decides who is computed when. Single-threaded: `generate` drives it directly, `Engine` from its worker."""

    def __init__(self, subject: Subject, batch_size: int) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1")
        self.lm: Any = causal_lm(subject.model)
        self.tokenizer: Any = subject.tokenizer
        self.batch_size = batch_size
        self.context = context_length(self.lm)
        self.vocabulary = int(self.lm.get_input_embeddings().weight.shape[0])
        self.ends = _end_tokens(self.lm, self.tokenizer)
        self.stats = Stats()
        self.stopped = threading.Event()
        self.training = bool(self.lm.training)
        self.lm.eval()
        self.window, self.why = _window(self.lm)
        self.kind = "generate" if self.why else "continuous"
        if self.why:
            _log.warning("%s is decoded with model.generate, without continuous batching: %s", subject.name, self.why)
        self._reset()

    def _reset(self) -> None:
        self.slots = _Slots(self.lm, self.batch_size)
        self.active: list[_Row | None] = [None] * self.batch_size
        self.waiting: list[_Row] = []  # ascending; taken from the end, so the longest of nested prefixes comes first
        self.plain: list[_Row] = []  # for model.generate, ascending length
        self.moving: list[_Row] = []  # started, and in none of the lists above

    def __enter__(self) -> _Batcher:
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
        decoding, length = request.decoding, len(request.ids)
        if not length:
            raise InputError(f"request {index} has no token ids; give at least one (usually the rendered prompt)")
        if min(request.ids) < 0 or max(request.ids) >= self.vocabulary:
            raise InputError(
                f"request {index} has token ids outside the model's vocabulary of {self.vocabulary}; "
                "tokenise it with the model's own tokenizer"
            )
        if not (0 <= decoding.temperature < math.inf and 0 < decoding.top_p <= 1 and decoding.top_k >= 0):
            raise InputError(
                f"request {index} has temperature {decoding.temperature}, top_p {decoding.top_p} and top_k "
                f"{decoding.top_k}; they must be at least 0, above 0 and at most 1, and at least 0"
            )
        if decoding.max_new_tokens < 1:
            raise InputError(f"request {index} has max_new_tokens {decoding.max_new_tokens}; it must be at least 1")
        if length + decoding.max_new_tokens > self.context:
            raise InputError(
                f"request {index} has {length} prompt tokens and max_new_tokens {decoding.max_new_tokens}, together "
                f"more than the model's context of {self.context}: shorten the prompt or lower max_new_tokens to "
                f"{max(0, self.context - length)}"
            )

    def add(self, row: _Row) -> None:
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
        try:
            self._admit()
            if any(self.active):
                self._decode()
            elif self.plain:
                self._run_plain()
        except RuntimeError as error:
            if not memory_full(error):
                raise
            way = "lower --batch_size" if self.batch_size > 1 else "give shorter prompts or ask for shorter answers"
            raise InputError(
                f"the memory of the device does not hold {self.batch_size} row(s) decoded together: {way}"
            ) from error

    # -- continuous -------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        free = [slot for slot, row in enumerate(self.active) if row is None]
        while self.waiting and len(self.moving) < len(free):
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
            matches = [_common(known, held) for held in self.slots.held]
            reuse = max(matches)
            if any(_common(known, other) >= reuse + WORTH for _, other in placed):
                continue
            slot = min(free, key=lambda s: len(self.slots.held[s]) - matches[s])  # loses least that others could use
            free.remove(slot)
            self.slots.copy(slot, slot if matches[slot] == reuse else matches.index(reuse), reuse)
            self.active[slot] = row
            self.moving.remove(row)
            placed.append((slot, known))
            self.stats.reused += reuse
        with _timed([taken for slot, _ in placed if (taken := self.active[slot])]):
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
        last = [[row.written[-1] if row.written else row.ids[-1]] for row in rows]
        with _timed(rows):
            picked = _pick(self.slots.forward(range(len(rows)), last, logits=True), rows)
        self.stats.steps += 1
        self.stats.row_steps += len(rows)
        broken = set()
        for slot, (row, token) in enumerate(zip(rows, picked, strict=True)):
            if token is None:
                self.slots.clear(slot)  # what is not finite must not be read again
                broken.add(row)
            if token is None or self._extend(row, token):
                self.active[slot] = None
                self.moving.append(row)
        self._finish_moving(broken)

    def _finish_moving(self, broken: set[_Row]) -> None:
        """Hand over the moving rows; called last, so that the state is whole when a caller's code runs."""
        while self.moving:
            row = self.moving[0]
            outcome = _not_finite(row) if row in broken else self._completion(row)
            del self.moving[0]
            row.finish(row.index, outcome)

    def _extend(self, row: _Row, token: int) -> bool:
        """Append `token`; True when the row is finished."""
        if token not in self.ends:
            row.written.append(token)
        return token in self.ends or len(row.written) >= row.request.decoding.max_new_tokens

    def _completion(self, row: _Row) -> Completion:
        ids = tuple(row.written)
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return Completion(ids, text, len(ids) >= row.request.decoding.max_new_tokens, row.seconds)

    # -- model.generate -----------------------------------------------------------------------------------------

    def _run_plain(self) -> None:
        rows, self.plain = self._plain_batch()
        self.moving = rows = [row for row in rows if row.start()]
        if not rows:
            return
        loop = _PlainLoop(self, list(rows))
        width = max(len(row.ids) for row in rows)
        pad = self.tokenizer.pad_token_id
        pad = min(self.ends, default=0) if pad is None else pad
        ids = torch.tensor([[pad] * (width - len(row.ids)) + list(row.ids) for row in rows])
        mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows])
        device = self.lm.get_input_embeddings().weight.device
        own = self.lm.generation_config
        self.lm.generation_config = GenerationConfig()  # generate() mixes the model's own settings into any it is given
        try:
            with _timed(rows):
                self.lm.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=GenerationConfig(
                        max_new_tokens=max(row.request.decoding.max_new_tokens for row in rows),
                        do_sample=False,
                        pad_token_id=pad,
                    ),
                    logits_processor=[loop],
                    stopping_criteria=[_Finished(loop)],
                )
        finally:
            self.lm.generation_config = own
        if not self.stopped.is_set():
            self.stats.plain += len(rows)
            self._finish_moving(loop.broken)

    def _plain_batch(self) -> tuple[list[_Row], list[_Row]]:
        """The longest waiting rows, and the rest. A recurrent state would read padding, so there lengths are equal."""
        least = len(self.plain[-1].ids) if _recurrent(self.lm) else 0
        cut = max(0, len(self.plain) - self.batch_size)
        while len(self.plain[cut].ids) < least:
            cut += 1
        return self.plain[cut:], self.plain[:cut]


class _PlainLoop(LogitsProcessor):
    """Picks the tokens inside `model.generate` as the continuous engine does, and remembers them."""

    def __init__(self, batcher: _Batcher, rows: list[_Row]) -> None:
        self.batcher, self.rows = batcher, rows
        self.over = [False] * len(rows)
        self.broken: set[_Row] = set()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = torch.zeros(len(self.rows), dtype=torch.long)
        for i, token in enumerate(_pick(scores, self.rows)):
            if self.over[i]:
                continue
            if token is None:
                self.broken.add(self.rows[i])
            self.over[i] = token is None or self.batcher._extend(self.rows[i], token)
            chosen[i] = token or 0
        only = torch.full_like(scores, -math.inf)
        return only.scatter_(1, chosen.to(scores.device)[:, None], 0.0)


class _Finished(StoppingCriteria):
    def __init__(self, loop: _PlainLoop) -> None:
        self.loop = loop

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        stopped = self.loop.batcher.stopped.is_set()
        return torch.tensor([stopped or over for over in self.loop.over], device=input_ids.device)


class _Slots:
    """The key-value cache of all slots and which tokens each holds; runs the model on top of it."""

    def __init__(self, lm: Any, count: int) -> None:
        self.lm = lm
        self.held: list[list[int]] = [[] for _ in range(count)]  # held[s][c] is the token whose keys are in column c
        self.cache = _SlotCache(count, len(DynamicCache(config=lm.config).layers))
        self.device = lm.get_input_embeddings().weight.device
        self.linears = _narrow_linears(lm)
        self.boolean = lm.config.get_text_config()._attn_implementation == "sdpa"  # eager adds its mask to the scores

    def copy(self, to: int, source: int, length: int) -> None:
        """Let slot `to` hold the first `length` tokens of `source`."""
        if to != source:
            self.cache.copy(to, source, length)
        self.held[to] = self.held[source][:length]

    def clear(self, slot: int) -> None:
        self.cache.zero(slot)
        self.held[slot] = []

    def forward(self, slots: Sequence[int], tokens: list[list[int]], *, logits: bool) -> Tensor:
        """Feed each of `slots` its `tokens` (any number each) behind what it holds.

        With `logits`, exactly one token each is fed to slots 0..n-1; returns (n, V). Without, returns nothing useful.
        """
        length = max(len(new) for new in tokens)
        starts = torch.tensor([len(self.held[slot]) for slot in slots])  # (n,)
        ids = torch.tensor([new + [0] * (length - len(new)) for new in tokens])  # (n, Q), padded on the right
        ends = starts + torch.tensor([len(new) for new in tokens])  # (n,)
        columns = starts[:, None] + torch.arange(length)  # (n, Q); padding lands behind the end, where nobody looks
        width = int(ends.max())
        seen = (torch.arange(width) <= columns[..., None])[:, None]  # (n, 1, Q, width)
        mask = seen if self.boolean else torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(self.lm.dtype).min)
        self.cache.plan(None if logits else list(slots), columns, width)
        inputs = {
            "input_ids": ids.to(self.device),
            "position_ids": torch.minimum(columns, ends[:, None] - 1).to(self.device),
            "attention_mask": mask.to(self.device, torch.bool if self.boolean else self.lm.dtype),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        with _swapped(self.linears):
            if logits:
                out = self.lm(**inputs, logits_to_keep=1).logits[:, -1]
            else:
                out = self.lm.base_model(**inputs).last_hidden_state
        for slot, new in zip(slots, tokens, strict=True):
            self.held[slot] += new
        return out


class _SlotCache(Cache):
    """One `_SlotLayer` per layer of the model; `plan` says where the next forward pass writes and reads."""

    def __init__(self, count: int, layers: int) -> None:
        self.own = [_SlotLayer(count) for _ in range(layers)]
        super().__init__(layers=list(self.own))

    def plan(self, slots: list[int] | None, columns: Tensor, width: int) -> None:
        """`slots` None: the first n. `columns` (n, Q): where keys go. `width`: columns that are read."""
        where = _Where(
            torch.arange(len(columns)) if slots is None else torch.tensor(slots), columns, slots is None, width
        )
        for layer in self.own:
            layer.where = where

    def copy(self, to: int, source: int, length: int) -> None:
        for layer in self.own:
            layer.keys[to, :, :length] = layer.keys[source, :, :length]
            layer.values[to, :, :length] = layer.values[source, :, :length]

    def zero(self, slot: int) -> None:
        for layer in self.own:
            layer.keys[slot] = 0
            layer.values[slot] = 0


class _Where:
    """Where one forward pass writes and reads, the same for every layer."""

    def __init__(self, slots: Tensor, columns: Tensor, first: bool, width: int) -> None:
        self.slots, self.columns, self.first, self.width = slots, columns, first, width  # (n,), (n, Q)
        self.need = int(columns.max()) + 1
        self._lines: dict[tuple[torch.device, int, int], Tensor] = {}

    def lines(self, device: torch.device, heads: int, capacity: int) -> Tensor:
        """Numbers (n x heads x Q,) of the written lines of a (slots x heads x capacity, head size) matrix."""
        key = (device, heads, capacity)
        if key not in self._lines:
            blocks = self.slots[:, None] * heads + torch.arange(heads)  # (n, heads)
            self._lines[key] = (blocks[..., None] * capacity + self.columns[:, None]).flatten().to(device)
        return self._lines[key]


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (slots, heads, columns, head size), written in place.

    A step that reads the first slots gets a view: nothing is copied, whereas a DynamicCache copies all it holds for
    every token. The columns grow by half when they run out. Never holds uninitialised memory: attention multiplies
    masked columns by zero, which NaN survives.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor
    where: _Where

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.keys, self.values = torch.empty(0, 0, 0, 0), torch.empty(0, 0, 0, 0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, or grow, for the columns that are needed."""
        have = self.keys.shape[2]
        columns = -(-max(self.where.need, have * 3 // 2) // 64) * 64
        keys = key_states.new_zeros(self.count, key_states.shape[1], columns, key_states.shape[3])
        values = value_states.new_zeros(self.count, value_states.shape[1], columns, value_states.shape[3])
        if have:
            keys[:, :, :have], values[:, :, :have] = self.keys, self.values
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store states (n, heads, Q, size) and return all that is read, (n, heads, width, size)."""
        if self.keys.shape[2] < self.where.need:
            self.lazy_initialization(key_states, value_states)
        return self._store(self.keys, key_states), self._store(self.values, value_states)

    def _store(self, kept: Tensor, new: Tensor) -> Tensor:
        _, heads, columns, size = kept.shape
        lines = self.where.lines(kept.device, heads, columns)
        kept.view(-1, size).index_copy_(0, lines, new.reshape(-1, size))  # an indexed assignment would start threads
        if self.where.first:
            return kept[: len(new), :, : self.where.width]
        return kept[self.where.slots.to(kept.device), :, : self.where.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.where.width, 0

    def get_seq_length(self) -> int:
        return self.where.width - self.where.columns.shape[1]

    def get_max_length(self) -> int:
        return -1


def _narrow_linears(lm: Any) -> dict[nn.Linear, Callable[[Tensor], Tensor]]:
    """Forwards to use for the model's linear layers while decoding on a CPU.

    A decoding step multiplies a few rows by every weight matrix: x Wᵀ with 4 to 48 rows. MKL has a fast path for
    W xᵀ, which is the same product, and a slow one for x Wᵀ (16 rows of SmolLM2 on 2 cores: 190 ms a step against 120).
    """
    if not torch.backends.mkl.is_available():
        return {}

    def forward(x: Tensor, layer: nn.Linear) -> Tensor:
        weight, bias = layer.weight, layer.bias
        rows = x.numel() // x.shape[-1]
        if rows not in NARROW or x.dtype != torch.float32 or weight.dtype != x.dtype:
            return F.linear(x, weight, bias)
        out = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
        return out if bias is None else out + bias

    layers = (m for m in lm.modules() if type(m) is nn.Linear and "forward" not in vars(m))
    return {m: partial(forward, layer=m) for m in layers if m.weight.device.type == "cpu"}


@contextmanager
def _swapped(forwards: dict[nn.Linear, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Lend the layers these forwards."""
    for layer, forward in forwards.items():
        layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        for layer in forwards:
            layer.__dict__.pop("forward", None)


def _window(lm: Any) -> tuple[int, str | None]:
    """Longest row that can be decoded continuously, and why none can (None when some can)."""
    config = lm.config.get_text_config()
    layers = DynamicCache(config=lm.config).layers
    other = sorted({type(layer).__name__ for layer in layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"})
    if _recurrent(lm) or other or not layers:
        return 0, f"its cache is not plain attention ({', '.join(other) or 'recurrent state'})"
    if config._attn_implementation not in ("sdpa", "eager"):
        return 0, f"its attention implementation, {config._attn_implementation}, takes no four-dimensional mask"
    if reason := _probe(lm):
        return 0, reason
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return min(windows, default=2**62), None


def _recurrent(lm: Any) -> bool:
    """Does the model carry a state through its tokens, where padding would leave a trace?"""
    attention = (DynamicLayer, DynamicSlidingWindowLayer)
    return bool(lm._is_stateful) or not all(type(la) in attention for la in DynamicCache(config=lm.config).layers)


@torch.no_grad()
def _probe(lm: Any) -> str | None:
    """Compare two short rows of unequal length with the plain forward pass: what differs, or None.

    Architectures may build positions from a two-dimensional mask (ALiBi), ignore `position_ids` or have no way to
    project one position only. Trying is surer than a list of names, and costs four tiny forward passes.
    """
    vocabulary = lm.get_input_embeddings().weight.shape[0]
    rows = [[(7 * i + 3) % vocabulary for i in range(6)], [(5 * i + 1) % vocabulary for i in range(3)]]
    try:
        slots = _Slots(lm, 2)
        slots.forward([1, 0], [rows[1][:-1], rows[0][:-1]], logits=False)
        ours = slots.forward([0, 1], [row[-1:] for row in rows], logits=True).float()
        ids = [torch.tensor([row], device=slots.device) for row in rows]
        plain = torch.cat([lm(input_ids=row, use_cache=False).logits[:, -1] for row in ids]).float()
    except Exception as error:
        if memory_full(error):
            raise
        return f"its forward pass does not take a cache of slots ({type(error).__name__})"
    if not plain.isfinite().all():
        return None  # the first real step says so, with the request's name
    scale = float(plain.max() - plain.min())
    tolerance = (1e-3 if lm.dtype in (torch.float32, torch.float64) else 5e-2) * scale
    if float((ours - plain).abs().max()) > tolerance:
        return "its forward pass gives other logits on a cache of slots"
    return None


def _end_tokens(lm: Any, tokenizer: Any) -> frozenset[int]:
    own = lm.generation_config.eos_token_id if lm.generation_config is not None else None
    ends = [own] if isinstance(own, int) else list(own or [])
    return frozenset(int(end) for end in [*ends, tokenizer.eos_token_id, _end_of_turn(tokenizer)] if end is not None)


def _end_of_turn(tokenizer: Any) -> int | None:
    """The control token that closes an answer in the chat template; a base model often names another end."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        end = chat.check(tokenizer).end_ids[-1]
    except InputError:  # whoever renders a conversation with this template is told
        return None
    return end if end in {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} else None


@contextmanager
def _timed(rows: Sequence[_Row]) -> Iterator[None]:
    """Divide the time that this takes among the rows."""
    start = time.perf_counter()
    yield
    share = (time.perf_counter() - start) / max(1, len(rows))
    for row in rows:
        row.seconds += share


def _not_finite(row: _Row) -> InputError:
    return InputError(
        f"request {row.index}: the model's logits are NaN or infinite after {len(row.ids) + len(row.written)} tokens; "
        "check its weights, or load it in float32 or bfloat16"
    )


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    for i, (a, b) in enumerate(zip(first, second)):  # noqa: B905 (unequal lengths are the point)
        if a != b:
            return i
    return min(len(first), len(second))


def _pick(logits: Tensor, rows: Sequence[_Row]) -> list[int | None]:
    """The next token of every row from its logits (n, V); None where they are NaN or infinite."""
    top, best = logits.max(dim=-1)  # NaN and +inf show in the maximum
    picked: list[int | None] = [
        token if math.isfinite(value) else None for value, token in zip(top.tolist(), best.tolist(), strict=True)
    ]
    groups: dict[tuple[float, float, int], list[int]] = {}
    for i, row in enumerate(rows):
        decoding = row.request.decoding
        if row.generator is not None and picked[i] is not None:
            groups.setdefault((decoding.temperature, decoding.top_p, decoding.top_k), []).append(i)
    for (temperature, top_p, top_k), members in groups.items():
        draws = torch.stack([torch.rand((), generator=rows[i].generator, dtype=torch.float64) for i in members])
        for i, token in zip(members, _sample(logits[members] / temperature, top_p, top_k, draws), strict=True):
            picked[i] = token
    return picked


def _sample(logits: Tensor, top_p: float, top_k: int, draws: Tensor) -> list[int]:
    """Tokens at the `draws` (n,), uniform in [0, 1), of the distributions that `logits` (n, V) and the cuts leave.

    First the `top_k` largest are kept, then the fewest of them that hold `top_p` of their probability.
    """
    size = logits.shape[-1]
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    logits = logits.to(wide)
    tokens = None
    if 0 < top_k < size or top_p < 1:
        total = logits.logsumexp(-1, keepdim=True)
        count = min(top_k or 256, size)
        values, tokens = logits.topk(count)
        while not top_k and count < size and float((values - total).exp().sum(-1).min()) < top_p:
            count = min(8 * count, size)
            values, tokens = logits.topk(count)
        probs = (values - total).exp() if not top_k else values.softmax(-1)
        probs = probs * (probs.cumsum(-1) - probs < top_p)
    else:
        probs = logits.softmax(-1)
    heights = probs.cumsum(-1)  # (n, V or kept)
    targets = draws.to(heights.device, wide)[:, None] * heights[:, -1:]
    index = torch.searchsorted(heights, targets, right=True).clamp_(max=heights.shape[-1] - 1)
    return (index if tokens is None else tokens.gather(-1, index)).squeeze(-1).tolist()
