"""One search profile on one model, with JetStream's verbs; the decode state is a value that goes in and comes out.

    params = engine.load_params()
    prefix = engine.prefill(params, tokens)                              # one prompt
    state, first = engine.insert(params, prefix, state, slot, request)   # into one of the slots
    state, packed = engine.generate(params, state)                       # one round of all slots: up to k tokens each
    state = engine.free(state, slot)

`insert` and `generate` donate the state. A state may have room for fewer slots and shorter texts than there could be;
`resize` changes that, so that few and short requests do not pay for many and long ones. Everything about a request
(prompt, limits, sampling, end tokens) is an array with one row a slot, so that nothing compiles after `warm_up`.
`first` is the answer's first token: before the first chunk there is nothing to search, so it is final at once.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sla_jax.decode import lanes as moves
from sla_jax.decode import snapshot
from sla_jax.decode.choice import choices
from sla_jax.decode.lanes import Lanes, Prompts
from sla_jax.decode.methods import Trees
from sla_jax.decode.result import nobody
from sla_jax.decode.sampling import Sampling
from sla_jax.loading import Loaded, engine
from sla_jax.model import decoding, forward
from sla_jax.model.config import ModelConfig
from sla_jax.serving.reader import Prefix, Reader, resize
from sla_jax.serving.request import MAX_STOP_TOKENS, Request
from sla_jax.serving.settings import Profile
from sla_jax.serving.sizes import rows_of
from sla_jax.sharding import constrain


class Program(NamedTuple):
    """What the compiled programs depend on, besides shapes."""

    config: ModelConfig
    decoder: Trees
    tops: int  # alternatives recorded beside each token
    ends: int  # room for end tokens
    trace: bool = False  # rounds bring the trees that they grew

    @property
    def grower(self) -> Trees | None:
        """The decoder whose snapshots are beside the packed results, if any are."""
        return self.decoder if self.trace else None


class Engine:
    """The programs of one profile."""

    def __init__(self, model: Loaded, profile: Profile, reader: Reader, *, tops: int, data: int = 1):
        self.model, self.profile, self.reader = model, profile, reader
        self.rows = rows_of(profile.slots, data)
        decoder = profile.decoder()
        assert isinstance(decoder, Trees), f"{profile.method} does not commit text as it goes"
        self.program = Program(model.config, decoder, tops, len(model.end_tokens) + MAX_STOP_TOKENS, profile.traces)

    @property
    def slots(self) -> int:
        """Requests decoded at once."""
        return self.profile.slots

    @property
    def position_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return position_bytes(self.model)

    def load_params(self) -> Any:
        """The parameters, on the device."""
        return self.model.policy

    def prefill(self, params: Any, tokens: tuple[int, ...]) -> Prefix:
        """Read a whole prompt."""
        reading = self.reader.begin(tokens)
        while not self.reader.advance(reading):
            pass
        assert reading.prefix is not None
        return reading.prefix

    def init_state(self, rows: int | None = None, capacity: int | None = None) -> Lanes:
        """Empty slots: all of them, or the first few, with room for texts of the shortest (or a given) length."""
        size = capacity or self.reader.sizes.capacities[0]
        dtype = self.model.policy.norm[...].dtype
        state = _empty(program=self.program, slots=rows or self.slots, capacity=size, dtype=dtype)
        return self.reader.at_home(state)

    def insert(
        self, params: Any, prefix: Prefix, state: Lanes, slot: int, request: Request
    ) -> tuple[Lanes, Int[Array, "C"]]:
        """Put a read prompt into a slot. Also gives the first token, packed as `first_of` reads it."""
        kv = self.reader.resized(prefix.kv, room(state)[1])
        prompt = prompt_row(request, self.reader.sizes.context, self.program.ends)
        one, first = _plant(params, prefix.hidden, prefix.reward, prompt, program=self.program)
        return _put(state, one, kv, prompt.lengths, np.int32(slot)), first

    def generate(self, params: Any, state: Lanes) -> tuple[Lanes, Int[Array, "R C"]]:
        """One round of all slots; the packed result is `decode.result.unpack`'s."""
        return generate_program(params, state, program=self.program)

    def free(self, state: Lanes, slot: int) -> Lanes:
        """Stop decoding a slot."""
        return _free(state, np.int32(slot))

    def resize(self, state: Lanes, rows: int, capacity: int) -> Lanes:
        """The same state with room for more or fewer slots, and for longer or shorter texts."""
        state = state if room(state)[0] == rows else _with_rows(state, rows=rows)
        return state if room(state)[1] == capacity else _with_capacity(state, capacity=capacity)

    def warm_up(self) -> None:
        """Compile everything: each program runs once in each size, on empty slots."""
        request = Request(id="", profile=self.profile.name, prompt=(0,), max_tokens=1, ends=())
        sizes, params = self.reader.sizes, self.load_params()
        prefix = self.prefill(params, request.prompt)
        state = self.init_state(self.rows[0])
        for rows, capacity in itertools.product(self.rows, sizes.capacities):
            state, _ = self.insert(params, prefix, self.resize(state, rows, capacity), 0, request)
            state, _ = self.generate(params, self.free(state, 0))
            for other in sizes.capacities:
                self.resize(state, rows, other)
            for other in self.rows:
                self.resize(state, other, capacity)
        jax.block_until_ready(state)


def prompt_row(request: Request, context: int, ends: int) -> Prompts:
    """A request as arrays of one row, with room for a prompt of `context` tokens and for `ends` end tokens."""
    tokens = np.zeros((1, context), np.int32)
    tokens[0, : len(request.prompt)] = request.prompt
    arrays: dict[str, Any] = {
        "tokens": tokens,
        "lengths": np.array([len(request.prompt)], np.int32),
        "limit": np.array([request.max_tokens], np.int32),
        "ends": np.array([[*request.ends, *[-1] * (ends - len(request.ends))]], np.int32),
    }
    return Prompts(**jax.device_put(arrays), choice=choices([request.sampling], [request.top_logprobs]))


def position_bytes(model: Loaded) -> int:
    """Bytes of one token's keys and values."""
    return model.config.kv_numbers * model.policy.norm[...].dtype.itemsize


def room(state: Lanes) -> tuple[int, int]:
    """(slots, length of the cache) that a state has room for."""
    slots, _, capacity, _ = state.cache.prefix[0][0].shape
    return slots, capacity


def first_of(packed: np.ndarray) -> tuple[int, float, list[tuple[int, float]]]:
    """(token, log-probability, alternatives) of a first token."""
    tops = (len(packed) - 2) // 2
    floats = packed.view(np.float32)
    beside = zip(packed[2 : 2 + tops].tolist(), floats[2 + tops :].tolist(), strict=True)
    return int(packed[0]), float(floats[1]), list(beside)


@functools.partial(jax.jit, static_argnames=("program",), donate_argnames=("state",))
def generate_program(params: Any, state: Lanes, *, program: Program) -> tuple[Lanes, Array]:
    def advance(state: Lanes) -> tuple[Lanes, Array]:
        steps = engine(program.config).steps(params, program.decoder)
        state, packed = program.decoder.advance(steps, state)
        return _laid_out(state), packed

    def rest(state: Lanes) -> tuple[Lanes, Array]:
        """Nobody is there: results are read late, so the last round of a burst is dispatched for no one."""
        return state, nobody(state, program.decoder.held)

    state, packed = jax.lax.cond(jnp.all(state.done), rest, advance, state)
    packed = snapshot.beside(packed, state, program.decoder) if program.trace else packed
    return state, constrain(packed, None, None)


@functools.partial(jax.jit, static_argnames=("program",))
def _plant(params: Any, hidden: Array, reward: Array, prompt: Prompts, *, program: Program) -> tuple[Lanes, Array]:
    """A request's row of the state, without caches, and its first token."""
    logits = forward.logits(params, hidden)
    one = moves.plant(None, logits, reward, prompt, **_sizes(program))
    one, first = jax.tree.map(lambda x: constrain(x, *[None] * x.ndim), (one, _first(one)))
    return one, first


@functools.partial(jax.jit, donate_argnames=("state",))
def _put(state: Lanes, one: Lanes, kv: Any, length: Int[Array, "1"], slot: Array) -> Lanes:
    """`one` in row `slot`; of the caches, only what will be read is written."""

    def row(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice(old, new, (slot, *[jnp.int32(0)] * (old.ndim - 1)))

    cache = state.cache._replace(
        prefix=jax.tree.map(row, state.cache.prefix, kv),
        length=row(state.cache.length, length),
        held=row(state.cache.held, one.length),
    )
    return _laid_out(jax.tree.map(row, state._replace(cache=None), one)._replace(cache=cache))


def _first(one: Lanes) -> Int[Array, "C"]:
    following = jax.tree.map(lambda x: x[0, 0], one.next)
    logprobs = jnp.concatenate([following.logprobs[:1], following.top_logprobs])
    bits = jax.lax.bitcast_convert_type(logprobs, jnp.int32)
    return jnp.concatenate([following.tokens[:1], bits[:1], following.top_ids, bits[1:]])


@functools.partial(jax.jit, donate_argnames=("state",))
def _free(state: Lanes, slot: Array) -> Lanes:
    return state._replace(done=state.done.at[slot].set(True))


@functools.partial(jax.jit, static_argnames=("capacity",))
def _with_capacity(state: Lanes, *, capacity: int) -> Lanes:
    prefix = jax.tree.map(lambda x: resize(x, capacity), state.cache.prefix)
    return _laid_out(state._replace(cache=state.cache._replace(prefix=prefix)))


@functools.partial(jax.jit, static_argnames=("rows",))
def _with_rows(state: Lanes, *, rows: int) -> Lanes:
    """Cut off the last slots, which are empty, or add empty ones."""

    def fit(x: Array) -> Array:
        kept = x[:rows]
        return jnp.pad(kept, ((0, rows - len(kept)), *[(0, 0)] * (x.ndim - 1)))

    added = jnp.arange(rows) >= len(state.done)
    state = jax.tree.map(fit, state)
    return _laid_out(state._replace(done=state.done | added))


@functools.partial(jax.jit, static_argnames=("program", "slots", "capacity", "dtype"))
def _empty(*, program: Program, slots: int, capacity: int, dtype: Any) -> Lanes:
    shapes = state_shapes(program, slots, capacity, dtype)
    state = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return _laid_out(state._replace(done=jnp.ones_like(state.done)))


def state_shapes(program: Program, slots: int, capacity: int, dtype: Any) -> Lanes:
    """Shapes of a decode state."""
    decoder = program.decoder
    cache = decoding.cache_shapes(program.config, dtype, slots, decoder.lanes, capacity, decoder.held)
    rows = jax.ShapeDtypeStruct((slots,), jnp.int32)
    shapes: dict[str, Any] = {"lengths": rows, "limit": rows, "tokens": jax.ShapeDtypeStruct((slots, 1), jnp.int32)}
    shapes["ends"] = jax.ShapeDtypeStruct((slots, program.ends), jnp.int32)
    prompts = Prompts(**shapes, choice=jax.eval_shape(lambda: choices([Sampling()] * slots)))
    logits = jax.ShapeDtypeStruct((slots, program.config.vocab_size), jnp.float32)
    anchor = jax.ShapeDtypeStruct((slots,), jnp.float32)
    plant = functools.partial(moves.plant, None, **_sizes(program))
    return jax.eval_shape(plant, logits, anchor, prompts)._replace(cache=cache)


def _sizes(program: Program) -> dict[str, Any]:
    decoder, tops = program.decoder, program.tops
    sizes = {"lanes": decoder.lanes, "held": decoder.held, "width": decoder.width, "draft": decoder.draft}
    return {**sizes, "tops": tops}


def state_axes(state: Lanes) -> Lanes:
    """The names of every leaf's axes: slots, and the heads of the caches."""
    cache = jax.tree.map(
        lambda x: ("batch", *["heads"] * (x.ndim > 2), *[None] * (x.ndim - 1 - (x.ndim > 2))), state.cache
    )
    return jax.tree.map(lambda x: ("batch", *[None] * (x.ndim - 1)), state._replace(cache=None))._replace(cache=cache)


def _laid_out(state: Lanes) -> Lanes:
    """Slots over `data`, heads of the caches over `tensor`; nothing without a mesh."""
    return jax.tree.map(lambda x, names: constrain(x, *names), state, state_axes(state))
