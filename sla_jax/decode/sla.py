"""Streaming look-ahead (arXiv 2503.00029): commit the chunk whose subtree holds the best-rewarded leaf.

A round grows the tree under the committed text by one level (k tokens in every lane at once), and once every unfinished
leaf is depth+1 levels deep it commits the winning first-level chunk and keeps its subtree. So the steady state costs k
forward passes per k committed tokens, the same number as greedy decoding; the price is width^(depth+1) lanes.
The first chunk is not branched and committed at once, unless `branch_first`. Text is committed sooner than that
whenever nothing else can win any more (`settle.py`).

The lanes can be spent where they matter (`branching.py`, docs/adaptive.md): each of those knobs at its neutral value
gives the plain search exactly.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sla_jax.decode import branching
from sla_jax.decode import lanes as moves
from sla_jax.decode.branching import Uncertainty
from sla_jax.decode.lanes import Lanes
from sla_jax.decode.result import pack
from sla_jax.decode.settle import settle
from sla_jax.decode.speculation import check_draft, guessing
from sla_jax.decode.steps import Steps
from sla_jax.errors import UserError

MAX_LANES = 1024
RANGES: dict[str, tuple[float, float]] = {
    "width": (1, 64),
    "chunk": (1, 512),
    "depth": (0, 16),
    "budget": (1, MAX_LANES),
    "early_margin": (0, math.inf),
    "branch_above": (0, math.inf),
    "end_above": (0, math.inf),
    "behind": (0, math.inf),
    "logprob_weight": (0, 1e6),
    "token_weight": (0, 1e6),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SLA:
    """Look-ahead with `width` branches per leaf, `chunk` tokens per level and `depth` levels beyond the first."""

    width: int = 2
    chunk: int = 10
    depth: int = 2
    branch_first: bool = False
    early_margin: float | None = None
    """Commit before the tree is full what leads by this much mean reward; None never departs from the search."""
    budget: int | None = None
    """Lanes at most; the best pairs of leaf and token get them. None: width^(depth+1), which is never too few."""
    token_weight: float = 0.0
    """With a budget: a pair is worth the leaf's score + so many times the token's log-probability."""
    branch_above: float = 0.0
    """Branch a leaf only where the policy is at least this uncertain of the next token; 0 always branches."""
    end_above: float | None = None
    """End a chunk early where the next token is this uncertain; None never does."""
    least: int | None = None
    """With end_above: a chunk has at least so many tokens (half of `chunk`)."""
    uncertainty: Uncertainty = "entropy"
    """Of branch_above and end_above: entropy in nats, or doubt, 1 - the probability of the best token."""
    behind: float | None = None
    """Between chunks, drop leaves whose mean reward is this far behind the best one's; None drops none."""
    logprob_weight: float = 0.0
    """Add so many times the mean log-probability to a leaf's score."""
    draft: int = 0
    """Tokens to guess in every pass of every lane (`speculation.py`); they change what it costs and nothing else."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                top = f"{low} to {high}" if math.isfinite(high) else f"{low} or more"
                raise UserError(f"{name}={value} is out of range: look-ahead takes a {name} of {top}.")
        if self.least is not None and self.end_above is None:
            raise UserError("least says how short a chunk may end early; it goes with end_above.")
        if self.least is not None and not 1 <= self.least <= self.chunk:
            raise UserError(f"least={self.least} is out of range; it has to be 1 to chunk={self.chunk}.")
        check_draft(self.draft, self.chunk)
        if self.lanes > MAX_LANES:
            raise UserError(
                f"width={self.width} and depth={self.depth} need width^(depth+1) = {self.lanes} lanes per request, "
                f"more than {MAX_LANES}; lower the width or the depth, or give a budget."
            )

    needs_rewards = True

    @property
    def lanes(self) -> int:
        """The most leaves at a time: width^(depth+1), or the budget."""
        leaves = int(self.width ** (self.depth + 1))
        return leaves if self.budget is None else min(leaves, self.budget)

    @property
    def held(self) -> int:
        """Places for uncommitted tokens: chunk·(depth+1)."""
        return self.chunk * (self.depth + 1)

    @property
    def shortest(self) -> int:
        """Tokens that an unfinished leaf reads in a round, at least."""
        return self.chunk if self.end_above is None else self.least or -(-self.chunk // 2)

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of lanes that a round may be computed for: halves, where the tree may be smaller than its lanes."""
        if self.branch_above == 0 and self.behind is None:
            return ()
        return tuple(1 << i for i in range((self.lanes - 1).bit_length()))

    def advance(self, steps: Steps, lanes: Lanes) -> tuple[Lanes, Int[Array, "R C"]]:
        """One round for R requests, each at its own level of its own tree."""
        lanes, rank = moves.expand(steps, lanes, self.branches(lanes), chunk=self.chunk)
        alive = lanes.live.sum(axis=-1)
        pause = None
        if self.end_above is not None:
            pause = branching.pause_above(self.end_above, self.uncertainty, self.shortest)
        ways: Any = {"pause": pause, "widths": self.widths, "roll": guessing(self.draft)}
        lanes = moves.rollout(steps, lanes, rank, chunk=self.chunk, **ways)
        sizes = {"width": self.width, "depth": self.depth, "chunk": self.chunk}
        lanes, harvest = settle(
            steps, lanes, **sizes, early_margin=self.early_margin, logprob_weight=self.logprob_weight
        )
        return lanes, pack(lanes, harvest, alive)

    def branches(self, lanes: Lanes) -> Bool[Array, "R W n"]:
        """The tree's next leaves: see `lanes.expand`."""
        first = (lanes.committed == 0) & (not self.branch_first)
        wanted = moves.children(lanes, jnp.where(first, 1, self.width))
        if self.branch_above > 0:
            wanted = branching.gated(wanted, branching.unsure(lanes.next, self.uncertainty), self.branch_above)
        scores = moves.score(lanes, self.logprob_weight)
        if self.behind is not None:
            wanted = branching.hopeful(wanted, scores, self.behind)
        if self.budget is not None:
            wanted = branching.affordable(wanted, lanes, scores, self.budget, self.token_weight)
        return wanted
