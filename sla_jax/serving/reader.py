"""Prompts: read piece by piece, and remembered.

A prompt is read in pieces of a fixed length at fixed places, so that a long one never holds up the others for more than
one piece, and so that a prompt which begins like an earlier one goes on from that one's keys and values: whole pieces
are shared, least recently used prompts are forgotten first. Keys and values are never written in place; a prefix that
is in the cache and in use is one array.
"""

import dataclasses
import functools
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sla_jax.model import decoding, forward
from sla_jax.model.config import ModelConfig
from sla_jax.serving.sizes import Sizes
from sla_jax.sharding import constrain


class Prefix(NamedTuple):
    """A prompt that has been read, or as much of it as has been."""

    kv: Any  # per layer, keys and values [1, K, S, H]
    hidden: Any  # [1, D] at its last token
    reward: Any  # [1]


class Piece(NamedTuple):
    """What reading a piece gave at each of its T tokens."""

    hidden: Any  # [1, T, D]
    reward: Any  # [1, T]


@dataclasses.dataclass
class Reading:
    """A prompt on its way: `at` tokens of it are in `prefix`, `cached` of these were found."""

    tokens: tuple[int, ...]
    cached: int
    at: int
    prefix: Prefix | None
    began: float = dataclasses.field(default_factory=time.perf_counter)


class Reader:
    """Reads prompts of one model; shared by all profiles."""

    def __init__(self, params: Any, config: ModelConfig, sizes: Sizes, cache_bytes: int):
        self.params, self.config, self.sizes = params, config, sizes
        self.cache = PrefixCache(cache_bytes, sizes.piece)
        self._leaf = jax.tree.leaves(params)[0]

    def begin(self, tokens: tuple[int, ...]) -> Reading:
        """Look the prompt up. At least its last token is always read anew: its logits are wanted."""
        count, kv = self.cache.find(tokens)
        return Reading(tokens, count, count, Prefix(kv, None, None) if kv is not None else None)

    def advance(self, reading: Reading) -> bool:
        """Dispatch the next piece; True when the whole prompt has been read, and is then remembered."""
        self.step(reading)
        if reading.at == len(reading.tokens) and reading.prefix is not None:
            self.cache.add(reading.tokens, reading.prefix.kv)
        return reading.at == len(reading.tokens)

    def step(self, reading: Reading) -> Piece:
        """Dispatch the next piece."""
        start, total = reading.at, len(reading.tokens)
        count, padded = self.sizes.next_piece(start, total)
        piece = np.zeros((1, padded), np.int32)
        piece[0, :count] = reading.tokens[start : start + count]
        capacity = self.sizes.holding(start + padded)
        kv = self.empty(capacity) if reading.prefix is None else self.resized(reading.prefix.kv, capacity)
        places = np.array([start, count - 1], np.int32)
        read, reading.prefix = extend_program(self.params, piece, places, kv, config=self.config)
        reading.at = start + count
        return read

    def empty(self, capacity: int) -> Any:
        """Room for a prompt."""
        return self.at_home(_empty(config=self.config, dtype=self._leaf.dtype, capacity=capacity))

    def at_home(self, tree: Any) -> Any:
        """New arrays tied to the device of the parameters, as every program's results are: programs are compiled for
        arrays that are tied to a device and for free ones separately. On a mesh all are tied."""
        return tree if self._leaf.sharding.num_devices > 1 else jax.device_put(tree, self._leaf.sharding)

    def resized(self, kv: Any, capacity: int) -> Any:
        """The same keys and values in a longer or shorter room."""
        return kv if kv[0][0].shape[2] == capacity else _resized(kv, capacity=capacity)

    def warm_up(self) -> None:
        """Compile everything that reading needs."""
        for capacity in self.sizes.capacities:
            kv = self.empty(capacity)
            for other in self.sizes.capacities:
                self.resized(kv, other)
            for size in (size for size in self.sizes.pieces if size + self.sizes.slack <= capacity):
                piece = np.zeros((1, size), np.int32)
                extend_program(self.params, piece, np.zeros(2, np.int32), kv, config=self.config)


class PrefixCache:
    """Keys and values of recent prompts, least recently used first out, bounded in bytes."""

    def __init__(self, limit: int, piece: int):
        self.limit, self.piece = limit, piece
        self.bytes = 0
        self._entries: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def find(self, tokens: Sequence[int]) -> tuple[int, Any]:
        """(n, keys and values whose first n tokens are those of this text), n a multiple of a piece; (0, None)."""
        most = (len(tokens) - 1) // self.piece * self.piece
        best, found = 0, None
        for known in self._entries:
            count = min(_common(known, tokens), most) // self.piece * self.piece
            if count > best:
                best, found = count, known
        if found is None:
            return 0, None
        self._entries.move_to_end(found)
        return best, self._entries[found]

    def add(self, tokens: tuple[int, ...], kv: Any) -> None:
        """Remember the whole pieces of a prompt; what it continues or repeats is forgotten."""
        whole = tokens[: len(tokens) // self.piece * self.piece]
        size = _bytes(kv)
        if not whole or size > self.limit:
            return
        if any(_common(known, whole) == len(whole) for known in self._entries):
            return
        for known in [known for known in self._entries if _common(known, whole) == len(known)]:
            self._forget(known)
        while self.bytes + size > self.limit:
            self._forget(next(iter(self._entries)))
        self._entries[whole] = kv
        self.bytes += size

    def _forget(self, known: tuple[int, ...]) -> None:
        self.bytes -= _bytes(self._entries.pop(known))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with together."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _bytes(kv: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(kv))


@functools.partial(jax.jit, static_argnames=("config",))
def extend_program(params: Any, tokens: Any, places: Any, kv: Any, *, config: ModelConfig) -> tuple[Piece, Prefix]:
    """`places`: where the piece starts, and which of its tokens is the text's last so far."""
    hidden, reward, kv = decoding.extend(params, config, tokens, places[0], kv)
    hidden, reward = constrain(hidden, None, None, None), constrain(reward, None, None)
    last = (jax.lax.dynamic_index_in_dim(x, places[1], axis=1, keepdims=False) for x in (hidden, reward))
    return Piece(hidden, reward), Prefix(_laid_out(kv), *last)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "capacity"))
def _empty(*, config: ModelConfig, dtype: Any, capacity: int) -> Any:
    shapes = decoding.cache_shapes(config, dtype, 1, 1, capacity, 1).prefix
    return _laid_out(jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes))


@functools.partial(jax.jit, static_argnames=("capacity",))
def _resized(kv: Any, *, capacity: int) -> Any:
    return _laid_out(jax.tree.map(lambda x: resize(x, capacity), kv))


def resize(x: jax.Array, capacity: int) -> jax.Array:
    """Keys or values [R, K, S, H] with S = capacity: cut off, or padded with zeros."""
    kept = x[:, :, :capacity]
    return jnp.pad(kept, ((0, 0), (0, 0), (0, capacity - kept.shape[2]), (0, 0)))


def _laid_out(kv: Any) -> Any:
    return jax.tree.map(lambda x: constrain(x, None, "heads", None, None), kv)


class Look(NamedTuple):
    """What a piece of a given text says of the tokens that follow."""

    logprobs: Any  # [1, T] of each next token
    top_ids: Any  # [1, T, A]
    top_logprobs: Any


@functools.partial(jax.jit, static_argnames=("tops",))
def look(params: Any, hidden: jax.Array, following: jax.Array, *, tops: int) -> Look:
    """Log-probabilities of the tokens `following` [1, T] each position, and of the model's best."""
    logits = forward.logits(params, hidden)
    logprobs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    given = jnp.take_along_axis(logprobs, following[..., None], axis=-1)[..., 0]
    best, ids = jax.lax.top_k(logprobs, max(tops, 1))
    return Look(given, ids.astype(jnp.int32), best)
