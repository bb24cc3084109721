"""Mesh and axis rules. A tensor's axes have names; a rules table says which mesh axes each name is split over.

FSDP is a rule, tensor parallelism is a rule, serving uses another table; nothing else in the code knows how it is laid
out. Axis types are passed explicitly (Auto: the compiler propagates from the parameters, `constrain` pins activations).
Without a mesh in force (`jax.set_mesh`) the same code runs on one device.
"""

from collections.abc import Mapping

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from sla_jax.errors import UserError, nearest

AXES = ("data", "fsdp", "tensor")
Rules = Mapping[str, str | tuple[str, ...] | None]

TRAIN: Rules = {"embed": "fsdp", "heads": "tensor", "ffn": "tensor", "vocab": "tensor", "channel": "tensor"}
SERVE: Rules = {"embed": None, "heads": "tensor", "ffn": "tensor", "vocab": "tensor", "channel": None}
ACTIVATIONS: Rules = {
    "batch": ("data", "fsdp"),
    "rows": "data",
    "embed": "fsdp",
    "heads": "tensor",
    "ffn": "tensor",
    "vocab": "tensor",
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A {data, fsdp, tensor} mesh. Raises UserError when its size is not the number of devices."""
    devices = jax.devices() if devices is None else devices
    if data * fsdp * tensor != len(devices):
        raise UserError(
            f"the mesh data={data} × fsdp={fsdp} × tensor={tensor} needs {data * fsdp * tensor} devices and "
            f"{len(devices)} are there; change the mesh in the config so that their product is {len(devices)}."
        )
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def spec(*names: str | None, rules: Rules) -> PartitionSpec:
    """Axis names → PartitionSpec. Raises on an unknown name and when two axes would use one mesh axis."""
    used: dict[str, str] = {}
    parts = [_mesh_axes(name, rules) for name in names]
    for name, axes in zip(names, parts, strict=True):
        for axis in axes:
            if axis in used:
                raise UserError(f"axes {used[axis]!r} and {name!r} are both split over the mesh axis {axis!r}.")
            used[axis] = str(name)
    return PartitionSpec(*(axes if len(axes) > 1 else (axes[0] if axes else None) for axes in parts))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pin an activation's layout to ACTIVATIONS under the mesh in force; without one, x as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*names, rules=ACTIVATIONS))


def named(mesh: Mesh | AbstractMesh, *names: str | None, rules: Rules) -> NamedSharding:
    """The sharding of one array on `mesh`."""
    return NamedSharding(mesh, spec(*names, rules=rules))


def _mesh_axes(name: str | None, rules: Rules) -> tuple[str, ...]:
    if name is None:
        return ()
    if name not in rules:
        raise UserError(f"no sharding rule for the axis {name!r}; known are {', '.join(rules)}.{nearest(name, rules)}")
    axes = rules[name]
    return () if axes is None else (axes,) if isinstance(axes, str) else axes
