"""From example numbers to the arrays of a step, laid out for the mesh: each data shard holds its own rows and tokens.

Every array starts with [M, G]: microbatches of one step, then data shards, which are split over the mesh; what belongs
to a shard is indexed inside it, so no token of one device's rows is ever looked up on another. A process builds the
shards of its own devices and no others; sizes come from all examples' lengths, so that all processes agree.

A row is one example (*shared*: prompt | answer 1 | answer 2, the prompt is read once: model/forward.py, Branches) or
one answer (prompt | answer: plain causal rows, for attention kernels that know nothing else). The scored tokens of a
shard stand in one flat row of P places, so answers of any lengths pad nothing where it is expensive.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from sla_jax.errors import UserError
from sla_jax.training.examples import Examples
from sla_jax.training.order import NOTHING, bucket, padded_length, token_bucket

SHARD_AXES = ("data", "fsdp")
Leaf = Any  # jax.Array on the devices, np.ndarray while it is built, ShapeDtypeStruct in a dry run


class Rows(NamedTuple):
    """What the policy reads. int32 [M, G, rows, S]; `positions` and `branches` only in shared rows."""

    tokens: Leaf
    positions: Leaf | None
    branches: Leaf | None  # 0 prompt, 1, 2, … answers; padding like the last


class Batch(NamedTuple):
    """b examples of A answers a shard. `source` is the rows, or stored hidden states [M, G, L+1, P, D]."""

    source: Rows | Leaf
    places: Leaf  # int32 [M, G, P]: each scored token in its shard's rows, flattened
    before: Leaf  # int32 [M, G, P]: the token before it, which predicts it
    targets: Leaf  # int32 [M, G, P]: the scored token itself
    flat: Leaf  # int32 [M, G, b, A, T]: where each answer's scored tokens stand in the flat row
    marks: Leaf  # int8 [M, G, b, A, T]: their labels; -1 = padding, on the right
    weights: Leaf  # float32 [M, G, b]; 0 = an empty example
    reference: Leaf  # float32 [M, G, b, A]: the reference's log-prob of each answer; 0 where none is used


class Shapes(NamedTuple):
    """The padded sizes of a batch."""

    rows: int  # tokens S of a row
    flat: int  # scored tokens P of a shard
    scored: int  # scored tokens T of an answer


@runtime_checkable
class Source(Protocol):
    """Where batches come from."""

    examples: Examples

    def shapes(self, numbers: np.ndarray) -> Shapes:
        """Sizes that fit the examples with these numbers, [M, G, b]."""
        ...

    def shard(self, numbers: np.ndarray, shapes: Shapes) -> Batch:
        """One shard of one microbatch: examples [b] → arrays without [M, G]."""
        ...


class TokenSource:
    """Batches of tokens: the policy runs at every step."""

    def __init__(
        self,
        examples: Examples,
        *,
        shared: bool,
        weights: np.ndarray | None = None,
        reference: np.ndarray | None = None,
    ):
        self.examples = examples
        self.shared = shared
        self.weights = np.ones(len(examples), np.float32) if weights is None else weights
        self.reference = np.zeros((len(examples), examples.answers), np.float32) if reference is None else reference

    def row_lengths(self) -> np.ndarray:
        """Tokens of the longest row of each example, int [n]."""
        if self.shared:
            return self.examples.totals
        return self.examples.prompt_lengths + self.examples.answer_lengths.max(axis=1)

    def shapes(self, numbers: np.ndarray) -> Shapes:
        """See Source."""
        flat = numbers.ravel()
        real = flat[flat != NOTHING]
        scored = np.where((numbers != NOTHING)[..., None], self.examples.scored[numbers], 0)
        return Shapes(
            padded_length(int(self.row_lengths()[real].max(initial=1))),
            token_bucket(int(scored.sum(axis=(-1, -2)).max(initial=0))),
            bucket(int(scored.max(initial=1))),
        )

    def shard(self, numbers: np.ndarray, shapes: Shapes) -> Batch:
        """See Source."""
        answers = self.examples.answers
        count = len(numbers)
        batch = _empty(count, answers, shapes, shared=self.shared)
        real = numbers != NOTHING
        batch.weights[real] = self.weights[numbers[real]]
        batch.reference[real] = self.reference[numbers[real]]
        end = 0
        for i in np.flatnonzero(real):
            end = self._fill(batch, batch.source, int(i), int(numbers[i]), end)
        return batch

    def _fill(self, batch: Batch, rows: Rows, place: int, number: int, end: int) -> int:
        """Write one example; returns the new end of the flat row."""
        example = self.examples[number]
        size = rows.tokens.shape[-1]
        column = start = len(example.prompt)
        for a, answer in enumerate(example.answers):
            row = place if self.shared else place * len(example.answers) + a
            column = column if self.shared else start
            stop = column + len(answer.tokens)
            rows.tokens[row, :start] = example.prompt
            rows.tokens[row, column:stop] = answer.tokens
            if rows.positions is not None and rows.branches is not None:
                rows.positions[row, :start] = np.arange(start)
                rows.positions[row, column:stop] = np.arange(start, start + stop - column)
                rows.branches[row, :start] = 0
                rows.branches[row, column:stop] = a + 1
            columns = np.arange(column, stop)
            before = np.concatenate([[start - 1], columns[:-1]])
            keep = answer.marks >= 0
            count = int(keep.sum())
            new = slice(end, end + count)
            batch.places[new] = row * size + columns[keep]
            batch.before[new] = row * size + before[keep]
            batch.targets[new] = answer.tokens[keep]
            batch.flat[place, a, :count] = np.arange(end, end + count)
            batch.marks[place, a, :count] = answer.marks[keep]
            end, column = end + count, stop
        return end


class StoredSource:
    """Batches of hidden states out of a complete cache [L+1, tokens, D]; the tokens lie there example by example.

    `sums` are those of the examples' states, [n] as of `states_sum`, and `path` is the file of the states."""

    def __init__(
        self, tokens: TokenSource, states: np.ndarray, offsets: np.ndarray, sums: np.ndarray | None, path: Path
    ):
        self.tokens = tokens
        self.states = states
        self.offsets = offsets  # [n + 1] where each example's scored tokens start
        self.sums = sums
        self.path = path
        self.examples = tokens.examples

    def shapes(self, numbers: np.ndarray) -> Shapes:
        """See Source."""
        return self.tokens.shapes(numbers)

    def shard(self, numbers: np.ndarray, shapes: Shapes) -> Batch:
        """See Source. Raises UserError for states that are damaged."""
        layers, _, width = self.states.shape
        features = np.zeros((layers, shapes.flat, width), self.states.dtype)
        end = 0
        for number in numbers[numbers != NOTHING]:
            start, stop = self.offsets[number : number + 2]
            found = features[:, end : end + stop - start]
            found[:] = self.states[:, start:stop]
            if self.sums is not None and states_sum(found) != self.sums[number]:
                raise UserError(
                    f"{self.path} is damaged: the states of example {number} are not those that were written. Delete "
                    f"{self.path.parent} and run the same command again: it makes the cache anew, and goes on."
                )
            end += stop - start
        return self.tokens.shard(numbers, shapes)._replace(source=features)


def states_sum(states: np.ndarray) -> int:
    """CRC-32 of an example's states [L+1, T, D]."""
    return zlib.crc32(np.ascontiguousarray(states).view(np.uint8).data)


def scored_offsets(examples: Examples) -> np.ndarray:
    """Where each example's scored tokens start when all lie in a row, and the total: int64 [n + 1]."""
    return np.concatenate([[0], np.cumsum(examples.scored.sum(axis=1), dtype=np.int64)])


def _empty(count: int, answers: int, shapes: Shapes, *, shared: bool) -> Batch:
    rows = (count if shared else count * answers, shapes.rows)
    per_answer = (count, answers, shapes.scored)
    return Batch(
        source=Rows(
            np.zeros(rows, np.int32),
            np.zeros(rows, np.int32) if shared else None,
            np.full(rows, answers, np.int32) if shared else None,
        ),
        places=np.zeros(shapes.flat, np.int32),
        before=np.zeros(shapes.flat, np.int32),
        targets=np.zeros(shapes.flat, np.int32),
        flat=np.zeros(per_answer, np.int32),
        marks=np.full(per_answer, -1, np.int8),
        weights=np.zeros(count, np.float32),
        reference=np.zeros((count, answers), np.float32),
    )


def divided(numbers: np.ndarray, microbatches: int, mesh: Mesh) -> np.ndarray:
    """Example numbers of a step or pass → [M, G, b]."""
    return numbers.reshape(microbatches, mesh.shape["data"] * mesh.shape["fsdp"], -1)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Of every array of a batch: the second axis over the data shards."""
    return NamedSharding(mesh, PartitionSpec(None, SHARD_AXES))


def put_batch(source: Source, numbers: np.ndarray, mesh: Mesh) -> Batch:
    """Examples [M, G, b] on the devices; each process builds what its own devices hold."""
    shapes, sharding = source.shapes(numbers), batch_sharding(mesh)
    count = numbers.shape[1]
    indices = sharding.addressable_devices_indices_map(numbers.shape[:2])
    mine = sorted({g for index in indices.values() if index is not None for g in range(count)[index[1]]})
    built = {g: _stacked([source.shard(micro[g], shapes) for micro in numbers]) for g in mine}

    def whole(*shards: np.ndarray) -> Array:
        local = dict(zip(mine, shards, strict=True))
        shape = (numbers.shape[0], count, *shards[0].shape[1:])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            chosen = [local[g][:, None] for g in range(count)[index[1]]]
            return chosen[0] if len(chosen) == 1 else np.concatenate(chosen, axis=1)

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(whole, *(built[g] for g in mine))


def _stacked(batches: Sequence[Batch]) -> Batch:
    return jax.tree.map(lambda *arrays: np.stack(arrays) if len(arrays) > 1 else arrays[0][None], *batches)


def waste(examples: Examples, numbers: np.ndarray, batch: Batch) -> float:
    """The part of what is computed on that is padding: of the rows, or of stored scored tokens."""
    if isinstance(batch.source, Rows):
        return 1.0 - read_tokens(examples, numbers, shared=batch.source.branches is not None) / batch.source.tokens.size
    return 1.0 - int(examples.scored[numbers[numbers != NOTHING]].sum()) / batch.places.size


def read_tokens(examples: Examples, numbers: np.ndarray, *, shared: bool) -> int:
    """Tokens that the policy reads of these examples; rows that are not shared read the prompt for each answer."""
    real = numbers[numbers != NOTHING]
    again = 0 if shared else (examples.answers - 1) * int(examples.prompt_lengths[real].sum())
    return int(examples.totals[real].sum()) + again
