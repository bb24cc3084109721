"""`python -m benchmarks.soak MINUTES`: a server under twice the load that it can bear, and what it must never do then.

Twice as many clients as there are slots send what `mix.py` draws: again at once when a request has ended, and within a
second when it was refused. Beside them one asks for /health all the time, and every ten seconds the questions of before
the load are asked again, whose answers have to be the same. At the end there is a table; the exit code is 1 if a bound
is broken.

It starts a server of its own, unless `--server` names one of ours that is there; `--tiny` starts the tests' toy.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import itertools
import math
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load import Target
from benchmarks.mix import CHAT, FAILURES, Clients, send
from benchmarks.report import ROOT, markdown, show, write_page
from sla_jax.errors import UserError, front_door
from sla_jax.machine import machine

OVERLOAD = 2  # clients for each slot
SETTLED = 60.0  # seconds until caches are full: the memory of the next as many has to be that of the last as many
GROWTH = 1.05  # of the memory between the two
LATE = 0.05  # of what was taken may run out of its time
EVERY = 10.0  # seconds between two lines, and between two rounds of probes
SLACK = 30.0  # seconds beyond limits.timeout after which a request hangs
TRIES = 200  # of a probe that is refused
OUTCOMES = "sla_jax_requests_total"


@dataclasses.dataclass
class Observed:
    """What was seen."""

    ends: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)  # (kind, word)
    seconds: float = 0.0
    longest: float = 0.0  # seconds of a request
    health: float = 0.0  # longest seconds of /health
    memory: list[tuple[float, float]] = dataclasses.field(default_factory=list)  # (seconds since the begin, MB)
    probes: list[bool] = dataclasses.field(default_factory=list)  # the same as before
    before: dict[str, float] = dataclasses.field(default_factory=dict)
    after: dict[str, float] = dataclasses.field(default_factory=dict)

    def spent(self, name: str) -> float:
        """How much a counter of the server has grown."""
        return self.after.get(name, 0.0) - self.before.get(name, 0.0)

    def words(self, word: str) -> int:
        """How many requests ended so."""
        return sum(count for (_, other), count in self.ends.items() if other == word)

    @property
    def growth(self) -> float | None:
        """The last minute's memory ÷ the second's; None for a short run, or without a process to look at."""
        second = [size for when, size in self.memory if SETTLED <= when < 2 * SETTLED]
        end = self.memory[-1][0] if self.memory else 0.0
        last = [size for when, size in self.memory if when > end - SETTLED]
        return statistics.median(last) / statistics.median(second) if end >= 3 * SETTLED else None


class Bound(NamedTuple):
    """A line of the verdict."""

    what: str
    seen: str
    allowed: str
    holds: bool


def verdict(figures: Observed) -> list[Bound]:
    """What was seen beside what is allowed."""
    outcomes = {name.split()[1]: figures.spent(name) for name in figures.after if name.startswith(f"{OUTCOMES} ")}
    taken, late, refused = sum(outcomes.values()), outcomes.get("timeout", 0.0), outcomes.get("refused", 0.0)
    share = late / taken if taken else 0.0
    compiled, growth = figures.spent("sla_jax_compiled_programs_total"), figures.growth
    same, asked = sum(figures.probes), len(figures.probes)
    answered, tokens = figures.words("answered"), figures.spent("sla_jax_committed_tokens_total")
    size = f"{growth:.3f} ({figures.memory[-1][1]:.0f} MB)" if growth else "too short a run"
    return [
        *(
            Bound(f"requests that {said}", f"{figures.words(word)}", "0", not figures.words(word))
            for word, said in FAILURES.items()
        ),
        Bound("probes answered as before the load", f"{same} of {asked}", "all", same == asked > 0),
        Bound("programs compiled under load", f"{compiled:.0f}", "0", compiled == 0),
        Bound(
            "ran out of time, of those taken", f"{late:.0f} of {taken:.0f}: {share:.1%}", f"{LATE:.0%}", share <= LATE
        ),
        Bound("memory of the last minute ÷ the second", size, f"{GROWTH}", growth is None or growth <= GROWTH),
        Bound("taken and then refused, for no slot came in time", f"{refused:.0f}", "", True),
        Bound("longest wait for /health", f"{figures.health:.2f} s", "", True),
        Bound("longest request", f"{figures.longest:.1f} s", "", True),
        Bound("answered", f"{answered}, {answered / figures.seconds:.2f} a second", "", True),
        Bound("tokens a second", f"{tokens / figures.seconds:.1f}", "", True),
    ]


class Soak:
    """One run against one server. `limit`: its limits.timeout."""

    def __init__(self, client: httpx.AsyncClient, options: argparse.Namespace, pid: int | None):
        self._client, self._options, self._pid = client, options, pid
        self.figures = Observed()
        self._numbers = itertools.count()
        self._began = self._until = time.monotonic()

    async def run(self) -> Observed:
        """Ask the probes, load the server, ask again."""
        figures = self.figures
        models = await self._models()
        self._probes = probes(models)
        expected = [await self._probe(body) for body in self._probes]
        figures.before = await self._scrape()
        clients = self._options.workers or OVERLOAD * int(figures.before["sla_jax_slots"])
        self._began = time.monotonic()
        self._until = self._began + 60 * self._options.minutes
        chances = [random.Random(f"{self._options.seed} {number}") for number in range(clients)]
        await self._beside(
            asyncio.gather(*(self._client_of(Clients(models, chance), chance) for chance in chances)), expected
        )
        figures.seconds = time.monotonic() - self._began
        figures.probes += [
            await self._probe(body) == answer for body, answer in zip(self._probes, expected, strict=True)
        ]
        figures.after = await self._scrape()
        return figures

    async def _beside(self, load: asyncio.Future[Any], expected: list[str]) -> None:
        """Watch while the load lasts; what goes wrong in a watch ends the run."""
        watches = [
            asyncio.ensure_future(watch)
            for watch in (self._health(), self._memory(), self._again(expected), self._lines())
        ]
        try:
            done, _ = await asyncio.wait([load, *watches], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await load
        finally:
            for watch in [*watches, load]:
                watch.cancel()
            await asyncio.gather(*watches, load, return_exceptions=True)

    # ---- the load ----

    async def _client_of(self, clients: Clients, chance: random.Random) -> None:
        options = self._options
        while time.monotonic() < self._until and (number := next(self._numbers)) < (options.requests or math.inf):
            began, case = time.monotonic(), clients.draw()
            word = await send(self._client, case, f"soak-{number}", options.limit + SLACK)
            self.figures.ends[case.kind, word] += 1
            self.figures.longest = max(self.figures.longest, time.monotonic() - began)
            if word == "refused":
                await asyncio.sleep(chance.random())

    # ---- what is watched beside it ----

    async def _health(self) -> None:
        while True:
            began = time.monotonic()
            await self._client.get("/health")
            self.figures.health = max(self.figures.health, time.monotonic() - began)
            await asyncio.sleep(0.02)

    async def _memory(self) -> None:
        while self._pid is not None:
            self.figures.memory.append((time.monotonic() - self._began, resident_mb(self._pid)))
            await asyncio.sleep(1.0)
        await asyncio.Event().wait()

    async def _again(self, expected: list[str]) -> None:
        while True:
            for body, answer in zip(self._probes, expected, strict=True):
                self.figures.probes.append(await self._probe(body) == answer)
            await asyncio.sleep(EVERY)

    async def _lines(self) -> None:
        for number in itertools.count(1):
            await asyncio.sleep(EVERY)
            figures = self.figures
            words = collections.Counter[str]()
            for (_, word), count in figures.ends.items():
                words[word] += count
            said = ", ".join(f"{count} {word}" for word, count in words.most_common())
            memory = f"{figures.memory[-1][1]:.0f} MB, " if figures.memory else ""
            print(
                f"{number * EVERY:6.0f} s  {memory}/health {figures.health:.2f} s, {said}", file=sys.stderr, flush=True
            )

    # ---- questions to the server ----

    async def _models(self) -> list[dict[str, Any]]:
        answer = await self._client.get("/v1/models")
        if answer.status_code != 200:
            raise UserError(f"/v1/models answered {answer.status_code}: {answer.text[:200]} Is --key the server's?")
        models: list[dict[str, Any]] = answer.json()["data"]
        if not any(model.get("search") for model in models):
            raise UserError("/v1/models names no search; this is for a server that serve.py started.")
        return models

    async def _probe(self, body: dict[str, Any]) -> str:
        """The answer to a probe, which has its turn sooner or later."""
        for _ in range(TRIES):
            answer = await self._client.post(CHAT, json=body, timeout=self._options.limit + SLACK)
            if answer.status_code == 200:
                return str(answer.json()["choices"][0]["message"]["content"])
            if answer.status_code not in (408, 503):
                break
            await asyncio.sleep(0.5)
        return f"no answer ({answer.status_code})"

    async def _scrape(self) -> dict[str, float]:
        """The server's counters, summed; and those with an outcome by `name outcome`."""
        found = collections.defaultdict[str, float](float)
        text = (await self._client.get("/metrics")).text
        for sample in (sample for family in text_string_to_metric_families(text) for sample in family.samples):
            found[sample.name] += sample.value
            if "outcome" in sample.labels:
                found[f"{sample.name} {sample.labels['outcome']}"] += sample.value
        return dict(found)


def probes(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Questions whose answers depend on nothing but themselves: every profile that streams, and a sampled one."""
    names = [model["id"] for model in models[1:] if model["search"]["streams"]]
    body = {"messages": [{"role": "user", "content": "Name three fruits."}], "max_tokens": 24}
    return [{**body, "model": name} for name in names] + [{**body, "model": names[0], "temperature": 0.9, "seed": 5}]


def resident_mb(pid: int) -> float:
    """The memory that a process holds, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# ---- the server, and what is said of it ----


@contextlib.contextmanager
def own_server(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """(URL, process) of a server that is ready, ended afterwards. Raises UserError if it fails, and then or before."""
    program = (
        ["-m", "tests.serving.toy_server", "well"] if options.tiny else ["serve.py", options.config, "--port", "0"]
    )
    limit = [] if options.tiny else ["--limits.timeout", f"{options.limit}"]
    command = [sys.executable, *program, *limit]
    log = Path("runs/soak.log")
    log.parent.mkdir(exist_ok=True)
    with (
        log.open("w") as said,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            ready = next((found for line in server.stdout if (found := re.match(r"ready: (\S+)", line))), None)
            if ready is None:
                raise UserError(f"{' '.join(program)} did not get ready; {log} has what it said.")
            yield ready[1], server.pid
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    if server.returncode:
        raise UserError(f"the server ended with {server.returncode}; {log} has what it said.")


async def soak(url: str, pid: int | None, options: argparse.Namespace) -> Observed:
    """Run against a server that is there. Raises UserError where nobody answers."""
    target = Target(url=url, model="", api_key=options.key)
    async with target.client() as client:
        try:
            return await Soak(client, options, pid).run()
        except httpx.TransportError as error:
            raise UserError(f"{url} cannot be reached any more: {error or type(error).__name__}") from None


def tables(figures: Observed) -> dict[str, list[dict[str, str]]]:
    """The verdict, and how the requests of every kind ended."""
    words = sorted({word for _, word in figures.ends})
    return {
        "Bounds": [
            {
                "": line.what,
                "seen": line.seen,
                "allowed": line.allowed,
                "holds": "" if not line.allowed else "yes" if line.holds else "NO",
            }
            for line in verdict(figures)
        ],
        "Requests": [
            {"kind": kind, **{word: f"{figures.ends[kind, word] or ''}" for word in words}}
            for kind in sorted({kind for kind, _ in figures.ends})
        ],
    }


def main(argv: list[str]) -> None:
    """Load, print, and exit with 1 if a bound is broken."""
    options = parsed(argv)
    server = contextlib.nullcontext((options.server, options.pid)) if options.server else own_server(options)
    with server as (url, pid):
        figures = asyncio.run(soak(url, pid, options))
    found = tables(figures)
    for name, rows in found.items():
        show(name, rows)
    if options.write_docs:
        where = machine()
        asked = f"`limits.timeout` {options.limit:g}, {figures.seconds / 60:.0f} minutes"
        about = f"{where['cpu']}, {where['cores']} cores. `{options.config}`, {asked}."
        write_page(
            ROOT / "docs" / "serving.md",
            "soak",
            "\n\n".join([about, *(markdown(name, rows) for name, rows in found.items())]),
        )
    if not all(line.holds for line in verdict(figures)):
        sys.exit(1)


def parsed(argv: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long")
    parser.add_argument("--requests", type=int, help="end after so many requests, if that is sooner")
    parser.add_argument("--config", default="configs/serve/smollm2.yaml", help="what its own server serves")
    parser.add_argument(
        "--limit", type=float, default=120.0, help="seconds for a request: limits.timeout of the server"
    )
    parser.add_argument("--server", help="http://HOST:PORT of a server of ours that is there, instead of its own")
    parser.add_argument("--pid", type=int, help="that server's process on this machine, whose memory is looked at")
    parser.add_argument("--key", help="sent as Authorization: Bearer")
    parser.add_argument("--workers", type=int, help=f"clients; {OVERLOAD} for each slot of the server unless given")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--tiny", action="store_true", help="its own server is the tests' toy")
    parser.add_argument("--write-docs", action="store_true", help="replace the tables in docs/serving.md")
    options = parser.parse_args(argv)
    if options.minutes <= 0 or min(count for count in (options.requests, options.workers, 1) if count is not None) < 1:
        raise UserError("MINUTES is above 0, and --requests and --workers are at least 1.")
    return options


if __name__ == "__main__":
    front_door(main)
