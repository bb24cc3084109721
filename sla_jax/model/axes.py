"""The axis names of every parameter, once; shardings of whole policies derive from them."""

import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import param_shapes
from sla_jax.sharding import Rules, named

LOW_RANK = ("base", "a", "b")
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
    "score.weight": ("embed", None),
}


def param_axes(name: str, ndim: int) -> tuple[str | None, ...]:
    """Axis names of a flat parameter name; whatever the table does not name (norms, small heads) is replicated."""
    stem, _, part = name.removeprefix("blocks.").rpartition(".")
    if part in LOW_RANK and stem in _AXES:  # of a Lora or of an adapted policy: no mesh axis splits the rank
        rows, columns = _AXES[stem]
        axes: tuple[str | None, ...] = {"base": (rows, columns), "a": (rows, None), "b": (None, columns)}[part]
    else:
        axes = _AXES.get(name, _AXES.get(name.removeprefix("blocks."), ()))
    return (None,) * (ndim - len(axes)) + axes


def policy_shardings(policy: Any, mesh: Mesh | AbstractMesh, rules: Rules) -> Any:
    """A sharding for every leaf of a policy (arrays or shapes), stacked or unrolled, adapted or not, or of a Lora."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(policy)
    axes = [param_axes(_unrolled(path), leaf.ndim) for path, leaf in leaves]
    return jax.tree.unflatten(tree, [named(mesh, *one, rules=rules) for one in axes])


def param_shardings(config: ModelConfig, mesh: Mesh, rules: Rules) -> dict[str, NamedSharding]:
    """Flat name → sharding of every parameter that `config` has."""
    shapes: dict[str, jax.ShapeDtypeStruct] = param_shapes(config)
    return {name: named(mesh, *param_axes(name, len(s.shape)), rules=rules) for name, s in shapes.items()}


def _unrolled(path: tuple[Any, ...]) -> str:
    """The flat name of a leaf (`policy.param_paths`) without the numbers of layers."""
    return _LAYER.sub(".", jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"))
