"""One number made of the scores of an answer's steps: the same four ways wherever steps are scored."""

from collections.abc import Callable

import numpy as np

from sla_jax.errors import UserError, nearest

AGGREGATES: dict[str, Callable[[np.ndarray], float]] = {
    "last": lambda scores: float(scores[-1]),
    "min": lambda scores: float(scores.min()),
    "prod": lambda scores: float(scores.prod()),
    "mean": lambda scores: float(scores.mean()),
}


def check_aggregate(name: str) -> None:
    """Raise UserError unless there is such a way."""
    if name not in AGGREGATES:
        known = tuple(AGGREGATES)
        raise UserError(f"there is no aggregate {name!r}; known: {', '.join(known)}.{nearest(name, known)}")
