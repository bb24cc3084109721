"""Greedy decoding: one lane, k tokens a round, all of them committed."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from sla_jax.decode import lanes as moves
from sla_jax.decode.lanes import Lanes
from sla_jax.decode.result import pack
from sla_jax.decode.steps import Steps
from sla_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """The most probable token each time; `chunk` tokens are decoded per round, which changes no token."""

    chunk: int = 10

    lanes = 1
    width = 1
    needs_rewards = False

    def __post_init__(self) -> None:
        if not 1 <= self.chunk <= 512:
            raise UserError(f"chunk={self.chunk} is out of range: greedy decoding takes 1 to 512 tokens a round.")

    @property
    def held(self) -> int:
        """Places for uncommitted tokens."""
        return self.chunk

    def advance(self, steps: Steps, lanes: Lanes, *, vocabulary: int) -> tuple[Lanes, Int[Array, "R P"]]:
        """One round: k greedy tokens, committed."""
        one, zero = jnp.ones_like(lanes.level), jnp.zeros_like(lanes.level)
        lanes, tokens, logprobs = moves.expand(steps, lanes, one, children=1, chunk=self.chunk)
        lanes = moves.rollout(steps, lanes, tokens, logprobs, vocabulary=vocabulary, chunk=self.chunk)
        score = moves.score(lanes)[:, 0]
        lanes, start, count = moves.commit(steps, lanes, zero, one > 0, chunk=self.chunk)
        margin = jnp.full_like(score, jnp.inf)
        return lanes, pack(lanes, lane=zero, start=start, count=count, score=score, margin=margin, chunk=self.chunk)
