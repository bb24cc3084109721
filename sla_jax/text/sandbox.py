"""Asks the process that runs chat templates, and starts it anew when it had to be ended.

One process for all threads, one request at a time: a render takes a fraction of a millisecond, and no more than
`SECONDS` of processor time whatever the template does. `template_process.py` says what is bounded, and how.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sla_jax.errors import UserError
from sla_jax.text.template_process import LONGEST, PATIENCE, REFUSED, TOO_MUCH

SECONDS = 2.0  # of processor time, of one request; honest templates take thousandths
MEMORY = 2**30  # bytes of address space, of which Python and Jinja take some 40 million
SCRIPT = Path(__file__).with_name("template_process.py")


class TemplateRefusedError(Exception):
    """What a template raised, in one line."""


class TemplateProcess:
    """A process that renders templates, started with the first request."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY):
        self.seconds, self.memory = seconds, memory
        self.started = 0  # how many processes there were
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # who started it: a fork has its own

    def render(self, template: str, values: Mapping[str, Any], date: str | None) -> str:
        """The text that a template makes of `values`, which are what JSON has, as if on the day `date` (None: today).

        Raises TemplateRefusedError for whatever the template raises, UserError where it takes too much."""
        return self._ask(do="render", template=template, values=values, date=date)

    def names(self, template: str) -> frozenset[str]:
        """All variables that a template reads. Raises as `render` does."""
        return frozenset(json.loads(self._ask(do="names", template=template)))

    def close(self) -> None:
        """End the process, whatever it does; the next request starts another."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()  # a thread that waits for its answer is told so, and lets go of the lock
        with self._lock:
            if self._process is not None and self._owner == os.getpid():
                self._end(self._process)

    def _ask(self, **request: Any) -> str:
        try:
            body = json.dumps(request, default=_plain).encode()
        except (ValueError, RecursionError) as error:
            raise UserError(f"what the chat template is given cannot be written as JSON ({error}).") from None
        with self._lock:
            process = self._running()
            try:
                letter, text = _exchange(process, body)
            except (EOFError, BrokenPipeError):
                raise self._too_much(self._why(self._end(process))) from None
            except BaseException:  # interrupted, an answer is left in the pipe
                self._end(process)
                raise
            if letter == TOO_MUCH:
                self._end(process)
                what = f"{self.memory // 2**20} MiB of memory" if text == "memory" else f"{LONGEST} characters of text"
                raise self._too_much(f"it takes more than {what}")
        if letter == REFUSED:
            raise TemplateRefusedError(text)
        return text

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is not None:
            self._end(self._process)
        if self._process is None or self._owner != os.getpid():
            command = [sys.executable, "-P", str(SCRIPT), str(self.seconds), str(self.memory)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._owner = os.getpid()
            self.started += 1
        return self._process

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """The code with which the process ended, by itself or now."""
        self._process = None
        assert process.stdout is not None
        process.stdout.close()
        process.kill()
        return _closed(process)

    def _why(self, code: int) -> str:
        if code == -signal.SIGPROF:
            return f"it takes more than {self.seconds:g} s of processor time"
        if code == -signal.SIGALRM:
            return f"it takes more than {PATIENCE:g} s"
        return f"its process ended with the code {code}"

    def _too_much(self, why: str) -> UserError:
        return UserError(
            f"the chat template was stopped: {why}. It came with the checkpoint (chat_template.jinja, or chat_template "
            "in tokenizer_config.json): use one that does less, or shorter messages."
        )


def _closed(process: subprocess.Popen[bytes]) -> int:
    """The code of a process that is ending, its input closed."""
    assert process.stdin is not None
    try:
        process.stdin.close()
    except BrokenPipeError:  # of what was not written any more
        pass
    return process.wait()


def _exchange(process: subprocess.Popen[bytes], body: bytes) -> tuple[int, str]:
    """(letter, text) of the reply. Raises EOFError or BrokenPipeError when the process has ended."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(len(body).to_bytes(8) + body)
    process.stdin.flush()
    head = process.stdout.read(9)
    size = int.from_bytes(head[1:])
    if len(head) < 9 or size > 4 * LONGEST:  # UTF-8 takes up to four bytes a character
        raise EOFError
    raw = process.stdout.read(size)
    if len(raw) < size:
        raise EOFError
    return head[0], raw.decode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    """What a template is given for a value that JSON has not: of a date or the like, its text."""
    if isinstance(value, Mapping):
        return dict(value)
    return value.item() if isinstance(value, np.generic) else str(value)


TEMPLATES = TemplateProcess()
atexit.register(TEMPLATES.close)
