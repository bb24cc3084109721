"""Compiled decoding: prefill and round as two programs, driven from Python for streaming or by a loop on the device.

One program a bucket: shapes (requests, lanes, prompt bucket, capacity) are the only thing that compiles. The state is
donated, nothing in a round waits for the host, and `fetch` is the only copy from the device, once a round.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sla_jax.decode import lanes as moves
from sla_jax.decode import snapshot
from sla_jax.decode.choice import choices
from sla_jax.decode.lanes import Lanes, Prompts
from sla_jax.decode.result import Round, unpack
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.steps import Cache, Steps
from sla_jax.errors import UserError

SMALLEST_BUCKET = 64


@runtime_checkable
class Decoder(Protocol):
    """What a decoder says of itself (see `Greedy`, `SLA`)."""

    @property
    def chunk(self) -> int:
        """Tokens per round."""

    @property
    def lanes(self) -> int:
        """Lanes per request."""

    @property
    def held(self) -> int:
        """Places for uncommitted tokens."""

    @property
    def width(self) -> int:
        """Continuations kept of every leaf."""

    @property
    def shortest(self) -> int:
        """Tokens that an unfinished leaf reads in a round, at least."""

    @property
    def draft(self) -> int:
        """Tokens guessed in every pass."""

    def advance(self, steps: Steps, lanes: Lanes) -> tuple[Lanes, Array]:
        """One round: the next state and its packed result."""


class Engine(NamedTuple):
    """How programs get from parameters to a model: both functions run inside jit.

    prefill(params, prompts [R, P], lengths [R], decoder, capacity) → (logits [R, V], reward [R], cache)
    steps(params, decoder) → Steps
    """

    prefill: Callable[[Any, Array, Array, Any, int], tuple[Array, Array, Cache]]
    steps: Callable[[Any, Any], Steps]


class Program:
    """The two compiled programs of one decoder on one model; with `trace` the rounds bring their trees."""

    def __init__(self, engine: Engine, decoder: Decoder, *, trace: bool = False):
        self.decoder, self.trace = decoder, trace
        self._start = jax.jit(_start, static_argnums=(0, 1, 4))
        self._round = jax.jit(_round, static_argnums=(0, 1, 2), donate_argnums=4)
        self._complete = jax.jit(_complete, static_argnums=(0, 1, 4))
        self._engine = engine

    def start(
        self,
        params: Any,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        ends: Sequence[int],
        samplings: Sequence[Sampling] | None = None,
    ) -> Lanes:
        """Prefill R prompts (token ids) that will get at most `limits` new tokens each, ending at any of `ends`."""
        arrays = prompt_arrays(prompts, limits, ends, samplings or [Sampling()] * len(prompts))
        longest = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
        capacity = max(bucket(longest + self.decoder.chunk), arrays.tokens.shape[1])
        return self._start(self._engine, self.decoder, params, arrays, capacity)

    def round(self, params: Any, state: Lanes) -> tuple[Lanes, Int[Array, "R C"]]:
        """One round, asynchronously: the next state (the old one is donated) and the packed result, on the device."""
        return self._round(self._engine, self.decoder, self.trace, params, state)

    def stream(self, params: Any, state: Lanes) -> Iterator[list[Round]]:
        """Rounds until every request is done, one host copy each."""
        done = False
        while not done:
            state, packed = self.round(params, state)
            rounds = unpack(fetch(packed), trace=self.decoder if self.trace else None)
            yield rounds
            done = all(r.done for r in rounds)

    def complete(self, params: Any, state: Lanes, max_tokens: int) -> list[list[Round]]:
        """The same rounds in one call: the loop runs on the device and its log is copied once."""
        rounds = max_tokens // self.decoder.shortest + 2 + self.decoder.held // self.decoder.chunk
        used, log = fetch(self._complete(self._engine, self.decoder, params, state, rounds))
        return [unpack(packed) for packed in log[:used]]


def bucket(n: int) -> int:
    """The smallest of 64, 96, 128, 192, 256, 384, 512, … that holds n (powers of two and their halves between)."""
    size = SMALLEST_BUCKET
    while size < n:
        if size * 3 // 2 >= n:
            return size * 3 // 2
        size *= 2
    return size


def fetch(tree: Any) -> Any:
    """The one place where results leave the device."""
    return jax.device_get(tree)


def check_prompt(prompt: Sequence[int], max_tokens: int, *, context: int, vocabulary: int) -> None:
    """Raise UserError unless the prompt's tokens exist, and prompt and answer fit the model's context."""
    length = len(prompt)
    if length < 1:
        raise UserError("the prompt is empty; give at least one token.")
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        bad = next(token for token in prompt if not 0 <= token < vocabulary)
        raise UserError(
            f"the prompt holds the token {bad}; this model's tokens are 0 to {vocabulary - 1} ({vocabulary})."
        )
    if max_tokens < 1:
        raise UserError(f"max_tokens={max_tokens} is out of range; it must be at least 1.")
    if length + max_tokens > context:
        raise UserError(
            f"the prompt has {length} tokens and max_tokens is {max_tokens}, together {length + max_tokens}; the "
            f"model's context holds {context}. Shorten the prompt or lower max_tokens "
            f"to at most {max(context - length, 0)}."
        )


def check_biases(sampling: Sampling, *, vocabulary: int) -> None:
    """Raise UserError if logit_bias names a token that does not exist."""
    for token, _ in sampling.logit_bias:
        if token >= vocabulary:
            raise UserError(f"logit_bias names the token {token}; this model's tokens are 0 to {vocabulary - 1}.")


def prompt_arrays(
    prompts: Sequence[Sequence[int]], limits: Sequence[int], ends: Sequence[int], samplings: Sequence[Sampling]
) -> Prompts:
    """Requests on the device, prompts padded to their bucket."""
    padded = np.zeros((len(prompts), bucket(max(map(len, prompts)))), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    arrays = {
        "tokens": padded,
        "lengths": np.array([len(prompt) for prompt in prompts], np.int32),
        "limit": np.array(limits, np.int32),
        "ends": np.broadcast_to(np.array([*ends, -1], np.int32), (len(prompts), len(ends) + 1)),
    }
    return Prompts(**jax.device_put(arrays), choice=choices(samplings))


def _start(engine: Engine, decoder: Decoder, params: Any, prompts: Prompts, capacity: int) -> Lanes:
    logits, anchor, cache = engine.prefill(params, prompts.tokens, prompts.lengths, decoder, capacity)
    sizes = {"lanes": decoder.lanes, "held": decoder.held, "width": decoder.width, "draft": decoder.draft}
    return moves.plant(cache, logits, anchor, prompts, **sizes, tops=0)


def _round(engine: Engine, decoder: Decoder, trace: bool, params: Any, state: Lanes) -> tuple[Lanes, Array]:
    state, packed = decoder.advance(engine.steps(params, decoder), state)
    return state, snapshot.beside(packed, state, decoder) if trace else packed


def _complete(engine: Engine, decoder: Decoder, params: Any, state: Lanes, rounds: int) -> tuple[Array, Array]:
    shape = jax.eval_shape(lambda s: _round(engine, decoder, False, params, s)[1], state)
    log = jnp.zeros((rounds, *shape.shape), shape.dtype)

    def going(carry: tuple) -> Array:
        i, state, _ = carry
        return (i < rounds) & ~jnp.all(state.done)

    def advance(carry: tuple) -> tuple:
        i, state, log = carry
        state, packed = _round(engine, decoder, False, params, state)
        return i + 1, state, jax.lax.dynamic_update_index_in_dim(log, packed, i, 0)

    used, _, log = jax.lax.while_loop(going, advance, (jnp.int32(0), state, log))
    return used, log
