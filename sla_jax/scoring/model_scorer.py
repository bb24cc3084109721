"""A scorer that reads candidates with a model of its own: each once, or one request's again and again."""

import abc
import copy
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from sla_jax.loading import Loaded
from sla_jax.model import forward, rereading
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy
from sla_jax.scoring.candidate import Candidate
from sla_jax.scoring.memory import Memory
from sla_jax.scoring.rows import Batch, Row, check_rows, read

# the policy, its final-norm outputs [B, T, D] and rewards [B, T] if it has a channel → a value at every token [B, T]
Values = Callable[[Policy, Array, Array | None], Array]


class ModelScorer(abc.ABC):
    """Gives every token a value; a subclass says which tokens of a candidate count, and what their values make.

    As it is made it remembers nothing. A session remembers what it has read: it is for the candidates of one request,
    which come again and again, each time longer.
    """

    def __init__(self, name: str, model: Loaded, values: Values):
        self.name, self.model = name, model
        self.tokens_read = 0
        self._whole = jax.jit(_whole, static_argnums=(0, 1))
        self._again = jax.jit(_again, static_argnums=(0, 1), donate_argnums=5)
        self._blank = jax.jit(rereading.blank, static_argnums=(1, 2, 3))
        self._values = values
        self._memory: Memory | None = None

    def session(self) -> "ModelScorer":
        """The same scorer, with a memory. Parameters and compiled programs are shared."""
        one = copy.copy(self)
        one.tokens_read, one._memory = 0, one._new_memory()
        return one

    @abc.abstractmethod
    def row(self, candidate: Candidate) -> Row:
        """The candidate in the model's tokens, and those at which values count."""

    @abc.abstractmethod
    def conclude(self, values: np.ndarray) -> float:
        """The score that the values [P] at a row's places make."""

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """One score a candidate. Raises UserError if one is longer than the model's context."""
        return [self.conclude(values) for values in self.read(candidates)]

    def read(self, candidates: Sequence[Candidate]) -> list[np.ndarray]:
        """The values [P] at each candidate's places."""
        rows = [self.row(candidate) for candidate in candidates]
        check_rows(self.model, rows)
        if self._memory is not None:
            found = self._memory.read(rows)
            self.tokens_read = self._memory.tokens_read
            return found
        self.tokens_read += sum(len(row.ids) for row in rows)
        config, policy = self.model.config, self.model.policy
        return read(rows, lambda batch: self._whole(config, self._values, policy, batch))

    def _new_memory(self) -> Memory:
        config, policy, values = self.model.config, self.model.policy, self._values
        return Memory(
            lambda rows, capacity: self._blank(policy, config, rows, capacity),
            lambda tokens, starts, kept: self._again(config, values, policy, tokens, starts, kept),
        )


def _whole(config: ModelConfig, values: Values, policy: Policy, batch: Batch) -> Float[Array, "B T"]:
    trunk = read_batch(policy, config, batch)
    return values(policy, trunk.hidden, trunk.reward)


def read_batch(policy: Policy, config: ModelConfig, batch: Batch) -> forward.Trunk:
    """What the blocks make of a batch."""
    return forward.trunk(policy, config, batch.tokens, branches=forward.Branches(batch.positions, batch.branch))


def _again(
    config: ModelConfig,
    values: Values,
    policy: Policy,
    tokens: Int[Array, "B T"],
    starts: Int[Array, "B"],
    kept: rereading.Kept,
) -> tuple[Float[Array, "B T"], rereading.Kept]:
    hidden, reward, kept = rereading.reread(policy, config, tokens, starts, kept)
    return values(policy, hidden, reward), kept
