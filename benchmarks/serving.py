"""`python -m benchmarks.serving`: streamed requests against an OpenAI-compatible server; one row per load.

Time to first text, time between pieces of text, tokens/s of one request and of all, explored ÷ committed tokens, errors
by status. Against our own server it also reads /metrics before and after each run: programs compiled meanwhile (there
should be none), and the host's share of the time that the service's steps took. Ratios are to the row of the profile
called `--baseline` at the same concurrency, measured in the same call. Ctrl-C prints what was measured so far.
"""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import jax
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID, TextColumn

from benchmarks.load import Load, Prompt, Sample, Target, read_metrics, run, summary
from benchmarks.report import ROOT, markdown, show, write_json, write_page
from sla_jax.config import parse
from sla_jax.errors import UserError, front_door
from sla_jax.files import read_rows
from sla_jax.machine import machine

# series of our server's /metrics, see sla_jax/serving/metrics.py
COMPILED, COMMITTED = "sla_jax_compiled_programs_total", "sla_jax_committed_tokens_total"
HOST, DEVICE = "sla_jax_host_seconds_sum", "sla_jax_device_wait_seconds_sum"
QUESTIONS = (
    "How do I apologize to a friend?",
    "Explain why the sky is blue to a child of eight.",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "What should I cook tonight with rice, eggs and spinach?",
    "Give me three reasons to learn a second language.",
    "How does a bicycle stay upright?",
    "Plan a quiet weekend in a small town by the sea.",
    "What is the difference between weather and climate?",
)
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Load an OpenAI-compatible server with streamed requests and report latencies and rates."""

    url: str = "http://127.0.0.1:8000"
    """The server, without /v1."""
    profile: str | None = None
    """Search profiles of our server, with commas between; absent for any other server."""
    concurrency: str = "8"
    """Requests in flight, with commas between several."""
    requests: int = 64
    """Requests per row."""
    warmup: int = 2
    """Requests before each row that are not counted."""
    model: str | None = None
    """Its name there; the first of /v1/models unless said."""
    prompts: Path | None = None
    """JSON lines, each {"messages": [...]} or {"prompt": "..."}; a few short questions unless said."""
    max_tokens: int = 128
    """Longest answer."""
    temperature: float = 0.0
    """0: the same answers every time."""
    ignore_eos: bool = False
    """Go on to max-tokens, so that every answer has the same length (an extension that not every server has)."""
    usage: bool = True
    """Ask for stream_options.include_usage; chunks are counted where the server sends no usage."""
    rate: float | None = None
    """Requests a second that arrive at random; as fast as they are answered unless said."""
    seed: int = 0
    """Of the arrivals."""
    timeout: float = 600.0
    """Seconds for one request."""
    api_key: str | None = None
    """Sent as Authorization: Bearer."""
    baseline: str = "greedy"
    """The profile whose rows the ratios are to."""
    json: Path | None = None
    """Where the figures go."""
    write_docs: bool = False
    """Replace the table in docs/serving.md."""

    def __post_init__(self) -> None:
        if self.requests < 1 or self.warmup < 0 or self.max_tokens < 1:
            raise UserError("requests and max-tokens are at least 1, warmup at least 0.")
        if self.rate is not None and self.rate <= 0:
            raise UserError(f"rate is {self.rate}; it has to be above 0, or absent for a closed loop.")
        if not self.concurrency.replace(",", "").isdigit() or min(self.concurrencies) < 1:
            raise UserError(f"concurrency is {self.concurrency!r}; expected numbers from 1 on with commas: 1,4,8.")

    @property
    def concurrencies(self) -> list[int]:
        """One or more."""
        return [int(word) for word in self.concurrency.split(",") if word]

    @property
    def profiles(self) -> list[str | None]:
        """One or more; None asks for none."""
        return [name.strip() for name in self.profile.split(",")] if self.profile else [None]


def main(argv: list[str]) -> None:
    """Measure, print, write."""
    options = parse(Options, argv, prog="python -m benchmarks.serving", description=str(Options.__doc__))
    jax.config.update("jax_platforms", "cpu")  # the machine is described without touching the server's accelerator
    prompts = read_prompts(options.prompts)
    server, rows, whole = asyncio.run(measure(options, prompts))
    if not rows:
        raise UserError("nothing was measured.")
    found = tables(rows, options.baseline)
    title = f"{server['model']} at {options.url}, {options.requests} requests a row, {arrivals(options)}"
    print(title if whole else f"{title}; interrupted")
    for name, lines in found.items():
        show(name, lines)
    print(f"tokens counted by: {', '.join(sorted({row['tokens_counted_by'] for row in rows}))}")
    if options.json:
        paths = {"prompts": str(options.prompts or "built in"), "json": str(options.json)}
        asked = {**dataclasses.asdict(options), **paths, "api_key": None}
        write_json(options.json, {"server": server, "options": asked, "complete": whole, "rows": rows})
    if options.write_docs and whole:
        where = machine()
        about = f"{where['cpu']}, {where['cores']} cores. {title}; at most {options.max_tokens} tokens an answer."
        write_page(
            ROOT / "docs" / "serving.md",
            "serving",
            "\n\n".join([about, *(markdown(name, lines) for name, lines in found.items())]),
        )


def arrivals(options: Options) -> str:
    """How requests came, in words."""
    return f"{options.rate:g} arrivals a second" if options.rate else "closed loop"


def read_prompts(path: Path | None) -> list[Prompt]:
    """Prompts of a file of rows. Raises UserError that names the row."""
    if path is None:
        return [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    found: list[Prompt] = []
    for place, row in read_rows(path):
        if not isinstance(row, dict) or len(row.keys() & {"messages", "prompt"}) != 1:
            raise UserError(f'{place}: expected {{"messages": [...]}} or {{"prompt": "..."}}.')
        found.append({name: row[name] for name in ("messages", "prompt") if name in row})
    if not found:
        raise UserError(f"{path} is empty.")
    return found


async def measure(options: Options, prompts: Sequence[Prompt]) -> tuple[Row, list[Row], bool]:
    """The server, a row for every profile at every concurrency, and whether all of them were measured to the end."""
    model = options.model or await first_model(options)
    server = {"url": options.url, "model": model}
    rows: list[Row] = []
    columns = (TextColumn("{task.description}"), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for concurrency in options.concurrencies:
            for profile in options.profiles:
                task = progress.add_task(f"{profile or model}, concurrency {concurrency}", total=options.requests)
                row, whole = await measure_row(
                    options, target(options, model, profile), concurrency, prompts, progress, task
                )
                rows += [row] if row["answered"] or row["errors"] else []
                if not whole:
                    return server, rows, False
    return server, rows, True


def target(options: Options, model: str, profile: str | None) -> Target:
    """What one row asks for."""
    names = ("url", "max_tokens", "temperature", "ignore_eos", "usage", "timeout", "api_key")
    return Target(model=model, profile=profile, **{name: getattr(options, name) for name in names})


async def measure_row(
    options: Options,
    target: Target,
    concurrency: int,
    prompts: Sequence[Prompt],
    progress: Progress,
    task: TaskID,
) -> tuple[Row, bool]:
    """The figures of one load; False beside them if Ctrl-C cut it short."""
    samples: list[Sample] = []

    def done(sample: Sample) -> None:
        samples.append(sample)
        progress.advance(task)

    before: Mapping[str, float] = {}
    whole = True
    try:
        await run(target, prompts, Load(options.warmup, concurrency), lambda sample: None)
        before = await scrape(target)
        await run(target, prompts, Load(options.requests, concurrency, options.rate, options.seed), done)
    except asyncio.CancelledError:
        whole = False
    after = await scrape(target) if whole else {}
    about = {"profile": target.profile, "concurrency": concurrency, "requests": len(samples)}
    return {**about, **summary(samples), "server": spent(before, after)}, whole


async def first_model(options: Options) -> str:
    """The first name in /v1/models. Raises UserError if nobody answers there."""
    try:
        async with target(options, "", None).client() as client:
            answer = await client.get("/v1/models")
            answer.raise_for_status()
            return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError) as error:
        raise UserError(
            f"{options.url}/v1/models gives no model ({error}); is the server there? --model names one."
        ) from None


async def scrape(target: Target) -> dict[str, float]:
    """The server's own figures; none if it has none."""
    try:
        async with target.client() as client:
            answer = await client.get("/metrics")
            return read_metrics(answer.text) if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float] | None:
    """What our server did between two scrapes; None if it is not ours."""
    names = (COMPILED, COMMITTED, HOST, DEVICE)
    if not all(name in scrape for name in names for scrape in (before, after)):
        return None
    compiled, committed, host, device = (after[name] - before[name] for name in names)
    return {
        "compiled": compiled,
        "host_seconds_per_token": host / committed if committed else 0.0,
        "host_share": host / (host + device) if host + device else 0.0,
    }


def tables(rows: Sequence[Row], baseline: str) -> dict[str, list[dict[str, str]]]:
    """Figures as text, times and rates; ratios to the baseline's row of the same concurrency."""
    base = {row["concurrency"]: row for row in rows if row["profile"] == baseline}
    found: dict[str, list[dict[str, str]]] = {"Times": [], "Rates": []}
    for row in rows:
        head = {"profile": row["profile"] or "-", "in flight": str(row["concurrency"])}
        other = base.get(row["concurrency"], {})
        found["Times"].append(head | times(row, other.get("ttft_seconds", {}), baseline))
        found["Rates"].append(head | rates(row, other.get("tokens_per_second"), baseline))
    return found


def times(row: Row, base: Mapping[str, float], baseline: str) -> dict[str, str]:
    """How long requests took."""
    return {
        "answered": str(row["answered"]),
        "errors": ", ".join(f"{count}× {status}" for status, count in row["errors"].items()),
        "TTFT ms p50/90/99": triple(row["ttft_seconds"]),
        f"TTFT p50 ÷ {baseline}": ratio(row["ttft_seconds"].get("p50"), base.get("p50")),
        "between chunks ms p50/90/99": triple(row["inter_chunk_seconds"]),
    }


def rates(row: Row, base: float | None, baseline: str) -> dict[str, str]:
    """How much was done in the time; the last two are our own server's figures."""
    explored, server = row["explored_per_committed"], row["server"]
    return {
        "tokens/s of one, p50": f"{row['tokens_per_second_of_a_request'].get('p50', 0.0):.1f}",
        "tokens/s of all": f"{row['tokens_per_second']:.1f}",
        f"all ÷ {baseline}": ratio(row["tokens_per_second"], base),
        "explored ÷ committed": "" if explored is None else f"{explored:.1f}",
        "compiled": f"{server['compiled']:.0f}" if server else "",
        "host share": f"{100 * server['host_share']:.1f} %" if server else "",
    }


def triple(values: Mapping[str, float]) -> str:
    """Three percentiles of seconds, in milliseconds."""
    return "/".join(f"{1e3 * value:.0f}" for value in values.values())


def ratio(value: float | None, base: float | None) -> str:
    """value ÷ base where there are both."""
    return f"{value / base:.2f}" if value and base else ""


if __name__ == "__main__":
    front_door(main)
