"""Profiles whose decoders grow whole answers side by side: Best-of-N, Speculative Rejection, beam search.

Every request in a slot is a pool of its own, and a round is one chunk more in each of them. What is to be done to a
pool is known when its request sits down: a schedule of phases that depends on max_tokens. So rounds are dispatched
ahead, and so is giving candidates up, for their own scores are on the device; one small array a round comes back, and
at the end of a phase the candidates whose fate it decided.

A pool only reads the prompt's keys and values: they are the reader's own array, shared with the prefix cache and with
the other choices of a request. What is compiled does not depend on max_tokens: lanes are the schedule's, and room for
tokens comes from a short list of lengths. Room that nobody needs stays empty, so an answer is that of
`LanguageModel.stream` with the same prompt, seed and max_tokens.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sla_jax.decode import beam, beam_program, pool, pool_program
from sla_jax.decode.beam import Beams, BeamSearch
from sla_jax.decode.best_of_n import whole
from sla_jax.decode.completion import Completion, best
from sla_jax.decode.lanes import Prompts
from sla_jax.decode.memory import fitted, free_bytes
from sla_jax.decode.methods import Pools
from sla_jax.decode.pool import Phase, Pool
from sla_jax.decode.pool_program import Status, View
from sla_jax.errors import UserError
from sla_jax.loading import Loaded, engine
from sla_jax.model import decoding, forward
from sla_jax.model.config import ModelConfig
from sla_jax.serving.accounts import Ledger, Tally
from sla_jax.serving.engine import position_bytes, prompt_row
from sla_jax.serving.reader import Prefix, Reader
from sla_jax.serving.request import MAX_STOP_TOKENS, Event, Progress, Request
from sla_jax.serving.settings import Profile
from sla_jax.serving.sizes import places_of
from sla_jax.sharding import constrain

State = Pool | Beams  # of one request, without the prompt's keys and values


class PoolDesign(NamedTuple):
    """What the compiled programs depend on, besides shapes."""

    config: ModelConfig
    decoder: Pools | BeamSearch


@dataclasses.dataclass
class Seat:
    """The request in a slot: its schedule, how far it is, and its pool."""

    request: Request
    phases: tuple[Phase, ...]
    kv: Any  # the prompt's keys and values
    state: Any
    tally: Tally
    phase: int = 0
    grown: int = 0  # tokens that its lanes have room for so far
    ended: list[Completion] = dataclasses.field(default_factory=list)
    over: bool = False  # its answer is known


class PoolEngine:
    """One profile: its programs, and the pools of those who sit in its slots."""

    def __init__(self, model: Loaded, profile: Profile, reader: Reader):
        decoder = fitted(profile.decoder(), position_bytes(model), free_bytes(), profile.slots)
        assert isinstance(decoder, Pools | BeamSearch), f"{profile.method} commits text as it goes"
        if profile.reserve_gb is not None:
            schedule(decoder, reader.sizes.context - 1)  # what no request may find out: that memory is too small
        self.model, self.profile, self.reader = model, profile, reader
        self.design = PoolDesign(model.config, decoder)
        self.places = places_of(reader.sizes.context, decoder.chunk)
        self.seats: dict[int, Seat] = {}

    @property
    def slots(self) -> int:
        """Requests decoded at once."""
        return self.profile.slots

    def insert(self, prefix: Prefix, slot: int, request: Request, began: float) -> "PoolRounds":
        """Put a read prompt into a slot. There is no first token to tell."""
        self.seats[slot] = self._seat(prefix, request, schedule(self.design.decoder, request.max_tokens), began)
        return PoolRounds({}, self._leave)

    def round(self) -> "PoolRounds":
        """One chunk in every pool whose schedule is not at its end."""
        going = {slot: seat for slot, seat in self.seats.items() if seat.phase < len(seat.phases)}
        return PoolRounds({slot: self._advance(seat) for slot, seat in going.items()}, self._leave)

    def free(self, slot: int) -> None:
        """Drop the pool of a request that was cancelled."""
        self.seats.pop(slot, None)

    def warm_up(self) -> None:
        """Compile everything: every schedule that there can be is played once in each length of the cache."""
        sizes = self.reader.sizes
        reading = self.reader.begin((0,))
        while not self.reader.advance(reading):
            pass
        assert reading.prefix is not None
        paths = schedules(self.design.decoder, sizes.context, self.places)
        for bucket, phases in itertools.product(sizes.buckets, paths):
            prompt = (0,) * min(bucket, sizes.context - 1)
            request = Request(id="", profile=self.profile.name, prompt=prompt, max_tokens=1, ends=())
            seat = self._seat(reading.prefix, request, phases, reading.began)
            for phase in phases:
                seat.grown = phase.tokens
                jax.block_until_ready(self._advance(seat).status)

    def _leave(self, slot: int, seat: Seat) -> None:
        if self.seats.get(slot) is seat:
            del self.seats[slot]

    def _seat(self, prefix: Prefix, request: Request, phases: tuple[Phase, ...], began: float) -> Seat:
        prompt = prompt_row(request, self.reader.sizes.context, len(self.model.end_tokens) + MAX_STOP_TOKENS)
        kv = self.reader.resized(prefix.kv, self.reader.sizes.holding(len(request.prompt)))
        static: dict[str, Any] = {"design": self.design, "shape": roomy(phases[0], self.places)}
        state = plant_program(self.model.policy, prefix.hidden, prefix.reward, prompt, **static)
        ledger = Ledger(len(request.prompt), position_bytes(self.model), began)
        return Seat(request, phases, kv, state, Tally(ledger))

    def _advance(self, seat: Seat) -> "Report":
        number, params, kept = seat.phase, self.model.policy, None
        phase = seat.phases[number]
        static: dict[str, Any] = {"design": self.design, "shape": roomy(phase, self.places)}
        seat.state, status, view = grow_program(params, seat.kv, seat.state, **static)
        seat.grown += phase.chunk
        ends = seat.grown >= phase.tokens
        if ends:
            seat.phase += 1
        if ends and seat.phase < len(seat.phases):
            static["shape"] = roomy(seat.phases[seat.phase], self.places)
            seat.state, kept = keep_program(params, seat.state, view.score, **static)
        for leaf in jax.tree.leaves((status, view, kept) if ends else status):
            leaf.copy_to_host_async()
        return Report(seat, number, status, view, kept, ends)


def schedule(decoder: Pools | BeamSearch, limit: int) -> tuple[Phase, ...]:
    """The phases of an answer of at most `limit` tokens. Raises UserError where the decoder has none."""
    if isinstance(decoder, BeamSearch):
        return (Phase(lanes=decoder.beams, tokens=whole(limit, decoder.chunk), chunk=decoder.chunk),)
    return decoder.phases(limit)


def schedules(decoder: Pools | BeamSearch, context: int, places: tuple[int, ...]) -> list[tuple[Phase, ...]]:
    """The different shapes that schedules have in a context."""
    found: dict[tuple[Phase, ...], None] = {}
    for limit in range(1, context):
        with contextlib.suppress(UserError):  # such a request is refused when it comes
            found[tuple(roomy(phase, places) for phase in schedule(decoder, limit))] = None
    return list(found)


def roomy(phase: Phase, places: tuple[int, ...]) -> Phase:
    """The shape that a phase is computed in."""
    return dataclasses.replace(phase, tokens=next(size for size in places if size >= phase.tokens))


# ---- results ----


class Report(NamedTuple):
    """One round of one pool on its way."""

    seat: Seat
    phase: int
    status: Any
    view: Any
    kept: Any
    ends: bool  # the phase is over

    def event(self) -> Event:
        """What the round did. At the end of a phase, or of the pool, the fates that it decided."""
        seat, status = self.seat, Status(*np.asarray(self.status).tolist())
        lanes = seat.phases[self.phase].lanes
        progress = Progress(self.phase, lanes, status.alive, status.tokens, status.explored, status.steps)
        ended = self._ended() if self.ends or status.done else []
        seat.ended += ended
        seat.over = status.done
        return told(progress, ended, best(seat.ended) if status.done else None, seat.tally)

    def _ended(self) -> list[Completion]:
        view, kept = jax.device_get((self.view, self.kept))
        if isinstance(view, Beams):
            return beam_program.answers(view, 0) if view.done[0] else []
        none = np.zeros((1, 0), np.int32)
        return pool_program.fates(view, self.phase, view.score, none if kept is None else kept)[0]


def told(
    progress: Progress, ended: list[Completion], answer: Completion | None, tally: Tally, copies: int = 1
) -> Event:
    """A round of a search for whole answers; its last one brings the answer."""
    tally.add(lanes=progress.lanes, tokens=progress.tokens, steps=progress.steps, copies=copies)
    cost = tally.cost(progress.explored_tokens, 0 if answer is None else len(answer.tokens))
    event = Event(alive=progress.alive, explored=progress.explored_tokens, progress=progress, ended=ended, cost=cost)
    if answer is None:
        return event
    return event._replace(
        tokens=answer.tokens,
        rewards=answer.rewards,
        logprobs=answer.logprobs,
        tops=[[]] * len(answer.tokens),
        score=answer.score,
        finish="stop" if answer.finish == "stop" else "length",
    )


@dataclasses.dataclass
class PoolRounds:
    """One round of all pools on its way."""

    reports: dict[int, Report]
    leave: Callable[[int, Seat], None]

    def wait(self) -> None:
        """Return when the device is done."""
        jax.block_until_ready([report.status for report in self.reports.values()])

    def get(self) -> dict[int, Event]:
        """Slot → what this round did for it. Rounds dispatched after the last one that mattered did nothing."""
        events = {slot: report.event() for slot, report in self.reports.items() if not report.seat.over}
        for slot, event in events.items():
            if event.finish:
                self.leave(slot, self.reports[slot].seat)
        return events


# ---- programs ----


@functools.partial(jax.jit, static_argnames=("design", "shape"))
def plant_program(
    params: Any, hidden: Array, reward: Array, prompt: Prompts, *, design: PoolDesign, shape: Phase
) -> State:
    """A request's pool."""
    logits = forward.logits(params, hidden)
    cache = empty_cache(design.config, params.norm[...].dtype, shape)._replace(length=prompt.lengths)
    if isinstance(design.decoder, BeamSearch):
        return _laid_out(beam.plant(cache, logits, prompt, shape))
    return _laid_out(pool.plant(cache, logits, reward, prompt, phase=shape))


@functools.partial(jax.jit, static_argnames=("design", "shape"), donate_argnames=("state",))
def grow_program(
    params: Any, kv: Any, state: State, *, design: PoolDesign, shape: Phase
) -> tuple[State, Array, View | Beams]:
    """One chunk more; the status as one array, and what the host may want to look at."""
    bound, decoder = engine(design.config), design.decoder
    seen: View | Beams
    if isinstance(decoder, BeamSearch):
        assert isinstance(state, Beams)
        beams = _with_prefix(beam_program.run(bound, decoder, params, _with_prefix(state, kv)), ())
        state, seen, status = beams, beams._replace(cache=None, logits=beams.done), _standing(beams)
    else:

        def grown(state: Pool) -> Pool:
            steps = bound.steps(params, shape)
            return _with_prefix(pool.grow(steps, _with_prefix(state, kv), shape.chunk), ())

        assert isinstance(state, Pool)
        after = jax.lax.cond(jnp.all(state.lanes.done), lambda state: state, grown, state)
        seen, status = pool_program.look(decoder.terms, shape.chunk, after), pool_program.status_of(after)
        state = after
    packed = jnp.concatenate([x.astype(jnp.int32) for x in status])
    return _laid_out(state), packed, jax.tree.map(jnp.copy, seen)  # the state is given away to the next round


@functools.partial(jax.jit, static_argnames=("design", "shape"))
def keep_program(
    params: Any, state: Pool, score: Float[Array, "1 W"], *, design: PoolDesign, shape: Phase
) -> tuple[Pool, Array]:
    """The best candidates in fewer lanes, and which lanes they were in."""
    kept = pool.survivors(state, score, shape.lanes)
    steps = engine(design.config).steps(params, shape)
    return _laid_out(pool.keep(steps, state, kept, shape)), kept


def empty_cache(config: ModelConfig, dtype: Any, shape: Phase) -> decoding.Cache:
    """Room for the candidates' tokens, and none for the prompt's."""
    shapes = decoding.cache_shapes(config, dtype, 1, shape.lanes, 1, shape.tokens)._replace(prefix=())
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _standing(beams: Beams) -> Status:
    width = beams.tokens.shape[1]
    alive = jnp.where(beams.done, 0, width)
    return Status(alive, beams.length, beams.steps * width, beams.steps, beams.done)


def pool_axes(state: Any) -> Any:
    """The names of every leaf's axes: only the heads of the caches are split."""

    def axes(leaf: Any) -> tuple[str | None, ...]:
        return (None, "heads", None, None, None) if leaf.ndim == 5 else (None,) * leaf.ndim

    return jax.tree.map(axes, state)


def _laid_out(state: Any) -> Any:
    return jax.tree.map(lambda x, names: constrain(x, *names), state, pool_axes(state))


def _with_prefix(state: Any, prefix: Any) -> Any:
    """The state with other keys and values of the prompt."""
    if isinstance(state, Pool):
        return state._replace(lanes=_with_prefix(state.lanes, prefix))
    return state._replace(cache=state.cache._replace(prefix=prefix))
