"""`python -m benchmarks.matmul`: how a weight should lie in memory for products of few rows.

60 matrices of one shape, more than any cache holds, each multiplied once by the same rows; GB/s of weights read.
`[in, out]` is `x @ w`; `[out, in]` contracts the last axes, as Hugging Face stores it; `[out, in] turned` computes
`(w @ x.T).T`. The head (49152 × 576) stands beside them, in the two orders that a tied embedding allows.
"""

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.report import show

WIDTH, FFN, VOCABULARY, MATRICES, TURNS = 576, 1536, 49152, 60, 25
Product = Callable[[jax.Array, jax.Array], jax.Array]


def main() -> None:
    """Print the table."""
    table = []
    for rows in (1, 2, 4, 8, 16, 32):
        x = jax.random.normal(jax.random.key(rows), (rows, WIDTH))
        found = measure(x, weights())
        table.append({"rows": f"{rows}"} | {name: f"{speed:.1f}" for name, speed in found.items()})
    show(f"GB/s of float32 weights read, {jax.default_backend()}", table)


def weights() -> dict[str, tuple[Product, list[jax.Array]]]:
    """Name → product and the matrices it reads."""
    keys = jax.random.split(jax.random.key(0), MATRICES)
    plain = [jax.random.normal(key, (WIDTH, FFN)) for key in keys]
    across = [jnp.copy(w.T) for w in plain]
    embedding = [jax.random.normal(keys[0], (VOCABULARY, WIDTH))]
    return {
        "[in, out]": (lambda x, w: x @ w, plain),
        "[out, in]": (last_axes, across),
        "[out, in] turned": (lambda x, w: (w @ x.T).T, across),
        "head x @ E.T": (last_axes, embedding),
        "head (E @ x.T).T": (lambda x, w: (w @ x.T).T, embedding),
    }


def last_axes(x: jax.Array, w: jax.Array) -> jax.Array:
    """x @ w.T without a transposed copy."""
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())))


def measure(x: jax.Array, layouts: dict[str, tuple[Product, list[jax.Array]]]) -> dict[str, float]:
    """GB/s of each layout, the fastest of interleaved turns."""
    best = dict.fromkeys(layouts, math.inf)
    calls = {name: jax.jit(lambda x, ws, f=f: [f(x, w) for w in ws]) for name, (f, _) in layouts.items()}
    for turn in range(TURNS):
        for name, (_, matrices) in layouts.items():
            began = time.perf_counter()
            jax.block_until_ready(calls[name](x, matrices))
            if turn:  # the first turn compiles
                best[name] = min(best[name], time.perf_counter() - began)
    return {name: sum(w.nbytes for w in layouts[name][1]) / seconds / 1e9 for name, seconds in best.items()}


if __name__ == "__main__":
    main()
