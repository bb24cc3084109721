"""Token rewards, log-probabilities and step classes of a set of examples: held-out evaluation, and DPO's reference."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sla_jax.model.policy import Policy
from sla_jax.training.batch import Source, TokenSource, divided, put_batch
from sla_jax.training.objective import Frozen, Parts, Plan, by_answer, reference_logps
from sla_jax.training.order import NOTHING, forward_batches
from sla_jax.training.step import OutputsFn

Progress = Callable[[int, int], None]


class Found(NamedTuple):
    """Of one example, per answer: values at its scored tokens, float32 [T] (classes [T, K]); None where not asked."""

    rewards: tuple[np.ndarray, ...] | None
    classes: tuple[np.ndarray, ...] | None
    logps: tuple[np.ndarray, ...] | None


def rank(
    run: OutputsFn,
    parts: Parts,
    frozen: Frozen,
    source: Source,
    numbers: np.ndarray,
    mesh: Mesh,
    *,
    batch_tokens: int,
    progress: Progress,
) -> list[Found]:
    """What the model gives for the examples `numbers`, in that order. `progress` is told (examples done, all)."""
    scored = source.examples.scored
    found: dict[int, Found] = {}

    def keep(number: int, row: int, arrays: list[np.ndarray | None]) -> None:
        sizes = scored[number]
        split = [None if x is None else tuple(x[row, a, :n] for a, n in enumerate(sizes)) for x in arrays]
        found[number] = Found(*split)

    groups = forward_batches(source.examples.totals, numbers, batch_tokens, mesh.shape["data"] * mesh.shape["fsdp"])
    progress(0, len(numbers))
    for group in groups:
        given = run(parts, frozen, put_batch(source, divided(group, 1, mesh), mesh))
        arrays = [None if x is None else np.asarray(x) for x in (given.rewards, given.classes, given.logps)]
        for row in np.flatnonzero(group != NOTHING):
            keep(int(group[row]), int(row), arrays)
        progress(len(found), len(numbers))
    return [found[int(number)] for number in numbers]


def reference_sums(
    policy: Policy, plan: Plan, source: TokenSource, mesh: Mesh, *, batch_tokens: int, progress: Progress
) -> np.ndarray:
    """The log-probability of every answer under `policy`, summed over its scored tokens: float32 [n, A]."""
    run = jax.jit(
        lambda policy, batch: by_answer(reference_logps(policy, batch, plan), batch),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    examples = source.examples
    out = np.zeros((len(examples), examples.answers), np.float32)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    groups = forward_batches(examples.totals, np.arange(len(examples)), batch_tokens, shards)
    done = 0
    for group in groups:
        batch = put_batch(source, divided(group, 1, mesh), mesh)
        values = np.asarray(run(policy, jax.tree.map(lambda x: x[0], batch)))
        for row in np.flatnonzero(group != NOTHING):
            for a, n in enumerate(examples.scored[group[row]]):
                out[group[row], a] = values[row, a, :n].sum(dtype=np.float64)
            done += 1
        progress(done, len(examples))
    return out
