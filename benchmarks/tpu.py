"""`python -m benchmarks.tpu` (make tpu-check): compile the TPU programs for a real slice, without a TPU.

libtpu compiles for a topology that is not there. From shapes alone, a Llama-3-8B with a channel of 256 in bfloat16 on
v5e-8: one decoding step and one whole round of each search (tensor-parallel over 8 chips, `SERVE` rules), prefill, and
the channel-training step on a frozen policy (FSDP over 8 chips, `TRAIN` rules).

What is printed per chip. *Memory*: arguments, temporaries, and their sum with the outputs that are not donated.
*Flops* and *bytes*: `cost_analysis()` of the compiled program. Its bytes are operands and results of every instruction,
on-chip memory included: a weight that is prefetched counts when it is copied and again when it is read. A loop's body
counts once, so searches are compared by single steps, whose layers are unrolled. *Must read* is what no program can
avoid reading from HBM: the weights (of the embedding only the rows looked up) and the cache.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from benchmarks.report import ROOT, markdown, show, write_json, write_page
from benchmarks.shapes import LLAMA3_8B, SEARCHES, TINY
from sla_jax.config import parse
from sla_jax.decode import lanes as moves
from sla_jax.decode.choice import choices
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.lanes import Prompts
from sla_jax.decode.program import bucket
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.sla import SLA
from sla_jax.errors import UserError, front_door
from sla_jax.loading import engine
from sla_jax.model import decoding
from sla_jax.model.axes import policy_shardings
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import init_policy, param_paths, unstack, without_channel
from sla_jax.sharding import SERVE, Rules, make_mesh, named
from sla_jax.topology import chip_memory, slice_devices
from sla_jax.training import dry_run, order
from sla_jax.training.batch import Shapes
from sla_jax.training.config import ChannelOptions, DataConfig, FeaturesConfig, OptimizerConfig, TrainConfig
from sla_jax.training.setup import make_plan
from sla_jax.training.state import make_optimizer
from sla_jax.training.step import jit_train_step

HBM = chip_memory("v5e:2x4")
LIMITS = {8: 1.06, 64: 1.15}  # lanes → how many times greedy's bytes a step at prefix 2048 may access
SLACK = 256  # capacity for new tokens beyond the prefix
Cell = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compile the TPU programs and print what they need."""

    topology: str = "v5e:2x4"
    """A slice of 8 chips, as libtpu names it."""
    prefixes: tuple[int, ...] = (2048, 8192)
    """Prompt lengths."""
    pairs: int = 8
    """Preference pairs of a training step."""
    train_length: int = 3072
    """Tokens of a packed pair: prompt and both responses, a third each."""
    json: Path = ROOT / "benchmarks" / "results" / "tpu.json"
    """Where the figures go."""
    write_docs: bool = False
    """Replace the table in docs/tpu.md."""
    tiny: bool = False
    """A tiny model, to try the program itself."""


def main(argv: list[str]) -> None:
    """Compile everything, print, write, and fail when a figure is beyond its limit."""
    options = parse(Options, argv, prog="python -m benchmarks.tpu", description=str(Options.__doc__))
    began = time.perf_counter()
    devices = slice_of(options.topology)
    config = TINY if options.tiny else LLAMA3_8B
    cells: list[Cell] = []
    for build in programs(config, options, devices):
        cells.append(build())
        print(f"compiled {cells[-1]['name']} in {cells[-1]['compile_s']:.0f} s", flush=True)
    add_ratios(cells)
    title = f"Llama-3-8B, channel 256, bfloat16, per chip of {options.topology} (8 chips)"
    show(title, rows(cells))
    print(f"{time.perf_counter() - began:.0f} s in all")
    write_json(options.json, {"topology": options.topology, "programs": cells})
    if options.write_docs:
        write_page(ROOT / "docs" / "tpu.md", "tpu", markdown(title, rows(cells)))
    if not options.tiny:
        check(cells)


def slice_of(topology: str) -> list[jax.Device]:
    """The 8 chips of a slice that is not there."""
    devices = slice_devices(topology)
    if len(devices) != 8:
        raise UserError(f"the topology {topology!r} has {len(devices)} chips; the programs are laid out for 8.")
    return devices


def programs(config: ModelConfig, options: Options, devices: list[jax.Device]) -> Iterator[Callable[[], Cell]]:
    """Every program, cheap to list: calling one compiles it."""
    serve = make_mesh(tensor=8, devices=devices)
    for prefix in options.prefixes:
        for name, decoder in SEARCHES.items():
            yield functools.partial(compile_step, config, serve, name, decoder, prefix)
        for name, decoder in SEARCHES.items():
            yield functools.partial(compile_round, config, serve, name, decoder, prefix)
        yield functools.partial(compile_prefill, config, serve, prefix)
    yield functools.partial(compile_training, config, make_mesh(fsdp=8, devices=devices), options)


def compile_step(config: ModelConfig, mesh: Mesh, name: str, decoder: Greedy | SLA, prefix: int) -> Cell:
    """One token for every lane of one request."""
    policy = policy_shapes(config, mesh, SERVE, unrolled=True)
    cache = cache_of(config, mesh, decoder, prefix)
    tokens, t = replicated(mesh, (jnp.zeros((1, decoder.lanes), jnp.int32), jnp.int32(0)))

    def step(policy: Any, tokens: jax.Array, t: jax.Array, cache: Any) -> Any:
        return decoding.step(policy, config, decoder.chunk, tokens, t, cache)

    jitted = jax.jit(step, donate_argnums=3)
    facts = {"kind": "step", "search": name, "lanes": decoder.lanes, "prefix": prefix}
    needed = chip_bytes((policy, cache)) - chip_bytes(param_paths(policy)["embed"])
    cell = compiled(f"step · {name} · prefix {prefix}", mesh, jitted, (policy, tokens, t, cache))
    return facts | cell | {"must_read": needed}


def compile_round(config: ModelConfig, mesh: Mesh, name: str, decoder: Greedy | SLA, prefix: int) -> Cell:
    """A whole round as serving runs it: expand, k steps in a loop, score, select, commit; the state donated."""
    steps = engine(config).steps
    policy = policy_shapes(config, mesh, SERVE, unrolled=True)
    cache = cache_of(config, mesh, decoder, prefix)
    prompts = Prompts(
        tokens=jnp.zeros((1, prefix), jnp.int32),
        lengths=jnp.zeros((1,), jnp.int32),
        limit=jnp.zeros((1,), jnp.int32),
        ends=jnp.zeros((1, 2), jnp.int32),
        choice=choices([Sampling()]),
    )
    sizes: Any = {"lanes": decoder.lanes, "held": decoder.held, "width": decoder.width, "tops": 0}
    plant = functools.partial(moves.plant, cache, prompts=prompts, **sizes)
    state = jax.eval_shape(plant, jnp.zeros((1, config.vocab_size), jnp.float32), jnp.zeros((1,)))
    state = replicated(mesh, state._replace(cache=prompts.limit))._replace(cache=cache)

    def round_(policy: Any, state: Any) -> Any:
        return decoder.advance(steps(policy, decoder), state)

    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(round_, donate_argnums=1, out_shardings=(layout, named(mesh, rules=SERVE)))
    facts = {"kind": "round", "search": name, "lanes": decoder.lanes, "prefix": prefix}
    return facts | compiled(f"round · {name} · prefix {prefix}", mesh, jitted, (policy, state))


def compile_prefill(config: ModelConfig, mesh: Mesh, prefix: int) -> Cell:
    """Reading one prompt of `prefix` tokens into the cache of a 2/10/2 search; layers scanned, to compile quickly."""
    decoder = SEARCHES["SLA 2/10/2"]
    policy = policy_shapes(config, mesh, SERVE, unrolled=False)
    prompts, lengths = replicated(mesh, (jnp.zeros((1, prefix), jnp.int32), jnp.zeros((1,), jnp.int32)))
    sizes = {"lanes": decoder.lanes, "held": decoder.held, "capacity": bucket(prefix + SLACK)}

    def prefill(policy: Any, prompts: jax.Array, lengths: jax.Array) -> Any:
        return decoding.prefill(policy, config, prompts, lengths, **sizes)

    layout = jax.tree.map(lambda leaf: leaf.sharding, cache_of(config, mesh, decoder, prefix))
    plain = named(mesh, rules=SERVE)
    jitted = jax.jit(prefill, out_shardings=(plain, plain, layout))
    facts = {"kind": "prefill", "prefix": prefix}
    return facts | compiled(f"prefill · {prefix} tokens", mesh, jitted, (policy, prompts, lengths))


def compile_training(config: ModelConfig, mesh: Mesh, options: Options) -> Cell:
    """One optimizer step of the channel on a frozen policy: float32 channel, bfloat16 policy, packed pairs."""
    assert config.channel is not None
    base, third = without_channel(config), options.train_length // 3
    run = TrainConfig(
        data=DataConfig(generated=options.pairs, max_length=options.train_length, max_prompt_length=third),
        channel=ChannelOptions(width=config.channel.width),
        optimizer=OptimizerConfig(batch_size=options.pairs),
        features=FeaturesConfig(mode="recompute"),
        dtype="bfloat16",
    )
    plan = make_plan(run, base, "tpu")
    shapes = Shapes(options.train_length, order.token_bucket(options.pairs // 8 * 2 * third), order.bucket(third))
    shaped = dry_run.arguments(run, plan, base, shapes, mesh)
    layout = jax.tree.map(lambda leaf: leaf.sharding, shaped.state)
    jitted = jit_train_step(plan, make_optimizer(run.optimizer, run.policy, dry_run.STEPS), layout)
    name = f"training · {options.pairs} pairs of {options.train_length} tokens"
    return {"kind": "training"} | compiled(name, mesh, jitted, shaped)


def compiled(name: str, mesh: Mesh, jitted: Any, arguments: tuple[Any, ...]) -> Cell:
    """Compile and read the compiler's own figures, all of them per chip."""
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        program = jitted.lower(*arguments).compile()
    cost, memory = program.cost_analysis(), program.memory_analysis()
    held, made = memory.argument_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "name": name,
        "arguments": held,
        "temporaries": memory.temp_size_in_bytes,
        "total": held + made + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "compile_s": time.perf_counter() - began,
    }


def policy_shapes(config: ModelConfig, mesh: Mesh, rules: Rules, *, unrolled: bool) -> Any:
    """The policy in bfloat16 as shapes with shardings, in decoding's or in training's layout."""
    key = jax.random.key(0)

    def make() -> Any:
        policy = init_policy(config, key, jnp.dtype(jnp.bfloat16))
        return unstack(policy) if unrolled else policy

    policy = jax.eval_shape(make)
    placed = policy_shardings(policy, mesh, rules)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), policy, placed)


def cache_of(config: ModelConfig, mesh: Mesh, decoder: Greedy | SLA, prefix: int) -> Any:
    """The cache of one request as shapes, its kv heads split over the tensor axis."""
    capacity = bucket(prefix + SLACK)
    cache = decoding.cache_shapes(config, jnp.bfloat16, 1, decoder.lanes, capacity, decoder.held)

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = (None, "heads", *[None] * (len(leaf.shape) - 2)) if len(leaf.shape) > 1 else (None,)
        return sharded(leaf, mesh, *names, rules=SERVE)

    return jax.tree.map(placed, cache)


def sharded(leaf: Any, mesh: Mesh, *names: str | None, rules: Rules) -> jax.ShapeDtypeStruct:
    """A shape laid out by its axes' names."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=named(mesh, *names, rules=rules))


def replicated(mesh: Mesh, tree: Any) -> Any:
    """Shapes that every chip holds whole."""
    return jax.tree.map(lambda leaf: sharded(leaf, mesh, rules=SERVE), tree)


def chip_bytes(tree: Any) -> int:
    """Bytes of a tree of shapes on one chip."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def add_ratios(cells: list[Cell]) -> None:
    """Each step's bytes over greedy's at the same prefix: as accessed, and as must be read."""
    greedy = {c["prefix"]: c for c in cells if c["kind"] == "step" and c["lanes"] == 1}
    for cell in cells:
        if cell["kind"] == "step":
            base = greedy[cell["prefix"]]
            cell["ratio"] = cell["bytes"] / base["bytes"]
            cell["least_ratio"] = cell["must_read"] / base["must_read"]


def rows(cells: list[Cell]) -> list[dict[str, str]]:
    """The table, per chip."""
    return [
        {
            "program": cell["name"],
            "arguments": f"{cell['arguments'] / 1e9:.2f} GB",
            "temporaries": f"{cell['temporaries'] / 1e9:.2f} GB",
            "total": f"{cell['total'] / 1e9:.2f} GB",
            "Gflop": f"{cell['flops'] / 1e9:.1f}",
            "accessed": f"{cell['bytes'] / 1e9:.2f} GB",
            "÷ greedy": f"{cell['ratio']:.3f}" if "ratio" in cell else "",
            "must read": f"{cell['must_read'] / 1e9:.2f} GB" if "ratio" in cell else "",
            "÷ greedy's": f"{cell['least_ratio']:.3f}" if "ratio" in cell else "",
        }
        for cell in cells
    ]


def check(cells: list[Cell]) -> None:
    """Raise UserError when a program does not fit, or a search step costs more than its limit."""
    broken = [f"{c['name']} needs {c['total'] / 1e9:.1f} GB of {HBM / 1e9:.0f}" for c in cells if c["total"] > HBM]
    for c in cells:
        limit = LIMITS.get(c.get("lanes", 0))
        if c["kind"] == "step" and limit and c["prefix"] <= 2048 and c["ratio"] > limit:
            broken.append(f"{c['name']} accesses {c['ratio']:.3f} times greedy's bytes, above {limit}")
    if broken:
        raise UserError(f"beyond the limits: {'; '.join(broken)}.")


if __name__ == "__main__":
    front_door(main)
