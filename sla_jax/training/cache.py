"""The feature cache: hidden states of all scored tokens under a frozen policy, computed once, mapped from disk.

One folder per key = SHA-256 of (token ids, policy weights and config, storage type): `states.bin`, [L+1, all scored
tokens, D] in the storage type, `done.bin`, one byte an example, and `sums.bin`, the CRC-32 of each example's states. It
is filled in `KEY.partial`, which is then renamed; a killed fill goes on where it stopped, because an example is marked
done only after its states were flushed. States are compared with their sum when they are read for a batch, which costs
no reading of its own. Caches of older releases have no sums and are read unchecked.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from sla_jax.errors import UserError
from sla_jax.files import reserve, sync
from sla_jax.locks import locked
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy, param_paths
from sla_jax.training.batch import Batch, StoredSource, TokenSource, divided, put_batch, scored_offsets, states_sum
from sla_jax.training.examples import Examples
from sla_jax.training.objective import Plan, features
from sla_jax.training.order import NOTHING, forward_batches

FORMAT = "2"
FLUSH_EVERY = 16  # forward passes between flushes of the cache being filled
FeaturesFn = Callable[[Policy, Batch], Array]


def cached_source(
    tokens: TokenSource, policy: Policy, plan: Plan, mesh: Mesh, *, progress: Callable[[int, int], None]
) -> StoredSource:
    """The cache for these examples and this policy, filled first if it is not there.

    `progress(done, total)` is told scored tokens. Raises UserError when the disk is too small, another process is
    filling it, or the states do not fit the storage type.
    """
    options = plan.config.features
    folder, offsets = Path(options.dir), scored_offsets(tokens.examples)
    key = cache_key(tokens.examples, policy, plan.model, options.dtype)
    shape = (plan.model.layers + 1, int(offsets[-1]), plan.model.width)
    final, partial = folder / key, folder / f"{key}.partial"
    if not final.exists():
        with locked(folder / f"{key}.lock", lambda holder: _refuse(key)):
            if not final.exists():
                _fill(tokens, policy, plan, mesh, partial, shape, progress)
                sync(partial)
                partial.rename(final)
                sync(folder)
    progress(shape[1], shape[1])
    return _source(tokens, final, shape, jnp.dtype(options.dtype))


def _source(tokens: TokenSource, folder: Path, shape: tuple[int, int, int], dtype: jnp.dtype) -> StoredSource:
    """A complete cache. Raises UserError for a file that is missing or cut off."""
    path, sums, offsets = folder / "states.bin", folder / "sums.bin", scored_offsets(tokens.examples)
    sizes = {path: int(np.prod(shape)) * dtype.itemsize}
    if sums.exists():
        sizes[sums] = len(tokens.examples) * np.dtype(np.uint32).itemsize
    for file, size in sizes.items():
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(
                f"{file} is damaged: it should have {size} bytes. Delete {folder} and run the same command again: it "
                "makes the cache anew."
            )
    states = np.memmap(path, dtype=dtype, mode="r", shape=shape)
    return StoredSource(tokens, states, offsets, np.fromfile(sums, np.uint32) if sums.exists() else None, path)


def cache_key(examples: Examples, policy: Policy, model: ModelConfig, dtype: str) -> str:
    """32 hex digits that name everything the stored states depend on; not the channel or head that will read them."""
    bare = dataclasses.replace(model, channel=None, score=None)
    digest = hashlib.sha256(f"{FORMAT} {dtype} {bare} {examples.fingerprint()}".encode())
    for name, leaf in sorted(param_paths(policy).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()[:32]


def _fill(
    tokens: TokenSource,
    policy: Policy,
    plan: Plan,
    mesh: Mesh,
    partial: Path,
    shape: tuple[int, int, int],
    progress: Callable[[int, int], None],
) -> None:
    dtype = jnp.dtype(plan.config.features.dtype)
    states, sums, done = _open_partial(partial, shape, dtype, len(tokens.examples))
    offsets = scored_offsets(tokens.examples)
    run: FeaturesFn = jax.jit(
        lambda policy, batch: features(policy, jax.tree.map(lambda x: x[0], batch), plan).astype(dtype)
    )
    counts = np.diff(offsets)
    pending: list[np.ndarray] = []
    finished = int(counts[done == 1].sum())
    progress(finished, shape[1])
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    groups = forward_batches(tokens.row_lengths(), np.flatnonzero(done == 0), plan.config.features.batch_tokens, shards)
    for number, group in enumerate(groups, start=1):
        _store(tokens, divided(group, 1, mesh), mesh, lambda batch: run(policy, batch), states)
        pending.append(group[group != NOTHING])
        if number % FLUSH_EVERY == 0 or number == len(groups):
            for i in np.concatenate(pending):
                sums[i] = states_sum(states[:, offsets[i] : offsets[i + 1]])
            states.flush()
            sums.flush()
            done[np.concatenate(pending)] = 1
            done.flush()
            pending = []
        finished += int(counts[group[group != NOTHING]].sum())
        progress(finished, shape[1])


def _store(
    tokens: TokenSource, numbers: np.ndarray, mesh: Mesh, run: Callable[[Batch], Array], states: np.memmap
) -> None:
    """One forward pass; the scored positions go to their places in the cache."""
    offsets = scored_offsets(tokens.examples)
    out = np.asarray(run(put_batch(tokens, numbers, mesh)))
    if not np.isfinite(out).all():
        raise UserError(
            f"this policy's hidden states do not fit {states.dtype}; pass --features.dtype bfloat16 or float32."
        )
    for shard, chosen in enumerate(numbers[0]):
        start = 0
        for i in chosen[chosen != NOTHING]:
            count = offsets[i + 1] - offsets[i]
            states[:, offsets[i] : offsets[i + 1]] = out[:, shard, start : start + count]
            start += count


def _open_partial(
    partial: Path, shape: tuple[int, int, int], dtype: jnp.dtype, examples: int
) -> tuple[np.memmap, np.memmap, np.memmap]:
    """Open or create the files of a cache being filled; the key in the folder's name vouches for their meaning."""
    need = int(np.prod(shape)) * dtype.itemsize
    if not ((partial / "done.bin").exists() and (partial / "sums.bin").exists()):
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(partial.parent).free
        if need > free:
            raise UserError(
                f"the feature cache needs {need / 1e9:.1f} GB and {partial.parent} has {free / 1e9:.1f} GB free; give "
                "another folder with --features.dir, or pass --features.mode recompute."
            )
        partial.mkdir()
        reserve(partial / "states.bin", need)
        np.memmap(partial / "sums.bin", dtype=np.uint32, mode="w+", shape=(examples,)).flush()
        np.memmap(partial / "done.new", dtype=np.uint8, mode="w+", shape=(examples,)).flush()
        (partial / "done.new").rename(partial / "done.bin")
    states = np.memmap(partial / "states.bin", dtype=dtype, mode="r+", shape=shape)
    sums = np.memmap(partial / "sums.bin", dtype=np.uint32, mode="r+", shape=(examples,))
    return states, sums, np.memmap(partial / "done.bin", dtype=np.uint8, mode="r+", shape=(examples,))


def _refuse(key: str) -> None:
    raise UserError(f"another process is filling the feature cache {key}; wait for it, or give --features.dir.")
