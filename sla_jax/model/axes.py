"""The axis names of every parameter, once; shardings of whole policies derive from them."""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import param_paths, param_shapes
from sla_jax.sharding import Rules, named

_LAYER = re.compile(r"\.\d+\.")  # of an unrolled parameter's name

# the parameter's last axes; stacked parameters have one more in front, never split
_AXES: dict[str, tuple[str | None, ...]] = {
    "embed": ("vocab", "embed"),
    "head": ("embed", "vocab"),
    "attn.q": ("embed", "heads"),
    "attn.k": ("embed", "heads"),
    "attn.v": ("embed", "heads"),
    "attn.o": ("heads", "embed"),
    "attn.q_bias": ("heads",),
    "attn.k_bias": ("heads",),
    "attn.v_bias": ("heads",),
    "mlp.gate": ("embed", "ffn"),
    "mlp.up": ("embed", "ffn"),
    "mlp.down": ("ffn", "embed"),
    "channel.first": ("embed", "channel"),
    "channel.linear": (None, "channel"),
}


def param_axes(name: str, ndim: int) -> tuple[str | None, ...]:
    """Axis names of a flat parameter name; whatever the table does not name (norms, small heads) is replicated."""
    key = name if name in _AXES else name.removeprefix("blocks.")
    axes = _AXES.get(key, ())
    return (None,) * (ndim - len(axes)) + axes


def policy_shardings(policy: Any, mesh: Mesh, rules: Rules) -> Any:
    """A sharding for every leaf of a policy (arrays or shapes), stacked or unrolled."""
    leaves, tree = jax.tree.flatten(policy)
    names = [_LAYER.sub(".", name) for name in param_paths(policy)]
    axes = [param_axes(name, leaf.ndim) for name, leaf in zip(names, leaves, strict=True)]
    return jax.tree.unflatten(tree, [named(mesh, *one, rules=rules) for one in axes])


def param_shardings(config: ModelConfig, mesh: Mesh, rules: Rules) -> dict[str, NamedSharding]:
    """Flat name → sharding of every parameter that `config` has."""
    shapes: dict[str, jax.ShapeDtypeStruct] = param_shapes(config)
    return {name: named(mesh, *param_axes(name, len(s.shape)), rules=rules) for name, s in shapes.items()}
