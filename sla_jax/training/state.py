"""What changes during training, how it is laid out over the mesh, and the optimizer that changes it.

What is trained is float32, split over fsdp and tensor by the rules of `sla_jax.sharding`; the optimizer's moments and
the moving average lie exactly as their parameters do, so ZeRO-like layouts come from the rules alone.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from sla_jax.errors import UserError
from sla_jax.model.axes import param_axes, policy_shardings
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import param_paths, param_shapes
from sla_jax.sharding import TRAIN, named
from sla_jax.training.config import MeshConfig, OptimizerConfig, PolicyOptions
from sla_jax.training.objective import Frozen, Parts

UNDECAYED = ("norm", "bias")
AnyMesh = Mesh | AbstractMesh  # an abstract one has sizes and no devices


class TrainState(NamedTuple):
    """Its data position is `step`. Once a step is not finite, `sound` is False and nothing changes any more."""

    parts: Parts
    opt_state: Any
    ema: Parts | None
    step: Array  # int32, steps taken
    sound: Array  # bool

    @property
    def best_parts(self) -> Parts:
        """What is evaluated and saved: the moving average where there is one."""
        return self.parts if self.ema is None else self.ema


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate at a step: linear warm-up from 0, then cosine to 0 at the last step, or constant."""
    warmup = round(config.warmup_ratio * steps)

    def schedule(step: Array | int) -> Array:
        at = jnp.asarray(step, jnp.float32)
        rising = at / max(warmup, 1)
        along = jnp.clip((at - warmup) / max(steps - warmup, 1), 0.0, 1.0)
        falling = 0.5 * (1.0 + jnp.cos(jnp.pi * along)) if config.schedule == "cosine" else jnp.ones_like(at)
        return config.learning_rate * jnp.where(at < warmup, rising, falling)

    return schedule


def make_optimizer(config: OptimizerConfig, policy: PolicyOptions, steps: int) -> optax.GradientTransformation:
    """AdamW behind an optional clip by global norm; the policy's updates are scaled to its own learning rate."""
    adamw = optax.adamw(
        make_schedule(config, steps), b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mask=_decayed
    )
    clip = optax.clip_by_global_norm(config.grad_clip) if config.grad_clip > 0 else optax.identity()
    ratio = 1.0 if policy.learning_rate is None else policy.learning_rate / config.learning_rate
    return optax.chain(clip, adamw, optax.stateless(lambda updates, _: _scaled(updates, ratio)))


def _scaled(updates: Parts, ratio: float) -> Parts:
    if ratio == 1.0:
        return updates
    policy, lora = jax.tree.map(lambda leaf: leaf * ratio, (updates.policy, updates.lora))
    return updates._replace(policy=policy, lora=lora)


def _decayed(parts: Parts) -> Parts:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(word in jax.tree_util.keystr(path) for word in UNDECAYED), parts
    )


def init_state(parts: Parts, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """The state before the first step."""
    start = jax.tree.map(jnp.copy, parts) if ema else None
    with jax.numpy_dtype_promotion("standard"):
        moments = optimizer.init(parts)
    return TrainState(parts, moments, start, jnp.zeros((), jnp.int32), jnp.ones((), bool))


def state_shardings(parts: Any, optimizer: optax.GradientTransformation, ema: bool, mesh: AnyMesh) -> TrainState:
    """A sharding for every leaf of the state; `parts` may be arrays or shapes."""
    where = parts_shardings(parts, mesh)
    everywhere: Any = NamedSharding(mesh, PartitionSpec())
    moments = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(lambda p: init_state(p, optimizer, ema).opt_state, parts),
        where,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(where, moments, where if ema else None, everywhere, everywhere)


def parts_shardings(parts: Parts, mesh: AnyMesh) -> Parts:
    """A sharding for every trained parameter."""

    def under(tree: Any, prefix: str) -> Any:
        axes = [param_axes(prefix + name, leaf.ndim) for name, leaf in param_paths(tree).items()]
        return jax.tree.unflatten(jax.tree.structure(tree), [named(mesh, *one, rules=TRAIN) for one in axes])

    return Parts(
        policy=None if parts.policy is None else policy_shardings(parts.policy, mesh, TRAIN),
        lora=None if parts.lora is None else policy_shardings(parts.lora, mesh, TRAIN),
        channel=None if parts.channel is None else under(parts.channel, "channel."),
        score=None if parts.score is None else under(parts.score, "score."),
    )


def frozen_shardings(frozen: Any, mesh: AnyMesh) -> Frozen:
    """A sharding for every parameter that is only read."""
    return Frozen(*(None if policy is None else policy_shardings(policy, mesh, TRAIN) for policy in frozen))


def check_mesh(mesh: MeshConfig, batch_size: int, devices: int) -> MeshConfig:
    """Fill in `data: 0` (all remaining devices). Raises UserError when examples do not divide over the mesh."""
    data = mesh.data or max(devices // (mesh.fsdp * mesh.tensor), 1)
    if batch_size % (data * mesh.fsdp):
        raise UserError(
            f"optimizer.batch_size={batch_size} examples do not divide over data={data} × fsdp={mesh.fsdp} devices; "
            f"choose a multiple of {data * mesh.fsdp}."
        )
    return dataclasses.replace(mesh, data=data)


def check_fits(config: ModelConfig, mesh: AnyMesh) -> None:
    """Raise UserError when some axis of the model does not divide over the mesh axis that its rule names."""
    tensor = mesh.shape["tensor"]
    for name, heads in (("num_attention_heads", config.heads), ("num_key_value_heads", config.kv_heads)):
        if heads % tensor:
            raise UserError(
                f"mesh.tensor={tensor} does not divide the model's {name}={heads}; lower it and give the devices to "
                "mesh.fsdp or mesh.data."
            )
    for name, shape in param_shapes(config).items():
        for axis, size in zip(param_axes(name, len(shape.shape)), shape.shape, strict=True):
            rule = TRAIN.get(axis) if axis is not None else None
            parts = mesh.shape[rule] if isinstance(rule, str) else 1
            if size % parts:
                raise UserError(
                    f"mesh.{rule}={parts} does not divide the axis {axis!r} (size {size}) of the parameter {name!r}; "
                    f"choose a mesh.{rule} that divides it."
                )
