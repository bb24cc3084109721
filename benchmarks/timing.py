"""Measured times. Everything in one comparison runs in one process, turn by turn, and is compared by medians."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sla_jax.decode.greedy import Greedy
from sla_jax.decode.program import Engine, Program, fetch
from sla_jax.decode.sla import SLA
from sla_jax.model import decoding
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy

Task = Callable[[], float]  # one turn: seconds per step


def turns(tasks: Mapping[str, Task], repeats: int, limit: float = math.inf) -> dict[str, float]:
    """Run every task once a turn, `repeats` turns, none begun after `limit` seconds; medians of seconds per step."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    began = time.perf_counter()
    for turn in range(repeats):
        if turn and time.perf_counter() - began > limit:
            break
        for name, task in tasks.items():
            seconds[name].append(task())
    return {name: statistics.median(values) for name, values in seconds.items()}


class Rounds:
    """A search in its steady state (every lane alive), one round a turn as streaming runs it: one copy to the host."""

    def __init__(
        self, engine: Engine, policy: Policy, decoder: Greedy | SLA, prompts: Sequence[Sequence[int]], *, rounds: int
    ):
        self.policy, self.decoder = policy, decoder
        self.program = Program(engine, decoder)
        levels = decoder.held // decoder.chunk
        limit = decoder.chunk * (rounds + levels + 3)
        self.arguments: Any = (policy, prompts, [limit] * len(prompts), [])
        self.state = jax.block_until_ready(self.program.start(*self.arguments))
        for _ in range(levels + 1):
            self()

    def prefill_seconds(self) -> float:
        """Seconds to read the prompts."""
        began = time.perf_counter()
        jax.block_until_ready(self.program.start(*self.arguments))
        return time.perf_counter() - began

    @property
    def capacity(self) -> int:
        """Positions of the prefix, used or not: what attention reads."""
        return int(self.state.cache.prefix[0][0].shape[2])

    def __call__(self) -> float:
        """Seconds per step."""
        began = time.perf_counter()
        self.state, packed = self.program.round(self.policy, self.state)
        fetch(packed)
        return (time.perf_counter() - began) / self.decoder.chunk


class Plain:
    """Batch decoding of as many rows with the same cache layout and nothing else: no reward, log-probs or tree."""

    def __init__(self, policy: Policy, config: ModelConfig, like: Rounds):
        cache = like.state.cache
        self.policy, self.chunk = policy, like.decoder.chunk
        self.tokens = like.state.tokens[:, :, -1]
        self.cache = jax.tree.map(jnp.copy, cache)

        def decode(policy: Policy, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
            def body(t: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
                logits, _, cache = decoding.step(policy, config, like.decoder.chunk, carry[0], t, carry[1])
                return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache

            return jax.lax.fori_loop(0, like.decoder.chunk, body, (tokens, cache))

        self.decode = jax.jit(decode, donate_argnums=2)
        self()

    def __call__(self) -> float:
        """Seconds per step."""
        began = time.perf_counter()
        self.tokens, self.cache = self.decode(self.policy, self.tokens, self.cache)
        fetch(self.tokens)
        return (time.perf_counter() - began) / self.chunk


def bandwidth(repeats: int, size: int = 2**27) -> float:
    """Bytes per second at which one vector's product reads a matrix of `size` float32 numbers."""
    matrix, vector = jnp.ones((size // 1024, 1024), jnp.float32), jnp.ones((1024, 1), jnp.float32)
    product = jax.jit(jnp.matmul)
    return 4 * size / _fastest(lambda: product(matrix, vector), repeats)


def matmul_rate(repeats: int, size: int = 2048) -> float:
    """Float32 operations per second of a square matrix product."""
    matrix = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / _fastest(lambda: product(matrix, matrix), repeats)


def floor_seconds(
    policy: Policy, config: ModelConfig, decoder: Greedy | SLA, capacity: int, rates: tuple[float, float]
) -> tuple[float, float]:
    """(bytes ÷ bandwidth, flops ÷ matmul rate) of one step: weights once, the cache once, products of all lanes."""
    leaves = jax.tree.leaves(policy)
    numbers = sum(math.prod(leaf.shape) for leaf in leaves) - (0 if config.tied else policy.embed[...].size)
    token = 2 * config.layers * config.kv_heads * config.head_dim
    cache = token * (capacity + decoder.lanes * decoder.held)
    attended = 2 * config.layers * config.heads * config.head_dim * (capacity + decoder.held)
    flops = 2 * decoder.lanes * (numbers + attended)
    return leaves[0].dtype.itemsize * (numbers + cache) / rates[0], flops / rates[1]


def _fastest(call: Callable[[], Any], repeats: int) -> float:
    jax.block_until_ready(call())
    best = math.inf
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        best = min(best, time.perf_counter() - began)
    return best
