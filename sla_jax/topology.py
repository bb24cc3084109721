"""Slices that need not be there: libtpu compiles for a topology by name, and what a chip of each kind has.

libtpu is looked for in $TPU_LIBRARY_PATH, then as an installed package (the extra `tpu`), then in .cache/libtpu, where
`make tpu-check` puts it.
"""

import importlib.util
import os
from pathlib import Path

import jax
from jax.experimental import topologies

from sla_jax.errors import UserError, nearest

# generation → bytes of HBM a chip
HBM = {"v4": 32e9, "v5e": 16e9, "v5p": 95e9, "v6e": 32e9}
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "4",
}


def slice_devices(topology: str) -> list[jax.Device]:
    """The devices of a slice such as v5e:2x4. Raises UserError without libtpu or for an unknown name."""
    chip_memory(topology)
    for name, value in {**QUIET, "TPU_LIBRARY_PATH": str(_library())}.items():
        os.environ.setdefault(name, value)
    # a host has 2 × 2 × 1 chips unless said; a slice of one chip has a smaller one
    options = {"chips_per_host_bounds": (1, 1, 1)} if set(topology.split(":")[1].split("x")) == {"1"} else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(f"libtpu makes no topology {topology!r} ({str(error).splitlines()[0]}).") from None


def chip_memory(topology: str) -> float:
    """Bytes of memory of one chip of a slice. Raises UserError for an unknown generation."""
    generation = topology.split(":")[0]
    if generation not in HBM or ":" not in topology:
        known = ", ".join(HBM)
        raise UserError(
            f"{topology!r} is no slice that is known here; expected GENERATION:SHAPE such as v5e:2x4, of {known}."
            f"{nearest(generation, HBM)}"
        )
    return HBM[generation]


def _library() -> Path:
    installed = importlib.util.find_spec("libtpu")
    places = [Path(".cache/libtpu/libtpu/libtpu.so")]
    if installed is not None and installed.origin:
        places.insert(0, Path(installed.origin).parent / "libtpu.so")
    if "TPU_LIBRARY_PATH" in os.environ:
        places.insert(0, Path(os.environ["TPU_LIBRARY_PATH"]))
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            "compiling for a slice that is not there needs libtpu; `pip install 'libtpu==0.0.42.*'`, or `make libtpu`, "
            "which puts it into .cache/libtpu."
        )
    return found.absolute()
