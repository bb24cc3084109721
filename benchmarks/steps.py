"""What training is measured by: the step that train.py compiles, and the policy's pass over the same rows."""

import time
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sla_jax.model.config import ModelConfig
from sla_jax.model.forward import Branches, trunk
from sla_jax.model.policy import Policy
from sla_jax.training.batch import Batch, Rows
from sla_jax.training.dry_run import STEPS
from sla_jax.training.objective import Frozen, Parts, Plan
from sla_jax.training.state import init_state, make_optimizer, state_shardings
from sla_jax.training.step import jit_train_step


class Steps:
    """Optimizer steps on batches that are there; calling it trains on each of them once."""

    def __init__(self, plan: Plan, parts: Parts, frozen: Frozen, batches: Sequence[Batch], mesh: Mesh):
        self.plan, self.frozen, self.batches = plan, frozen, batches
        optimizer = make_optimizer(plan.config.optimizer, plan.config.policy, STEPS)
        shardings = state_shardings(parts, optimizer, False, mesh)
        self.state = jax.jit(lambda p: init_state(p, optimizer, False), out_shardings=shardings)(parts)
        self.step = jit_train_step(plan, optimizer, shardings)
        self.losses = self.train(batches)

    def __call__(self) -> float:
        """Seconds of one pass over all batches."""
        began = time.perf_counter()
        self.train(self.batches)
        return time.perf_counter() - began

    def train(self, batches: Iterable[Batch]) -> list[float]:
        """One step a batch; their losses, read when all steps were started."""
        losses = []
        for batch in batches:
            self.state, scalars = self.step(self.state, self.frozen, batch)
            losses.append(scalars["loss"])
        return [float(loss) for loss in jax.device_get(losses)]


class Forward:
    """The policy alone over the rows of the same batches: blocks and final norm, no channel, no LM head, no gradient.

    `base` is the policy's config, without channel.
    """

    def __init__(self, base: ModelConfig, policy: Policy, like: Steps):
        plan, self.policy = like.plan, policy
        self.rows = [batch.source for batch in like.batches]

        def run(policy: Policy, rows: Rows) -> jax.Array:
            tokens, positions, branches = (None if x is None else jnp.asarray(x)[0, 0] for x in rows)
            assert tokens is not None
            layout = None if positions is None or branches is None else Branches(positions, branches)
            return trunk(policy, base, tokens, branches=layout, attention=plan.attention).hidden

        self.run = jax.jit(run)
        self()

    def __call__(self) -> float:
        """Seconds of one pass over all rows, one batch after the other."""
        began = time.perf_counter()
        for rows in self.rows:
            jax.block_until_ready(self.run(self.policy, rows))
        return time.perf_counter() - began
