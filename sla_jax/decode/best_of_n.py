"""Best-of-N: n sampled answers, each to its end; the one that scores highest is the answer."""

import dataclasses

from sla_jax.decode.measures import Terms, terms
from sla_jax.decode.pool import Phase
from sla_jax.errors import UserError

MAX_CANDIDATES = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfN:
    """`n` candidates in as many lanes; `score` ranks them unless a scorer is given (see `measures.MEASURES`)."""

    n: int = 8
    chunk: int = 32
    """Tokens between two reports of progress; it changes no answer."""
    score: str = "reward"

    def __post_init__(self) -> None:
        check_pool(self.n, self.chunk)
        terms(self.score)

    @property
    def terms(self) -> Terms:
        """What `score` says."""
        return terms(self.score)

    def phases(self, limit: int) -> tuple[Phase, ...]:
        """All candidates to the end of at most `limit` tokens."""
        return (Phase(lanes=self.n, tokens=whole(limit, self.chunk), chunk=self.chunk),)


def whole(tokens: int, chunk: int) -> int:
    """The least number of whole chunks that holds `tokens`, in tokens."""
    return -(-tokens // chunk) * chunk


def check_pool(n: int, chunk: int) -> None:
    """Raise UserError unless there is a sensible number of candidates and of tokens in a chunk."""
    for name, value, high in (("n", n, MAX_CANDIDATES), ("chunk", chunk, 512)):
        if not 1 <= value <= high:
            raise UserError(f"{name}={value} is out of range; it has to be 1 to {high}.")
