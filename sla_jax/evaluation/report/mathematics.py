"""Reads and compares formulas by math-verify: the program of a process of its own, so that it can be ended.

    python -P mathematics.py DESCRIPTOR SECONDS BYTES

A model writes what it likes: `9^{9^{9}}` keeps a library in C code busy, which hears no signal, and fills the memory.
`equivalence.py` starts this program, sends it requests over a pipe, and ends it when it takes longer than SECONDS; the
kernel does the same for its processor time, also when nobody is left to wait, and gives it BYTES of addresses.
Requests and replies are JSON:

    ["read", [TEXT, …]]       [N, NAME]: the first text with a formula in it, and that formula written out; null: none
    ["same", SIDE, SIDE]      whether they are the same mathematics; a SIDE is [TEXT or null, WORDS], and WORDS are
                              compared where TEXT has no formula

Imports nothing of the project, and starts in the time that sympy takes.
"""

import contextlib
import functools
import json
import math
import resource
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import math_verify

LONGEST = 10_000  # characters of a formula that is written out
REMEMBERED = 4096  # texts
READY = "ready"


def serve(requests: Connection, seconds: int, size: int) -> None:
    """Answer requests until there are no more; one that cannot be answered has the reply null."""
    reader = FormulaReader(seconds)
    bound(resource.RLIMIT_CORE, 0)
    bound(resource.RLIMIT_AS, size)
    requests.send_bytes(json.dumps(READY).encode())
    while True:
        try:
            what, *given = json.loads(requests.recv_bytes())
        except EOFError:
            return
        bound(resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds + 1)
        try:
            reply = getattr(reader, what)(*given)
        except Exception:  # the library's, about what a model wrote: whatever it is, there is no formula to be had
            reply = None
        requests.send_bytes(json.dumps(reply).encode())


def bound(kind: int, most: int) -> None:
    """Lower a limit of this process, as far as the system lets it (macOS has none of memory)."""
    hard = resource.getrlimit(kind)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


class FormulaReader:
    """The two requests."""

    def __init__(self, seconds: int):
        self._seconds = seconds
        self._parsed = functools.lru_cache(REMEMBERED)(self._parse)

    def read(self, texts: list[str]) -> tuple[int, str] | None:
        """Find the first text with a formula: its number, and the formula."""
        for number, text in enumerate(texts):
            if parsed := self._parsed(text):
                name = str(parsed[-1])
                return (number, name) if len(name) <= LONGEST else None
        return None

    def same(self, one: list[str | None], other: list[str | None]) -> bool:
        """Compare two sides."""
        sides = [(self._parsed(text) if text is not None else []) or [words] for text, words in (one, other)]
        return bool(math_verify.verify(*sides, timeout_seconds=self._seconds))

    def _parse(self, text: str) -> list[Any]:
        return list(math_verify.parse(text, parsing_timeout=self._seconds))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
