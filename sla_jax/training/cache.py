"""The feature cache: hidden states of all response tokens under a frozen policy, computed once, mapped from disk.

One folder per key = SHA-256 of (token ids, policy weights and config, storage type): `states.bin`, [L+1, all response
tokens, D] in the storage type, and `done.bin`, one byte a pair. It is filled in `KEY.partial`, which is then renamed;
a killed fill goes on where it stopped, because a pair is marked done only after its states were flushed.
"""

import contextlib
import fcntl
import functools
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sla_jax.errors import UserError
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy, param_paths
from sla_jax.training.batches import NO_PAIR, TokenPairs, forward_batches
from sla_jax.training.features import Packed, StoredSource, TokenSource, packed_features, pair_offsets

FORMAT = "2"
FLUSH_EVERY = 16  # forward passes between flushes of the cache being filled


def cached_source(
    data: TokenPairs,
    policy: Policy,
    config: ModelConfig,
    *,
    folder: Path,
    dtype: str,
    batch_tokens: int,
    devices: int = 1,
    progress: Callable[[int, int], None],
) -> StoredSource:
    """The cache for these data and this policy, filled first if it is not there.

    `progress(done, total)` is told response tokens. Raises UserError when the disk is too small, another process is
    filling it, or the states do not fit the storage type.
    """
    key = cache_key(data, policy, config, dtype)
    shape = (config.layers + 1, int(pair_offsets(data)[-1]), config.width)
    final, partial = folder / key, folder / f"{key}.partial"
    if not final.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{key}.lock"):
            if not final.exists():
                _fill(data, policy, config, partial, shape, jnp.dtype(dtype), (batch_tokens, devices), progress)
                partial.rename(final)
    progress(shape[1], shape[1])
    return StoredSource(data, np.memmap(final / "states.bin", dtype=jnp.dtype(dtype), mode="r", shape=shape))


def cache_key(data: TokenPairs, policy: Policy, config: ModelConfig, dtype: str) -> str:
    """32 hex digits that name everything the stored states depend on."""
    digest = hashlib.sha256(f"{FORMAT} {dtype} {config} {data.fingerprint()}".encode())
    for name, leaf in sorted(param_paths(policy).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()[:32]


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _features(policy: Policy, config: ModelConfig, packed: Packed, places: Array, dtype: jnp.dtype) -> Array:
    return packed_features(policy, config, packed, places).astype(dtype)


def _fill(
    data: TokenPairs,
    policy: Policy,
    config: ModelConfig,
    partial: Path,
    shape: tuple[int, int, int],
    dtype: jnp.dtype,
    grouping: tuple[int, int],
    progress: Callable[[int, int], None],
) -> None:
    states, done = _open_partial(partial, shape, dtype, len(data.pairs))
    offsets = pair_offsets(data)
    pending: list[np.ndarray] = []
    finished = int(np.diff(offsets)[done == 1].sum())
    progress(finished, shape[1])
    groups = forward_batches(data.lengths(), np.flatnonzero(done == 0), *grouping)
    for number, group in enumerate(groups, start=1):
        _store(data, policy, config, group, states, offsets)
        pending.append(group[group != NO_PAIR])
        if number % FLUSH_EVERY == 0 or number == len(groups):
            states.flush()
            done[np.concatenate(pending)] = 1
            done.flush()
            pending = []
        finished += int(np.diff(offsets)[group[group != NO_PAIR]].sum())
        progress(finished, shape[1])


def _store(
    data: TokenPairs, policy: Policy, config: ModelConfig, group: np.ndarray, states: np.memmap, offsets: np.ndarray
) -> None:
    """One forward pass; the response positions go to their places in the cache."""
    batch = TokenSource(data).batch(group)
    assert isinstance(batch.source, Packed)
    out = np.asarray(_features(policy, config, batch.source, jnp.asarray(batch.places), states.dtype))
    if not np.isfinite(out).all():
        raise UserError(
            f"this policy's hidden states do not fit {states.dtype}; pass --features.dtype bfloat16 or float32."
        )
    start = 0
    for i in group[group != NO_PAIR]:
        count = offsets[i + 1] - offsets[i]
        states[:, offsets[i] : offsets[i + 1]] = out[:, start : start + count]
        start += count


def _open_partial(
    partial: Path, shape: tuple[int, int, int], dtype: jnp.dtype, pairs: int
) -> tuple[np.memmap, np.memmap]:
    """Open or create the files of a cache being filled; the key in the folder's name vouches for their meaning."""
    need = int(np.prod(shape)) * dtype.itemsize
    if not (partial / "done.bin").exists():
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(partial.parent).free
        if need > free:
            raise UserError(
                f"the feature cache needs {need / 1e9:.1f} GB and {partial.parent} has {free / 1e9:.1f} GB free; give "
                "another folder with --features.dir, or pass --features.mode recompute."
            )
        partial.mkdir()
        np.memmap(partial / "states.bin", dtype=dtype, mode="w+", shape=shape)
        np.memmap(partial / "done.new", dtype=np.uint8, mode="w+", shape=(pairs,)).flush()
        (partial / "done.new").rename(partial / "done.bin")
    states = np.memmap(partial / "states.bin", dtype=dtype, mode="r+", shape=shape)
    return states, np.memmap(partial / "done.bin", dtype=np.uint8, mode="r+", shape=(pairs,))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is filling the feature cache {path.stem}; wait for it, or give --features.dir."
            ) from None
        yield
