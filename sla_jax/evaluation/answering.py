"""What answers a prompt: asked one turn at a time, in this process (`local`) or by a server (`remote`)."""

import hashlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sla_jax.evaluation.settings import MethodConfig
from sla_jax.scoring.candidate import Message


class Ask(NamedTuple):
    """One turn to be answered."""

    messages: list[Message]
    method: MethodConfig
    max_tokens: int
    seed: int


class Reply(NamedTuple):
    """The answer; its fields are those of `rows.Turn`."""

    text: str
    token_ids: list[int]
    finish_reason: str
    rewards: list[float]
    cost: dict[str, Any]
    candidates: list[dict[str, Any]] | None


@runtime_checkable
class Answerer(Protocol):
    """Answers; the same turn always gets the same answer, but for the seconds that it took."""

    @property
    def about(self) -> dict[str, str]:
        """What is known of the model: with the settings it decides the answers."""

    @property
    def parallel(self) -> int:
        """How many turns it takes at a time."""

    def options(self, method: MethodConfig) -> dict[str, Any]:
        """The options of a method's decoder, as far as they are known."""

    def check(self, ask: Ask) -> None:
        """Raise UserError for what is known before it is tried to have no answer."""

    def answer(self, ask: Ask) -> Reply:
        """The answer. Raises UserError."""


def seed_of(seed: int, benchmark: str, prompt: str, turn: int) -> int:
    """The seed of one turn, of every method: from 0 to 2⁶³ - 1."""
    digest = hashlib.sha256(f"{seed}:{benchmark}:{prompt}:{turn}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
