"""How often XLA:CPU compiles a program that gives NaN (sla_jax/xla.py says what is done about it).

    python -m benchmarks.nan --seconds 100
    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE python -m benchmarks.nan

One program, a tiny model with a reward channel that reads 32 rows of 128 tokens, is compiled again and again in one
process, without a cache on disk, and called once each time. Its numbers are finite: a NaN is the compiler's.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from sla_jax.errors import front_door
from sla_jax.xla import FLAG


def main(argv: list[str]) -> None:
    """Compile until the time is over; say how many programs gave NaN."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nan", description=__doc__)
    parser.add_argument("--seconds", type=float, default=100.0)
    options = parser.parse_args(argv)
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

    import jax
    import jax.numpy as jnp

    from sla_jax.loading import load_model
    from sla_jax.model import forward
    from sla_jax.model.policy import Policy
    from tests.programs import tiny_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        model = load_model(tiny_checkpoint(Path(scratch) / "tiny"))
    tokens = jnp.zeros((32, 128), jnp.int32).at[0, :20].set(jnp.arange(20))

    def rewards(policy: Policy, tokens: jax.Array) -> jax.Array | None:
        return forward.trunk(policy, model.config, tokens).reward

    count = bad = 0
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        jax.clear_caches()
        found = jax.jit(rewards)(model.policy, tokens)
        assert found is not None, "the model has a channel"
        count, bad = count + 1, bad + int(not bool(jnp.isfinite(found).all()))
    flags = [word for word in os.environ.get("XLA_FLAGS", "").split() if word.startswith(FLAG)]
    print(f"{bad} of {count} compiled programs gave NaN; {' '.join(flags) or 'no flag'}")


if __name__ == "__main__":
    front_door(main)
