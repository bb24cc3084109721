"""One optimizer step: pure, jitted with donated state, gradients for what is trained alone.

A step is M microbatches, run by a scan that adds up gradients of *contributions* (losses.py): the denominators are
counted over the whole step first, so accumulation, empty examples and sharding give the numbers of one big batch.
A step whose loss or gradient is not finite changes nothing, nor does any after it: the loop stops with what was good.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sla_jax.training.batch import Batch
from sla_jax.training.losses import count
from sla_jax.training.objective import Frozen, Outputs, Parts, Plan, by_answer, loss, outputs
from sla_jax.training.state import TrainState

TrainStep = Callable[[TrainState, Frozen, Batch], tuple[TrainState, dict[str, Array]]]


def train_step(
    state: TrainState, frozen: Frozen, batch: Batch, *, plan: Plan, optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Array]]:
    """One step on a batch [M, …]. Returns the new state and scalar metrics."""
    counts = count(jnp.asarray(batch.marks), jnp.asarray(batch.weights))

    def objective(parts: Parts, micro: Batch) -> tuple[Array, dict[str, Array]]:
        return loss(parts, frozen, micro, counts, plan)

    def accumulate(carry: tuple, micro: Batch) -> tuple[tuple, None]:
        (_, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.parts, micro)
        return jax.tree.map(jnp.add, carry, (gradient, metrics)), None

    first = jax.tree.map(lambda array: array[0], batch)
    names = jax.eval_shape(objective, state.parts, first)[1]
    start = (jax.tree.map(jnp.zeros_like, state.parts), {name: jnp.zeros((), jnp.float32) for name in names})
    (gradient, metrics), _ = jax.lax.scan(accumulate, start, batch)
    norm = optax.tree.norm(gradient)
    sound = state.sound & jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies counts by floats; our own code promotes nothing
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.parts)
    parts = optax.apply_updates(state.parts, updates)
    decay = plan.config.optimizer.ema
    ema = state.ema
    if ema is not None:
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, ema, parts)
    after = TrainState(parts, opt_state, ema, state.step + 1, sound)
    kept = jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, state)
    return kept._replace(sound=sound), metrics | {"grad_norm": norm, "sound": sound}


def jit_train_step(plan: Plan, optimizer: optax.GradientTransformation, shardings: TrainState) -> TrainStep:
    """`train_step` compiled; the state is donated and keeps its layout."""

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, frozen, batch, plan=plan, optimizer=optimizer)

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


OutputsFn = Callable[[Parts, Frozen, Batch], Outputs]


def jit_outputs(plan: Plan, mesh: Mesh) -> OutputsFn:
    """`outputs` per answer [G·b, A, T, …] of a batch with M = 1, compiled; every process gets all of them."""

    def run(parts: Parts, frozen: Frozen, batch: Batch) -> Outputs:
        micro = jax.tree.map(lambda array: array[0], batch)
        given = outputs(parts, frozen, micro, plan)
        return jax.tree.map(lambda flat: by_answer(flat, micro), given)

    return jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))
