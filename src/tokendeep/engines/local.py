"""The engine in process, from exact prefix token ids, for any Hugging Face causal model.

Decoding is continuous (see `batching`), or through `model.generate` where an architecture allows no other way. Only
`Decoding` decides how tokens are picked: a checkpoint's generation_config gives its end tokens and nothing else (no
repetition penalty, no temperature); the token that ends a turn in the chat template is one as well. Knows nothing else of
chats, and nothing of prompts or judges.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from tokendeep.engines.base import Completion, Request
from tokendeep.engines.batching import Batcher
from tokendeep.engines.rows import Row
from tokendeep.types import Subject

LINGER = 0.005  # seconds an idle engine waits for more requests before it starts, so that prefixes are shared


def generate(
    subject: Subject,
    requests: Sequence[Request],
    *,
    batch_size: int = 0,
    on_done: Callable[[int, Completion], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Complete all `requests`; results in their order.

    Greedy rows equal `model.generate` up to rounding; sampled rows depend on their own ids and seed only, not
    on the rows they happen to share a batch with. Runs in the calling thread, so Ctrl-C ends it at once.

    Args:
        batch_size: rows decoded together; 0 is what the memory holds (see `room`).
        on_done: called with (index, completion) as each request finishes.
        on_step: called after every step with the tokens that have been written so far, of all rows together.

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

    with Batcher(subject, batch_size) as batcher:
        for index, request in enumerate(requests):
            batcher.check(index, request)
        for index, request in enumerate(requests):
            batcher.add(Row(index, request, finish))
        while batcher.busy:
            batcher.step()
            if on_step is not None:
                on_step(batcher.stats.row_steps)
    return [result for result in results if result is not None]


class LocalEngine:
    """Takes requests from any thread and decodes them together in one worker thread.

    The more requests wait, the more prefixes are shared: give it several times `batch_size` at once.

    Attributes:
        kind: "continuous", or "generate" where the architecture only allows `model.generate` (`why` says why).
            A request longer than a model's sliding window takes `model.generate` in a continuous engine too;
            `stats.plain` counts the requests answered that way.
        stats: work done so far.
    """

    def __init__(self, subject: Subject, batch_size: int = 0) -> None:
        self._batcher = Batcher(subject, batch_size)
        self.kind, self.why, self.stats = self._batcher.kind, self._batcher.why, self._batcher.stats
        self._inbox: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
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
            self._inbox.put(Row(self._submitted, request, finish, future.set_running_or_notify_cancel))
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

    def __enter__(self) -> LocalEngine:
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

    def _take(self, row: Row | None) -> None:
        if row is not None:
            self._batcher.add(row)
