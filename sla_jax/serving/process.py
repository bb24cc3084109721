"""The server as a process: its port, its HTTP thread, its signals and its exit code.

The main thread waits for what happens and decides; HTTP has a thread with an event loop, the service has one with the
device. HTTP answers before the model is there (/health 200, /ready 503) and for as long as streams are being drained;
it ends last, so that every stream gets its last event. Exit codes: 0 after a signal, 1 when the engine or HTTP has
failed, 2 for whatever the user can mend. A second signal ends the process at once, and the first one when the grace
period and `ENOUGH` seconds are over; no exit waits for a thread. That the worker is still inside a call of the device
when everybody has had an answer (aborted, after the grace period) is no failure.
"""

import contextlib
import dataclasses
import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol, runtime_checkable

import uvicorn
from fastapi import FastAPI
from rich.console import Console

from sla_jax.errors import UserError, for_the_user
from sla_jax.escape import printable
from sla_jax.serving.connection import connections_within
from sla_jax.serving.http import Pages, create_app
from sla_jax.serving.jobs import Worker
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.service import Service
from sla_jax.serving.settings import ModelInfo, ServeConfig
from sla_jax.web import listen as listen

log = logging.getLogger(__name__)
ECHO = 0.5  # seconds within which the same signal once more is the same wish: timeout(1) sends every signal twice
# seconds beyond the grace period: in which the worker has to come back, that clients then get to take what was sent to
# them before connections are cut, and after which the process ends whatever is still running
PATIENCE, LAST_WORDS, ENOUGH = 4.0, 2, 4.75


@runtime_checkable
class Opened(Protocol):
    """A model that can be served; reading its weights and compiling are still to come."""

    @property
    def model(self) -> ModelInfo:
        """What HTTP has to know of it."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, with the chat template."""
        ...

    def worker(self, progress: Callable[[str], None]) -> Worker:
        """Load and compile, saying what is being done."""
        ...


class Http:
    """uvicorn in a thread of its own, on a socket that is there already."""

    def __init__(self, app: FastAPI, config: ServeConfig, listener: socket.socket):
        self.url = f"{'https' if config.tls.cert else 'http'}://{_netloc(config.host, listener)}"
        self._listener = listener
        settings = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            http=connections_within(config.limits),
            ws="none",
            ssl_certfile=config.tls.cert,
            ssl_keyfile=config.tls.key,
            timeout_graceful_shutdown=LAST_WORDS,
        )
        try:
            settings.load()
        except OSError as error:  # ssl.SSLError is one
            raise UserError(
                f"tls.cert={config.tls.cert} with tls.key={config.tls.key} cannot be used: {error}."
            ) from None
        self._server = uvicorn.Server(settings)
        self._thread: threading.Thread | None = None

    def start(self, ended: Callable[[], None]) -> None:
        """Serve from now on; `ended` is called when that is over, whyever."""

        def run() -> None:
            try:
                self._server.run(sockets=[self._listener])
            except (Exception, SystemExit):
                log.exception("HTTP has failed")
            finally:
                ended()

        self._thread = threading.Thread(target=run, name="http", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether somebody is being answered."""
        return bool(self._server.server_state.tasks)

    def stop(self) -> None:
        """Close idle connections at once and the others when their last answer is sent; return when it is done."""
        self._server.should_exit = True
        assert self._thread is not None, "HTTP was never started"
        self._thread.join(2.0 * LAST_WORDS)


def _netloc(host: str, listener: socket.socket) -> str:
    return f"[{host}]:{listener.getsockname()[1]}" if ":" in host else f"{host}:{listener.getsockname()[1]}"


@contextlib.contextmanager
def showing_progress() -> Iterator[Callable[[str], None]]:
    """Says on standard error what is being done: one live line in a terminal, else a line each."""
    console, began = Console(file=sys.stderr), time.monotonic()
    if console.is_terminal:
        with console.status("starting") as status:
            yield status.update
    else:
        yield lambda what: print(f"{time.monotonic() - began:6.1f} s  {what}", file=sys.stderr, flush=True)


@dataclasses.dataclass
class Process:
    """What is running, and what happens to it. The main thread hears signals in whatever it waits for."""

    config: ServeConfig
    service: Service
    http: Http
    happenings: queue.SimpleQueue[str] = dataclasses.field(default_factory=queue.SimpleQueue)
    first_signal: tuple[int, float] | None = None  # its number, and when it came (time.monotonic)
    _last_call: queue.SimpleQueue[None] = dataclasses.field(default_factory=queue.SimpleQueue)  # once signalled

    def run(self, build: Callable[[Callable[[str], None]], Worker]) -> int:
        """Serve until it is over; the exit code. Raises UserError if the model cannot be loaded."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self._hear(number))
        threading.Thread(target=self._end_in_time, name="end", daemon=True).start()
        self.http.start(ended=lambda: self.happenings.put("http"))
        log.info("listening on %s; /ready says when the model is there", self.http.url)
        with showing_progress() as progress:
            self.service.start(lambda: build(progress))
            threading.Thread(target=self._watch, name="watch", daemon=True).start()
            is_ready = self._next() == "ready"
        if is_ready:
            gc.freeze()  # the libraries' objects: going through them all stops every thread for some tenths of a second
            self._announce()
            while self._next() != "end":
                pass
        return self._finish()

    def _watch(self) -> None:
        if self.service.wait_ready():
            self.happenings.put("ready")
        self.service.wait()
        self.happenings.put("end")

    def _next(self) -> str:
        """What happens next: "ready" or "end"."""
        while True:
            patience = self.config.limits.grace + PATIENCE if self.first_signal else None
            try:
                what = self.happenings.get(timeout=patience)
            except queue.Empty:
                log.error("the worker does not come back; leaving without it")
                leave(1 if self.http.busy or self.config.grpc_port is not None else 0)
            if what == "http":
                log.error("HTTP is gone; nobody can be served any more")
                self.service.drain(0.0)
                return "end"
            if what != "signal":
                return what
            assert self.first_signal is not None
            name, grace = signal.Signals(self.first_signal[0]).name, self.config.limits.grace
            self.service.drain(grace)
            log.info("%s: finishing what runs, within %g s", name, grace)

    def _hear(self, number: int) -> None:
        """The first signal is passed on. The second ends the process here and now and says nothing: another thread may
        hold the log or the output."""
        now = time.monotonic()
        if self.first_signal is None:
            self.first_signal = number, now
            self.happenings.put("signal")
            self._last_call.put(None)
        elif number != self.first_signal[0] or now - self.first_signal[1] > ECHO:
            os._exit(128 + number)

    def _end_in_time(self) -> None:
        """In a thread: end the process when the first signal's time is up, whatever still runs."""
        self._last_call.get()
        time.sleep(self.config.limits.grace + ENOUGH)
        os._exit(0 if self.service.state == "stopped" else 1)

    def _announce(self) -> None:
        names = ", ".join(profile.name for profile in self.config.profiles)
        print(f"ready: {self.http.url} serves {self.config.name} ({names})", flush=True)

    def _finish(self) -> int:
        self.http.stop()
        if self.service.failure is not None and for_the_user(self.service.failure) is not None:
            raise self.service.failure
        return 0 if self.service.state == "stopped" and self.first_signal else 1


def serve(config: ServeConfig, listener: socket.socket, opened: Opened, pages: Pages | None = None) -> NoReturn:
    """Serve a model, and `pages` beside it, until a signal or a failure, and exit."""
    logging.basicConfig(level=logging.WARNING, handlers=[log_handler()])
    logging.getLogger("sla_jax").setLevel(logging.INFO)
    slots = {profile.name: profile.slots for profile in config.profiles}
    metrics = Metrics(slots, config.name)
    metrics.watch_compiling()
    service = Service(slots, config.limits, metrics)
    app = create_app(service, opened.model, opened.tokenizer, config, metrics, pages)
    app.openapi()  # made once, which takes too long for the event loop
    process = Process(config, service, Http(app, config, listener))
    with _grpc(config, service, opened):
        code = process.run(opened.worker)
    leave(code)


class Lines(logging.Formatter):
    """The log's lines; what a client wrote moves no cursor of who reads them in a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level and message."""
        return printable(super().format(record))


def log_handler() -> logging.Handler:
    """What writes the log: to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines("%(asctime)s %(levelname)s %(message)s"))
    return handler


@contextlib.contextmanager
def _grpc(config: ServeConfig, service: Service, opened: Opened) -> Iterator[None]:
    """JetStream's gRPC service beside HTTP, if its port was given."""
    if config.grpc_port is None:
        yield
        return
    from sla_jax.serving.jetstream import serve_grpc

    server = serve_grpc(service, opened.model, opened.tokenizer, config)
    try:
        yield
    finally:
        server.stop(0.5)


def leave(code: int) -> NoReturn:
    """Exit without waiting for threads: one may be inside a compiler or a device call that nothing can interrupt."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
