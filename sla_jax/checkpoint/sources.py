"""Where tensors come from: one small protocol over safetensors, PyTorch and (in gguf.py) GGUF files.

A source knows names and shapes up front and reads one tensor at a time, so that importing a model never holds more than
the one array being filled. Names are public (Hugging Face) names whatever the file calls them.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from sla_jax.checkpoint import safetensors_file as st
from sla_jax.errors import UserError, shortened
from sla_jax.files import read_object

LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)


@runtime_checkable
class Source(Protocol):
    """Tensors by public name; `files` are what provenance hashes."""

    files: list[Path]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, without reading data."""
        ...

    def dtype(self, name: str) -> np.dtype[Any]:
        """The type in which `read` returns the tensor."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor; may be a read-only view into the file."""
        ...


class SafetensorsSource:
    """One or several safetensors files."""

    def __init__(self, files: Iterable[Path]):
        self.files = list(files)
        self.metadata: dict[str, str] = {}
        self._tensors: dict[str, tuple[Path, st.Tensor]] = {}
        for path in self.files:
            tensors, metadata = st.read_header(path)
            self.metadata |= metadata
            for name, tensor in tensors.items():
                _once(name, path, self._tensors)
                self._tensors[name] = (path, tensor)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See Source."""
        return {name: tensor.shape for name, (_, tensor) in self._tensors.items()}

    def dtype(self, name: str) -> np.dtype[Any]:
        """See Source."""
        path, tensor = self._tensors[name]
        return st.dtype_of(path, name, tensor)

    def read(self, name: str) -> np.ndarray:
        """See Source."""
        path, tensor = self._tensors[name]
        return st.read_tensor(path, name, tensor)


class TorchSource:
    """`pytorch_model.bin` files, mapped and read without running any code that they might hold (`weights_only`).

    A tensor is a view of a storage, of whatever shape: one number can stand for a million million. It is believed to be
    as large as its storage at most, which is a part of the file."""

    def __init__(self, files: Iterable[Path]):
        self.files = list(files)
        self._tensors: dict[str, tuple[Path, Any]] = {}
        for path in self.files:
            for name, tensor in _torch_load(path).items():
                _once(name, path, self._tensors)
                self._tensors[name] = (path, tensor)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See Source."""
        return {name: tuple(tensor.shape) for name, (_, tensor) in self._tensors.items()}

    def dtype(self, name: str) -> np.dtype[Any]:
        """See Source."""
        path, tensor = self._tensors[name]
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in ("float64", "float32", "float16", "bfloat16"):
            raise UserError(
                f"{path}: the tensor {name!r} has type {kind}; only floating-point checkpoints are supported."
            )
        return np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)

    def read(self, name: str) -> np.ndarray:
        """See Source."""
        dtype = self.dtype(name)
        tensor = self._tensors[name][1].detach().contiguous()
        if dtype != np.dtype(ml_dtypes.bfloat16):
            return np.asarray(tensor.numpy())
        import torch

        return np.asarray(tensor.view(torch.int16).numpy()).view(dtype)


class Joined:
    """A policy's source with a channel's beside it; a name in both is an error."""

    def __init__(self, first: Source, second: Source):
        self.files = [*first.files, *second.files]
        self._sources = dict.fromkeys(first.shapes(), first)
        for name in second.shapes():
            _once(name, second.files[0], self._sources)
            self._sources[name] = second

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See Source."""
        return {name: source.shapes()[name] for name, source in self._sources.items()}

    def dtype(self, name: str) -> np.dtype[Any]:
        """See Source."""
        return self._sources[name].dtype(name)

    def read(self, name: str) -> np.ndarray:
        """See Source."""
        return self._sources[name].read(name)


def open_weights(directory: Path) -> Source:
    """The weights of a Hugging Face directory: safetensors first, then PyTorch; sharded (an index) or not."""
    for index, single in LAYOUTS:
        kind = SafetensorsSource if single.endswith(".safetensors") else TorchSource
        if (directory / index).exists():
            return kind(_shards(directory, index))
        if (directory / single).exists():
            return kind([directory / single])
    tried = ", ".join(name for layout in LAYOUTS for name in layout)
    hint = "".join(f" It holds {path.name}: give that file." for path in sorted(directory.glob("*.gguf"))[:1])
    if (directory / "sla_jax.json").exists():
        hint = " It is already a sla-jax checkpoint: load it as it is, or `convert.py export` it first."
    raise UserError(f"{directory} holds no weights; looked for {tried}.{hint}")


def _shards(directory: Path, index: str) -> list[Path]:
    table = read_json(directory / index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{directory / index} has no weight_map of tensors to files. Download it again.")
    names = sorted(set(table.values()))
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():  # a path would lead out of the folder
            raise UserError(
                f"{directory / index} names {name!r:.200}, which is no file in {directory}. Is the download complete?"
            )
    return [directory / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; a missing or malformed one raises UserError."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}.")
    return read_object(path)


def _once(name: str, path: Path, seen: dict[str, Any]) -> None:
    if name in seen:
        raise UserError(f"the tensor {name!r:.200} in {path} is there twice; a checkpoint holds each tensor once.")


def _torch_load(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path.name} is a PyTorch file and torch is not installed. Install torch, or convert the checkpoint to "
            "safetensors (most hubs offer both)."
        ) from None
    try:
        mappable = zipfile.is_zipfile(path)  # files older than torch 1.6 are not
        if mappable:
            _check_stored(path)
        found = dict(torch.load(path, map_location="cpu", weights_only=True, mmap=mappable))
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or ["unknown error"])[0]
        raise UserError(f"{path} cannot be read by torch.load: {shortened(reason)}. Download it again.") from None
    for name, tensor in found.items():
        plain = isinstance(name, str) and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        if not plain or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(f"{path} holds {name!r:.200}, which is no plain tensor; expected tensors by name alone.")
        if tensor.nbytes > tensor.untyped_storage().nbytes() or tensor.untyped_storage().nbytes() > path.stat().st_size:
            raise UserError(
                f"{path}: the tensor {name!r:.200} of shape {tuple(tensor.shape)} is larger than what the file has of "
                "it. Download it again."
            )
    return found


def _check_stored(path: Path) -> None:
    """Raise UserError for a packed part, of any size when it is unpacked; torch.save packs none."""
    with zipfile.ZipFile(path) as archive:
        packed = [part.filename for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise UserError(f"{path} holds the packed part {packed[0]!r:.200}; torch.save writes none. Download it again.")
