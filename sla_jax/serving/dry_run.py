"""`serve.py --dry-run [--target v5e:2x4]`: compile every profile for a machine that need not be there; does it fit?

From shapes alone. Per chip: what the weights, every profile's slots and the prefix cache take, what each program needs
on top of its arguments while it runs, and for every profile the largest number of slots that fits with the others as
they are (a lower bound: what a round needs is taken to grow with its slots as a whole).
"""

import dataclasses
import functools
import itertools
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from sla_jax.checkpoint import store
from sla_jax.decode.beam import BeamSearch
from sla_jax.decode.methods import Pools, Steppers, Trees
from sla_jax.decode.pool import Phase
from sla_jax.decode.step_program import phase_of
from sla_jax.errors import UserError
from sla_jax.loading import default_dtype, end_tokens
from sla_jax.model import decoding
from sla_jax.model.axes import policy_shardings
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import init_policy, unstack
from sla_jax.serving.engine import Program, generate_program, prompt_row, state_axes, state_shapes
from sla_jax.serving.pools import (
    PoolDesign,
    grow_program,
    keep_program,
    plant_program,
    pool_axes,
    roomy,
    schedule,
)
from sla_jax.serving.reader import extend_program
from sla_jax.serving.request import MAX_STOP_TOKENS, Request
from sla_jax.serving.settings import Profile, ServeConfig
from sla_jax.serving.sizes import Sizes, places_of, sizes_of
from sla_jax.serving.steppers import plant_program as plant_walk
from sla_jax.serving.steppers import program_of, walk_axes, with_prefix
from sla_jax.serving.worker import check_profiles
from sla_jax.sharding import ACTIVATIONS, SERVE, make_mesh, named
from sla_jax.text import load_tokenizer

RESERVE = 0.05  # of a chip's memory, left for the runtime and fragmentation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Where to compile for."""

    name: str
    mesh: Any
    chip_bytes: float
    dtype: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes per chip of one profile."""

    profile: Profile
    state: int  # of all its slots
    slot: float  # of one more slot
    running: int  # temporaries and new outputs of a round
    kv_slot: int  # keys and values of one slot, over all chips
    lanes: int  # of one slot


def report(config: ServeConfig) -> None:
    """Compile, print the table, and raise UserError if it does not fit."""
    console = Console()
    directory = Path(config.checkpoint)
    model = store.info(directory).config
    check_profiles(config, model)
    sizes = sizes_of(config.engine, config.profiles, max_positions=model.max_positions)
    machine = machine_of(config)
    ends = len(end_tokens(directory, load_tokenizer(directory))) + MAX_STOP_TOKENS
    weights = chip_bytes(policy_shapes(model, machine))
    with console.status(f"compiling for {machine.name}: reading prompts"):
        reading = read_bytes(model, sizes, machine)
    needs = []
    for profile in config.profiles:
        with console.status(f"compiling for {machine.name}: profile {profile.name}"):
            decoder = profile.decoder()
            if isinstance(decoder, Trees):
                program = Program(model, decoder, config.engine.top_logprobs, ends, profile.traces)
                needs.append(need_of(program, profile, sizes, machine))
            elif isinstance(decoder, Steppers):
                needs.append(step_need(model, decoder, profile, sizes, machine, ends))
            else:
                assert isinstance(decoder, Pools | BeamSearch), f"{profile.method} is not served"
                needs.append(pool_need(PoolDesign(model, decoder), profile, sizes, machine, ends))
    cache = config.engine.prefix_cache_mb * 2**20 // config.engine.mesh.tensor
    fixed = weights + cache + max(reading, *(need.running for need in needs))
    room = machine.chip_bytes * (1 - RESERVE)
    show(
        console, machine, config, needs, {"weights": weights, "prefix cache": cache, "reading a prompt": reading}, room
    )
    used = fixed + sum(need.state for need in needs)
    verdict = f"{used / 1e9:.2f} GB of {machine.chip_bytes / 1e9:.0f} GB a chip, {RESERVE:.0%} of it kept free"
    if used > room:
        raise UserError(f"this does not fit: {verdict}. Lower slots, engine.context or engine.prefix_cache_mb.")
    console.print(f"It fits: {verdict}.")


def machine_of(config: ServeConfig) -> Machine:
    """The target's devices, or this machine's."""
    shape = config.engine.mesh
    if config.target:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        from sla_jax.topology import chip_memory, slice_devices

        devices, memory, name = slice_devices(config.target), chip_memory(config.target), config.target
    else:
        devices, name = jax.devices(), f"this machine ({jax.devices()[0].device_kind})"
        stats = devices[0].memory_stats() or {}
        memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = shape.data * shape.tensor
    if count > len(devices):
        raise UserError(
            f"engine.mesh is data={shape.data} × tensor={shape.tensor}, {count} devices, and {name} has {len(devices)}."
        )
    name = f"{name}, {count} of {len(devices)} devices"
    mesh = make_mesh(data=shape.data, tensor=shape.tensor, devices=devices[:count])
    dtype = jnp.dtype(config.engine.dtype or ("bfloat16" if config.target else default_dtype()))
    return Machine(name=name, mesh=mesh, chip_bytes=float(memory), dtype=dtype)


def need_of(program: Program, profile: Profile, sizes: Sizes, machine: Machine) -> Need:
    """Compile a profile's round. One more slot is counted with a full share of what a round needs: rather too much."""
    state, running = round_bytes(program, profile.slots, sizes, machine)
    slot = (state + running) / profile.slots
    cache = state_shapes(program, 1, sizes.capacities[-1], machine.dtype).cache
    kv_slot = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    lanes = program.decoder.lanes
    return Need(profile=profile, state=state, slot=slot, running=running, kv_slot=kv_slot, lanes=lanes)


def pool_need(design: PoolDesign, profile: Profile, sizes: Sizes, machine: Machine, ends: int) -> Need:
    """Compile the phases of the longest answers. A slot counts as much as its largest pool, beside the longest prompt,
    which it shares with others at best. Pools take turns, so that only one runs at a time."""
    places = places_of(sizes.context, design.decoder.chunk)
    phases = [roomy(phase, places) for phase in schedule(design.decoder, sizes.context - 1)]
    policy, kv = policy_shapes(design.config, machine), prompt_shapes(design.config, sizes, machine)
    slot, running, kv_slot = 0, 0, 0
    for phase, following in itertools.zip_longest(phases, phases[1:]):
        state = pool_shapes(design, phase, sizes, machine, ends)
        with jax.set_mesh(machine.mesh):
            programs = [grow_program.lower(policy, kv, state, design=design, shape=phase)]
            if following is not None:
                score = placed(jax.ShapeDtypeStruct((1, phase.lanes), jnp.float32), machine)
                programs.append(keep_program.lower(policy, state, score, design=design, shape=following))
            running = max(running, *(_running(program.compile()) for program in programs))
        slot = max(slot, chip_bytes(state) + chip_bytes(kv))
        kept = jax.tree.leaves((kv, [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 5]))
        kv_slot = max(kv_slot, sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kept))
    return Need(
        profile=profile,
        state=slot * profile.slots,
        slot=float(slot),
        running=running,
        kv_slot=kv_slot,
        lanes=phases[0].lanes,
    )


def pool_shapes(design: PoolDesign, phase: Phase, sizes: Sizes, machine: Machine, ends: int) -> Any:
    """A pool of one request, without the prompt's keys and values."""
    plant = functools.partial(plant_program, design=design, shape=phase)
    state = jax.eval_shape(plant, *read_shapes(design.config, sizes, machine, ends))
    return jax.tree.map(lambda x, names: placed(x, machine, *names), state, pool_axes(state))


def step_need(
    model: ModelConfig, decoder: Steppers, profile: Profile, sizes: Sizes, machine: Machine, ends: int
) -> Need:
    """Compile a step of the longest answers; otherwise as pools. A copy that looks ahead doubles the slot at work."""
    shape = phase_of(decoder, places_of(sizes.context, decoder.chunk)[-1])
    plant = functools.partial(plant_walk, config=model, shape=shape)
    walk = jax.eval_shape(plant, *read_shapes(model, sizes, machine, ends))
    walk = with_prefix(walk, prompt_shapes(model, sizes, machine))
    walk = jax.tree.map(lambda x, names: placed(x, machine, *names), walk, walk_axes(walk))
    program, policy = program_of(model), policy_shapes(model, machine)
    lanes = jax.ShapeDtypeStruct((1, decoder.n), jnp.int32)
    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    table = jax.ShapeDtypeStruct((len(decoder.separator.encode()), model.vocab_size), jnp.uint8)
    with jax.set_mesh(machine.mesh):
        steps = program.branch.lower(program.engine, shape, policy, walk, lanes, lanes, flag)
        chunks = program.grow.lower(program.engine, shape, policy, walk, table, flag)
        running = max(_running(steps.compile()), _running(chunks.compile()))
    slot, kv = chip_bytes(walk), [leaf for leaf in jax.tree.leaves(walk.lanes.cache) if leaf.ndim >= 4]
    return Need(
        profile=profile,
        state=slot * profile.slots,
        slot=float(slot),
        running=running + (slot if decoder.lookahead else 0),
        kv_slot=sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kv),
        lanes=decoder.n,
    )


def read_shapes(model: ModelConfig, sizes: Sizes, machine: Machine, ends: int) -> tuple[Any, ...]:
    """What a request is planted from: the weights, what the reader gives of its last token, its row."""
    request = Request(id="", profile="", prompt=(0,), max_tokens=1, ends=())
    prompt = jax.eval_shape(lambda: prompt_row(request, sizes.context, ends))
    hidden = jax.ShapeDtypeStruct((1, model.width), machine.dtype)
    return policy_shapes(model, machine), hidden, jax.ShapeDtypeStruct((1,), jnp.float32), prompt


def prompt_shapes(model: ModelConfig, sizes: Sizes, machine: Machine) -> Any:
    """Keys and values of the longest prompt."""
    shapes = decoding.cache_shapes(model, machine.dtype, 1, 1, sizes.capacities[-1], 1).prefix
    return jax.tree.map(lambda x: placed(x, machine, None, "heads", None, None), shapes)


def round_bytes(program: Program, slots: int, sizes: Sizes, machine: Machine) -> tuple[int, int]:
    """(bytes of the state, bytes that a round needs on top), per chip."""
    shapes = state_shapes(program, slots, sizes.capacities[-1], machine.dtype)
    state = jax.tree.map(lambda x, names: placed(x, machine, *names), shapes, state_axes(shapes))
    policy = policy_shapes(program.config, machine)
    with jax.set_mesh(machine.mesh):
        compiled = generate_program.lower(policy, state, program=program).compile()
    return chip_bytes(state), _running(compiled)


def read_bytes(model: ModelConfig, sizes: Sizes, machine: Machine) -> int:
    """What reading the largest piece of the longest prompt needs, per chip: prefix, temporaries, outputs."""
    kv = prompt_shapes(model, sizes, machine)
    tokens = placed(jax.ShapeDtypeStruct((1, sizes.piece), jnp.int32), machine)
    places = placed(jax.ShapeDtypeStruct((2,), jnp.int32), machine)
    with jax.set_mesh(machine.mesh):
        compiled = extend_program.lower(policy_shapes(model, machine), tokens, places, kv, config=model).compile()
    return chip_bytes(kv) + _running(compiled)


def policy_shapes(model: ModelConfig, machine: Machine) -> Any:
    """The weights as shapes, laid out as in serving."""
    policy = jax.eval_shape(lambda: unstack(init_policy(model, jax.random.key(0), machine.dtype)))
    layout = policy_shardings(policy, machine.mesh, SERVE)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), policy, layout)


def placed(leaf: Any, machine: Machine, *names: str | None) -> jax.ShapeDtypeStruct:
    """A shape laid out by its axes' names."""
    sharding = named(machine.mesh, *names, rules=ACTIVATIONS)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def chip_bytes(tree: Any) -> int:
    """Bytes of a tree of placed shapes on one chip."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _running(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(memory.temp_size_in_bytes + made + memory.generated_code_size_in_bytes)


def show(
    console: Console, machine: Machine, config: ServeConfig, needs: list[Need], common: dict[str, int], room: float
) -> None:
    """The table of profiles, and what all share."""
    shape = config.engine.mesh
    console.print(f"{machine.name}, mesh data={shape.data} × tensor={shape.tensor}, {machine.dtype}; bytes per chip")
    table = Table("profile", "slots", "lanes", "state", "running", "KV per slot (all chips)", "most slots that fit")
    taken = sum(common.values()) - common["reading a prompt"]
    for need in needs:
        others = sum(other.state for other in needs if other is not need)
        peak = max(common["reading a prompt"], *(other.running for other in needs))
        free = room - taken - others - need.state - peak
        most = need.profile.slots + math.floor(free / need.slot / shape.data) * shape.data
        lanes = need.profile.slots * need.lanes
        cells = [need.profile.name, str(need.profile.slots), str(lanes), gb(need.state), gb(need.running)]
        table.add_row(*cells, gb(need.kv_slot), str(max(most, 0)))
    console.print(table)
    console.print(", ".join(f"{name} {gb(count)}" for name, count in common.items()))


def gb(count: float | int) -> str:
    """Bytes as GB or MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
