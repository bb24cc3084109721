"""Servers that lie: their redirects, times, sizes and words are believed no further than they have to be."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax import client
from sla_jax.errors import UserError

SECRET = {"Authorization": "Bearer sk-secret"}
OK = b"HTTP/1.1 200 OK\r\n"


@contextlib.contextmanager
def speaking(*parts: bytes, endless: bytes = b"", pause: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """(address, what was heard) of a server that says these parts to everybody, then `endless` until nobody listens."""
    heard: list[bytes] = []
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                heard.append(connection.recv(65536))
                for part in parts:
                    connection.sendall(part)
                while endless and not over.is_set():
                    connection.sendall(endless)
                    over.wait(pause)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", heard
        finally:
            over.set()
            with contextlib.suppress(OSError):
                socket.create_connection(listener.getsockname()).close()
            thread.join()
    heard[:] = [one for one in heard if one]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("body", [None, b"{}"])
def test_nothing_is_sent_on(status, body):
    with speaking(OK + b"\r\n{}") as (elsewhere, heard):
        for there in (f"http://{elsewhere}/x", "file:///etc/hostname", "ftp://localhost/x", "//localhost/x", ""):
            moved = f"HTTP/1.1 {status} Moved\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode()
            with speaking(moved) as (address, asked):
                answer = client.send(f"http://{address}/", body, SECRET, timeout=30.0)
            assert answer.status == status and there in answer.said and len(asked) == 1
    assert heard == []


@pytest.mark.parametrize(
    "parts",
    [
        [OK + b"\r\n"],  # a body without a length, which never ends
        [OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n"],
        [OK],  # headers that never end
        [b"HTTP/1.1 100 Continue\r\n\r\n"],
        [],  # a status that never ends
    ],
)
def test_the_time_is_that_of_the_whole_answer(parts):
    with speaking(*parts, endless=b"1", pause=0.01) as (address, _):
        with pytest.raises(client.Unreachable, match=r"within 0\.2 s"):
            client.send(f"http://{address}/", timeout=0.2)


def test_the_time_begins_before_the_handshake():
    with speaking(b"\x16\x03\x03\x40\x00", endless=b"\x02", pause=0.01) as (address, _):  # a record that is never whole
        with pytest.raises(client.Unreachable, match=r"within 0\.5 s"):
            client.send(f"https://{address}/", timeout=0.5)


def test_a_connection_that_comes_too_late_is_not_used():
    with socket.socket() as late, client._Deadline(30.0) as deadline:
        deadline._cut()
        with pytest.raises(TimeoutError):
            deadline.hold(late)


@pytest.mark.parametrize(
    "head", [b"\r\n", b"Content-Length: 99999999999\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n"]
)
def test_no_more_is_read_than_the_limit(head):
    with speaking(OK + head, endless=b"x" * 4096) as (address, _):
        answer = client.send(f"http://{address}/", timeout=30.0, limit=100_000)
    assert len(answer.body) == 100_000 and not answer.whole
    with pytest.raises(ValueError, match="more than"):
        client.value_of(answer)


def test_a_body_of_just_the_limit_is_whole():
    with speaking(OK + b"Content-Length: 4\r\n\r\nnull") as (address, _):
        answer = client.send(f"http://{address}/", timeout=30.0, limit=4)
    assert answer.whole and client.value_of(answer) is None


@pytest.mark.parametrize(
    "said",
    [
        OK + b"Content-Length: 10\r\n\r\nabc",
        OK + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffffff\r\nabc",
        OK + b"Transfer-Encoding: chunked\r\n\r\nno number\r\n",
        OK + b"X: 1\r\n" * 200 + b"\r\n",
        OK + b"X: " + b"1" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 wrong\r\n\r\n",
        b"\xff" * 100,
        b"",
    ],
)
def test_what_is_no_answer_is_unreachable(said):
    with speaking(said) as (address, _):
        with pytest.raises(client.Unreachable) as error:
            client.send(f"http://{address}/", timeout=30.0)
    assert 0 < len(str(error.value)) <= client.SAID


def answer(body=b"", status=200, **headers):
    told = Message()
    for name, value in headers.items():
        told[name.replace("_", "-")] = value
    return client.Answer(status, told, body)


@given(st.one_of(st.text(max_size=30), st.integers().map(str), st.floats().map(str)))
def test_nobody_waits_longer_than_a_minute(value):
    assert 0 <= answer(Retry_After=value.replace("\n", "").replace("\r", "")).retry_after <= client.LONGEST_PAUSE


def test_a_pause_is_a_number_or_a_date():
    now = datetime.now(UTC)
    assert answer(Retry_After="7").retry_after == 7 and answer().retry_after == 0 == answer(Retry_After="²").retry_after
    assert 0 < answer(Retry_After=format_datetime(now + timedelta(seconds=30), usegmt=True)).retry_after <= 30
    assert answer(Retry_After=format_datetime(now + timedelta(days=9), usegmt=True)).retry_after == 60
    assert answer(Retry_After=format_datetime(now - timedelta(days=9), usegmt=True)).retry_after == 0


@pytest.mark.parametrize("body", [b"[" * 100_000, b"NaN", b"[1e999]", b"1" * 5000, b"\xff", b"", b"{'a': 1}"])
def test_what_is_no_json_is_an_error(body):
    with pytest.raises(ValueError, match="."):
        client.value_of(answer(body))


def test_half_characters_are_replaced_wherever_they_stand():
    assert client.value_of(answer(b'{"a\\ud800": ["\\udfff", 1, null]}')) == {"a\ufffd": ["\ufffd", 1, None]}


def test_what_a_server_says_is_cut():
    assert answer(b'{"error": {"message": "no"}}', 400).said == "no"
    assert answer(b"", 404).said == "Not Found"
    for body in (b"x" * 10**6, b'{"error": {"message": "' + b"x" * 10**6 + b'"}}', b"[" * 10**5):
        assert len(answer(body, 500).said) == client.SAID


@pytest.mark.parametrize("key", ["", "two words", "sk-secret\n", "sk-secret\r\nX-Evil: 1", "schlüssel", "\x00"])
def test_a_key_that_cannot_be_sent_is_not_told(key):
    with pytest.raises(UserError) as error:
        client.authorization(key)
    assert not key.strip() or key.strip() not in str(error.value)


def test_a_key_is_sent_as_it_is():
    assert (
        client.authorization("sk-1_./=+") == {"Authorization": "Bearer sk-1_./=+"} and client.authorization(None) == {}
    )
