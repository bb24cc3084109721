"""Export: our checkpoint → a Hugging Face directory, one parameter at a time.

The table of mapping.py read from left to right. Without a channel the result loads in `transformers` as it is; with
one it carries the public names and architecture of the SLA release. Tensors keep the stored type, so what came in bit
for bit goes out bit for bit, and config.json keeps the fields as they came.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sla_jax.checkpoint import armo, store
from sla_jax.checkpoint import safetensors_file as st
from sla_jax.checkpoint.channel_file import public_array
from sla_jax.checkpoint.importer import Report, cast, numpy_dtype
from sla_jax.checkpoint.mapping import Slot, slots
from sla_jax.checkpoint.staging import refuse, staged
from sla_jax.errors import UserError

SHARD_BYTES = 5_000_000_000
METADATA = {"format": "pt"}  # transformers refuses a file that does not say it


def export_checkpoint(
    src: Path,
    dst: Path,
    *,
    dtype: str | None = None,
    report: Report = lambda what, done, total: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the checkpoint `src` as a Hugging Face directory `dst`, in files of at most `shard_bytes`.

    Raises UserError when `src` is not a checkpoint of ours or `dst` is taken."""
    found = store.info(src)
    refuse(dst, overwrite=False, ours=lambda path: False)
    if armo.is_armo(src):
        raise UserError(f"{src} is an ArmoRM; as a Hugging Face directory it would lose its gate. Keep the original.")
    forced = numpy_dtype(dtype) if dtype else None
    chosen = slots(found.config)
    specs = [st.Spec(slot.public, slot.shape, forced or found.params[slot.ours].dtype) for slot in chosen]
    shards = _shards(specs, shard_bytes)
    raw = store.raw_with_dtype(found.raw_config, dtype) if dtype and dtype != found.dtype else found.raw_config
    with staged(dst) as part:
        arrays = _arrays(found, chosen, specs, report)
        for name, shard in shards.items():
            st.write(part / name, shard, itertools.islice(arrays, len(shard)), METADATA)
        if len(shards) > 1:
            _write_index(part, shards)
        for name, content in store.read_extras(found.dir).items():
            (part / name).write_bytes(content)
        (part / "config.json").write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _arrays(found: store.Info, chosen: list[Slot], specs: list[st.Spec], report: Report) -> Iterator[np.ndarray]:
    """Public tensors in the order of `chosen`; slots of one parameter stand together, so each is read once."""
    done, total = 0, sum(spec.size for spec in specs)
    pairs = zip(chosen, specs, strict=True)
    for ours, group in itertools.groupby(pairs, key=lambda pair: pair[0].ours):
        stored = store.read_param(found, ours)
        for slot, spec in group:
            done += spec.size
            report(slot.public, done, total)
            yield cast(public_array(stored, slot), spec.dtype, slot.public)


def _shards(specs: list[st.Spec], limit: int) -> dict[str, list[st.Spec]]:
    """Files by name, filled in order; one file keeps the plain name."""
    groups: list[list[st.Spec]] = [[]]
    size = 0
    for spec in specs:
        if groups[-1] and size + spec.size > limit:
            groups.append([])
            size = 0
        groups[-1].append(spec)
        size += spec.size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def _write_index(part: Path, shards: dict[str, list[st.Spec]]) -> None:
    index = {
        "metadata": {"total_size": sum(spec.size for shard in shards.values() for spec in shard)},
        "weight_map": {spec.name: name for name, shard in shards.items() for spec in shard},
    }
    (part / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
