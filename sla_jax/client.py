"""Sends requests to servers of other people, and takes their word for no more than it is.

A key goes where the user sent it and no further: a redirect is an answer like any other, and is not followed. The time
is that of the whole exchange, however slowly a server speaks; of a body no more is read than a limit. What comes is
JSON of whole characters and finite numbers, or an error. Proxies are those of the environment, as everywhere in Python.
Nothing but the standard library is needed.
"""

import contextlib
import email.utils
import http.client
import json
import math
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import Any, NamedTuple, NoReturn

from sla_jax.errors import UserError
from sla_jax.files import whole_characters

LARGEST = 64 * 2**20  # bytes of an answer
PIECE = 2**16  # bytes that are read at once
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses after which the same request may succeed
LONGEST_PAUSE = 60.0  # seconds, whatever Retry-After says
SAID = 300  # characters of what a server says that an error repeats
KEY = re.compile(r"[\x21-\x7e]+")


class Unreachable(Exception):
    """Why there is no answer, in words; another try may have one."""


class Answer(NamedTuple):
    """What a server says. `whole`: its body was no longer than the limit."""

    status: int
    headers: Message
    body: bytes
    whole: bool = True

    @property
    def said(self) -> str:
        """The message of an error object, or the beginning of what came; of a redirect, where it leads."""
        if 300 <= self.status < 400:
            to = self.headers.get("Location", "another address")[:SAID]
            return f"it sends on to {to!r}, and nothing is sent there; if that is the right address, give it instead"
        try:
            text = str(json.loads(self.body)["error"]["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            text = self.body[: 4 * SAID].decode("utf-8", "replace").strip()
        return text[:SAID] or http.client.responses.get(self.status, "")

    @property
    def retry_after(self) -> float:
        """Seconds that it asks to wait, as a number or as a date; between 0 and LONGEST_PAUSE, 0 if it does not."""
        value = self.headers.get("Retry-After", "").strip()
        if value.isascii() and value.isdecimal():
            return min(float(value), LONGEST_PAUSE)
        try:
            wait = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
        return min(max(wait, 0.0), LONGEST_PAUSE)


def authorization(key: str | None) -> dict[str, str]:
    """Make the header that a key is sent in; none without a key. Raises UserError, which does not tell the key."""
    if key is None:
        return {}
    if not KEY.fullmatch(key):
        raise UserError("the API key has spaces, line ends or other characters that no key has; is there one too many?")
    return {"Authorization": f"Bearer {key}"}


def send(
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout: float,
    limit: int = LARGEST,
) -> Answer:
    """Send a GET, or a POST of a body, to an http:// or https:// address. Raises Unreachable.

    `timeout`: seconds until the last byte has come, from when the connection is there. `limit`: bytes of a body."""
    request = urllib.request.Request(url, body, dict(headers or {}))
    with _Deadline(timeout) as deadline:
        opener = urllib.request.build_opener(_AsItCame, _Http(deadline), _Https(deadline))
        try:
            with opener.open(request, timeout=timeout) as response:
                content, whole = _read(response, limit)
                answer = Answer(response.status, response.headers, content, whole)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = deadline.reason or str(getattr(error, "reason", "") or error) or repr(error)
            raise Unreachable(reason[:SAID]) from None
        if deadline.reason is not None:  # a body without a length ends where the connection does
            raise Unreachable(deadline.reason)
    return answer


def value_of(answer: Answer) -> Any:
    """Read the JSON of an answer. Raises ValueError for what is none, and for numbers that are none."""
    if not answer.whole:
        raise ValueError(f"more than the {LARGEST} bytes that are read")
    try:
        return _whole(json.loads(answer.body, parse_constant=_no_number, parse_float=_finite))
    except RecursionError:
        raise ValueError("lists in lists, too deep to read") from None


def _read(response: http.client.HTTPResponse, limit: int) -> tuple[bytes, bool]:
    """At most `limit` bytes of a body, and whether that is all of it."""
    parts, left = list[bytes](), limit
    while left > 0 and (part := response.read(min(PIECE, left))):
        parts.append(part)
        left -= len(part)
    if left > 0 and response.length:
        raise http.client.IncompleteRead(b"".join(parts), response.length)
    return b"".join(parts), left > 0 or not response.read(1)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _whole(value: Any) -> Any:
    """A value with U+FFFD in place of every half of a character."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, dict):
        return {whole_characters(name): _whole(one) for name, one in value.items()}
    return [_whole(one) for one in value] if isinstance(value, list) else value


# ---- connections ----


class _AsItCame(urllib.request.HTTPErrorProcessor):
    """Takes every status for an answer: none is an error, and none is followed."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response

    https_response = http_response


class _Deadline:
    """Cuts connections when their time is up, whatever is being waited for on them."""

    def __init__(self, seconds: float):
        self.reason: str | None = None
        self._seconds, self._lock, self._held = seconds, threading.Lock(), list[socket.socket]()
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._timer.cancel()
        with self._lock:
            for held in self._held:
                held.close()
            self._held.clear()

    def hold(self, connection: socket.socket) -> None:
        """Take charge of a connection: of a second handle of it, as TLS takes the first one away.

        Raises TimeoutError if its time is up already."""
        with self._lock:
            if self.reason is not None:
                raise TimeoutError(self.reason)
            self._held.append(connection.dup())

    def _cut(self) -> None:
        with self._lock:
            self.reason = f"no whole answer within {self._seconds:g} s"
            for held in self._held:
                with contextlib.suppress(OSError):  # the server may have closed it
                    held.shutdown(socket.SHUT_RDWR)


class _Http(urllib.request.HTTPHandler):
    """http:// under a deadline."""

    def __init__(self, deadline: _Deadline):
        super().__init__()
        self._plain, _ = _connections(deadline)

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._plain, request)


class _Https(urllib.request.HTTPSHandler):
    """https:// under a deadline."""

    def __init__(self, deadline: _Deadline):
        super().__init__()
        _, self._secure = _connections(deadline)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._secure, request)


def _connections(deadline: _Deadline) -> tuple[Any, Any]:
    """Kinds of connections for http and https which the deadline has charge of before anything is said on them."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            deadline.hold(self.sock)

    class Secure(http.client.HTTPSConnection, Plain):
        """TLS begins on what Plain has connected."""

    return Plain, Secure
