"""Step beam search and DVTS, compiled and driven: step after step, one small host copy a chunk and two or so a step.

Shapes are n lanes and room for max_tokens, whatever the search does; what changes from step to step is data. One
program branches, one grows, one looks. No state is donated, as a copy may look ahead of it.
"""

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from sla_jax.decode import step_lanes as moves
from sla_jax.decode.best_of_n import whole
from sla_jax.decode.completion import PoolRound
from sla_jax.decode.lanes import Prompts
from sla_jax.decode.measures import Terms
from sla_jax.decode.pool import Phase, Pool
from sla_jax.decode.pool_program import Judge, Status, View, fates, judged, look, round_of, status_of
from sla_jax.decode.program import Engine, fetch, prompt_arrays
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.step_lanes import Walk
from sla_jax.decode.step_search import (
    ROOT,
    Lineage,
    Moves,
    Over,
    StepDecoder,
    aggregated,
    branching,
    complete,
    from_root,
    leaves_of,
    rolling,
    told,
)

Growing = Generator[list[PoolRound], None, tuple[Walk, Status]]


class Run(NamedTuple):
    """One search: what it was asked for. See `StepProgram.stream`."""

    params: Any
    decoder: StepDecoder
    phase: Phase
    table: Any
    judge: Judge | None = None
    over: Over | None = None


class StepProgram:
    """The compiled programs of searches by steps on one model; `laid_out` says how a state lies on several devices."""

    def __init__(self, engine: Engine, laid_out: Callable[[Walk], Walk] = lambda walk: walk):
        self.engine = engine
        self._start = jax.jit(_start, static_argnums=(0, 1))
        self.branch = jax.jit(_then(_branch, laid_out), static_argnums=(0, 1))
        self.grow = jax.jit(_then(_grow, laid_out), static_argnums=(0, 1))
        self._look = jax.jit(_look, static_argnums=(0, 1))
        self._finish = jax.jit(_then(moves.finish, laid_out))

    def stream(
        self,
        params: Any,
        decoder: StepDecoder,
        prompts: Sequence[Sequence[int]],
        limit: int,
        ends: Sequence[int],
        samplings: Sequence[Sampling],
        judge: Judge | None = None,
        *,
        table: UInt8[np.ndarray, "S V"],
        over: Over | None = None,
    ) -> Iterator[list[PoolRound]]:
        """Search for one answer to each of R prompts (token ids), each of at most `limit` tokens.

        `table` says where steps end (`separator.py`). `judge(request, completions)` scores whole answers so far, in
        place of the decoder's measure of their last steps. What is `over` after a step has ended.
        """
        arrays = prompt_arrays(prompts, [limit] * len(prompts), ends, samplings)
        phase = phase_of(decoder, limit)
        walk = self._start(self.engine, phase, params, arrays)
        return self.play(Run(params, decoder, phase, table, judge, over), walk)

    def play(self, run: Run, walk: Walk) -> Iterator[list[PoolRound]]:
        """All steps, from a state that has just been planted."""
        decoder, slots = run.decoder, range(walk.awake.shape[0])
        lineages, children = [ROOT for _ in slots], [from_root(decoder.n) for _ in slots]
        for number in range(decoder.max_steps):
            stepping = number + 1 < decoder.max_steps
            lineages = [lineages[row].born(children[row]) for row in slots]
            walk = self._branched(run, walk, branching(children, decoder.n), greedy=False)
            walk, status = yield from self._grown(run, walk, number, stepping)
            view, steps = self._seen(run, walk, lineages)
            if run.over is not None:
                over = complete(view, run.over)
                walk = self._finish(walk, over)
                view = view._replace(finished=view.finished | over, stopped=view.stopped | over)
            final = view
            if stepping and decoder.lookahead:
                ahead, status = yield from self._ahead(run, walk, rolling(view.live), number)
                walk, (final, _) = accounted(walk, ahead), self._seen(run, ahead, lineages)
            scores = judged(final, number, run.judge)
            lineages = [lineages[row].scored(view.live[row], steps[row], scores[row]) for row in slots]
            totals = np.array([aggregated(one.scores, decoder.aggregate, decoder.n) for one in lineages])
            children = [decoder.branches(leaves_of(view, row, totals[row])) for row in slots]
            ended = fates(view, number, totals, branching(children, decoder.n)[0])
            rounds = [round_of(number, run.phase, status, row, ended[row]) for row in slots]
            yield [told(rounds[row], lineages[row], bool(children[row])) for row in slots]
            if not any(children):
                return

    def _branched(self, run: Run, walk: Walk, by: Moves, *, greedy: bool) -> Walk:
        return self.branch(self.engine, run.phase, run.params, walk, *by, np.bool_(greedy))

    def _grown(self, run: Run, walk: Walk, number: int, stepping: bool, copies: int = 1) -> Growing:
        """Chunk after chunk until all are asleep, telling how far they are."""
        while True:
            walk = self.grow(self.engine, run.phase, run.params, walk, run.table, np.bool_(stepping))
            status, awake = fetch((status_of(Pool(walk.lanes, walk.rank)), walk.awake))
            if not awake.any():
                return walk, status
            rounds = [round_of(number, run.phase, status, row, []) for row in range(len(awake))]
            yield [round_._replace(copies=copies) for round_ in rounds]

    def _ahead(self, run: Run, walk: Walk, by: Moves, number: int) -> Growing:
        """A copy that has gone on, greedily, by as many steps as are looked ahead."""
        for _ in range(run.decoder.lookahead):
            walk = self._branched(run, walk, by, greedy=True)
            walk, status = yield from self._grown(run, walk, number, True, copies=2)
        return walk, status

    def _seen(self, run: Run, walk: Walk, lineages: Sequence[Lineage]) -> tuple[View, np.ndarray]:
        """What is there after a step, the scores of the last steps included, and how many steps each candidate has."""
        view, steps = fetch(self._look(run.decoder.terms, run.phase.chunk, walk))
        numbers = np.zeros(view.live.shape, np.int32)
        for row, lineage in enumerate(lineages):
            numbers[row, list(lineage.numbers)] = list(lineage.numbers.values())
        return view._replace(candidate=numbers), steps


def phase_of(decoder: StepDecoder, limit: int) -> Phase:
    """The shapes: an unfinished answer, however its steps lie, has room for a chunk more."""
    return Phase(lanes=decoder.n, tokens=whole(limit, decoder.chunk) + decoder.chunk, chunk=decoder.chunk)


def accounted(walk: Walk, ahead: Walk) -> Walk:
    """`walk` again, with what it took to look ahead on its account."""
    names = ("explored", "steps", "lane_steps")
    return walk._replace(lanes=walk.lanes._replace(**{name: getattr(ahead.lanes, name) for name in names}))


@functools.cache  # the same function for the same two, so that models of one shape share what is compiled
def _then(program: Callable[..., Walk], laid_out: Callable[[Walk], Walk]) -> Callable[..., Walk]:
    return lambda *arguments: laid_out(program(*arguments))


def _start(engine: Engine, phase: Phase, params: Any, prompts: Prompts) -> Walk:
    capacity = prompts.tokens.shape[1]
    logits, anchor, cache = engine.prefill(params, prompts.tokens, prompts.lengths, phase, capacity)
    return moves.plant(cache, logits, anchor, prompts, phase=phase)


def _branch(
    engine: Engine, phase: Phase, params: Any, walk: Walk, parents: Array, numbers: Array, greedy: Array
) -> Walk:
    return moves.branch(engine.steps(params, phase), walk, parents, numbers, phase.chunk, greedy)


def _grow(engine: Engine, phase: Phase, params: Any, walk: Walk, table: Array, stepping: Array) -> Walk:
    return moves.grow(engine.steps(params, phase), walk, phase.chunk, table, stepping)


def _look(terms: Terms, chunk: int, walk: Walk) -> tuple[View, Array]:
    view = look(terms, chunk, Pool(walk.lanes, walk.rank))
    count = moves.begins(walk.lanes, chunk).astype(jnp.int32).sum(axis=-1)
    return view._replace(score=moves.step_score(walk.lanes, terms, chunk)), count
