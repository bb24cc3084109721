"""Streaming look-ahead (arXiv 2503.00029): commit the chunk whose subtree holds the best-rewarded leaf.

A round grows the tree under the committed text by one level (k tokens in every lane at once), and once every unfinished
leaf is depth+1 levels deep it commits the winning first-level chunk and keeps its subtree. So the steady state costs k
forward passes per k committed tokens, the same number as greedy decoding; the price is width^(depth+1) lanes.
The first chunk is greedy and committed at once, unless `branch_first`.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from sla_jax.decode import lanes as moves
from sla_jax.decode.lanes import Lanes
from sla_jax.decode.result import pack
from sla_jax.decode.steps import Steps
from sla_jax.errors import UserError

MAX_LANES = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class SLA:
    """Look-ahead with `width` branches per leaf, `chunk` tokens per level and `depth` levels beyond the first."""

    width: int = 2
    chunk: int = 10
    depth: int = 2
    branch_first: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("width", 1, 64), ("chunk", 1, 512), ("depth", 0, 16)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name}={value} is out of range: look-ahead takes a {name} of {low} to {high}.")
        if self.lanes > MAX_LANES:
            raise UserError(
                f"width={self.width} and depth={self.depth} need width^(depth+1) = {self.lanes} lanes per request, "
                f"more than {MAX_LANES}; lower the width or the depth."
            )

    needs_rewards = True

    @property
    def lanes(self) -> int:
        """Leaves of a full tree: width^(depth+1)."""
        return int(self.width ** (self.depth + 1))

    @property
    def held(self) -> int:
        """Places for uncommitted tokens: chunk·(depth+1)."""
        return self.chunk * (self.depth + 1)

    def advance(self, steps: Steps, lanes: Lanes, *, vocabulary: int) -> tuple[Lanes, Int[Array, "R P"]]:
        """One round for R requests, each at its own level of its own tree."""
        first = (lanes.committed == 0) & (not self.branch_first)
        width = jnp.where(first, 1, self.width)
        lanes, tokens, logprobs = moves.expand(steps, lanes, width, children=self.width, chunk=self.chunk)
        lanes = moves.rollout(steps, lanes, tokens, logprobs, vocabulary=vocabulary, chunk=self.chunk)
        block, lane, best, others = moves.select(moves.score(lanes), self.width)
        ready = first | (lanes.level > self.depth)
        lanes, start, count = moves.commit(steps, lanes, lane, ready, chunk=self.chunk)
        base = jnp.where(ready & ~first, block * (self.lanes // self.width), 0)
        packed = pack(lanes, lane=lane, start=start, count=count, score=best, margin=best - others, chunk=self.chunk)
        return lanes._replace(base=base), packed
