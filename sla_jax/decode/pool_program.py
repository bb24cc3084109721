"""Pools, compiled and driven: phase after phase, one host copy a chunk for progress and one a phase for its results."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sla_jax.decode import pool as moves
from sla_jax.decode.completion import Completion, PoolRound
from sla_jax.decode.lanes import Prompts, start
from sla_jax.decode.measures import Terms, measured
from sla_jax.decode.pool import Phase, Pool
from sla_jax.decode.program import Engine, fetch, prompt_arrays
from sla_jax.decode.sampling import Sampling


@runtime_checkable
class PoolDecoder(Protocol):
    """What a decoder of whole candidates says of itself (see `BestOfN`)."""

    @property
    def terms(self) -> Terms:
        """What ranks the candidates if no judge is given."""

    def phases(self, limit: int) -> tuple[Phase, ...]:
        """The schedule for answers of at most `limit` tokens."""


Leaf = Any  # an array, on the device or on the host
# candidates whose fate is to be decided → their scores; called once a phase and request
Judge = Callable[[int, list[Completion]], list[float]]


class PoolProgram:
    """The compiled programs of pools on one model."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._start = jax.jit(_start, static_argnums=(0, 1))
        self._grow = jax.jit(_grow, static_argnums=(0, 1), donate_argnums=3)
        self._look = jax.jit(look, static_argnums=(0, 1))
        self._kept = jax.jit(moves.survivors, static_argnums=2)
        self._keep = jax.jit(_keep, static_argnums=(0, 1))

    def stream(
        self,
        params: Any,
        decoder: PoolDecoder,
        prompts: Sequence[Sequence[int]],
        limit: int,
        ends: Sequence[int],
        samplings: Sequence[Sampling],
        judge: Judge | None = None,
    ) -> Iterator[list[PoolRound]]:
        """Search for one answer to each of R prompts (token ids), each of at most `limit` tokens.

        `judge(request, completions)` replaces the decoder's own score; whose fate is still open is "rejected" there.
        """
        arrays = prompt_arrays(prompts, [limit] * len(prompts), ends, samplings)
        phases = decoder.phases(limit)
        pool = self._start(self._engine, phases[0], params, arrays)
        yield from self.play(params, decoder, phases, pool, judge)

    def play(
        self, params: Any, decoder: PoolDecoder, phases: Sequence[Phase], pool: Pool, judge: Judge | None = None
    ) -> Iterator[list[PoolRound]]:
        """The phases, from a pool that has just been planted for the first."""
        grown, kept = 0, None
        for number, phase in enumerate(phases):
            if kept is not None:
                pool = self._keep(self._engine, phase, params, pool, kept)
            for left in reversed(range((phase.tokens - grown) // phase.chunk)):
                pool = self._grow(self._engine, phase, params, pool)
                status = fetch(status_of(pool))
                if left and not status.done.all():
                    yield [round_of(number, phase, status, row, []) for row in range(len(status.done))]
                    continue
                break
            grown = phase.tokens
            view = fetch(self._look(decoder.terms, phase.chunk, pool))
            scores = judged(view, number, judge)
            count = phases[number + 1].lanes if number + 1 < len(phases) else 0
            kept = self._kept(pool, jnp.asarray(scores), count)
            rows = fates(view, number, scores, fetch(kept))
            yield [round_of(number, phase, status, row, ended) for row, ended in enumerate(rows)]
            if status.done.all():
                return


class View(NamedTuple):
    """What the host sees of a pool at the end of a phase."""

    tokens: Leaf  # [R W T], left-aligned
    rewards: Leaf
    logprobs: Leaf
    length: Leaf  # [R W]
    live: Leaf
    finished: Leaf
    stopped: Leaf
    candidate: Leaf
    score: Leaf


class Status(NamedTuple):
    """What the host sees of a pool after a chunk, [R] each."""

    alive: Leaf
    tokens: Leaf
    explored: Leaf
    steps: Leaf
    done: Leaf


def _start(engine: Engine, phase: Phase, params: Any, prompts: Prompts) -> Pool:
    capacity = prompts.tokens.shape[1]
    logits, anchor, cache = engine.prefill(params, prompts.tokens, prompts.lengths, phase, capacity)
    return moves.plant(cache, logits, anchor, prompts, phase=phase)


def _grow(engine: Engine, phase: Phase, params: Any, pool: Pool) -> Pool:
    return moves.grow(engine.steps(params, phase), pool, phase.chunk)


def _keep(engine: Engine, phase: Phase, params: Any, pool: Pool, kept: Array) -> Pool:
    return moves.keep(engine.steps(params, phase), pool, kept, phase)


def look(terms: Terms, chunk: int, pool: Pool) -> View:
    """A pool, left-aligned and scored."""
    lanes = pool.lanes
    places = lanes.tokens.shape[-1]
    index = jnp.minimum(jnp.arange(places)[None, None, :] + start(lanes, chunk)[..., None], places - 1)
    texts = {name: getattr(lanes, name) for name in ("tokens", "rewards", "logprobs")}
    left = {name: jnp.take_along_axis(x, index, axis=-1) for name, x in texts.items()}
    same = {name: getattr(lanes, name) for name in ("length", "live", "finished", "stopped")}
    return View(**left, **same, candidate=pool.candidate, score=measured(lanes, terms, chunk))


@jax.jit
def status_of(pool: Pool) -> Status:
    """How far a pool is."""
    lanes = pool.lanes
    open_ = lanes.live & ~lanes.finished
    longest = jnp.where(lanes.live, lanes.length, 0).max(axis=-1)
    return Status(open_.sum(axis=-1), longest, lanes.explored, lanes.steps, lanes.done)


def _completion(view: View, number: int, row: int, lane: int) -> Completion:
    n = int(view.length[row, lane])
    ended = "stop" if view.stopped[row, lane] else "length"
    return Completion(
        candidate=int(view.candidate[row, lane]),
        tokens=view.tokens[row, lane, :n].tolist(),
        rewards=view.rewards[row, lane, :n].tolist(),
        logprobs=view.logprobs[row, lane, :n].tolist(),
        finish=ended if view.finished[row, lane] else "rejected",
        round=number,
        score=float(view.score[row, lane]),
    )


def judged(view: View, number: int, judge: Judge | None) -> np.ndarray:
    """Scores [R W]: the decoder's own, or the judge's of every candidate in play."""
    if judge is None:
        return view.score
    scores = np.full(view.score.shape, -np.inf, np.float32)
    for row in range(len(scores)):
        lanes = np.flatnonzero(view.live[row])
        if len(lanes):
            scores[row, lanes] = judge(row, [_completion(view, number, row, int(lane)) for lane in lanes])
    return scores


def fates(view: View, number: int, scores: np.ndarray, kept: np.ndarray) -> list[list[Completion]]:
    """Per request, the candidates that have ended and those that are given up."""
    rows = []
    for row in range(len(scores)):
        decided = [w for w in np.flatnonzero(view.live[row]) if view.finished[row, w] or w not in kept[row]]
        rows.append([_completion(view, number, row, int(w))._replace(score=float(scores[row, w])) for w in decided])
    return rows


def round_of(number: int, phase: Phase, status: Status, row: int, ended: list[Completion]) -> PoolRound:
    """One request's share of a round."""
    return PoolRound(
        phase=number,
        lanes=phase.lanes,
        alive=int(status.alive[row]),
        tokens=int(status.tokens[row]),
        explored=int(status.explored[row]),
        steps=int(status.steps[row]),
        ended=ended,
        done=bool(status.done[row]),
    )
