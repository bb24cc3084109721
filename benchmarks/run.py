"""`python -m benchmarks.run` (make bench): a real model on this machine, beside its baselines and the physical floor.

One process measures everything turn by turn and compares medians. Steps, not whole answers, are timed: a search is in
its steady state (all lanes alive), so tokens/s is chunk ÷ round, and prefill stands on its own.

*Tax*: a round's step ÷ a step of plain batch decoding with as many rows, the same cache layout, no reward, no search.
*Floor*: the larger of bytes ÷ bandwidth and flops ÷ matmul rate, both rates measured in the same run.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import minimal, torch_side
from benchmarks.report import ROOT, markdown, show, write_json, write_page
from benchmarks.timing import Plain, Rounds, Task, bandwidth, floor_seconds, matmul_rate, turns
from sla_jax.checkpoint import store
from sla_jax.checkpoint.channel_file import load_channel
from sla_jax.config import parse
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.sla import SLA
from sla_jax.errors import UserError, front_door
from sla_jax.loading import engine
from sla_jax.machine import machine
from sla_jax.model import forward
from sla_jax.model.channel import init_channel
from sla_jax.model.config import ChannelConfig, ModelConfig
from sla_jax.model.policy import Policy, unstack, with_channel, without_channel
from sla_jax.text import load_tokenizer

SEARCHES: dict[str, Greedy | SLA] = {
    "greedy": Greedy(chunk=10),
    "SLA 2/10/0": SLA(width=2, chunk=10, depth=0),
    "SLA 2/10/2": SLA(width=2, chunk=10, depth=2),
    "SLA 4/8/1": SLA(width=4, chunk=8, depth=1),
}
SHORT = 64  # prompt tokens wherever baselines are compared
TEXT = (
    "A bridge carries a road over a river. The first bridges were trees that had fallen across a stream; later people "
    "laid stone slabs on piers, and the Romans built arches that still stand. Steel made longer spans possible, and "
    "cables longer ones still. "
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure parity, speed, the search tax and the distance to the floor."""

    checkpoint: Path = ROOT / ".cache" / "smollm2"
    """A checkpoint directory; `python convert.py import smollm2 .cache/smollm2` makes the default one."""
    channel: Path = ROOT / "channels" / "smollm2-hh" / "channel.safetensors"
    """A channel for it, when the checkpoint has none; a random one when this file is not there."""
    prefixes: tuple[int, ...] = (64, 512, 2048)
    """Prompt lengths in tokens."""
    repeats: int = 9
    """Turns; figures are medians over them."""
    torch_steps: int = 16
    """Tokens that transformers decodes a turn."""
    json: Path = ROOT / "benchmarks" / "results" / "run.json"
    """Where the figures go."""
    write_docs: bool = False
    """Replace the tables in docs/benchmarks.md."""


class Subject(NamedTuple):
    """What is measured."""

    directory: Path
    stacked: Policy
    unrolled: Policy
    bare: Policy  # unrolled, without the channel
    config: ModelConfig
    channel: str  # where the channel is from
    text: list[int]


def main(argv: list[str]) -> None:
    """Measure, print, write."""
    options = parse(Options, argv, prog="python -m benchmarks.run", description=str(Options.__doc__))
    began = time.perf_counter()
    subject = load(options)
    model, channel = torch_side.build(subject.directory, subject.stacked, subject.config)
    tables = {"Parity with transformers + torch, float32 (largest error)": parity(subject, model, channel)}
    rates = bandwidth(options.repeats), matmul_rate(options.repeats)
    print(f"read {rates[0] / 1e9:.1f} GB/s, matmul {rates[1] / 1e9:.0f} GFLOP/s", flush=True)
    tables["Searches, one request"] = searches(subject, options, rates)
    tables[f"Engines at prefix {SHORT}, tokens/s over all rows"] = engines(subject, options, model)
    for title, rows in tables.items():
        show(title, rows)
    took = time.perf_counter() - began
    about = {"channel": subject.channel, "read_gb_s": rates[0] / 1e9, "matmul_gflop_s": rates[1] / 1e9, "seconds": took}
    print(f"channel: {subject.channel}; {took:.0f} s in all")
    write_json(options.json, {**about, "tables": tables})
    if options.write_docs:
        write_page(ROOT / "docs" / "benchmarks.md", "run", page(about, tables))


def load(options: Options) -> Subject:
    """The checkpoint in every layout that is measured. Raises UserError when it is not there."""
    if not store.is_checkpoint(options.checkpoint):
        raise UserError(
            f"there is no checkpoint in {options.checkpoint}; make one with `python convert.py import smollm2 "
            f"{options.checkpoint}`, or name another with --checkpoint."
        )
    found = store.load(options.checkpoint, dtype=jnp.dtype(jnp.float32))
    policy, config, origin = found.policy, found.config, "the checkpoint's"
    if config.channel is None:
        trained = options.channel.is_file()
        if trained:
            channel, shape = load_channel(options.channel, config)
        else:
            shape = ChannelConfig(width=128)
            channel = init_channel(dataclasses.replace(config, channel=shape), jax.random.key(0))
        config = dataclasses.replace(config, channel=shape)
        policy = with_channel(policy, config, channel)
        origin = options.channel.parent.name if trained else f"random, width {shape.width}"
    policy = jax.tree.map(jnp.asarray, policy)
    unrolled = jax.jit(unstack)(policy)
    bare = jax.tree.map(lambda leaf: leaf, unrolled)
    bare.channel = None
    ids = load_tokenizer(options.checkpoint)(TEXT)["input_ids"]
    text = (ids * (max(options.prefixes) // len(ids) + 1))[: max(*options.prefixes, SHORT)]
    return Subject(options.checkpoint, policy, unrolled, bare, config, origin, text)


def parity(subject: Subject, model: Any, channel: torch_side.Weights) -> list[dict[str, str]]:
    """Largest differences of logits and rewards over one text of 256 tokens or less."""
    tokens = subject.text[:256]

    @jax.jit
    def read(policy: Policy, tokens: jax.Array) -> tuple[jax.Array, Any]:
        out = forward.trunk(policy, subject.config, tokens)
        return forward.logits(policy, out.hidden), out.reward

    logits, rewards = read(subject.stacked, jnp.asarray([tokens], jnp.int32))
    want_logits, want_rewards = torch_side.read(model, channel, tokens)

    def row(name: str, got: Any, want: np.ndarray) -> dict[str, str]:
        error = float(np.abs(np.asarray(got[0]) - want).max())
        return {"quantity": name, "largest error": f"{error:.1e}", "largest value": f"{np.abs(want).max():.2f}"}

    return [
        row(f"logits, {len(tokens)} tokens", logits, want_logits),
        row("rewards", rewards, want_rewards),
    ]


def searches(subject: Subject, options: Options, rates: tuple[float, float]) -> list[dict[str, str]]:
    """Speed, tax and floor of every search at every prefix."""
    rows = []
    for prefix in options.prefixes:
        rounds, plain = {}, {}
        for name, decoder in SEARCHES.items():
            prompt = subject.text[:prefix]
            bound = engine(subject.config)
            rounds[name] = Rounds(bound, subject.unrolled, decoder, [prompt], rounds=options.repeats)
            plain[name] = Plain(subject.bare, without_channel(subject.config), rounds[name])
        tasks: dict[str, Task] = {}
        for name in SEARCHES:
            tasks |= {name: rounds[name], f"plain {name}": plain[name]}
        seconds = turns(tasks, options.repeats)
        reading = rounds["greedy"].prefill_seconds()
        print(f"prefix {prefix}: read at {prefix / reading:.0f} tokens/s", flush=True)
        for name, decoder in SEARCHES.items():
            floors = floor_seconds(subject.unrolled, subject.config, decoder, rounds[name].capacity, rates)
            row = search_row(prefix, name, rounds[name], seconds, floors)
            rows.append(row | {"prefill tokens/s": f"{prefix / reading:.0f}" if name == "greedy" else ""})
    return rows


def search_row(
    prefix: int, name: str, rounds: Rounds, seconds: Mapping[str, float], floors: tuple[float, float]
) -> dict[str, str]:
    """One line of the table of searches."""
    step, plain = seconds[name], seconds[f"plain {name}"]
    return {
        "search": name,
        "prefix": f"{prefix}",
        "lanes": f"{rounds.decoder.lanes}",
        "tokens/s": f"{1 / step:.1f}",
        "of greedy's": f"{seconds['greedy'] / step:.2f}",
        "step ms": f"{1e3 * step:.1f}",
        "plain step ms": f"{1e3 * plain:.1f}",
        "tax": f"{step / plain:.2f}",
        "bytes floor ms": f"{1e3 * floors[0]:.1f}",
        "flops floor ms": f"{1e3 * floors[1]:.1f}",
        "÷ floor": f"{step / max(floors):.2f}",
    }


def engines(subject: Subject, options: Options, model: Any) -> list[dict[str, str]]:
    """Greedy decoding of 1, 8 and 16 rows, ours against the baselines, and ours as lanes of one request."""
    prompt, config = subject.text[:SHORT], subject.config
    bound = engine(without_channel(config))
    tasks: dict[str, Task] = {}
    for rows in (1, 8, 16):
        prompts = [prompt] * rows
        wide = SLA(width=rows, chunk=10, depth=0)
        requests = Rounds(bound, subject.bare, Greedy(chunk=10), prompts, rounds=options.repeats)
        lanes = Rounds(bound, subject.bare, wide, [prompt], rounds=options.repeats)
        tasks[f"ours, requests {rows}"] = requests
        tasks[f"ours, lanes of one request {rows}"] = Plain(subject.bare, without_channel(config), lanes)
        tasks[f"minimal JAX loop {rows}"] = Minimal(subject, prompt, rows, requests.capacity, options.repeats)
        if rows < 16:
            tasks[f"transformers + torch {rows}"] = torch_side.Greedy(model, prompt, rows, options.torch_steps)
    seconds = turns(tasks, options.repeats)
    table = []
    for name in ("ours, requests", "ours, lanes of one request", "minimal JAX loop", "transformers + torch"):
        row = {"engine, greedy, float32": name}
        for rows in (1, 8, 16):
            here, base = seconds.get(f"{name} {rows}"), seconds[f"minimal JAX loop {rows}"]
            row[f"{rows} rows"] = f"{rows / here:.1f}" if here else ""
            row[f"÷ minimal, {rows}"] = f"{base / here:.2f}" if here else ""
        table.append(row)
    return table


class Minimal:
    """The minimal loop on the subject's weights; ten tokens a turn."""

    def __init__(self, subject: Subject, prompt: list[int], rows: int, capacity: int, repeats: int):
        assert len(prompt) + 10 * (repeats + 1) <= capacity, "the cache is too short for so many turns"
        config = subject.config
        self.weights = minimal.weights_of(subject.stacked)
        begin = jax.jit(minimal.begin, static_argnums=(0, 1, 2))
        self.state = begin(config, rows, capacity, jnp.asarray(prompt, jnp.int32), self.weights)
        self.decode = jax.jit(minimal.decode, static_argnums=(0, 1), donate_argnums=3)
        self.config = config
        self()

    def __call__(self) -> float:
        """Seconds per step."""
        began = time.perf_counter()
        self.state, tokens = self.decode(self.config, 10, self.weights, self.state)
        jax.device_get(tokens)
        return (time.perf_counter() - began) / 10


def page(about: Mapping[str, Any], tables: Mapping[str, Any]) -> str:
    """What stands between the markers of docs/benchmarks.md."""
    where = machine()
    head = (
        f"{where['cpu']}, {where['cores']} cores, jax {where['jax']}, float32; reads {about['read_gb_s']:.1f} GB/s, "
        f"multiplies {about['matmul_gflop_s']:.0f} GFLOP/s. Channel: {about['channel']}. "
        f"The whole run took {about['seconds']:.0f} s."
    )
    return "\n\n".join([head, *(markdown(title, rows) for title, rows in tables.items())])


if __name__ == "__main__":
    front_door(main)
