"""What a round tells the host: one packed int32 array [R, 12 + (4 + 2A)·P], so that one copy serves a round.

P tokens are the most that a round can commit, A the alternatives recorded beside each. Floats travel as their bits.
`pack` runs on the device at the end of the round's program, `unpack` on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sla_jax.decode import snapshot
from sla_jax.decode.lanes import Lanes
from sla_jax.decode.settle import Harvest
from sla_jax.decode.snapshot import Grower, Tree

# columns before the tokens: count, done, stopped, explored, alive, committed, steps, lane_steps, drafted, accepted,
# score, margin
HEAD = 12


class Round(NamedTuple):
    """One request's share of a round, on the host."""

    tokens: list[int]  # committed by this round, possibly none
    rewards: list[float]
    logprobs: list[float]
    entropies: list[float]
    done: bool
    stopped: bool  # done by an end token rather than by the limit
    alive: int  # lanes in the tree
    explored: int  # tokens read for this request since its prompt
    committed: int  # tokens of the answer so far
    steps: int  # forward passes for this request since its prompt
    lane_steps: int  # rows of those passes
    score: float | None  # mean reward of the response up to the winner's best leaf; None when nothing was committed
    margin: float | None  # score minus the best of the other first-level nodes; None when there was no other
    tops: list[list[tuple[int, float]]] = []  # per token, the model's A best (token, log-probability)
    drafted: int = 0  # tokens guessed and read along
    accepted: int = 0  # of those, the ones that were right
    tree: Tree | None = None  # what the round grew, of programs that were asked for it


def pack(lanes: Lanes, harvest: Harvest, alive: Int[Array, "R"]) -> Int[Array, "R C"]:
    """One round's rows; `alive` lanes were in the tree before anything was committed."""
    spent = (lanes.explored, alive, lanes.committed, lanes.steps, lanes.lane_steps)
    head = (harvest.size, lanes.done, harvest.stopped, *spent, lanes.drafted, lanes.accepted)
    columns = jnp.stack([x.astype(jnp.int32) for x in head], axis=1)
    scores = jnp.stack([_bits(harvest.score + lanes.anchor), _bits(harvest.margin)], axis=1)
    slots = len(alive)
    beside = (harvest.top_ids.reshape(slots, -1), _bits(harvest.top_logprobs).reshape(slots, -1))
    tokens = (harvest.tokens, _bits(harvest.rewards), _bits(harvest.logprobs), _bits(harvest.entropies))
    return jnp.concatenate([columns, scores, *tokens, *beside], axis=1)


def nobody(lanes: Lanes, places: int) -> Int[Array, "R C"]:
    """The packed rows of a round in which nothing happened."""
    columns = HEAD + (4 + 2 * lanes.top_ids.shape[-1]) * places
    return jnp.zeros((len(lanes.done), columns), jnp.int32).at[:, 1].set(lanes.done.astype(jnp.int32))


def unpack(packed: np.ndarray, *, tops: int = 0, trace: Grower | None = None) -> list[Round]:
    """Packed rows → one Round per request; `tops` is A, `trace` the decoder whose snapshots are beside them."""
    if trace is not None:
        packed, trees = snapshot.split(packed, trace)
        return [one._replace(tree=tree) for one, tree in zip(unpack(packed, tops=tops), trees, strict=True)]
    floats = packed.view(np.float32)
    places = (packed.shape[1] - HEAD) // (4 + 2 * tops)
    beside = HEAD + 4 * places
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
                entropies=reals[HEAD + 3 * places : HEAD + 3 * places + n].tolist(),
                done=bool(ints[1]),
                stopped=bool(ints[1] and ints[2]),
                explored=int(ints[3]),
                alive=int(ints[4]),
                committed=int(ints[5]),
                steps=int(ints[6]),
                lane_steps=int(ints[7]),
                drafted=int(ints[8]),
                accepted=int(ints[9]),
                score=float(reals[10]) if n else None,
                margin=float(reals[11]) if n and np.isfinite(reals[11]) else None,
                tops=[list(zip(*pair, strict=True)) for pair in zip(ids, logprobs, strict=True)] if tops else [],
            )
        )
    return rounds


def _bits(x: Float[Array, "*B"]) -> Int[Array, "*B"]:
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
