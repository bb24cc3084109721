"""One optimizer step of the channel: pure, jitted with donated state, gradients for the channel's parameters alone.

A step is A microbatches of B pairs, run by a scan that adds up gradients of the loss *sum*; dividing by the number of
real pairs at the end makes accumulation, padding pairs and sharding equal to one big batch. The policy is an argument
that is only read. Channel and optimizer are float32 whatever the policy's type.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sla_jax.errors import UserError
from sla_jax.model.channel import Channel
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy
from sla_jax.training.config import LossConfig, MeshConfig, OptimizerConfig
from sla_jax.training.features import Batch, pair_rewards
from sla_jax.training.losses import LossSums, loss_sums, means

PAIR_AXES = ("data", "fsdp")


class TrainState(NamedTuple):
    """Everything that changes during training. Its data position is `step` (batches.epoch_order)."""

    channel: Channel
    opt_state: Any
    step: Array  # int32, steps taken


TrainStep = Callable[[TrainState, Policy | None, Batch], tuple[TrainState, dict[str, Array]]]


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


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW behind an optional clip by global norm; norms' scales are not decayed."""
    adamw = optax.adamw(
        make_schedule(config, steps), b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mask=_decayed
    )
    clip = optax.clip_by_global_norm(config.grad_clip) if config.grad_clip > 0 else optax.identity()
    return optax.chain(clip, adamw)


def _decayed(channel: Channel) -> Channel:
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), channel)


def init_state(channel: Channel, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(channel, optimizer.init(channel), jnp.zeros((), jnp.int32))


def train_step(
    state: TrainState,
    policy: Policy | None,
    batch: Batch,
    *,
    config: ModelConfig,
    loss: LossConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Array]]:
    """One step on a batch whose arrays have a leading microbatch axis A. Returns the new state and scalar metrics."""

    def objective(channel: Channel, micro: Batch) -> tuple[Array, LossSums]:
        chosen, rejected = pair_rewards(channel, policy, config, micro)
        masks = jnp.asarray(micro.chosen_mask), jnp.asarray(micro.rejected_mask)
        sums = loss_sums(loss.name, chosen, rejected, *masks, scale=loss.scale, shift=loss.shift)
        return sums.loss, sums

    def accumulate(carry: tuple[Channel, LossSums], micro: Batch) -> tuple[tuple[Channel, LossSums], None]:
        (_, sums), gradient = jax.value_and_grad(objective, has_aux=True)(state.channel, micro)
        return jax.tree.map(jnp.add, carry, (gradient, sums)), None

    zero = jnp.zeros((), jnp.float32)
    start = (jax.tree.map(jnp.zeros_like, state.channel), LossSums(zero, zero, zero, zero, zero))
    (gradient, sums), _ = jax.lax.scan(accumulate, start, batch)
    gradient = jax.tree.map(lambda g: g / jnp.maximum(sums.pairs, 1.0), gradient)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies counts by floats; our own code promotes nothing
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.channel)
    metrics = means(sums) | {"grad_norm": optax.tree.norm(gradient)}
    return TrainState(optax.apply_updates(state.channel, updates), opt_state, state.step + 1), metrics


def jit_train_step(config: ModelConfig, loss: LossConfig, optimizer: optax.GradientTransformation) -> TrainStep:
    """`train_step` compiled, with the state donated."""

    def step(state: TrainState, policy: Policy | None, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, policy, batch, config=config, loss=loss, optimizer=optimizer)

    return jax.jit(step, donate_argnums=0)


def stack_microbatches(batches: list[Batch]) -> Batch:
    """The microbatches of one step → one batch with a leading axis A, padded to a common size."""
    return jax.tree.map(lambda *arrays: _stack(list(arrays)), *batches)


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0][None]
    shape = [max(sizes) for sizes in zip(*(a.shape for a in arrays), strict=True)]
    out = np.zeros([len(arrays), *shape], arrays[0].dtype)
    for i, array in enumerate(arrays):
        region = tuple(slice(n) for n in array.shape)
        out[i][region] = array
    return out


def check_mesh(mesh: MeshConfig, batch_size: int) -> MeshConfig:
    """Fill in `data: 0` (all remaining devices). Raises UserError when pairs do not divide over the mesh."""
    others = mesh.fsdp * mesh.tensor
    data = mesh.data or max(jax.device_count() // others, 1)
    if batch_size % (data * mesh.fsdp):
        raise UserError(
            f"optimizer.batch_size={batch_size} pairs do not divide over data={data} × fsdp={mesh.fsdp} devices; "
            f"choose a multiple of {data * mesh.fsdp}."
        )
    return MeshConfig(data=data, fsdp=mesh.fsdp, tensor=mesh.tensor)


def put_batch(batch: Batch, mesh: Mesh, *, microbatched: bool) -> Batch:
    """Host arrays → devices, split over the mesh's data axes: pairs, and flat tokens of stored states [L+1, P, D]."""
    lead = (None,) if microbatched else ()

    def put(array: Array | np.ndarray) -> Array:
        layers = (None,) if array.ndim == len(lead) + 3 else ()  # only stored states have this many axes
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*lead, *layers, PAIR_AXES)))

    return jax.tree.map(put, batch)
