"""A program that goes on while a test talks to it."""

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.programs import ROOT
from tests.serving.toy_worker import PATIENCE


class Background:
    """`python WORDS…` in the project (or in `cwd`); everything it says is kept. Killed at the end if still there."""

    def __init__(self, *words: str, cwd: Path = ROOT, **env: str):
        self.said = ""
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, *words],
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said += line
            self._lines.put(line)
        self._lines.put(None)

    def line_with(self, text: str) -> str:
        """The next line with this text in it, as soon as it is there."""
        while True:
            line = self._lines.get(timeout=PATIENCE)
            assert line is not None, f"it ended without saying {text!r}:\n{self.said}"
            if text in line:
                return line

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def exit_code(self) -> int:
        """Wait for its end."""
        code = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *failure: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()
