"""`train.py CONFIG --dry_run [--target v5e:4x4]`: what a run would be and need, and whether it fits.

Works without weights: `shape` names a config.json that stands for a model that is not here. Without data that can be
read here, rows are taken to be half prompt and half answer, `data.max_length` tokens together. With a target the real
step is compiled for that TPU slice from shapes alone (libtpu), and memory, operations and collectives are the
compiler's.
"""

import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import yaml
from jax.sharding import AbstractMesh, AxisType, Mesh

from sla_jax.checkpoint import store
from sla_jax.checkpoint.sources import read_json
from sla_jax.config import as_yaml
from sla_jax.errors import UserError
from sla_jax.escape import printable
from sla_jax.model.channel import init_channel
from sla_jax.model.config import ModelConfig, from_hf
from sla_jax.model.lora import init_lora
from sla_jax.model.policy import init_policy, without_channel
from sla_jax.model.score import init_score
from sla_jax.progress import say
from sla_jax.sharding import AXES, make_mesh
from sla_jax.text import load_tokenizer
from sla_jax.training import cost, tiny
from sla_jax.training.batch import Batch, Rows, Shapes, TokenSource, batch_sharding
from sla_jax.training.config import TINY, TrainConfig
from sla_jax.training.data import load_examples
from sla_jax.training.examples import Examples, describe, render_masked
from sla_jax.training.objective import Frozen, Parts, Plan
from sla_jax.training.order import bucket, padded_length, token_bucket
from sla_jax.training.setup import make_plan
from sla_jax.training.state import check_fits, check_mesh, frozen_shardings, init_state, make_optimizer, state_shardings
from sla_jax.training.step import jit_train_step

RESERVE = 0.05  # of a chip's memory, left for the runtime and fragmentation
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
STEPS = 1000  # of the schedule; it changes no shape


class Shaped(NamedTuple):
    """The arguments of a step as shapes with shardings."""

    state: Any
    frozen: Frozen
    batch: Batch


def report(config: TrainConfig) -> None:
    """Print config, model, data, one example, shapes, memory and, with a target, what the compiler says.

    Raises UserError when it does not fit, with the knobs that would make it.
    """
    print(as_yaml(config))
    base = model_of(config)
    mesh, memory = machine(config)
    check_fits(base, mesh)
    plan = make_plan(config, base, "tpu" if config.target else jax.default_backend())
    examples = _examples(config, base)
    shapes = shapes_of(config, plan, examples, mesh)
    shaped = arguments(config, plan, base, shapes, mesh)
    print(_sizes(config, plan, shapes, mesh))
    need = cost.estimate(plan, *shaped, mesh)
    print(cost.table(need))
    if isinstance(mesh, Mesh):
        _tell(config, plan, shaped, need, memory, compiled(config, plan, shaped, mesh))
    else:
        cost.check_memory(plan, need, memory)


def model_of(config: TrainConfig) -> ModelConfig:
    """The policy's config: of the checkpoint, of the tiny preset, or of the config.json that `shape` names."""
    if config.model == TINY:
        return from_hf(tiny.raw_config())
    if store.is_checkpoint(Path(config.model)):
        return without_channel(store.info(Path(config.model)).config)
    if config.shape is None:
        raise UserError(
            f"there is no checkpoint at {config.model}; import it, or name a config.json of its shape by --shape FILE."
        )
    say(f"there is no checkpoint at {config.model}; its shape is that of {config.shape}")
    return without_channel(from_hf(read_json(Path(config.shape))))


def machine(config: TrainConfig) -> tuple[Mesh | AbstractMesh, float | None]:
    """The target's mesh and a chip's memory; without a target a mesh that need not be there."""
    if config.target is None:
        axes = check_mesh(config.mesh, config.optimizer.batch_size, 0)
        sizes = (axes.data, axes.fsdp, axes.tensor)
        return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3), cost.device_memory(jax.local_devices()[0])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from sla_jax.topology import chip_memory, slice_devices

    devices = slice_devices(config.target)
    axes = check_mesh(config.mesh, config.optimizer.batch_size, len(devices))
    mesh = make_mesh(data=axes.data, fsdp=axes.fsdp, tensor=axes.tensor, devices=devices)
    return mesh, chip_memory(config.target) * (1 - RESERVE)


def _examples(config: TrainConfig, base: ModelConfig) -> Examples | None:
    """The data if they can be read here; their figures and one example are printed."""
    directory = Path(config.model)
    if config.model != TINY and not (directory / "tokenizer.json").is_file():
        say("the data are not read: the model's tokenizer is not here")
        return None
    if config.model == TINY:
        directory = Path(config.features.dir) / "tiny"
        tiny.make_checkpoint(directory, config.seed)
    files = [*config.data.files, *(file for source in config.data.sources for file in source.files)]
    missing = [file for file in files if not Path(file).exists()]
    if missing:
        say(f"the data are not read: there is no {missing[0]}")
        return None
    examples = load_examples(
        config.data,
        config.task,
        directory,
        max_positions=base.max_positions,
        vocabulary=base.vocab_size,
        seed=config.seed,
        progress=lambda done, total: None,
        say=say,
    )
    print(yaml.safe_dump({"data": describe(examples)}, sort_keys=False, allow_unicode=True))
    masked = render_masked(examples[0], load_tokenizer(directory), labels=config.task == "steps")
    print(printable(masked), "\n")
    return examples


def shapes_of(config: TrainConfig, plan: Plan, examples: Examples | None, mesh: Any) -> Shapes:
    """The largest shapes of a step: of the longest examples that are there, or of half prompt, half answer."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    each = config.optimizer.batch_size // shards
    answers = 2 if config.task == "pairs" else 1
    if examples is None:
        half = config.data.max_length // 2
        row = config.data.max_length + (half if plan.shared else 0)
        return Shapes(padded_length(row), token_bucket(each * answers * half), bucket(half))
    rows = TokenSource(examples, shared=plan.shared).row_lengths()
    flat = sorted(examples.scored.sum(axis=1).tolist())[-each:]
    return Shapes(padded_length(int(rows.max())), token_bucket(sum(flat)), bucket(int(examples.scored.max())))


def arguments(config: TrainConfig, plan: Plan, base: ModelConfig, shapes: Shapes, mesh: Any) -> Shaped:
    """State, frozen policy and batch of a step, as shapes with shardings."""
    key, dtype = jax.random.key(0), jnp.dtype(config.dtype)
    train, width = config.policy.train, jnp.dtype(jnp.float32)
    model = jax.eval_shape(lambda k: init_policy(base, k, width if train == "full" else dtype), key)
    read = jax.eval_shape(lambda k: init_policy(base, k, dtype), key)
    parts = Parts(
        policy=model if train == "full" else None,
        lora=jax.eval_shape(lambda k: init_lora(base, config.policy.lora, k), key) if train == "lora" else None,
        channel=jax.eval_shape(lambda k: init_channel(plan.model, k), key) if config.reader == "channel" else None,
        score=jax.eval_shape(lambda k: init_score(plan.model, k), key) if config.reader == "head" else None,
    )
    frozen = Frozen(policy=None if _stored(config) else model)
    if train == "full":
        frozen = Frozen(reference=read if plan.reference_each_step else None)
    optimizer, ema = make_optimizer(config.optimizer, config.policy, STEPS), config.optimizer.ema > 0
    state = jax.eval_shape(lambda p: init_state(p, optimizer, ema), parts)
    shardings = state_shardings(parts, optimizer, ema, mesh)
    return Shaped(
        _placed(state, shardings), _placed(frozen, frozen_shardings(frozen, mesh)), _batch(config, plan, shapes, mesh)
    )


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)


def _batch(config: TrainConfig, plan: Plan, shapes: Shapes, mesh: Any) -> Batch:
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    each = config.optimizer.batch_size // shards
    answers = 2 if config.task == "pairs" else 1
    sharding = batch_sharding(mesh)

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.optimizer.accumulation, shards, *shape), dtype, sharding=sharding)

    rows = array(each if plan.shared else each * answers, shapes.rows)
    layout = rows if plan.shared else None
    states = array(plan.model.layers + 1, shapes.flat, plan.model.width, dtype=jnp.dtype(config.features.dtype))
    flat, marks = array(shapes.flat), (each, answers, shapes.scored)
    return Batch(
        source=states if _stored(config) else Rows(rows, layout, layout),
        places=flat,
        before=flat,
        targets=flat,
        flat=array(*marks),
        marks=array(*marks, dtype=jnp.int8),
        weights=array(each, dtype=jnp.float32),
        reference=array(each, answers, dtype=jnp.float32),
    )


def _stored(config: TrainConfig) -> bool:
    """Whether one host's run would read the policy's states from a cache."""
    return config.policy.train == "frozen" and config.features.mode != "recompute" and config.target is None


def _sizes(config: TrainConfig, plan: Plan, shapes: Shapes, mesh: Any) -> str:
    axes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    rows = config.optimizer.batch_size * (1 if plan.shared or config.task != "pairs" else 2)
    read = "stored states" if _stored(config) else f"{rows} rows of {shapes.rows} tokens, attention {plan.attention}"
    return (
        f"mesh {axes}; a step: {config.optimizer.accumulation} microbatches of {read}; {shapes.flat} scored tokens a "
        "data shard"
    )


def compiled(config: TrainConfig, plan: Plan, shaped: Shaped, mesh: Mesh) -> Any:
    """The real step, compiled for the mesh's devices."""
    optimizer = make_optimizer(config.optimizer, config.policy, STEPS)
    step: Any = jit_train_step(plan, optimizer, jax.tree.map(lambda s: s.sharding, shaped.state))
    say(f"compiling the step for {config.target} (minutes for a large model)")
    with jax.set_mesh(mesh):
        return step.lower(*shaped).compile()


def _tell(config: TrainConfig, plan: Plan, shaped: Shaped, need: cost.Memory, room: float | None, program: Any) -> None:
    """What the compiler says that a step takes; UserError when a chip does not have it."""
    memory = program.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(
        f"compiled for {config.target}: {used / 1e9:.2f} GB a chip (arguments "
        f"{memory.argument_size_in_bytes / 1e9:.2f}, temporaries {memory.temp_size_in_bytes / 1e9:.2f})"
    )
    assert isinstance(shaped.batch.source, Rows)
    rows = shaped.batch.source.tokens.shape
    tokens, scored = math.prod(rows), math.prod(shaped.batch.places.shape)
    print(f"useful operations a step: {cost.step_flops(plan, tokens, scored, rows[-1]):.3g}")
    for name, (count, size) in collectives(program.as_text()).items():
        print(f"{name}: {count} in the program (one in a loop counts once), {size / 1e6:.1f} MB a chip")
    if room is not None and used > room:
        raise UserError(
            f"this does not fit: {used / 1e9:.2f} GB of {room / 1e9:.1f} GB a chip. To make it fit: "
            f"{'; '.join(cost.knobs(plan, need))}."
        )
    print(f"It fits: {used / 1e9:.2f} GB of {(room or 0) / 1e9:.1f} GB a chip ({RESERVE:.0%} is kept free).")


def collectives(text: str) -> dict[str, tuple[int, float]]:
    """Kind → (how many, bytes of their results) in a compiled program's text."""
    sizes = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}
    count, total = Counter[str](), Counter[str]()
    pattern = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
    for shapes, kind in pattern.findall(text):
        count[kind] += 1
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            total[kind] += sizes.get(dtype, 4) * math.prod(int(d) for d in dims.split(",") if d)
    return {kind: (count[kind], float(total[kind])) for kind in COLLECTIVES if count[kind]}
