"""The tree as a round grew it: lanes → packed columns behind the round's own, and columns → branches on the host.

A snapshot is taken of the state that `advance` leaves behind. Committing moves no lane and erases nothing
(`settle.py`), so everything that was in the tree when the round was decoded is still there: lanes with a `parent`, the
first ones of the W. A branch's `parent` is the place of a branch of the round before among that round's.

A program takes snapshots only if it was made to (`Program(…, trace=True)`); the plain one does not know of them.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sla_jax.decode import lanes as moves
from sla_jax.decode.lanes import Lanes

HEAD = 5  # columns of a lane before its tokens: parent, rank, tokens read, flags, score
LIVE, FINISHED, STOPPED = 1, 2, 4


@runtime_checkable
class Grower(Protocol):
    """What of a decoder says how large a snapshot is."""

    @property
    def chunk(self) -> int:
        """Tokens per round."""

    @property
    def lanes(self) -> int:
        """Lanes per request."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branch:
    """One leaf of the tree when a round had been decoded, and what the round read in it."""

    parent: int
    """The leaf of the round before that it goes on from; 0 in the first round."""
    rank: int
    """Which of its parent's children it is, the most probable (or first drawn) being 0."""
    tokens: list[int]
    """Read in this round; none if it had ended before."""
    logprobs: list[float]
    rewards: list[float]
    entropies: list[float]
    """In nats, of the distributions that the tokens were taken from."""
    score: float
    """Mean reward of the whole answer up to here, plus the mean log-probability where the search weighs it."""
    finish: str | None
    """stop or length, if it has ended."""
    kept: bool
    """Still in the tree after what the round committed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """All leaves of one request after a round, and the reward at its prompt's last token."""

    anchor: float
    best: int | None
    """The leaf that scores highest of those that were kept (ties: the first); what is committed is the way to it."""
    branches: list[Branch]


def beside(packed: Int[Array, "R P"], lanes: Lanes, decoder: Grower) -> Int[Array, "R C"]:
    """The packed rows with a snapshot behind them: the anchor, then of every lane its head and `chunk` places each of
    tokens, log-probabilities, rewards and entropies."""
    chunk, grown = decoder.chunk, lanes.parent >= 0
    weight = getattr(decoder, "logprob_weight", 0.0)  # of those whose scores have one
    scores = moves.score(lanes._replace(live=grown), weight)
    rank = jnp.where(lanes.read > 0, lanes.ranks[..., -chunk], 0)
    flags = _flag(lanes.live, LIVE) | _flag(lanes.finished, FINISHED) | _flag(lanes.stopped, STOPPED)
    head = jnp.stack([lanes.parent, rank, lanes.read, flags, _bits(scores)], axis=-1)
    numbers = (_bits(x[..., -chunk:]) for x in (lanes.logprobs, lanes.rewards, lanes.entropies))
    rows = jnp.concatenate([head, lanes.tokens[..., -chunk:], *numbers], axis=-1)
    return jnp.concatenate([packed, _bits(lanes.anchor)[:, None], rows.reshape(len(packed), -1)], axis=1)


def split(packed: np.ndarray, decoder: Grower) -> tuple[np.ndarray, list[Tree]]:
    """Rows of `beside` → the packed rows as they were, and every request's tree."""
    own = packed.shape[1] - 1 - decoder.lanes * (HEAD + 4 * decoder.chunk)
    return packed[:, :own], [_tree(row[own:], decoder) for row in packed]


def _tree(row: np.ndarray, decoder: Grower) -> Tree:
    anchor, grid = row[:1].view(np.float32), row[1:].reshape(decoder.lanes, -1)
    grid = grid[grid[:, 0] >= 0]
    scores = np.ascontiguousarray(grid[:, 4]).view(np.float32)
    kept = (grid[:, 3] & LIVE) > 0
    best = int(np.argmax(np.where(kept, scores, -np.inf))) if kept.any() else None
    branches = [_branch(one, float(score), decoder.chunk) for one, score in zip(grid, scores + anchor, strict=True)]
    return Tree(anchor=float(anchor[0]), best=best, branches=branches)


def _branch(row: np.ndarray, score: float, chunk: int) -> Branch:
    read, flags = int(row[2]), int(row[3])
    tokens, *numbers = row[HEAD:].reshape(4, chunk)[:, :read]
    logprobs, rewards, entropies = (x.view(np.float32).tolist() for x in numbers)
    return Branch(
        parent=int(row[0]),
        rank=int(row[1]),
        tokens=tokens.tolist(),
        logprobs=logprobs,
        rewards=rewards,
        entropies=entropies,
        score=score,
        finish=("stop" if flags & STOPPED else "length") if flags & FINISHED else None,
        kept=bool(flags & LIVE),
    )


def _flag(x: Bool[Array, "*B"], flag: int) -> Int[Array, "*B"]:
    return jnp.where(x, jnp.int32(flag), jnp.int32(0))


def _bits(x: Float[Array, "*B"]) -> Int[Array, "*B"]:
    return jax.lax.bitcast_convert_type(x, jnp.int32)
