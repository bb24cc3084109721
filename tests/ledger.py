"""Counts where a test run's time goes, by module: tracing, lowering, compiling, reading the cache, child processes.

`tests/conftest.py` registers a `Ledger` in every process of a run. A worker of pytest-xdist hands its rows to the
controller, which prints one table at the end and writes it to `.cache/ledger.csv`. Seconds of JAX are exclusive: a
program that is traced while another one is traced counts once. `programs` are those that were lowered, `compiled` those
that the cache did not have.
"""

import collections
import csv
import dataclasses
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.monitoring
import pytest

DURATIONS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
    "/jax/compilation_cache/cache_retrieval_time_sec": "read",
}
COUNTS = {"/jax/compilation_cache/cache_misses": "compiled", "/jax/compilation_cache/cache_hits": "cached"}
ROWS_SHOWN = 40


@dataclasses.dataclass
class Account:
    """What one test module took: seconds by the clock, of CPU, of JAX by kind, of ended child processes; counts."""

    wall: float = 0.0
    cpu: float = 0.0
    trace: float = 0.0
    lower: float = 0.0
    compile: float = 0.0
    read: float = 0.0
    children: float = 0.0
    programs: int = 0
    compiled: int = 0
    cached: int = 0

    def add(self, other: dict[str, float]) -> None:
        """Add another account's figures to this one."""
        for name, value in other.items():
            setattr(self, name, getattr(self, name) + value)


class Ledger:
    """Listens to JAX and to pytest, and keeps one `Account` a test module."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        self.config, self.file = config, file
        self.accounts: dict[str, Account] = collections.defaultdict(Account)
        self.module = "(collection)"
        self.open = threading.local()  # .spans: (end, seconds) of what has ended in this thread, for a span around it
        jax.monitoring.register_event_duration_secs_listener(self.on_duration)
        jax.monitoring.register_event_listener(self.on_event)

    def on_duration(self, event: str, duration_secs: float, **details: str | int) -> None:
        """Add a span that has just ended, less the spans inside it."""
        if event not in DURATIONS:
            return
        spans: list[tuple[float, float]] = self.open.__dict__.setdefault("spans", [])
        now, inside = time.monotonic(), 0.0
        while spans and spans[-1][0] > now - duration_secs:
            inside += spans.pop()[1]
        spans[:] = [*spans[-64:], (now, duration_secs)]
        kind, account = DURATIONS[event], self.accounts[self.module]
        account.add({kind: max(duration_secs - inside, 0.0), "programs": float(kind == "lower")})

    def on_event(self, event: str, **details: str | int) -> None:
        """Count a program that the cache had, or had not."""
        if event in COUNTS:
            self.accounts[self.module].add({COUNTS[event]: 1})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Book a test, with the fixtures that it sets up and takes down, on its module."""
        self.module = item.location[0]
        began, cpu, children = time.monotonic(), time.process_time(), _children()
        result = yield
        wall, cpu = time.monotonic() - began, time.process_time() - cpu
        self.accounts[self.module].add({"wall": wall, "cpu": cpu, "children": _children() - children})
        return result

    def pytest_sessionfinish(self) -> None:
        """Hand the rows of a worker to the controller."""
        output: dict[str, Any] | None = getattr(self.config, "workeroutput", None)
        if output is not None:
            output["ledger"] = {module: dataclasses.asdict(account) for module, account in self.accounts.items()}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add the rows of a worker that has ended."""
        for module, account in getattr(node, "workeroutput", {}).get("ledger", {}).items():
            self.accounts[module].add(account)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the table, most seconds first, and write all of it to a file."""
        names = [field.name for field in dataclasses.fields(Account)]
        rows = sorted(self.accounts.items(), key=lambda row: -row[1].wall)
        total = Account()
        for _, account in rows:
            total.add(dataclasses.asdict(account))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("w", newline="") as out:
            csv.writer(out).writerows(
                [["module", *names], *([module, *dataclasses.astuple(account)] for module, account in rows)]
            )
        terminalreporter.section("ledger: seconds by module (children: CPU seconds of processes started by the tests)")
        terminalreporter.write_line(f"{'module':<46}" + "".join(f"{name:>9}" for name in names))
        for module, account in [("all", total), *rows[:ROWS_SHOWN]]:
            figures = (f"{value:>9.0f}" for value in dataclasses.astuple(account))
            terminalreporter.write_line(f"{module.removeprefix('tests/'):<46}" + "".join(figures))


def _children() -> float:
    """CPU seconds of the child processes that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
