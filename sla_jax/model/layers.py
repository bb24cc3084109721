"""The few operations that every part of the model shares. Matrices are stored [in, out]: `x @ w`.

Measured on XLA:CPU at 2–16 rows: `x @ w` with w [in, out] moves 17 GB/s, with w [out, in] 13 GB/s, at one row both
about 30 (benchmarks/matmul.py). Norms, rotations and softmax are computed in float32 whatever the parameters' type.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sla_jax.model.config import Rope


def rms_norm(x: Float[Array, "*B D"], weight: Float[Array, "D"], eps: float) -> Float[Array, "*B D"]:
    """x / rms(x) · weight; the statistics in float32, the result in x's type."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * jnp.broadcast_to(weight, x.shape)


class LowRank(NamedTuple):
    """The matrix base + scale · a @ b, never summed: what `linear` is given where a policy is adapted (lora.py)."""

    base: Float[Array, "I O"]
    a: Float[Array, "I R"]  # a and b in any type: they are cast to that of the rows
    b: Float[Array, "R O"]
    scale: float


def linear(x: Float[Array, "*B I"], w: Float[Array, "I O"] | LowRank, bias: Float[Array, "O"] | None = None) -> Array:
    """x @ w (+ bias), flattened to one matrix product (three for a low-rank sum)."""
    rows = x.reshape(-1, x.shape[-1])
    out = _adapted_product(rows, w) if isinstance(w, LowRank) else rows @ w
    if bias is not None:
        out = out + bias[None, :]
    return out.reshape(*x.shape[:-1], out.shape[-1])


def _adapted_product(rows: Float[Array, "P I"], w: LowRank) -> Float[Array, "P O"]:
    return rows @ w.base + ((rows @ w.a.astype(rows.dtype)) @ w.b.astype(rows.dtype)) * w.scale


def rope_table(positions: Int[Array, "*B"], head_dim: int, rope: Rope) -> tuple[Array, Array]:
    """cos and sin [*B, H/2] float32 of each position's rotation (half-split layout of Hugging Face)."""
    frequencies = jnp.asarray(rope_frequencies(head_dim, rope), jnp.float32)
    angles = positions.astype(jnp.float32)[..., None] * jnp.broadcast_to(frequencies, (*positions.shape, head_dim // 2))
    return jnp.cos(angles), jnp.sin(angles)


def rope_frequencies(head_dim: int, rope: Rope) -> list[float]:
    """The H/2 angular frequencies in radians a position; `llama3` rescales the long wavelengths (Llama 3.1's rule)."""
    base = [rope.theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    if rope.kind == "linear":
        return [f / rope.factor for f in base]
    if rope.kind == "llama3":
        return [_llama3_frequency(f, rope) for f in base]
    return base


def _llama3_frequency(frequency: float, rope: Rope) -> float:
    """Wavelengths beyond the trained context are stretched by `factor`, short ones kept, those between blended."""
    turns = rope.original_max_position * frequency / (2 * math.pi)
    if turns < rope.low_freq_factor:
        return frequency / rope.factor
    if turns > rope.high_freq_factor:
        return frequency
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return (1 - blend) * frequency / rope.factor + blend * frequency


def rotate(x: Float[Array, "*B N H"], cos: Float[Array, "*B G"], sin: Float[Array, "*B G"]) -> Float[Array, "*B N H"]:
    """Rotate each head by its position; cos and sin have one entry per pair of dimensions (G = H/2)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
