"""The device, as the service drives it: one engine and one decode state a profile, one reader of prompts for all.

Nothing here waits: every call dispatches and returns; results are read through what the calls return. Before a round
the state is given the least room that holds every text in it: the first slots only if no others are taken, and the
shortest cache, so that few or short requests do not pay for many or long ones.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sla_jax.checkpoint import store
from sla_jax.decode.cost import Cost
from sla_jax.decode.methods import Steppers, reads_rewards
from sla_jax.decode.program import check_prompt
from sla_jax.decode.result import Round, unpack
from sla_jax.errors import UserError
from sla_jax.loading import Loaded, check_generates, end_tokens, load_model
from sla_jax.model.config import ModelConfig
from sla_jax.serving.accounts import Ledger
from sla_jax.serving.context import with_context
from sla_jax.serving.engine import Engine, Program, first_of
from sla_jax.serving.inspect import Inspector
from sla_jax.serving.pools import PoolEngine, PoolRounds
from sla_jax.serving.reader import Reader, Reading
from sla_jax.serving.request import Event, Inspected, Inspection, Request
from sla_jax.serving.settings import MeshShape, ModelInfo, Profile, ServeConfig
from sla_jax.serving.sizes import Sizes, sizes_of
from sla_jax.serving.steppers import StepEngine, StepRounds
from sla_jax.sharding import make_mesh
from sla_jax.text import check_variables, load_tokenizer, with_template

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Seat:
    """What the host knows of the request in a slot."""

    request: Request
    ledger: Ledger
    rounds: int = 0  # dispatched since it sat down

    def reach(self, chunk: int) -> int:
        """How long its text can be after one more round."""
        return len(self.request.prompt) + min(self.request.max_tokens, (self.rounds + 1) * chunk)


class Worker:
    """All engines of a server."""

    def __init__(self, model: Loaded, config: ServeConfig, sizes: Sizes, mesh: Any = None):
        tops, data = config.engine.top_logprobs, config.engine.mesh.data
        self.mesh, self.sizes, self.tops = mesh, sizes, tops
        self.vocabulary = model.config.vocab_size
        self.reader = Reader(model.policy, model.config, sizes, config.engine.prefix_cache_mb * 2**20)
        trees = [profile for profile in config.profiles if profile.streams]
        whole = [profile for profile in config.profiles if not profile.streams]
        self.engines = {profile.name: Engine(model, profile, self.reader, tops=tops, data=data) for profile in trees}
        self.pools = {profile.name: self._whole(model, profile) for profile in whole}
        self.inspector = Inspector(self.reader, tops=tops, has_channel=model.config.channel is not None)
        self._states: dict[str, Any] = {}
        self._seats: dict[str, dict[int, Seat]] = {name: {} for name in self.engines}

    @property
    def slots(self) -> dict[str, int]:
        """Profile → how many requests it decodes at once."""
        return {name: engine.slots for name, engine in (self.engines | self.pools).items()}

    def warm_up(self, progress: Callable[[str], None]) -> None:
        """Compile everything."""
        with self._devices():
            progress("compiling: prompts")
            self.reader.warm_up()
            self.inspector.warm_up()
            for name, engine in self.engines.items():
                progress(f"compiling: profile {name}")
                engine.warm_up()
                self._states[name] = engine.init_state(engine.rows[0])
            for name, pools in self.pools.items():
                progress(f"compiling: profile {name}")
                pools.warm_up()

    def begin(self, request: Request) -> Reading:
        """Look a prompt up in the prefix cache. Raises UserError for a request that cannot be answered."""
        sizes = {"context": self.sizes.context, "vocabulary": self.vocabulary}
        check_prompt(request.prompt, request.max_tokens, **sizes)
        return self.reader.begin(request.prompt)

    def read(self, reading: Reading) -> bool:
        """Read the next piece of a prompt; True when all of it is read."""
        with self._devices():
            return self.reader.advance(reading)

    def insert(self, request: Request, reading: Reading, slot: int) -> "First | PoolRounds | StepRounds":
        """Put a prompt that was read into a slot."""
        assert reading.prefix is not None
        if request.profile in self.pools:
            with self._devices():
                return self.pools[request.profile].insert(reading.prefix, slot, request, reading.began)
        engine = self.engines[request.profile]
        with self._devices():
            state = self._roomy(request.profile, slot, len(request.prompt))
            state, first = engine.insert(engine.load_params(), reading.prefix, state, slot, request)
        self._states[request.profile] = state
        ledger = Ledger(len(request.prompt), engine.position_bytes, reading.began)
        seat = self._seats[request.profile][slot] = Seat(request, ledger)
        first.copy_to_host_async()
        return First(first, slot, seat, branched=engine.profile.branch_first)

    def round(self, profile: str) -> "Rounds | PoolRounds | StepRounds":
        """One round of all slots of a profile."""
        if profile in self.pools:
            with self._devices():
                return self.pools[profile].round()
        engine, seats = self.engines[profile], self._seats[profile]
        with self._devices():
            self._states[profile], packed = engine.generate(engine.load_params(), self._roomy(profile))
        for seat in seats.values():
            seat.rounds += 1
        packed.copy_to_host_async()
        branched = engine.profile.branch_first
        return Rounds(packed, dict(seats), engine.program, branched=branched, leave=self._left(profile))

    def free(self, profile: str, slot: int) -> None:
        """Stop decoding a slot whose request was cancelled."""
        if profile in self.pools:
            self.pools[profile].free(slot)
            return
        with self._devices():
            self._states[profile] = self.engines[profile].free(self._states[profile], slot)
        self._seats[profile].pop(slot, None)

    def inspect(self, inspection: Inspection) -> Callable[[], Inspected]:
        """One forward pass over a text; what is returned waits for the result."""
        check_prompt(inspection.tokens, 1, context=self.sizes.context + 1, vocabulary=self.vocabulary)
        with self._devices():
            return self.inspector.start(inspection)

    def _whole(self, model: Loaded, profile: Profile) -> PoolEngine | StepEngine:
        if isinstance(profile.decoder(), Steppers):
            return StepEngine(model, profile, self.reader, self._devices)
        return PoolEngine(model, profile, self.reader)

    def _left(self, profile: str) -> Callable[[int, Seat], None]:
        def leave(slot: int, seat: Seat) -> None:
            if self._seats[profile].get(slot) is seat:
                del self._seats[profile][slot]

        return leave

    def _roomy(self, profile: str, slot: int = 0, tokens: int = 1) -> Any:
        """A profile's state with the least room for its texts and slots, and for one more in `slot` of `tokens`."""
        engine, seats = self.engines[profile], self._seats[profile]
        chunk = engine.program.decoder.chunk
        longest = max([tokens, *(seat.reach(chunk) for seat in seats.values())])
        rows = next(rows for rows in engine.rows if rows > max([slot, *seats]))
        return engine.resize(self._states[profile], rows, self.sizes.holding(longest))

    def _devices(self) -> Any:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


@dataclasses.dataclass
class First:
    """A first token on its way. A search that branches its first chunk has none."""

    packed: Any
    slot: int
    seat: Seat
    branched: bool

    def wait(self) -> None:
        """Return when the device is done."""
        self.packed.block_until_ready()

    def get(self) -> dict[int, Event]:
        """The first token's event."""
        if self.branched:
            return {}
        token, logprob, tops = first_of(np.asarray(self.packed))
        cost = self.seat.ledger.cost(1, steps=0, lane_steps=0, explored_tokens=0, committed_tokens=1)
        beside = _cut([tops], self.seat.request)
        event = Event(tokens=[token], logprobs=[logprob], tops=beside, alive=1, cost=cost)
        return {self.slot: event}


@dataclasses.dataclass
class Rounds:
    """One round of all slots on its way."""

    packed: Any
    seats: dict[int, Seat]
    program: Program
    branched: bool
    leave: Callable[[int, Seat], None]

    def wait(self) -> None:
        """Return when the device is done."""
        self.packed.block_until_ready()

    def get(self) -> dict[int, Event]:
        """Slot → what this round did for it."""
        rounds = unpack(np.asarray(self.packed), tops=self.program.tops, trace=self.program.grower)
        for slot, seat in self.seats.items():
            if rounds[slot].done:
                self.leave(slot, seat)
        return {slot: self._event(rounds[slot], seat) for slot, seat in self.seats.items()}

    def _event(self, round_: Round, seat: Seat) -> Event:
        first = round_.committed == len(round_.tokens) > 0 and not self.branched
        return Event(
            tokens=round_.tokens,
            repeated=1 if first else 0,
            rewards=round_.rewards,
            logprobs=round_.logprobs,
            tops=_cut(round_.tops or [[]] * len(round_.tokens), seat.request),
            score=round_.score,
            margin=round_.margin,
            alive=round_.alive,
            explored=round_.explored,
            tree=round_.tree if seat.request.tree else None,
            cost=self._cost(round_, seat.ledger),
            finish=("stop" if round_.stopped else "length") if round_.done else None,
        )

    def _cost(self, round_: Round, ledger: Ledger) -> Cost:
        decoder = self.program.decoder
        return ledger.cost(
            round_.committed + decoder.lanes * decoder.held,
            steps=round_.steps,
            lane_steps=round_.lane_steps,
            explored_tokens=round_.explored,
            committed_tokens=round_.committed,
            drafted_tokens=round_.drafted,
            accepted_tokens=round_.accepted,
        )


def _cut(tops: list[list[tuple[int, float]]], request: Request) -> list[list[tuple[int, float]]]:
    """As many alternatives beside each token as were asked for."""
    return [top[: request.top_logprobs] for top in tops]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A checkpoint that can be served; its weights are still on disk."""

    model: ModelInfo
    tokenizer: Any
    config: ServeConfig
    sizes: Sizes
    why: str  # its context is what it is; empty if it was said

    def worker(self, progress: Callable[[str], None]) -> Worker:
        """Load the weights and compile every profile."""
        mesh = mesh_of(self.config.engine.mesh)
        if self.why:
            log.info("%s", self.why)
        progress("loading the weights")
        loaded = load_model(Path(self.config.checkpoint), dtype=self.config.engine.dtype, mesh=mesh)
        worker = Worker(loaded, self.config, self.sizes, mesh)
        worker.warm_up(progress)
        return worker


def open_model(config: ServeConfig) -> Opened:
    """Read what is small and check everything that can be checked before the weights are read. Raises UserError."""
    directory = Path(config.checkpoint)
    tokenizer = with_template(load_tokenizer(directory), date=config.date)
    info = store.info(directory)
    model = info.config
    check_profiles(config, model)
    for profile in config.profiles:
        check_variables(tokenizer, profile.template)
    config, why = with_context(config, model)
    sizes = sizes_of(config.engine, config.profiles, max_positions=model.max_positions)
    described = ModelInfo(
        name=config.name,
        profiles=config.profiles,
        context=sizes.context,
        vocabulary=model.vocab_size,
        end_tokens=tuple(end_tokens(directory, tokenizer)),
        has_channel=model.channel is not None,
        channel=info.channel,
        top_logprobs=config.engine.top_logprobs,
        created=int(time.time()),
    )
    return Opened(model=described, tokenizer=tokenizer, config=config, sizes=sizes, why=why)


def check_profiles(config: ServeConfig, model: ModelConfig) -> None:
    """Raise UserError for a search that this model, or a mesh that these profiles, cannot be served with."""
    check_generates(model)
    shape = config.engine.mesh
    for profile in config.profiles:
        if reads_rewards(profile.decoder()) and model.channel is None:
            raise UserError(
                f"the profile {profile.name} searches with rewards and {config.checkpoint} has no reward channel; "
                "train one with train.py, or attach one with `python convert.py import SRC DST --channel FILE`."
            )
        if shape.data > 1 and not profile.streams:
            raise UserError(
                f"the profile {profile.name} ({profile.method}) decodes each request alone, which cannot be divided "
                f"over mesh.data={shape.data}; it takes mesh.data=1, and mesh.tensor for several devices."
            )
        if profile.slots % shape.data:
            raise UserError(
                f"the profile {profile.name} has {profile.slots} slots, which cannot be divided over mesh.data="
                f"{shape.data}; the nearest number that can is {-(-profile.slots // shape.data) * shape.data}."
            )
    split = {"attention heads": model.heads, "key/value heads": model.kv_heads, "ffn": model.ffn}
    for what, count in {**split, "vocabulary": model.vocab_size}.items():
        if count % shape.tensor:
            raise UserError(f"the model's {what} ({count}) cannot be divided over mesh.tensor={shape.tensor}.")


def mesh_of(shape: MeshShape) -> Any:
    """A mesh over the first data × tensor devices; none for one device. Raises UserError when there are fewer."""
    count, devices = shape.data * shape.tensor, jax.devices()
    if count > len(devices):
        raise UserError(
            f"engine.mesh asks for data={shape.data} × tensor={shape.tensor} = {count} devices and there are "
            f"{len(devices)}."
        )
    return None if count == 1 else make_mesh(data=shape.data, tensor=shape.tensor, devices=devices[:count])
