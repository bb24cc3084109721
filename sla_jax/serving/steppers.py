"""Profiles whose decoders go on step by step: step beam search and DVTS.

Every request in a slot is a search of its own, the one that `LanguageModel.stream` plays, planted from what the reader
has read. Who goes on after a step is the host's decision, so nothing can be dispatched ahead: a round plays its part,
a chunk more in every search, when its result is waited for.

As with pools (`pools.py`), what is compiled does not depend on max_tokens: room for tokens comes from a short list of
lengths, and room that nobody needs stays empty.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
from jaxtyping import Array

from sla_jax.decode import step_lanes
from sla_jax.decode.completion import Completion, PoolRound, best
from sla_jax.decode.dvts import DVTS, boxed
from sla_jax.decode.lanes import Prompts
from sla_jax.decode.methods import Steppers
from sla_jax.decode.pool import Phase
from sla_jax.decode.separator import separator_table
from sla_jax.decode.step_lanes import Walk
from sla_jax.decode.step_program import Run, StepProgram, phase_of
from sla_jax.loading import Loaded, engine
from sla_jax.model import forward
from sla_jax.model.config import ModelConfig
from sla_jax.serving.accounts import Ledger, Tally
from sla_jax.serving.engine import position_bytes, prompt_row
from sla_jax.serving.pools import empty_cache, pool_axes, told
from sla_jax.serving.reader import Prefix, Reader
from sla_jax.serving.request import MAX_STOP_TOKENS, Event, Progress, Request
from sla_jax.serving.settings import Profile
from sla_jax.serving.sizes import places_of
from sla_jax.sharding import constrain
from sla_jax.text import decode, token_bytes

Devices = Callable[[], AbstractContextManager[Any]]  # within which programs run


@dataclasses.dataclass
class Seat:
    """The request in a slot, and its search."""

    rounds: Iterator[list[PoolRound]]
    tally: Tally
    ended: list[Completion] = dataclasses.field(default_factory=list)
    over: bool = False  # its answer is known, or nobody waits for it any more

    def event(self) -> Event:
        """One chunk more, and what it did."""
        (round_,) = next(self.rounds)
        self.ended += round_.ended
        self.over = round_.done
        progress = Progress(round_.phase, round_.lanes, round_.alive, round_.tokens, round_.explored, round_.steps)
        answer = best(self.ended, complete_first=True) if round_.done else None
        return told(progress, round_.ended, answer, self.tally, round_.copies)


class StepEngine:
    """One profile: its programs, and the searches of those who sit in its slots."""

    def __init__(self, model: Loaded, profile: Profile, reader: Reader, devices: Devices):
        decoder = profile.decoder()
        assert isinstance(decoder, Steppers), f"{profile.method} does not go on step by step"
        self.model, self.profile, self.reader, self.decoder = model, profile, reader, decoder
        self.program = program_of(model.config)
        self.places = places_of(reader.sizes.context, decoder.chunk)
        self.seats: dict[int, Seat] = {}
        pieces = token_bytes(model.tokenizer, model.config.vocab_size)
        self._table = reader.at_home(separator_table(pieces, decoder.separator.encode()))
        self._devices = devices

    @property
    def slots(self) -> int:
        """Requests decoded at once."""
        return self.profile.slots

    def insert(self, prefix: Prefix, slot: int, request: Request, began: float) -> "StepRounds":
        """Put a read prompt into a slot. There is no first token to tell."""
        self.seats[slot] = self._seat(prefix, request, self.shape(request.max_tokens), began)
        return StepRounds(self, {})

    def round(self) -> "StepRounds":
        """One chunk in every search, when it is waited for."""
        return StepRounds(self, dict(self.seats))

    def advance(self, seats: dict[int, Seat]) -> dict[int, Event]:
        """Slot → what one chunk more did, of those that are not over."""
        with self._devices():
            events = {slot: seat.event() for slot, seat in seats.items() if not seat.over}
        for slot in events:
            if seats[slot].over:
                self.free(slot)
        return events

    def free(self, slot: int) -> None:
        """Drop the search of a request that has its answer, or was cancelled."""
        seat = self.seats.pop(slot, None)
        if seat is not None:
            seat.over = True

    def warm_up(self) -> None:
        """Compile everything: a search of one token is played in each length of the cache, in each room for tokens."""
        sizes = self.reader.sizes
        reading = self.reader.begin((0,))
        while not self.reader.advance(reading):
            pass
        assert reading.prefix is not None
        for bucket in sizes.buckets:
            prompt = (0,) * min(bucket, sizes.context - 1)
            request = Request(id="", profile=self.profile.name, prompt=prompt, max_tokens=1, ends=())
            for places in self.places:
                seat = self._seat(reading.prefix, request, self.shape(places), reading.began)
                while not seat.over:
                    seat.event()

    def shape(self, limit: int) -> Phase:
        """The shape that answers of at most `limit` tokens are searched in."""
        return phase_of(self.decoder, next(size for size in self.places if size >= limit))

    def _seat(self, prefix: Prefix, request: Request, shape: Phase, began: float) -> Seat:
        params = self.model.policy
        prompt = prompt_row(request, self.reader.sizes.context, len(self.model.end_tokens) + MAX_STOP_TOKENS)
        kv = self.reader.resized(prefix.kv, self.reader.sizes.holding(len(request.prompt)))
        static: dict[str, Any] = {"config": self.model.config, "shape": shape}
        walk = with_prefix(plant_program(params, prefix.hidden, prefix.reward, prompt, **static), kv)
        over = self._boxed if isinstance(self.decoder, DVTS) and self.decoder.boxed else None
        run = Run(params, self.decoder, shape, self._table, over=over)
        ledger = Ledger(len(request.prompt), position_bytes(self.model), began)
        return Seat(self.program.play(run, walk), Tally(ledger))

    def _boxed(self, tokens: list[int]) -> bool:
        return boxed(decode(self.model.tokenizer, tokens))


@dataclasses.dataclass
class StepRounds:
    """One round of all searches, played when it is waited for."""

    engine: StepEngine
    seats: dict[int, Seat]
    events: dict[int, Event] = dataclasses.field(default_factory=dict)

    def wait(self) -> None:
        """Play it."""
        self.events = self.engine.advance(self.seats)

    def get(self) -> dict[int, Event]:
        """Slot → what this round did for it."""
        return self.events


@functools.cache
def program_of(config: ModelConfig) -> StepProgram:
    """The programs of every profile that goes on step by step: where shapes are the same, they are."""
    return StepProgram(engine(config), laid_out)


@functools.partial(jax.jit, static_argnames=("config", "shape"))
def plant_program(
    params: Any, hidden: Array, reward: Array, prompt: Prompts, *, config: ModelConfig, shape: Phase
) -> Walk:
    """A request's lanes, without the prompt's keys and values."""
    cache = empty_cache(config, params.norm[...].dtype, shape)._replace(length=prompt.lengths)
    return laid_out(step_lanes.plant(cache, forward.logits(params, hidden), reward, prompt, phase=shape))


def with_prefix(walk: Walk, prefix: Any) -> Walk:
    """The lanes with other keys and values of the prompt."""
    return walk._replace(lanes=walk.lanes._replace(cache=walk.lanes.cache._replace(prefix=prefix)))


def walk_axes(walk: Walk) -> Walk:
    """The names of every leaf's axes: only the heads of the caches are split."""
    prefix = jax.tree.map(lambda leaf: (None, "heads", None, None), walk.lanes.cache.prefix)
    return with_prefix(pool_axes(with_prefix(walk, ())), prefix)


def laid_out(walk: Walk) -> Walk:
    """Heads of the caches over `tensor`; nothing without a mesh."""
    return jax.tree.map(lambda x, names: constrain(x, *names), walk, walk_axes(walk))
