"""What every request passes through, as plain ASGI: its id and its line in the log, the API key, the body's limits.

`scope["state"]` then has `request_id`, and `note`: a dict in which routes leave what the access log should say. The
names that `complaints.UnknownFields` leaves there as `ignored` go out in a header.
"""

import hmac
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sla_jax.serving.errors import ApiError
from sla_jax.serving.wire import ErrorResponse, parse_json

access = logging.getLogger("sla_jax.access")
log = logging.getLogger(__name__)
OPEN = ("/health", "/ready", "/metrics")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
GONE = 499  # what nginx writes for a client that left


class Entry:
    """Names the request (by the client's x-request-id, if it is a plain word), logs it, turns our mistakes into 500.

    What of its body was ignored goes out as a header too, streamed or not.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        note: dict[str, Any] = {}
        scope["state"] = {**scope.get("state", {}), "request_id": name, "note": note}
        began, status = time.monotonic(), 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = name
                if ignored := scope["state"].get("ignored"):
                    headers["x-ignored-fields"] = ",".join(ignored)
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception:
            log.exception("%s %r failed (%s)", scope["method"], scope["path"], name)
            if not status:
                error = ApiError(500, "the server made a mistake; its log says more.", code="internal_error")
                await ErrorResponse(error)(scope, receive, named)
        finally:
            shown = GONE if note.pop("gone", False) else status or GONE
            words = "".join(f" {key}={value!r}" for key, value in note.items())
            milliseconds = 1000 * (time.monotonic() - began)
            level = logging.DEBUG if scope["path"] in OPEN else logging.INFO  # probes come every few seconds
            access.log(level, "%s %r %d %.1fms %s%s", scope["method"], scope["path"], shown, milliseconds, name, words)


class Key:
    """Lets in who has the API key: `Authorization: Bearer KEY` or `X-API-Key: KEY`. `public` paths need none."""

    def __init__(self, app: ASGIApp, key: str, public: frozenset[str] = frozenset()):
        self._app, self._key, self._open = app, key.encode(), public.union(OPEN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open or self._knows(Headers(scope=scope)):
            return await self._app(scope, receive, send)
        message = "this server wants its API key: send the header Authorization: Bearer KEY."
        headers = {"www-authenticate": "Bearer"}
        await ErrorResponse(ApiError(401, message, code="invalid_api_key", headers=headers))(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode("latin-1", "replace"), self._key)


class Bodies:
    """Reads a body before anything else happens: no more than the limit, valid JSON, and said to be JSON.

    That it has to be said keeps other people's web pages out: a browser asks before it sends JSON elsewhere.
    """

    def __init__(self, app: ASGIApp, limit: int):
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self._app(scope, receive, send)
        try:
            body = await self._read(scope, receive)
            if body is None:
                return
            if body:
                self._check(scope, body)
        except ApiError as error:
            return await ErrorResponse(error)(scope, receive, send)
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None if the client left meanwhile."""
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > self._limit):
            raise self._too_large()
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._limit:
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)

    def _check(self, scope: Scope, body: bytes) -> None:
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"the body is {kind or 'of no type'}; send JSON and Content-Type: application/json.")
        parse_json(body)

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self._limit} bytes, the most that this server reads."
        return ApiError(413, message, code="body_too_large", headers={"connection": "close"})
