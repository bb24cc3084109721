"""Plain decoding, greedy or sampled: one lane, k tokens a round, all of them committed."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from sla_jax.decode import lanes as moves
from sla_jax.decode.lanes import Lanes
from sla_jax.decode.result import pack
from sla_jax.decode.settle import settle
from sla_jax.decode.speculation import check_draft, guessing
from sla_jax.decode.steps import Steps
from sla_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """The best token each time, or a draw at a temperature; `chunk`, the tokens of a round, changes none of them."""

    chunk: int = 10
    draft: int = 0
    """Tokens to guess in every pass (`speculation.py`); they change what it costs and nothing else."""

    lanes = 1
    width = 1
    needs_rewards = False

    def __post_init__(self) -> None:
        if not 1 <= self.chunk <= 512:
            raise UserError(f"chunk={self.chunk} is out of range: greedy decoding takes 1 to 512 tokens a round.")
        check_draft(self.draft, self.chunk)

    @property
    def shortest(self) -> int:
        """Tokens that a round reads, at least."""
        return self.chunk

    @property
    def held(self) -> int:
        """Places for uncommitted tokens."""
        return self.chunk

    def advance(self, steps: Steps, lanes: Lanes) -> tuple[Lanes, Int[Array, "R C"]]:
        """One round: k tokens, committed."""
        only = moves.children(lanes, jnp.ones_like(lanes.level))
        lanes, rank = moves.expand(steps, lanes, only, chunk=self.chunk)
        alive = lanes.live.sum(axis=-1)
        lanes = moves.rollout(steps, lanes, rank, chunk=self.chunk, roll=guessing(self.draft))
        lanes, harvest = settle(steps, lanes, width=1, depth=0, chunk=self.chunk)
        return lanes, pack(lanes, harvest, alive)
