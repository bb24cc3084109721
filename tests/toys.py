"""Table-driven worlds: a state machine that reads tokens, a plain function for the oracle and `Steps` for decoders.

Reading token x in state s leads to state `next_state[s, x]`, whose row of `logits` scores the next token and whose
entry of `rewards` is the reward of x. Logits and rewards are small multiples of 1/8, exact in float32, with many ties.

The toy's cache keeps what a real one keeps, the committed prefix and each lane's uncommitted tokens, and replays the
tokens at every step: a wrong fork, a wrong commit or a wrong place gives a wrong state, hence wrong tokens. The tables
travel in the cache, so that one compiled program serves every world of its shape.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sla_jax.decode import lanes, pool
from sla_jax.decode.choice import choices
from sla_jax.decode.completion import PoolRound
from sla_jax.decode.pool_program import Judge, PoolProgram
from sla_jax.decode.program import Engine, Program
from sla_jax.decode.result import Round
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.steps import Steps
from tests import oracles


class Tables(NamedTuple):
    """S states, V tokens; stacked, every array has a leading R."""

    logits: Any  # [S, V] float32
    rewards: Any  # [S] float32
    next_state: Any  # [S, V] int32


class ToyCache(NamedTuple):
    """R requests, W lanes, T uncommitted places (right-aligned), like the real cache."""

    tables: Tables  # leading R
    prefix: Any  # [R] int32: the state after the committed text
    suffix: Any  # [R, W, T] int32
    held: Any  # [R, W] int32


def random_tables(seed: int, states: int, vocab: int, fine: bool = False) -> Tables:
    """Random tables; `fine` draws rewards from 2⁻¹² steps (ties are rare) instead of 1/8 (ties are common)."""
    draw = np.random.default_rng(seed)
    logits = draw.integers(-12, 13, (states, vocab)) / 8
    rewards = draw.integers(-8192, 8193, states) / 4096 if fine else draw.integers(-16, 17, states) / 8
    return Tables(
        logits.astype(np.float32),
        rewards.astype(np.float32),
        draw.integers(0, states, (states, vocab)).astype(np.int32),
    )


def plain(tables: Tables, start: int) -> oracles.World:
    """The oracle's view: replay the whole text from the start state."""

    def world(texts: list[oracles.Text]) -> list[tuple[np.ndarray, float]]:
        return [at(text) for text in texts]

    def at(text: oracles.Text) -> tuple[np.ndarray, float]:
        state = start
        for token in text:
            state = int(tables.next_state[state, token])
        return tables.logits[state], float(tables.rewards[state])

    return world


def prefill(rows: Sequence[tuple[Tables, int]], width: int, places: int) -> tuple[Any, Any, ToyCache]:
    """One row a request, (tables, start state) → logits [R, V], reward [R] of the prompt's last token, cache."""
    tables = Tables(*(np.stack(arrays) for arrays in zip(*(tables for tables, _ in rows), strict=True)))
    starts = np.array([start for _, start in rows], np.int32)
    row = np.arange(len(rows))
    suffix = np.zeros((len(rows), width, places), np.int32)
    cache = ToyCache(
        Tables(*map(jnp.asarray, tables)), jnp.asarray(starts), jnp.asarray(suffix), jnp.zeros((len(rows), width), int)
    )
    return jnp.asarray(tables.logits[row, starts]), jnp.asarray(tables.rewards[row, starts]), cache


def steps(chunk: int) -> Steps:
    """The five moves of `sla_jax/decode/steps.py` for chunks of this many tokens."""

    def step(tokens: Any, t: Any, cache: ToyCache) -> tuple[Any, Any, ToyCache]:
        place = cache.suffix.shape[2] - chunk + t
        suffix = jax.lax.dynamic_update_slice(cache.suffix, tokens[:, :, None], (0, 0, place))
        first = cache.suffix.shape[2] - chunk - cache.held
        state = _replay(cache.tables, cache.prefix, suffix, first, place + 1)
        row = jnp.arange(tokens.shape[0])[:, None]
        return cache.tables.logits[row, state], cache.tables.rewards[row, state], cache._replace(suffix=suffix)

    def read(tokens: Any, done: Any, cache: ToyCache) -> tuple[Any, Any, ToyCache]:
        places, first = cache.suffix.shape[2], cache.suffix.shape[2] - chunk
        suffix, states, row = cache.suffix, [], jnp.arange(tokens.shape[0])[:, None, None]
        for ahead in range(tokens.shape[2]):
            here = jnp.arange(places)[None, None, :] == (first + done + ahead)[..., None]
            suffix = jnp.where(here, tokens[:, :, ahead, None], suffix)
            states.append(_replay(cache.tables, cache.prefix, suffix, first - cache.held, first + done + ahead + 1))
        state = jnp.stack(states, axis=-1)
        return cache.tables.logits[row, state], cache.tables.rewards[row, state], cache._replace(suffix=suffix)

    def fork(cache: ToyCache, parents: Any, held: Any, read: Any) -> ToyCache:
        kept = jnp.take_along_axis(cache.suffix, parents[:, :, None], axis=1)
        moved = jax.vmap(jax.vmap(lambda row, by: jnp.roll(row, -by)))(kept, read)
        return cache._replace(suffix=moved, held=held)

    def commit(cache: ToyCache, lane: Any, start: Any, count: Any) -> ToyCache:
        own = jnp.take_along_axis(cache.suffix, lane[:, None, None], axis=1)
        first, end = start[:, None], (start + count)[:, None]
        return cache._replace(prefix=_replay(cache.tables, cache.prefix, own, first, end)[:, 0])

    def regroup(cache: ToyCache, parents: Any, places: int) -> ToyCache:
        kept = jnp.take_along_axis(cache.suffix, parents[:, :, None], axis=1)
        held = jnp.take_along_axis(cache.held, parents, axis=1)
        return cache._replace(suffix=jnp.pad(kept, ((0, 0), (0, 0), (places - kept.shape[2], 0))), held=held)

    return Steps(step, read, fork, commit, regroup)


def _replay(tables: Tables, prefix: Any, suffix: Any, first: Any, end: Any) -> Any:
    """States [R, W] after reading places first[r, w] … end[r, w]-1 of each lane from the state prefix[r]."""
    row = jnp.arange(suffix.shape[0])[:, None]
    state = jnp.broadcast_to(prefix[:, None], suffix.shape[:2])
    for place in range(suffix.shape[2]):
        read = (first <= place) & (place < end)
        state = jnp.where(read, tables.next_state[row, state, suffix[:, :, place]], state)
    return state


# compiled, as in a real program: the round donates its state, so no two of its leaves may share a buffer
_plant = jax.jit(lanes.plant, static_argnames=("lanes", "held", "width", "tops", "draft"))


class Row(NamedTuple):
    """One request: its world, where its prompt leaves it, max_tokens, end tokens, how it samples, its prompt."""

    tables: Tables
    start: int
    limit: int
    ends: tuple[int, ...]
    sampling: Sampling = Sampling()
    prompt: tuple[int, ...] = (0,)


def planted(decoder: Any, rows: Sequence[Row], tops: int = 0) -> tuple[ToyCache, Any, Any, lanes.Prompts]:
    """What prefill leaves: cache, logits, the last reward of every prompt; and the requests."""
    logits, reward, cache = prefill([(row.tables, row.start) for row in rows], decoder.lanes, decoder.held)
    most = max(len(row.ends) for row in rows) + 1
    arrays = {
        "tokens": np.array([(*row.prompt, *[0] * 8)[:8] for row in rows], np.int32),
        "lengths": np.array([len(row.prompt) for row in rows], np.int32),
        "limit": np.array([row.limit for row in rows], np.int32),
        "ends": np.array([[*row.ends, *[-1] * (most - len(row.ends))] for row in rows], np.int32),
    }
    choice = choices([row.sampling for row in rows], [tops] * len(rows))
    return cache, logits, reward, lanes.Prompts(**jax.device_put(arrays), choice=choice)


def state(decoder: Any, rows: Sequence[Row], tops: int = 0) -> lanes.Lanes:
    """The lane state after prefill."""
    cache, logits, reward, prompts = planted(decoder, rows, tops)
    sizes = {"lanes": decoder.lanes, "held": decoder.held, "width": decoder.width, "draft": decoder.draft, "tops": tops}
    return _plant(cache, logits, reward, prompts, **sizes)


_plant_pool = jax.jit(pool.plant, static_argnames="phase")


def play_pool(decoder: Any, rows: Sequence[Row], judge: Judge | None = None) -> list[list[PoolRound]]:
    """Run all rows, which have one limit, to the end: the rounds of each."""
    phases = decoder.phases(rows[0].limit)
    started = _plant_pool(*planted(phases[0], rows), phase=phases[0])
    return [list(log) for log in zip(*_pools().play(None, decoder, phases, started, judge), strict=True)]


@functools.cache
def _pools() -> PoolProgram:
    return PoolProgram(Engine(prefill=no_prefill, steps=_steps_of))


def program(decoder: Any, trace: bool = False) -> Program:
    """The decoder's compiled round on toys; the worlds are in the state, so there are no parameters."""
    return Program(Engine(prefill=no_prefill, steps=_steps_of), decoder, trace=trace)


def play(decoder: Any, rows: Sequence[Row]) -> list[oracles.Answer]:
    """Run all rows together, round by round, to the end."""
    return answers(list(program(decoder).stream(None, state(decoder, rows))))


def answers(log: Sequence[Sequence[Round]]) -> list[oracles.Answer]:
    """Rounds of all requests → each request's answer, in the oracle's terms."""
    return [_answer([rounds[row] for rounds in log]) for row in range(len(log[0]))]


def _answer(log: Sequence[Round]) -> oracles.Answer:
    rounds = [
        oracles.Round(tuple(r.tokens), tuple(r.rewards), float(r.score or 0.0), r.margin, r.explored)
        for r in log
        if r.tokens
    ]
    assert log[-1].done
    assert all(r.score is not None for r in log if r.tokens)
    assert not any(r.stopped for r in log if not r.done)
    last = next(r for r in log if r.done)
    tokens = tuple(token for round_ in rounds for token in round_.tokens)
    return oracles.Answer(tokens, rounds, "stop" if last.stopped else "length", log[-1].explored)


def _steps_of(params: Any, decoder: Any) -> Steps:
    return steps(decoder.chunk)


def no_prefill(*arguments: Any) -> Any:
    """Toys start from a state."""
    raise AssertionError("toys start from `state`")
