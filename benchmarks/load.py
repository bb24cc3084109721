"""A client that loads an OpenAI-compatible server with streamed requests and notes when every chunk came.

A closed loop keeps a number of requests in flight; with a rate, requests arrive at random (Poisson, seeded) instead, at
most that many are in flight, and a request's clock runs from its arrival, so that waiting here is counted too.
"""

import asyncio
import collections
import dataclasses
import json
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import httpx
import numpy as np

PERCENTILES = (50, 90, 99)
Prompt = Mapping[str, Any]  # {"messages": […]} for chat completions, {"prompt": …} for completions
Done = Callable[["Sample"], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked of which server."""

    url: str
    model: str
    profile: str | None = None
    max_tokens: int = 128
    temperature: float = 0.0
    ignore_eos: bool = False
    usage: bool = True
    timeout: float = 600.0
    api_key: str | None = None

    def client(self) -> httpx.AsyncClient:
        """Connections to the server: as many as there are requests; none is taken from a proxy's settings."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, limits=limits, timeout=self.timeout, trust_env=False
        )

    def request(self, prompt: Prompt) -> tuple[str, dict[str, Any]]:
        """Path and body for a prompt. Nothing beyond OpenAI's fields unless a profile or ignore_eos is asked for."""
        body = {
            "model": self.model,
            **prompt,
            "stream": True,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }
        if self.usage:
            body["stream_options"] = {"include_usage": True}
        if self.profile:
            body["search"] = {"profile": self.profile}
        if self.ignore_eos:
            body["ignore_eos"] = True
        return "/v1/chat/completions" if "messages" in prompt else "/v1/completions", body


class Sample(NamedTuple):
    """One request. Times are seconds of `time.perf_counter`."""

    status: str  # "ok", an HTTP status, or what went wrong
    began: float
    ended: float
    chunks: tuple[float, ...] = ()  # when each piece of text came
    tokens: int = 0
    explored: int | None = None
    by_usage: bool = False  # tokens are the server's own count, not the number of chunks

    @property
    def first(self) -> float | None:
        """Seconds to the first text."""
        return self.chunks[0] - self.began if self.chunks else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece of text and the next."""
        return [b - a for a, b in zip(self.chunks, self.chunks[1:], strict=False)]

    @property
    def rate(self) -> float:
        """Tokens a second, from sending to the end."""
        return self.tokens / (self.ended - self.began)


async def ask(client: httpx.AsyncClient, target: Target, prompt: Prompt, began: float | None = None) -> Sample:
    """Send one request and read its stream to the end; whatever happens becomes a sample."""
    began = time.perf_counter() if began is None else began
    path, body = target.request(prompt)
    chunks: list[float] = []
    usage: dict[str, Any] | None = None
    status = "cut off"
    try:
        async with asyncio.timeout(target.timeout), client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                return Sample(str(response.status_code), began, time.perf_counter())
            async for event in events(response):
                if event is None:
                    status = "ok"
                    break
                if "error" in event:
                    status = "error event"
                    break
                usage = event.get("usage") or usage
                if any(text_of(choice) for choice in event.get("choices", ())):
                    chunks.append(time.perf_counter())
    except (TimeoutError, httpx.TimeoutException):
        status = "timeout"
    except httpx.HTTPError:
        status = "connection"
    except ValueError:
        status = "not JSON"
    details = (usage or {}).get("completion_tokens_details") or {}
    tokens = usage["completion_tokens"] if usage else len(chunks)
    explored = details.get("explored_tokens")
    return Sample(status, began, time.perf_counter(), tuple(chunks), tokens, explored, usage is not None)


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any] | None]:
    """The objects of a server-sent stream; None for [DONE]."""
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data = line[5:].strip()
            yield None if data == "[DONE]" else json.loads(data)


def text_of(choice: Mapping[str, Any]) -> str:
    """The text that a chunk's choice brings, chat or plain."""
    delta = choice.get("delta")
    return (delta.get("content") if delta is not None else choice.get("text")) or ""


class Load(NamedTuple):
    """How the server is loaded."""

    requests: int
    concurrency: int
    rate: float | None = None
    seed: int = 0

    def waits(self) -> list[float]:
        """Seconds before each request."""
        chance = random.Random(self.seed)
        return [chance.expovariate(self.rate) if self.rate else 0.0 for _ in range(self.requests)]


async def run(target: Target, prompts: Sequence[Prompt], load: Load, done: Done) -> None:
    """Send `load.requests` requests, prompts in turn, and call `done` with every sample as it ends."""
    places = asyncio.Semaphore(load.concurrency)

    async def one(client: httpx.AsyncClient, prompt: Prompt, arrived: float | None) -> None:
        async with places:
            done(await ask(client, target, prompt, arrived))

    async with target.client() as client, asyncio.TaskGroup() as group:
        for number, wait in enumerate(load.waits()):
            await asyncio.sleep(wait)
            arrived = time.perf_counter() if load.rate else None
            group.create_task(one(client, prompts[number % len(prompts)], arrived))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99, interpolated; nothing of nothing."""
    if not values:
        return {}
    return {f"p{q}": float(v) for q, v in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """The figures of one run: times and rates over answered requests, errors by status."""
    good = [sample for sample in samples if sample.status == "ok"]
    tokens = sum(sample.tokens for sample in good)
    explored = [sample.explored for sample in good if sample.explored is not None]
    span = max(s.ended for s in good) - min(s.began for s in good) if good else 0.0
    counted = {sample.by_usage for sample in good}
    return {
        "answered": len(good),
        "errors": dict(collections.Counter(sample.status for sample in samples if sample.status != "ok")),
        "seconds": span,
        "tokens": tokens,
        "tokens_counted_by": "chunks" if counted == {False} else "usage" if counted == {True} else "both",
        "ttft_seconds": percentiles([sample.first for sample in good if sample.first is not None]),
        "inter_chunk_seconds": percentiles([gap for sample in good for gap in sample.gaps]),
        "tokens_per_second_of_a_request": percentiles([sample.rate for sample in good]),
        "tokens_per_second": tokens / span if span else 0.0,
        "explored_per_committed": sum(explored) / tokens if explored and tokens else None,
    }


METRIC = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(?P<value>[^\s]+)")


def read_metrics(text: str) -> dict[str, float]:
    """Prometheus text → the sum over labels of every series."""
    found: dict[str, float] = collections.defaultdict(float)
    for line in text.splitlines():
        if match := METRIC.match(line):
            found[match["name"]] += float(match["value"])
    return dict(found)
