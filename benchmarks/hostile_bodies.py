"""What a 4 MiB body that is to be refused costs a server: `python -m benchmarks.hostile_bodies [NAME …]`.

Starts the toy server of the tests (the real HTTP stack, no model) and sends it one hostile body after the other. For
each: the status, the seconds until it came, the longest that /health was kept waiting meanwhile (the event loop's
pause), and the server's memory over the body's size: at the peak, and what it keeps of one more such body (an allocator
keeps room of the first ones for the next). Linux only.
"""

import argparse
import dataclasses
import http.client
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 4 * 2**20  # bytes, `limits.body_bytes`
PAUSE, KEPT = 0.25, 8.0  # the most: seconds, and bytes kept over the body's
MORE = 3  # times that a body is sent again
REST = 0.002  # seconds between two questions
TOY = ("-m", "tests.serving.toy_server", "well")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":1,'


def filled(head: bytes, item: bytes, tail: bytes, separator: bytes = b",") -> bytes:
    """As many items between head and tail as make a body of `SIZE` bytes."""
    count = (SIZE - len(head) - len(tail)) // (len(item) + len(separator))
    return head + separator.join([item] * count) + tail


def numbered(head: bytes, tail: bytes) -> bytes:
    """The same of numbered names, each with a zero."""
    count = (SIZE - len(head) - len(tail)) // 10
    return head + b",".join(b'"%x":0' % number for number in range(count)) + tail


def bodies() -> dict[str, tuple[str, bytes]]:
    """Name → (path, body)."""
    chat = b'{"messages":[{"role":"user","content":"a"}],'
    return {
        "a name said twice": (TEXT, numbered(b"{", b',"0":0}')),
        "unknown names": (CHAT, numbered(HELLO, b"}")),
        "unknown names in search": (CHAT, numbered(HELLO + b'"search":{', b"}}")),
        "variables of the template": (CHAT, numbered(HELLO + b'"chat_template_kwargs":{', b"}}")),
        "biases": (CHAT, numbered(HELLO + b'"logit_bias":{', b"}}")),
        "empty messages": (CHAT, filled(b'{"messages":[', b"{}", b"]}")),
        "numbers for messages": (CHAT, filled(b'{"messages":[', b"1000", b"]}")),
        "messages": (CHAT, filled(b'{"messages":[', b'{"role":"user","content":""}', b"]}")),
        "parts of a message": (
            CHAT,
            filled(b'{"messages":[{"role":"user","content":[', b'{"type":"text","text":"a"}', b"]}]}"),
        ),
        "messages below the limit": (
            CHAT,
            filled(b'{"messages":[', b'{"role":"user","content":"' + b"a" * 350 + b'","x":0}', b"]}"),
        ),
        "objects in a call's arguments": (
            CHAT,
            filled(
                chat[:-2] + b',{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{\\"a\\":[',
                b"{}",
                b']}"}}]}]}',
            ),
        ),
        "token ids": (TEXT, filled(b'{"prompt":[', b"1", b"]}")),
        "token ids below the limit": (TEXT, filled(b'{"prompt":[', b"100", b"]}")),
        "floats": (TEXT, filled(b'{"prompt":[', b"0.5", b"]}")),
        "long numbers": (TEXT, filled(b'{"prompt":[', b"9" * 4000, b"]}")),
        "texts": (TEXT, filled(b'{"prompt":[', b'"a"', b"]}")),
        "tokens to stop at": (CHAT, filled(HELLO + b'"stop_token_ids":[', b"1000", b"]}")),
        "opened lists": (TEXT, b"[" * SIZE),
        "escapes": (TEXT, filled(b'{"prompt":"', b"\\ud83d\\ude00", b'"}', b"")),
        "brackets in a text": (TEXT, filled(b'{"prompt":"', b"[{", b'"}', b"")),
        "a text of digits": (TEXT, filled(b'{"prompt":"', b"1", b'"}', b"")),
        "a text of spaces": ("/tokenize", filled(b'{"prompt":"', b" ", b'a"}', b"")),
        "a text of emoji": ("/tokenize", filled(b'{"prompt":"', "\U0001f600".encode(), b'"}', b"")),
        "tokens to detokenize": ("/detokenize", filled(b'{"tokens":[', b"100", b"]}")),
        "a response": ("/v1/rewards", filled(b'{"prompt":"a","response":"', b"hello", b'"}', b" ")),
        "a model's name": (CHAT, filled(chat + b'"model":"', b"toy:sla", b'"}', b"")),
        "a profile's name": (CHAT, filled(chat + b'"search":{"profile":"', b"sla-", b'"}}', b"")),
        "an unknown name": (CHAT, filled(HELLO + b'"', b"a", b'":0}', b"")),
        "a user": (CHAT, filled(HELLO + b'"user":"', b"a", b'"}', b"")),
        "an id to abort": ("/abort_request", filled(b'{"request_id":"', b"a", b'"}', b"")),
    }


@dataclasses.dataclass
class Health:
    """Asks for /health again and again, on one connection; `longest` is how long one answer took at most, in s."""

    port: int
    longest: float = 0.0
    _over: bool = False

    def __enter__(self) -> "Health":
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over = True
        self._thread.join()

    def _ask(self) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self.port)
        while not self._over:
            began = time.perf_counter()
            client.request("GET", "/health")
            client.getresponse().read()
            self.longest = max(self.longest, time.perf_counter() - began)
            time.sleep(REST)
        client.close()


class Memory:
    """A process's memory, in bytes. Reading the peak begins a new one."""

    def __init__(self, pid: int):
        self._folder = Path(f"/proc/{pid}")

    def now(self) -> int:
        """Resident bytes."""
        return self._read("VmRSS")

    def begin(self) -> None:
        """Forget the peak."""
        (self._folder / "clear_refs").write_text("5")

    def peak(self) -> int:
        """The most since `begin`."""
        return self._read("VmHWM")

    def _read(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", (self._folder / "status").read_text())
        assert found is not None, f"the kernel does not tell {name}"
        return 1024 * int(found[1])


@contextmanager
def toy_server() -> Iterator[tuple[int, Memory]]:
    """The toy server's port and memory."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, *TOY]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        ready = next(line for line in server.stdout if line.startswith("ready: "))
        found = re.search(r":(\d+) ", ready)
        assert found is not None, ready
        try:
            yield int(found[1]), Memory(server.pid)
        finally:
            server.kill()


def send(port: int, path: str, body: bytes) -> tuple[int, int]:
    """(status, bytes of the answer)."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    client.request("POST", path, body, {"Content-Type": "application/json"})
    answer = client.getresponse()
    size = len(answer.read())
    client.close()
    return answer.status, size


def main() -> None:
    """Print a line for each body, and exit 1 if one of them costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="bodies to send; all of them unless given")
    names = parser.parse_args().names
    known = {name: case for name, case in bodies().items() if not names or name in names}
    failed = 0
    print("| body | status | seconds | longest pause, s | peak / body | kept / body |\n|---|---:|---:|---:|---:|---:|")
    with toy_server() as (port, memory):
        send(port, "/tokenize", b'{"prompt":"a"}')  # what is made for the first request is no part of the others
        for name, (path, body) in known.items():
            before = memory.now()
            memory.begin()
            began = time.perf_counter()
            with Health(port) as health:
                status, size = send(port, path, body)
            took, peak = time.perf_counter() - began, (memory.peak() - before) / len(body)
            first = memory.now()
            for _ in range(MORE):
                send(port, path, body)
            kept = (memory.now() - first) / MORE / len(body)
            well = health.longest <= PAUSE and kept <= KEPT and status < 500 and (status == 200 or size < 10_000)
            failed += not well
            numbers = f"{took:.2f} | {health.longest:.3f} | {max(0, peak):.1f} | {max(0, kept):.1f}"
            print(f"| {name} | {status} | {numbers} |{'' if well else ' ✗'}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
