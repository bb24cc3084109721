"""Whether two answers are the same mathematics, by math-verify, which gives up on each after a few seconds.

It runs in a process of its own (`mathematics.py`), which is ended when it takes too long or too much, and started anew.
What cannot be read in time, or at all, equals nothing but the same text.
"""

import functools
import importlib.util
import json
import subprocess
import sys
import threading
import weakref
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from sla_jax.errors import UserError
from sla_jax.scoring.final import marked, marked_word, plain, reference_answer

PROGRAM = Path(__file__).with_name("mathematics.py")
START = 120.0  # seconds in which the process has to be there
PATIENCE = 1.0  # seconds beyond its own time, after which it is ended
BYTES = 2 * 2**30  # of addresses that it may have
LARGEST = 2**20  # bytes of a reply
Side = tuple[str | None, str]  # a text with a formula, and what is compared if there is none


class Equivalence:
    """Reads final answers out of texts and compares them. Remembers what it has read and compared."""

    def __init__(self, timeout: int = 5):
        if importlib.util.find_spec("math_verify") is None:
            raise UserError("comparing answers as mathematics takes math-verify: pip install 'sla-jax[eval]'.")
        self._library = library(timeout)
        self._texts: dict[str, str] = {}
        self._sides: dict[str, Side] = {}
        self._same: dict[tuple[str, str], bool] = {}

    def final(self, text: str) -> str:
        """The final answer of a text: what it marks as that (`scoring.final`), else the last expression; "" if none."""
        if text not in self._texts:
            said = marked(text) or marked_word(text)
            self._texts[text] = self._read([*([_boxed(said)] if said else []), plain(text)])
        return self._texts[text]

    def reference(self, text: str) -> str:
        """What a reference says (`scoring.final`); of prose with formulas in it, its final answer."""
        answer = reference_answer(text)
        prose = self.final(text) if "$" in answer else ""
        return prose or self._kept(answer, (_boxed(answer), answer))

    def same(self, gold: str, answer: str) -> bool:
        """Whether a final answer equals another one, or a reference; no answer ("") equals nothing."""
        if not gold or not answer:
            return False
        if (gold, answer) not in self._same:
            found = self._library.ask("same", self._sides[gold], self._sides[answer])
            self._same[gold, answer] = gold == answer if found is None else bool(found)
        return self._same[gold, answer]

    def _read(self, texts: list[str]) -> str:
        found = self._library.ask("read", texts)
        return "" if found is None else self._kept(found[1], (texts[found[0]], found[1]))

    def _kept(self, name: str, side: Side) -> str:
        self._sides.setdefault(name, side)
        return name


class Library:
    """math-verify in its process, which is started when it is asked first, and again after it was ended."""

    def __init__(self, timeout: int):
        self._timeout, self._lock = timeout, threading.Lock()
        self._requests: Connection | None = None
        self._end: Any = None

    def ask(self, *request: Any) -> Any:
        """What it says to a request; None if that takes too long or too much. Raises UserError if it cannot start."""
        with self._lock:
            requests = self._requests or self._start()
            try:
                requests.send_bytes(json.dumps(request).encode())
                if requests.poll(self._timeout + PATIENCE):
                    return json.loads(requests.recv_bytes(LARGEST))
            except (OSError, EOFError):  # the kernel has ended it
                pass
            self.close()
            return None

    def close(self) -> None:
        """End the process, if there is one."""
        if self._end is not None:
            self._end()
        self._requests = self._end = None

    def _start(self) -> Connection:
        mine, its = Pipe()
        with its:
            words = [sys.executable, "-P", str(PROGRAM), str(its.fileno()), str(self._timeout), str(BYTES)]
            quiet = subprocess.DEVNULL
            process = subprocess.Popen(words, pass_fds=[its.fileno()], stdin=quiet, stdout=quiet, stderr=quiet)
        self._requests, self._end = mine, weakref.finalize(self, _ended, process, mine)
        try:
            if mine.poll(START):
                mine.recv_bytes(LARGEST)
                return mine
        except (OSError, EOFError):
            pass
        self.close()
        raise UserError(f"math-verify does not start (exit code {process.returncode}); try: {' '.join(words[:3])}")


@functools.cache
def library(timeout: int) -> Library:
    """The one process of this program for a time limit: it takes a second to start."""
    return Library(timeout)


def _ended(process: subprocess.Popen[bytes], requests: Connection) -> None:
    """End a process, also at the end of this one."""
    requests.close()
    process.kill()
    process.wait()


def _boxed(answer: str) -> str:
    """An answer as math-verify takes it for one, whatever stands in it."""
    return f"$\\boxed{{{plain(answer)}}}$"
