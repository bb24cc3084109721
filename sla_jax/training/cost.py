"""What a step costs, from shapes alone: floating-point operations and bytes a device. Estimates, said to be so.

Operations count matrix products only, 2·in·out a token, and attention scores and sums. A backward pass costs as much
again for what the gradient passes through and as much again for what is trained. Rematerialization is not useful work:
it takes time but does not count (as in PaLM's definition of MFU).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from sla_jax.errors import UserError
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import param_shapes
from sla_jax.training.batch import Batch, Rows
from sla_jax.training.objective import Frozen, Plan
from sla_jax.training.state import TrainState

# dense peak in bfloat16, operations a second a chip, as the makers publish it; by the name that JAX gives a device
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak(kind: str) -> float | None:
    """Peak operations a second of a device of this kind (`device_kind`), None where it is not known (a CPU)."""
    names = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(names, key=len)] if names else None


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters of the blocks' matrices: every token is multiplied with each of them once."""
    shapes = param_shapes(config)
    return sum(int(np.prod(s.shape)) for name, s in shapes.items() if name.startswith("blocks.") and s.ndim == 3)


def channel_parameters(config: ModelConfig) -> int:
    """Parameters of the channel's or the head's matrices."""
    shapes = param_shapes(config)
    return sum(int(np.prod(s.shape)) for name, s in shapes.items() if name.startswith(("channel.", "score.")))


def step_flops(plan: Plan, tokens: int, scored: int, row: int) -> float:
    """Useful operations of one step over `tokens` read and `scored` scored tokens, in rows of about `row` tokens."""
    config, policy = plan.model, plan.config.policy
    passes = {"frozen": 1.0, "lora": 2.0, "full": 3.0}[policy.train]
    attention = 2.0 * config.layers * config.heads * config.head_dim * row  # causal: half of 2 · 2 · row · width
    forward = 2.0 * matrix_parameters(config) + attention
    total = passes * forward * tokens
    if policy.weight:
        total += 2.0 * passes * config.width * config.vocab_size * scored
    if plan.reference_each_step:
        total += forward * tokens + 2.0 * config.width * config.vocab_size * scored
    # a frozen policy's states take no gradient: the channel's products with them have one backward half and not two
    still = config.layers * config.width * config.channel.width if config.channel and policy.train == "frozen" else 0
    return total + (6.0 * channel_parameters(config) - 2.0 * still) * scored


class Memory(NamedTuple):
    """Bytes a device, by what they hold."""

    trained: float  # parameters, moments and moving average
    gradients: float
    frozen: float
    activations: float  # what the forward pass leaves for the backward pass, and its largest temporary

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def estimate(plan: Plan, state: Any, frozen: Any, batch: Any, mesh: Mesh | AbstractMesh) -> Memory:
    """Bytes a device of a step, from (shapes of) state, frozen policy and batch with their shardings.

    Activations are a rule of thumb: what each layer keeps (its input; with `dots` its matrix products; with `none` also
    what lies between), one layer's temporaries, attention scores where they are materialized, the logits of a chunk.
    """
    assert isinstance(state, TrainState) and isinstance(frozen, Frozen) and isinstance(batch, Batch)
    return Memory(
        trained=_bytes(state),
        gradients=_bytes(state.parts),
        frozen=_bytes(frozen),
        activations=_activations(plan, batch, mesh),
    )


def _bytes(tree: Any) -> float:
    """Bytes of one device's parts."""

    def one(leaf: Any) -> float:
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        return float(np.prod(shape)) * jnp.dtype(leaf.dtype).itemsize

    return float(sum(map(one, jax.tree.leaves(tree))))


def _activations(plan: Plan, batch: Batch, mesh: Mesh | AbstractMesh) -> float:
    config, options = plan.model, plan.config
    item = jnp.dtype(options.dtype).itemsize
    shards = batch.places.shape[1] / (mesh.shape["data"] * mesh.shape["fsdp"])
    flat = batch.places.shape[2] * shards
    features = (config.layers + 1) * flat * config.width * item if config.channel is not None else 0.0
    if not isinstance(batch.source, Rows):
        return features + _bytes(batch.source)
    rows, size = batch.source.tokens.shape[2] * shards, batch.source.tokens.shape[3]
    tokens, tensor = rows * size, mesh.shape["tensor"]
    wide = config.heads * config.head_dim * 2 + config.kv_heads * config.head_dim * 2 + config.ffn * 2
    layer = tokens * (2.0 * config.width + wide / tensor) * item
    scores = 4.0 * 2 * rows * config.heads / tensor * size * size if plan.attention == "xla" else 0.0
    kept = 0.0
    if options.policy.train != "frozen":
        entry = tokens * config.width * item
        each = {"full": entry, "dots": entry + layer, "none": entry + 2.0 * layer + scores}[options.remat]
        kept = config.layers * each
    logits = 3.0 * 4 * options.logits_chunk * shards * config.vocab_size / tensor if options.policy.weight else 0.0
    return features + kept + 2.0 * layer + scores + logits


def table(memory: Memory) -> str:
    """The estimate as text, GB."""
    parts = "  ".join(f"{name} {value / 1e9:.2f}" for name, value in memory._asdict().items())
    return f"estimated memory a device: {memory.total / 1e9:.2f} GB ({parts})"


def knobs(plan: Plan, memory: Memory) -> list[str]:
    """What would make a step smaller, the most useful first."""
    options, found = plan.config, []
    if options.policy.train == "full" and memory.trained > 0.5 * memory.total:
        found += ["raise mesh.fsdp (parameters and moments are split over it)", "set policy.train to lora"]
    if memory.frozen > 0.4 * memory.total:
        found += ["raise mesh.fsdp or mesh.tensor (the frozen policy is split over them)"]
        found += ["set dtype to bfloat16"] if options.dtype == "float32" else []
    if options.policy.train != "frozen" and options.remat != "full":
        found.append("set remat to full")
    if plan.attention == "xla":
        found.append("set attention to blocked (or flash, cudnn)")
    if options.policy.weight and options.logits_chunk > 128:
        found.append("lower logits_chunk")
    if options.optimizer.batch_size > 1:
        found.append("halve optimizer.batch_size and double optimizer.accumulation")
    return [*found, "lower data.max_length"]


def check_memory(plan: Plan, memory: Memory, available: float | None) -> None:
    """Raise UserError that names the knobs when the estimate is beyond what a device has."""
    if available is not None and memory.total > available:
        raise UserError(
            f"{table(memory)}, and a device has {available / 1e9:.1f} GB. To make it fit: "
            f"{'; '.join(knobs(plan, memory))}."
        )


def device_memory(device: jax.Device) -> float | None:
    """Bytes that a device has, None where it does not say (a CPU)."""
    stats = device.memory_stats() or {}
    return float(stats["bytes_limit"]) if "bytes_limit" in stats else None
