"""What a round tells the host: one packed int32 array [R, 7 + 3k], so that one copy serves a step.

Floats travel as their bits. `pack` runs on the device at the end of the round's program, `unpack` on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sla_jax.decode.lanes import Lanes

HEAD = 7  # columns before the tokens: count, done, stopped, explored, alive, score, margin


class Round(NamedTuple):
    """One request's share of a round, on the host."""

    tokens: list[int]  # committed by this round, possibly none
    rewards: list[float]
    logprobs: list[float]
    done: bool
    stopped: bool  # done by an end token rather than by the limit
    alive: int  # lanes in the tree
    explored: int  # tokens read for this request since its prompt
    score: float | None  # mean reward of the response up to the winner's best leaf; None when nothing was committed
    margin: float | None  # score minus the best of the other first-level nodes; None when there was no other


def pack(
    lanes: Lanes,
    *,
    lane: Int[Array, "R"],
    start: Int[Array, "R"],
    count: Int[Array, "R"],
    score: Float[Array, "R"],
    margin: Float[Array, "R"],
    chunk: int,
) -> Int[Array, "R P"]:
    """One round's rows; `lane`, `start` and `count` say what was committed, `score` is relative to the anchor."""

    def piece(buffer: Array) -> Array:
        row = jnp.take_along_axis(buffer, lane[:, None, None], axis=1)[:, 0]
        return jnp.take_along_axis(row, start[:, None] + jnp.arange(chunk)[None, :], axis=1)

    head = [
        count,
        lanes.done,
        jnp.take_along_axis(lanes.stopped, lane[:, None], axis=1)[:, 0],
        lanes.explored,
        lanes.live.sum(axis=-1),
        _bits(score + lanes.anchor),
        _bits(margin),
    ]
    columns = jnp.stack([x.astype(jnp.int32) for x in head], axis=1)
    return jnp.concatenate(
        [columns, piece(lanes.tokens), _bits(piece(lanes.rewards)), _bits(piece(lanes.logprobs))], axis=1
    )


def unpack(packed: np.ndarray) -> list[Round]:
    """Packed rows [R, 7 + 3k] → one Round per request."""
    floats = packed.view(np.float32)
    k = (packed.shape[1] - HEAD) // 3
    rounds = []
    for ints, reals in zip(packed, floats, strict=True):
        n = int(ints[0])
        rounds.append(
            Round(
                tokens=ints[HEAD : HEAD + n].tolist(),
                rewards=reals[HEAD + k : HEAD + k + n].tolist(),
                logprobs=reals[HEAD + 2 * k : HEAD + 2 * k + n].tolist(),
                done=bool(ints[1]),
                stopped=bool(ints[1] and ints[2]),
                explored=int(ints[3]),
                alive=int(ints[4]),
                score=float(reals[5]) if n else None,
                margin=float(reals[6]) if n and np.isfinite(reals[6]) else None,
            )
        )
    return rounds


def _bits(x: Float[Array, "*B"]) -> Int[Array, "*B"]:
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
