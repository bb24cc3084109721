"""What a round tells the host: one packed int32 array [R, 9 + (3 + 2A)·P], so that one copy serves a round.

P tokens are the most that a round can commit, A the alternatives recorded beside each. Floats travel as their bits.
`pack` runs on the device at the end of the round's program, `unpack` on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sla_jax.decode.lanes import Lanes
from sla_jax.decode.settle import Harvest

HEAD = 9  # columns before the tokens: count, done, stopped, explored, alive, committed, steps, score, margin


class Round(NamedTuple):
    """One request's share of a round, on the host."""

    tokens: list[int]  # committed by this round, possibly none
    rewards: list[float]
    logprobs: list[float]
    done: bool
    stopped: bool  # done by an end token rather than by the limit
    alive: int  # lanes in the tree
    explored: int  # tokens read for this request since its prompt
    committed: int  # tokens of the answer so far
    steps: int  # forward passes for this request since its prompt
    score: float | None  # mean reward of the response up to the winner's best leaf; None when nothing was committed
    margin: float | None  # score minus the best of the other first-level nodes; None when there was no other
    tops: list[list[tuple[int, float]]] = []  # per token, the model's A best (token, log-probability)


def pack(lanes: Lanes, harvest: Harvest, alive: Int[Array, "R"]) -> Int[Array, "R C"]:
    """One round's rows; `alive` lanes were in the tree before anything was committed."""
    head = (harvest.size, lanes.done, harvest.stopped, lanes.explored, alive, lanes.committed, lanes.steps)
    columns = jnp.stack([x.astype(jnp.int32) for x in head], axis=1)
    scores = jnp.stack([_bits(harvest.score + lanes.anchor), _bits(harvest.margin)], axis=1)
    slots = len(alive)
    beside = (harvest.top_ids.reshape(slots, -1), _bits(harvest.top_logprobs).reshape(slots, -1))
    tokens = (harvest.tokens, _bits(harvest.rewards), _bits(harvest.logprobs))
    return jnp.concatenate([columns, scores, *tokens, *beside], axis=1)


def nobody(lanes: Lanes, places: int) -> Int[Array, "R C"]:
    """The packed rows of a round in which nothing happened."""
    columns = HEAD + (3 + 2 * lanes.top_ids.shape[-1]) * places
    return jnp.zeros((len(lanes.done), columns), jnp.int32).at[:, 1].set(lanes.done.astype(jnp.int32))


def unpack(packed: np.ndarray, *, tops: int = 0) -> list[Round]:
    """Packed rows → one Round per request; `tops` is A."""
    floats = packed.view(np.float32)
    places = (packed.shape[1] - HEAD) // (3 + 2 * tops)
    beside = HEAD + 3 * places
    rounds = []
    for ints, reals in zip(packed, floats, strict=True):
        n = int(ints[0])
        ids = ints[beside : beside + n * tops].reshape(n, tops).tolist()
        logprobs = reals[beside + places * tops :][: n * tops].reshape(n, tops).tolist()
        rounds.append(
            Round(
                tokens=ints[HEAD : HEAD + n].tolist(),
                rewards=reals[HEAD + places : HEAD + places + n].tolist(),
                logprobs=reals[HEAD + 2 * places : HEAD + 2 * places + n].tolist(),
                done=bool(ints[1]),
                stopped=bool(ints[1] and ints[2]),
                explored=int(ints[3]),
                alive=int(ints[4]),
                committed=int(ints[5]),
                steps=int(ints[6]),
                score=float(reals[7]) if n else None,
                margin=float(reals[8]) if n and np.isfinite(reals[8]) else None,
                tops=[list(zip(*pair, strict=True)) for pair in zip(ids, logprobs, strict=True)] if tops else [],
            )
        )
    return rounds


def _bits(x: Float[Array, "*B"]) -> Int[Array, "*B"]:
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
