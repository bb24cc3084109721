"""Beam search, compiled and driven: one program a number of beams and length, one host copy every few tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sla_jax.decode import beam
from sla_jax.decode.beam import Beams, BeamSearch
from sla_jax.decode.completion import Completion, PoolRound
from sla_jax.decode.lanes import Prompts
from sla_jax.decode.pool import Phase
from sla_jax.decode.program import Engine, fetch, prompt_arrays
from sla_jax.decode.sampling import Sampling


class BeamProgram:
    """The compiled programs of beam search on one model."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._start = jax.jit(_start, static_argnums=(0, 1))
        self._round = jax.jit(run, static_argnums=(0, 1), donate_argnums=3)

    def stream(
        self,
        params: Any,
        decoder: BeamSearch,
        prompts: Sequence[Sequence[int]],
        limit: int,
        ends: Sequence[int],
    ) -> Iterator[list[PoolRound]]:
        """Search for R prompts (token ids). The W best answers, best first, come with the round that decides them."""
        arrays = prompt_arrays(prompts, [limit] * len(prompts), ends, [Sampling()] * len(prompts))
        phase = Phase(lanes=decoder.beams, tokens=limit, chunk=1)
        return self.play(params, decoder, self._start(self._engine, phase, params, arrays))

    def play(self, params: Any, decoder: BeamSearch, beams: Beams) -> Iterator[list[PoolRound]]:
        """The rounds, from a state that has just been planted."""
        told = [False] * len(beams.done)
        while not all(told):
            beams = self._round(self._engine, decoder, params, beams)
            seen = fetch(beams._replace(cache=None, logits=beams.done))
            yield [_report(seen, row, decoder, told[row]) for row in range(len(told))]
            told = seen.done.tolist()


def _start(engine: Engine, phase: Phase, params: Any, prompts: Prompts) -> Beams:
    logits, _, cache = engine.prefill(params, prompts.tokens, prompts.lengths, phase, prompts.tokens.shape[1])
    return beam.plant(cache, logits, prompts, phase)


def run(engine: Engine, decoder: BeamSearch, params: Any, beams: Beams) -> Beams:
    """One round: `chunk` tokens, or until every request is done."""
    steps = engine.steps(params, Phase(lanes=decoder.beams, tokens=beams.tokens.shape[-1], chunk=1))

    def going(carry: tuple[Array, Beams]) -> Array:
        return (carry[0] < decoder.chunk) & ~jnp.all(carry[1].done)

    def once(carry: tuple[Array, Beams]) -> tuple[Array, Beams]:
        return carry[0] + 1, beam.advance(steps, carry[1], decoder)

    return jax.lax.while_loop(going, once, (jnp.int32(0), beams))[1]


def _report(beams: Beams, row: int, decoder: BeamSearch, told: bool) -> PoolRound:
    done, steps = bool(beams.done[row]), int(beams.steps[row])
    return PoolRound(
        phase=0,
        lanes=decoder.beams,
        alive=0 if done else decoder.beams,
        tokens=int(beams.length[row]),
        explored=steps * decoder.beams,
        steps=steps,
        ended=answers(beams, row) if done and not told else [],
        done=done,
    )


def answers(beams: Beams, row: int) -> list[Completion]:
    """The ended answers, best first."""
    found = []
    for lane in range(beams.ended_score.shape[1]):
        n = int(beams.ended_length[row, lane])
        if beams.ended_score[row, lane] > beam.NEVER:
            tokens = beams.ended_tokens[row, lane, :n].tolist()
            finish = "stop" if tokens[-1] in beams.ends[row].tolist() else "length"
            logprobs = beams.ended_logprobs[row, lane, :n].tolist()
            found.append(Completion(lane, tokens, [], logprobs, finish, 0, float(beams.ended_score[row, lane])))
    return found
