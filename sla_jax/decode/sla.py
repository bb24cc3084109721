"""Streaming look-ahead (arXiv 2503.00029): commit the chunk whose subtree holds the best-rewarded leaf.

A round grows the tree under the committed text by one level (k tokens in every lane at once), and once every unfinished
leaf is depth+1 levels deep it commits the winning first-level chunk and keeps its subtree. So the steady state costs k
forward passes per k committed tokens, the same number as greedy decoding; the price is width^(depth+1) lanes.
The first chunk is not branched and committed at once, unless `branch_first`. Text is committed sooner than that
whenever nothing else can win any more (`settle.py`).
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from sla_jax.decode import lanes as moves
from sla_jax.decode.lanes import Lanes
from sla_jax.decode.result import pack
from sla_jax.decode.settle import settle
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
    early_margin: float | None = None
    """Commit before the tree is full what leads by this much mean reward; None never departs from the search."""

    def __post_init__(self) -> None:
        for name, low, high in (("width", 1, 64), ("chunk", 1, 512), ("depth", 0, 16)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name}={value} is out of range: look-ahead takes a {name} of {low} to {high}.")
        if self.early_margin is not None and not self.early_margin >= 0:
            raise UserError(f"early_margin={self.early_margin} is out of range; it has to be 0 or more.")
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

    def advance(self, steps: Steps, lanes: Lanes) -> tuple[Lanes, Int[Array, "R C"]]:
        """One round for R requests, each at its own level of its own tree."""
        first = (lanes.committed == 0) & (not self.branch_first)
        width = jnp.where(first, 1, self.width)
        lanes, tokens = moves.expand(steps, lanes, width, children=self.width, chunk=self.chunk)
        alive = lanes.live.sum(axis=-1)
        lanes = moves.rollout(steps, lanes, tokens, chunk=self.chunk)
        sizes = {"width": self.width, "depth": self.depth, "chunk": self.chunk}
        lanes, harvest = settle(steps, lanes, **sizes, early_margin=self.early_margin)
        return lanes, pack(lanes, harvest, alive)
