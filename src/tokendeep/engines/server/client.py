"""JSON over HTTP to one server or several that share the load: connections, waits, repeats, errors as sentences.

Every call lies in one queue; each server takes from it what it has room for, so a faster one does more and one that fails
leaves its calls to the others. Knows nothing of tokens or of what is asked.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from tokendeep.engines.options import ANSWER, NO_SERVER, key
from tokendeep.engines.server import failures
from tokendeep.engines.server.failures import AGAIN, CHANGED, CONNECT, GONE, Failed, Malformed, Refused
from tokendeep.engines.server.room import Room
from tokendeep.errors import InputError

WAIT, LONGEST_WAIT = 3.0, 120.0  # seconds before a server that failed is asked again; doubled each time
AT_MOST = 10  # times as many tries as are counted, where a server only has too many calls and answers others
IDLE = 4.0  # seconds a connection is kept unused: below the 5 of most servers, so that none is closed under a request
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
QUESTION, CANARY = 30.0, 600.0  # seconds for a question about the server itself, and for what is completed to try it
PATIENCE = 10.0  # seconds after which it is said that one of them is waited for
SILENCE = 60.0  # seconds between two notes that a server is waited for

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Host:
    """One server: `resting` until it is asked again, after so many `failures` in a row.

    Where it was `lost`, another may have come in its place: it is met again before it is asked anything, at its `door`.
    """

    url: str  # ends in /v1
    room: Room = field(default_factory=lambda: Room(1))
    failures: int = 0
    heard: bool = False  # whether it has ever answered
    known: bool = False  # whether it has answered as a server of completions does
    lost: str | None = None  # how
    given_up: str | None = None  # why; it is met again now and then while there are other servers
    door: asyncio.Lock = field(default_factory=asyncio.Lock)
    resting: float = 0.0
    told: float = float("-inf")
    answered: float = float("-inf")  # when it last answered a call
    calls: set[Call] = field(default_factory=set)  # under way

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    @property
    def up(self) -> bool:
        """Whether it is asked, and was there the last time."""
        return self.lost is None and self.given_up is None

    def works(self, since: float) -> bool:
        """Whether it has answered a call since then, or is still at one from before."""
        return self.answered > since or any(call.begun < since for call in self.calls)

    def succeed(self) -> None:
        """It has answered a call."""
        self.failures, self.given_up, self.answered = 0, None, time.monotonic()
        self.room.answered()

    def fail(self, why: str, wait: float | None, busy: bool = False) -> None:
        """Let the server rest. Calls that were under way together fail together, and count once."""
        now = time.monotonic()
        if now < self.resting:
            return
        self.failures += 1
        least = min(LONGEST_WAIT, WAIT * 2 ** (self.failures - 1))
        busy = busy and bool(self.calls)  # with no call under way it starts, or is gone
        if busy:
            self.room.lower()
            if self.failures == 1 and wait is not None:  # it answers others, and knows better
                least = WAIT / 3
        pause = max(wait or 0.0, least)
        self.resting = now + pause
        if now - self.told > SILENCE:
            self.told = now
            less = f", {self.room.limit} requests at once" if busy else ""
            log.warning("%s and is asked again in %.0f seconds%s", why, pause, less)


@dataclass(eq=False, slots=True)
class Call:
    """A request on its way: `ask` writes path and body for a server, `read` turns its answer into a result."""

    ask: Callable[[Host], tuple[str, Mapping[str, Any]]]
    read: Callable[[Host, Mapping[str, Any]], Any]
    future: Future[Any] = field(default_factory=Future)
    tries: int = 0
    counted: int = 0  # tries that count
    begun: float = 0.0  # when it was last made
    failed: float = field(default_factory=time.monotonic)  # when it last did; at first, when it was asked for

    def finish(self, result: object, error: BaseException | None = None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class Client:
    """Asks servers from any thread; one thread of its own does all the waiting.

    Args:
        urls: addresses, as `addresses` gives them.
        key_env: name of the environment variable that holds the key; None sends none.
        in_flight: calls that one server has at once.
        max_retries: how often a call that failed is made again.
        answer: seconds that one answer may take.

    Attributes:
        meet: makes sure of a server that was lost and is there again, once it is known what it was; raises InputError where it
            is another one now.

    Raises:
        InputError: the variable of the key is not set.
    """

    meet: Callable[[Host], Awaitable[None]] | None = None

    def __init__(
        self, urls: list[str], key_env: str | None, in_flight: int, max_retries: int, answer: float = ANSWER
    ) -> None:
        self.hosts = [Host(url, Room(in_flight)) for url in urls]
        self.key_env, self.in_flight, self.max_retries, self.answer = key_env, in_flight, max_retries, answer
        self._headers = {} if key_env is None else {"Authorization": f"Bearer {key(key_env)}"}
        self._waiting: deque[Call] = deque()
        self._closed, self._lock = False, threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tokendeep-servers", daemon=True)
        self._thread.start()
        self._wait(self._open())
        atexit.register(self.close)

    def put(self, call: Call) -> Future[Any]:
        """Queue a call. Raises RuntimeError where the client is closed."""
        with self._lock:
            if self._closed:
                raise RuntimeError("This generation engine is closed.")
            self._loop.call_soon_threadsafe(self._add, call)
        return call.future

    def get(self, host: Host, address: str) -> Any:
        """What lies at an address: JSON. Raises InputError where there is none."""
        return self._wait(self.fetch(host, "GET", address))

    def post(self, host: Host, address: str, body: Mapping[str, Any]) -> Any:
        """The answer of this very server: JSON. Raises InputError where there is none."""
        return self._wait(self.fetch(host, "POST", address, body))

    @property
    def begun(self) -> bool:
        """Whether the servers are known, so that something may have been answered."""
        return self.meet is not None

    def close(self) -> None:
        """Break off; unfinished calls get a RuntimeError. Calling it again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- in the thread of the client ---------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        away = not any(urlsplit(host.url).hostname in LOCAL for host in self.hosts)
        self._some: asyncio.Queue[None] = asyncio.Queue()  # as many as wait; a semaphore looks at all who wait for it
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE),
            headers=self._headers,
            trust_env=away,  # a proxy of the environment is for other machines
        )
        places = [host for _ in range(self.in_flight) for host in self.hosts]
        self._workers = [self._loop.create_task(self._work(host)) for host in places]

    async def _end(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for call in [*(call for host in self.hosts for call in host.calls), *self._waiting]:
            call.finish(None, RuntimeError("The generation engine was closed before this request was finished."))
        self._waiting.clear()
        await self._session.close()

    def _add(self, call: Call, first: bool = False) -> None:
        (self._waiting.appendleft if first else self._waiting.append)(call)
        self._some.put_nowait(None)

    async def _work(self, host: Host) -> None:
        while True:
            await host.room.enter()
            await self._next(host)
            host.room.leave()

    async def _next(self, host: Host) -> None:
        """Make the next call, once the server has rested and there is one."""
        await asyncio.sleep(max(0.0, host.resting - time.monotonic()))
        await self._some.get()
        if host.resting > time.monotonic() or host.room.full:  # it failed meanwhile: another server may take this call
            self._some.put_nowait(None)
            return
        if host.lost is not None:
            self._some.put_nowait(None)
            await self._greet(host)
            return
        call = self._waiting.popleft()
        if not call.tries and not call.future.set_running_or_notify_cancel():
            return
        call.begun = time.monotonic()
        host.calls.add(call)
        await self._make(host, call)
        host.calls.discard(call)

    async def _make(self, host: Host, call: Call) -> None:
        """Make one call once; where that fails and may be mended, it waits again in front of the others."""
        try:
            address, body = call.ask(host)
            result = call.read(host, await self._fetch(host, "POST", address, body, self.answer))
        except Failed as failed:
            self._missed(host, call, failed)
        except Malformed as odd:  # the server has answered well in its handshake
            self._missed(host, call, odd.failed)
        except Exception as error:  # whatever went wrong, nobody may wait for ever
            call.finish(None, error)
        else:
            host.succeed()
            call.finish(result)

    def _missed(self, host: Host, call: Call, failed: Failed) -> None:
        """A call was not answered: it waits again in front of the others, where it has not been tried often enough."""
        call.tries += 1
        elsewhere = (failed.lost or failed.busy) and any(other.up for other in self.hosts if other is not host)
        call.counted += not (elsewhere or (failed.busy and host.works(call.failed)))
        call.failed = time.monotonic()
        host.lost = failed.why if failed.lost else host.lost
        if not (failed.late or (failed.stale and call.tries == 1)):
            host.fail(failed.why, failed.wait, failed.busy)
        others = any(other.given_up is None for other in self.hosts if other is not host)
        if failed.late or (host.failures > self.max_retries and (failed.lost or others)):
            call.counted = 0  # for the others
            if error := self._give_up(host, failed):
                call.finish(None, error)
                return
        if call.counted > self.max_retries or call.tries > AT_MOST * self.max_retries:
            call.finish(None, InputError(failed.sentence(call.tries, True)))
            return
        self._add(call, first=True)

    def _give_up(self, host: Host, error: Exception) -> Exception | None:
        """Leave the calls to the other servers; where none is left, all that wait end with the error that is returned."""
        why = error.clause(host.failures) if isinstance(error, Failed) else str(error).rstrip(".")
        new, host.given_up = host.given_up is None, why
        if any(other.given_up is None for other in self.hosts):
            rest = (error.wait or 0.0) if isinstance(error, Failed) else 0.0
            host.resting = max(host.resting, time.monotonic() + max(LONGEST_WAIT, rest))
            if new:
                log.warning("%s: it is given up, and the other servers go on without it", why)
            return None
        if len(self.hosts) > 1:
            whys = "; ".join(str(one.given_up) for one in self.hosts)
            error = InputError(f"No server is left ({whys}): {failures.REMEDY}{failures.GO_ON}.")
        elif isinstance(error, Failed):
            error = InputError(error.sentence(host.failures, True))
        for call in self._waiting:
            call.finish(None, error)
        self._waiting.clear()
        while not self._some.empty():
            self._some.get_nowait()
        return error

    async def fetch(self, host: Host, method: str, address: str, body: Mapping[str, Any] | None = None) -> Any:
        """What a server says; it is asked again and again where it is there but busy. Raises InputError where it says nothing."""
        limit = min(self.answer, QUESTION if method == "GET" or address.endswith("/detokenize") else CANARY)
        counted, since = 0, time.monotonic()
        for tries in itertools.count(1):
            waiting = "waiting for %s (%s), for %g seconds at most"
            note = self._loop.call_later(PATIENCE, log.warning, waiting, host.url, urlsplit(address).path, limit)
            try:
                return await self._fetch(host, method, address, body, limit)
            except Failed as failed:
                counted += not (failed.busy and host.works(since))
                since, there = time.monotonic(), failed.status or failed.stale
                often = counted > self.max_retries or tries > AT_MOST * self.max_retries
                if not there or failed.late or often:
                    raise failed.ended(tries, self.begun) from None
                host.fail(failed.why, failed.wait, failed.busy)
            finally:
                note.cancel()
            await asyncio.sleep(host.resting - time.monotonic())
        return None

    async def _greet(self, host: Host) -> None:
        """Meet a server again that was lost; once for all who wait for it."""
        async with host.door:
            if host.lost is None or host.resting > time.monotonic():  # it was there, or not, a moment ago
                return
            try:
                if self.meet is not None:
                    await self.meet(host)
            except (Failed, Malformed) as error:
                failed = error if isinstance(error, Failed) else error.failed
                if not failed.late:
                    host.fail(failed.why, failed.wait, failed.busy)
                if failed.late or host.failures > self.max_retries:
                    self._give_up(host, failed)
            except Exception as error:  # it is another one, or whatever went wrong: nobody may wait for ever
                self._give_up(host, error)
            else:
                if host.given_up:
                    log.warning("%s is there again", host.url)
                host.lost, host.given_up, host.failures = None, None, 0

    async def _fetch(self, host: Host, method: str, address: str, body: Mapping[str, Any] | None, limit: float) -> Any:
        most = aiohttp.ClientTimeout(total=limit, sock_connect=CONNECT)  # an answer that drips has no more time
        try:
            async with self._session.request(
                method, address, json=body, allow_redirects=False, timeout=most
            ) as response:
                host.heard = True
                if response.status == 200:
                    answer = await response.json(content_type=None)
                    host.known = host.known or (method == "POST" and isinstance(answer, dict))
                    return answer
                text = await response.text(errors="replace")
        except aiohttp.ClientSSLError as error:
            raise Refused(failures.tls(host.url, error)) from None
        except aiohttp.ServerDisconnectedError:
            if not host.heard:
                await failures.check_scheme(host.url)
            raise Failed(f"{host.url} closed the connection", stale=True, lost=True) from None
        except aiohttp.ConnectionTimeoutError as error:
            raise Failed(f"{host.url} cannot be reached ({failures.words(error)})", lost=True) from None
        except TimeoutError:
            raise Failed(self._silence(host, method, address, limit)) from None
        except (aiohttp.ClientError, OSError) as error:
            if not (host.heard or isinstance(error, aiohttp.ClientConnectorError)):  # there was a connection
                await failures.check_scheme(host.url)
            raise Failed(f"{host.url} cannot be reached ({failures.words(error)})", lost=True) from None
        except ValueError:
            if host.known:  # a page of what stands before it, which may be gone the next time
                raise Failed(f"{host.url} answers, but not with JSON", status=200, remedy=CHANGED) from None
            raise Refused(f"{host.url} answers, but not with JSON: {NO_SERVER}.") from None
        if response.status in AGAIN:
            why, pause = f"{host.url} failed with status {response.status}", failures.pause(response.headers)
            raise Failed(why, pause, lost=response.status in GONE, status=response.status)
        raise failures.refusal(host.url, self.key_env, response.status, response.headers, text, self.begun)

    def _silence(self, host: Host, method: str, address: str, limit: float) -> str:
        within = f"within {limit:g} seconds"
        if limit < self.answer:
            return f"{host.url} did not answer {method} {urlsplit(address).path} {within}"
        options = "--answer-timeout and --in-flight of verbs with --engine, --timeout of judge and calibrate"
        return f"{host.url} did not answer {within} ({options})"
