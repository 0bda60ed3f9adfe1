"""What goes wrong between here and a server, and the sentences that say so. Asks nothing but whether a server speaks TLS."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import aiohttp

from tokendeep.errors import InputError

CONNECT = 15.0  # seconds for a connection
LONGEST_SAID = 3600.0  # seconds that a server may say until it is asked again; one that says more is not waited for
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
BUSY = frozenset({429, 503})  # said to some of the calls that a server has at once, or in a time
GONE = frozenset({502, 503})  # said by what stands before a server that is not there
REASON = "look for its reason in the log of the server"
REMEDY = "check that the server runs and has room for the request"
ROOM = "lower --in-flight, for it takes no more requests at once or in a time"
CHANGED = "look whether something between here and the server changes what it says"
KEPT = "; what was answered is kept"
GO_ON = f", then call again to go on{KEPT}"


class Refused(InputError):
    """A server says no: asking again would not help. `said` is its own sentence, which can quote what was asked."""

    def __init__(self, sentence: str, status: int = 0, said: str = "") -> None:
        super().__init__(sentence)
        self.status, self.said = status, said


class Failed(InputError):
    """A call that may be made again: after `wait` seconds where the server says so.

    Args:
        stale: a connection was closed, perhaps before the call was made.
        lost: another one may take its place.
        status: what it said; 0 where it said nothing.
        remedy: what to do about it.
    """

    def __init__(
        self, why: str, wait: float | None = None, *, stale: bool = False, lost: bool = False, status: int = 0,
        remedy: str = REMEDY,
    ) -> None:  # fmt: skip
        self.why, self.wait, self.stale, self.lost, self.status = why, wait, stale, lost, status
        self.remedy = remedy
        super().__init__(self.sentence(1, False))

    @property
    def late(self) -> bool:
        """Whether the server wants to be left alone for longer than anybody waits."""
        return (self.wait or 0.0) > LONGEST_SAID

    @property
    def busy(self) -> bool:
        """Whether the server may only have too many calls."""
        return self.status in BUSY

    def sentence(self, tries: int, begun: bool) -> str:
        """What is said in the end.

        Args:
            begun: whether something may have been answered before.
        """
        if self.late:
            return f"{self.clause(tries)}: call again then{KEPT if begun else ''}."
        remedy = ROOM if self.status == 429 else f"{REMEDY}, or {ROOM}" if self.busy else self.remedy
        return f"{self.clause(tries)}: {remedy}{GO_ON if begun else ''}."

    def clause(self, tries: int) -> str:
        """What happened, without what to do about it."""
        hours = f" and wants to be left alone for {(self.wait or 0.0) / 3600:.1f} hours" if self.late else ""
        return f"{self.why}{hours or after(tries)}"

    def ended(self, tries: int, begun: bool) -> Failed:
        """Itself, with what is said in the end."""
        self.args = (self.sentence(tries, begun),)
        return self


class Malformed(InputError):
    """An answer of another shape than those of its kind of server: a failure where it has answered well before."""

    def __init__(self, url: str, error: Exception) -> None:
        self.why = f"The answer of {url} is not one of a server of its kind ({type(error).__name__})"
        super().__init__(f"{self.why}: {CHANGED}.")

    @property
    def failed(self) -> Failed:
        """The same as a failure, after which it is asked again."""
        return Failed(self.why, remedy=CHANGED)


def refusal(url: str, key_env: str | None, status: int, headers: Mapping[str, str], text: str, begun: bool) -> Refused:
    """What is said of a status that is no failure.

    Args:
        text: what the server says with it.
        begun: whether something may have been answered before.
    """
    if status in (401, 403):
        given = f"the key in {key_env}" if key_env else "a request without a key"
        way = "check it" if key_env else "put the key into an environment variable and name it with --api-key-env"
        return Refused(f"{url} refuses {given} (status {status}): {way}.", status)
    if 300 <= status < 400 and (place := _place(headers.get("Location", ""))):
        way = "give it with https://" if _same_but_tls(url, place) else "give the address that it names"
        return Refused(f"{url} sends requests on to {place} (status {status}): {way}.")
    why = f"{url} refused a request with status {status}"
    return Refused(f"{why}: {REASON}{GO_ON if begun else ''}.", status, _said(text))


def _place(location: str) -> str:
    """An address that a server names, without what may be secret in it."""
    try:
        parts = urlsplit(_said(location))
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}" if parts.hostname else parts.path
    except ValueError:
        return ""


def _same_but_tls(url: str, place: str) -> bool:
    ours, theirs = urlsplit(url), urlsplit(place)
    return (ours.scheme, theirs.scheme) == ("http", "https") and ours.hostname == theirs.hostname and not ours.port


def pause(headers: Mapping[str, str]) -> float | None:
    """Seconds after which a busy server wants to be asked again, from a number or a date; None where it does not say."""
    text = headers.get("Retry-After", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def after(tries: int) -> str:
    """How often it was tried, for a sentence."""
    return f" after {tries} tries" if tries > 1 else ""


def words(error: BaseException) -> str:
    """The system's words for why there is no connection."""
    reason = getattr(error, "os_error", None) or error
    if isinstance(error, aiohttp.ClientConnectorDNSError) or isinstance(reason, socket.gaierror):
        return "no machine of this name is known"
    if isinstance(reason, TimeoutError):
        return f"no connection within {CONNECT:.0f} seconds"
    number = getattr(reason, "errno", None)
    return os.strerror(number) if number and number > 0 else "the connection broke, or what it says is not HTTP"


def _said(text: str) -> str:
    """The server's own sentence, on one line."""
    return " ".join(text.split())[:300]


async def check_scheme(url: str) -> None:
    """Raises Refused for a server with encryption whose address says that it has none."""
    parts, trusting = urlsplit(url), ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    if parts.scheme != "http":
        return
    try:
        async with asyncio.timeout(CONNECT):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, ssl=trusting)
    except OSError:  # TimeoutError is one
        return
    writer.close()
    raise Refused(f"{url} is the address of a server that speaks TLS: give it with https://.")


def tls(url: str, error: aiohttp.ClientSSLError) -> str:
    """What is said where a server and we cannot agree on encryption."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return (
            f"The certificate of {url} cannot be trusted ({type(error.certificate_error).__name__}): name the file of "
            "the authority that signed it in the environment variable SSL_CERT_FILE."
        )
    return f"{url} does not speak TLS: give its address with http:// if it is a server without encryption."
