"""Connections: everything that a client can leave undone has an end, and what it cuts into crumbs is not parsed."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from sla_jax.serving import connection
from sla_jax.serving.connection import Connection, connections_within
from sla_jax.serving.settings import Limits
from tests.serving.asgi import WAIT, Caller
from tests.serving.fake import FakeService, fake_app
from tests.serving.test_http_bad import TEXT

SOON = 0.05  # seconds
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = GET[:-2] + b"Connection: close\r\n\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the length of the body; on the path /flood with more than a client's buffers hold."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(1000 if scope["path"] == "/flood" else 0):
        await send({"type": "http.response.body", "body": b"a" * 2**16, "more_body": True})
    await send({"type": "http.response.body", "body": b"%d bytes" % size})


@contextlib.asynccontextmanager
async def listening(*, head: float = 15.0, unread: float = 60.0) -> AsyncIterator[tuple[int, ServerState]]:
    """A port where connections with these limits answer, and what is connected to it."""
    state, kind = ServerState(), connections_within(Limits(head=head, unread=unread))
    config = uvicorn.Config(echo, http=kind, log_config=None, ws="none")
    config.load()
    made = await asyncio.get_running_loop().create_server(
        lambda: kind(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with made:
        yield made.sockets[0].getsockname()[1], state


async def talk(port: int, *parts: bytes) -> bytes:
    """Everything that comes until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), WAIT)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(work(), WAIT))


@pytest.mark.parametrize(
    "parts",
    [(), (b"G",), (b"GET / HTTP/1.1\r\nHost: a\r\nX-",), (HEAD,)],
    ids=["nothing", "a letter", "half a header", "no end"],
)
def test_a_head_that_does_not_come_ends_the_connection(parts):
    async def go() -> bytes:
        async with listening(head=SOON) as (port, _):
            return await talk(port, *parts)

    assert run(go) == b""


def test_the_head_of_a_later_request_has_a_limit_too():
    async def go() -> bytes:
        async with listening(head=SOON) as (port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(GET)
            await reader.readuntil(b"0 bytes\r\n0\r\n\r\n")
            writer.write(GET[:20])
            try:
                return await reader.read()
            except ConnectionError:
                return b""
            finally:
                writer.close()

    assert run(go) == b""


def test_a_request_within_its_limits_is_answered_and_its_timers_are_off():
    async def go() -> None:
        async with listening(head=float(WAIT), unread=float(WAIT)) as (port, state):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                writer.write(GET)
                assert b"0 bytes" in await reader.readuntil(b"0 bytes")
                (one,) = state.connections
                assert isinstance(one, Connection) and not (one._head.is_set or one._unread.is_set)
            writer.close()
            await writer.wait_closed()

    run(go)


def test_a_client_that_reads_nothing_is_cut_off():
    async def go() -> None:
        async with listening(unread=SOON) as (port, state):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.sendall(GET.replace(b"/", b"/flood", 1))
                while not state.connections:
                    await asyncio.sleep(0)
                while state.connections or state.tasks:
                    await asyncio.sleep(0.01)

    run(go)


def test_a_body_that_does_not_come_is_a_408_and_the_end_of_the_connection():
    async def go() -> dict[str, Any]:
        app = fake_app(FakeService(sync=True), limits=Limits(body=SOON))
        client = Caller(app, TEXT, None)
        start, body = await client.next(), await client.next()
        assert b'"timeout"' in body["body"] and b"body" in body["body"]
        await client.task
        return start

    start = run(go)
    assert start["status"] == 408 and (b"connection", b"close") in start["headers"]


def chunked(size: int, total: int) -> bytes:
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"%x\r\n%s\r\n" % (size, b"a" * size)) * (total // size)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_body_cut_into_crumbs_is_not_parsed(monkeypatch, size):
    parsed = list[int]()
    original = connection.H11Protocol.data_received
    monkeypatch.setattr(
        connection.H11Protocol, "data_received", lambda self, data: (parsed.append(len(data)), original(self, data))
    )

    async def go() -> bytes:
        async with listening() as (port, _):
            return await talk(port, chunked(size, 2**20))

    assert run(go) == b""
    assert sum(parsed) <= 8 * connection.SLICE and max(parsed) <= connection.SLICE


@pytest.mark.parametrize("size", [64, 1000, 2**16])
def test_a_body_in_chunks_is_read(size):
    async def go() -> bytes:
        async with listening() as (port, _):
            return await talk(port, chunked(size, 2**18), b"0\r\n\r\n", LAST)

    answer = run(go)
    assert b"%d bytes" % (2**18 // size * size) in answer and answer.endswith(b"0 bytes\r\n0\r\n\r\n")


def test_a_few_small_chunks_are_a_client_that_streams_words():
    async def go() -> bytes:
        async with listening() as (port, _):
            return await talk(port, chunked(3, 3000), b"0\r\n\r\n", LAST)

    assert b"3000 bytes" in run(go)


def test_the_limits_are_those_of_one_server():
    one, other = connections_within(Limits(head=1.0)), connections_within(Limits(head=2.0))
    assert (one.limits.head, other.limits.head) == (1.0, 2.0) and issubclass(one, Connection)
