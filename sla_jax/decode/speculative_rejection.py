"""Speculative Rejection (arXiv 2410.20290): many candidates begin, and those that score badly are given up on the way.

The keys and values of all lanes together may take `budget` tokens. b lanes therefore grow to budget/b tokens, the best
(1-alpha)·b of them are kept, and with the memory of the others the kept grow further, until they end. So the schedule
is known before anything runs. The prompt's keys and values are held once, whatever the number of lanes, and are not in
the budget. Where the public release differs: it reads every answer again in every round, prompt included.

An answer that has ended is scored where the others are, keeps its score and is never lost; it takes part in the ranking
of the round in which it ended, and in no later one. alpha = 0 is Best-of-N, sample for sample.
"""

import dataclasses
import math

from sla_jax.decode.best_of_n import check_pool, whole
from sla_jax.decode.measures import Terms, terms
from sla_jax.decode.pool import Phase
from sla_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeculativeRejection:
    """`n` candidates at first; of each round's, the share `alpha` that scores worst is given up."""

    n: int = 16
    alpha: float = 0.5
    budget: int | None = None
    """Tokens whose keys and values all lanes together may hold; None for n · max_tokens · (1-alpha)²."""
    reserve_gb: float | None = None
    """In place of a budget: all that the device's free memory holds, less so many GB."""
    chunk: int = 16
    """Lengths at which lanes are given up are whole chunks."""
    score: str = "reward"

    def __post_init__(self) -> None:
        check_pool(self.n, self.chunk)
        terms(self.score)
        if not 0 <= self.alpha < 1:
            raise UserError(f"alpha={self.alpha} is out of range; it is the share given up, from 0 to below 1.")
        if self.reserve_gb is not None and (self.budget is not None or self.reserve_gb < 0):
            raise UserError(f"reserve_gb={self.reserve_gb} is 0 or more, and stands in place of a budget.")
        if self.budget is not None and self.budget < self.n * self.chunk:
            raise UserError(
                f"budget={self.budget} does not hold one chunk of {self.chunk} tokens in each of n={self.n} lanes; "
                f"give at least {self.n * self.chunk}, or fewer lanes."
            )

    @property
    def terms(self) -> Terms:
        """What `score` says."""
        return terms(self.score)

    def phases(self, limit: int) -> tuple[Phase, ...]:
        """The schedule for answers of at most `limit` tokens. Raises UserError where the budget can never be kept."""
        budget = self.budget or math.ceil(self.n * limit * (1 - self.alpha) ** 2)
        end, lanes, found = whole(limit, self.chunk), self.n, list[Phase]()
        while not found or found[-1].tokens < end:
            room = end if budget >= lanes * limit else budget // lanes // self.chunk * self.chunk
            longer = room > (found[-1].tokens if found else 0)
            if longer:
                found.append(Phase(lanes=lanes, tokens=room, chunk=self.chunk))
            fewer = self._fewer(lanes)
            if fewer == lanes and room < end:
                raise UserError(
                    f"with alpha={self.alpha}, {lanes} lanes are never fewer, and budget={budget} does not hold "
                    f"{limit} tokens in each; give a budget of {lanes * limit} or lower max_tokens to "
                    f"{budget // lanes}."
                )
            lanes = fewer
        return tuple(found)

    def _fewer(self, lanes: int) -> int:
        """(1-alpha)·lanes, rounded, but at least one fewer (unless alpha is 0) and at least one."""
        rounded = math.floor((1 - self.alpha) * lanes + 0.5)
        return max(1, min(rounded, lanes - (self.alpha > 0)))
