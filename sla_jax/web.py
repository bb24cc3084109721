"""What every web server of this project has: its socket, the names that it is called by, and headers on every answer.

A web page may point its own name at an address of this machine (DNS rebinding), and its scripts then read whatever a
server there says to anybody: for the browser both are one origin. What gives such a request away is its `Host` header.
So a server that is open to anybody answers only to names that no stranger can own (`KnownHosts`): addresses written as
numbers, which need no DNS; `localhost`, and names with no dot in them (a machine of this network, a service of
Compose or of Kubernetes), which nobody can register; and those that its configuration gives it. Whoever asks without a
`Host` (HTTP/1.0) is no browser.

Plain ASGI and the standard library, so that a server's configuration can be read where no server is installed.
"""

import errno
import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from sla_jax.errors import UserError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{0,5})?", re.ASCII | re.IGNORECASE)
PATTERN = re.compile(r"\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.ASCII | re.IGNORECASE)
SAFE = {  # of an answer that says nothing else: it is data, in no frame, and what it is said to be
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket, before anything slow is done: who connects from now on waits and is not turned away.

    Raises UserError for a port that is in use."""
    if not 0 <= port <= 65535:
        raise UserError(f"port={port} is not a port; it has to be 0 (any free one) to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UserError(f"host={host} is not an address of this machine: {error.strerror}.") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of {host} is in use by another program; stop that one, or give --port another number "
                "(0 takes any free one)."
            ) from None
        raise UserError(f"cannot listen on port {port} of {host}: {error.strerror}.") from None
    return listener


def check_hosts(names: Iterable[str]) -> None:
    """Raise UserError for what is neither a host's name, nor `*.` before one, nor `*`."""
    for name in names:
        if not PATTERN.fullmatch(name):
            raise UserError(
                f"http.hosts has {name!r}; give names alone, without http:// and port: sla.example.com, or "
                "*.example.com for all below it, or * for every name."
            )


def is_known(host: str, names: Iterable[str]) -> bool:
    """Whether a `Host` header is one that no stranger can own, or is among `names` (see `check_hosts`)."""
    found = HOST.fullmatch(host)
    if found is None:
        return False
    name = (found["v6"] or found["name"]).lower().removesuffix(".")
    return _is_nobodys(name) or any(_fits(name, pattern.lower()) for pattern in names)


def _is_nobodys(name: str) -> bool:
    """Whether no stranger can own a name: an address, or a name that is asked of no public DNS."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(name) and ("." not in name or name.endswith(".localhost"))
    return True


def _fits(name: str, pattern: str) -> bool:
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else pattern in ("*", name)


class KnownHosts:
    """Answers 400 to a request that calls this server by a name it does not know; `names` as of `is_known`."""

    def __init__(self, app: App, names: Iterable[str] = ()):
        self._app, self._names = app, frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if "*" in self._names or (len(hosts) < 2 and all(is_known(host, self._names) for host in hosts)):
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        message = (
            f"this server is not called {', '.join(hosts)[:100]!r}: it answers to addresses, to localhost, and to the "
            "names that it is given (serve.py: http.hosts)."
        )
        error = {"message": message, "type": "invalid_request_error", "param": "host", "code": "unknown_host"}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})


class SafeHeaders:
    """Gives every answer the headers of SAFE that it does not have."""

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", ()))
                known = {name.lower() for name, _ in given}
                pairs = ((name.encode(), value.encode()) for name, value in SAFE.items())
                message["headers"] = [*given, *(pair for pair in pairs if pair[0] not in known)]
            await send(message)

        await self._app(scope, receive, guarded)
