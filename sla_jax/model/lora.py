"""Low-rank adapters (LoRA, arXiv 2106.09685) in PEFT's parametrization: W + alpha/rank · a @ b.

An adapted policy is an ordinary policy whose targeted matrices are `Adapted` modules: what they give on `[...]` is a
`LowRank`, which `layers.linear` multiplies without forming the sum. The forward pass and decoding know nothing of it.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from sla_jax.errors import UserError, nearest
from sla_jax.model.config import ModelConfig
from sla_jax.model.layers import LowRank
from sla_jax.model.policy import Policy, param_shapes

PARTS = {"attn": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}  # where in a block each target lies
TARGETS = tuple(target for targets in PARTS.values() for target in targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which matrices are adapted, by how many directions and how strongly."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank is {self.rank}; expected a whole number ≥ 1, usually 8 to 64.")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"lora.alpha is {self.alpha}; expected a number > 0, usually once or twice the rank.")
        if not self.targets:
            raise UserError(f"lora.targets is empty; expected some of {', '.join(TARGETS)}.")
        for target in self.targets:
            if target not in TARGETS:
                known = ", ".join(TARGETS)
                raise UserError(
                    f"lora.targets names {target!r}; expected some of {known}.{nearest(str(target), TARGETS)}"
                )
        if len(set(self.targets)) < len(self.targets):
            raise UserError(f"lora.targets names a matrix twice: {', '.join(self.targets)}.")

    @property
    def scale(self) -> float:
        """What a @ b is multiplied by."""
        return self.alpha / self.rank


class Factors(nnx.Module):
    """One target's factors, stacked over layers."""

    def __init__(self, a: Float[Array, "L I R"], b: Float[Array, "L R O"]):
        self.a = nnx.Param(a)
        self.b = nnx.Param(b)


class Lora(nnx.Module):
    """The factors of every target, named as in a block: `attn.q.a`, `attn.q.b`, `mlp.gate.a`, …; float32."""

    def __init__(self, config: ModelConfig, lora: LoraConfig, key: jax.Array):
        shapes = param_shapes(config)
        keys = dict(zip(TARGETS, jax.random.split(key, len(TARGETS)), strict=True))
        self.attn, self.mlp = (
            nnx.Dict({t: _fresh(shapes[f"blocks.{part}.{t}"].shape, lora.rank, keys[t]) for t in chosen})
            for part, chosen in ((part, [t for t in names if t in lora.targets]) for part, names in PARTS.items())
        )


class Adapted(nnx.Module):
    """Stands where a targeted `nnx.Param` stood. All parts have a leading L until a scan or `unstack` slices them."""

    def __init__(self, base: Array, factors: Factors, scale: float):
        self.base = nnx.Param(base)
        self.a = nnx.Param(factors.a[...])
        self.b = nnx.Param(factors.b[...])
        self.scale = scale

    def __getitem__(self, index: Any) -> LowRank:
        """`[...]`, as of the parameter that it replaces."""
        return LowRank(self.base[index], self.a[index], self.b[index], self.scale)


def init_lora(config: ModelConfig, lora: LoraConfig, key: jax.Array) -> Lora:
    """Fresh factors as PEFT starts them: a uniform in ±1/√in, b zero, so that nothing is changed yet."""
    return Lora(config, lora, key)


def adapted(policy: Policy, lora: Lora, scale: float) -> Policy:
    """The policy with x @ W + scale · (x @ a) @ b for every target; stacked layout, weights shared, not copied."""
    return _replaced(policy, lora, lambda base, factors: Adapted(base, factors, scale))


def merged(policy: Policy, lora: Lora, scale: float) -> Policy:
    """The policy with W + scale · a @ b, summed in float32 one layer at a time and stored in W's type; stacked."""

    def layer(parts: tuple[Array, Array, Array]) -> Array:
        base, a, b = parts
        delta = jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
        return (base.astype(jnp.float32) + scale * delta).astype(base.dtype)

    return _replaced(
        policy, lora, lambda base, factors: nnx.Param(jax.lax.map(layer, (base, factors.a[...], factors.b[...])))
    )


def _replaced(policy: Policy, lora: Lora, replacement: Any) -> Policy:
    """A shallow copy with `replacement(base, factors)` in each target's place."""
    assert not isinstance(policy.blocks, nnx.List), "adapters go on the stacked layout; `unstack` comes after"
    graph = jax.tree.map(lambda leaf: leaf, policy)
    for name in PARTS:
        block = getattr(graph.blocks, name)
        for target, factors in getattr(lora, name).items():
            setattr(block, target, replacement(getattr(block, target)[...], factors))
    return graph


def _fresh(shape: tuple[int, ...], rank: int, key: jax.Array) -> Factors:
    layers, rows, columns = shape
    bound = rows**-0.5
    a = jax.random.uniform(key, (layers, rows, rank), jnp.float32, -bound, bound)
    return Factors(a, jnp.zeros((layers, rank, columns), jnp.float32))
