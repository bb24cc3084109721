"""What has to be said to XLA before it is first used; `import sla_jax` says it.

XLA:CPU of jaxlib 0.10 hands fusions of three kinds to YNNPACK: matrix products, reductions (softmax, norms), chains of
elementwise operations. With those of the latter two a program now and then gives NaN for every value, from its first
call to its last, and another compilation or loading of the same program does not (`python -m benchmarks.nan` counts
them). So only matrix products go there. Whoever names the flag in XLA_FLAGS decides for themselves.
"""

import importlib.metadata
import os

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
PRODUCTS = f"{FLAG}=LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"


def set_flags() -> None:
    """Add to XLA_FLAGS. XLA ends a process for a flag that it does not know, so only where the flag is known to be."""
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG not in flags and importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] = f"{flags} {PRODUCTS}".strip()
