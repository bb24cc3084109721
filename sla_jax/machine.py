"""What figures were measured on."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import jax


def machine() -> dict[str, Any]:
    """This one: processor, cores that this process may use, device, versions."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text(encoding="utf-8")) if info.exists() else None
    device = jax.devices()[0]
    return {
        "cpu": found.group(1) if found else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": f"{jax.default_backend()} · {device.device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
