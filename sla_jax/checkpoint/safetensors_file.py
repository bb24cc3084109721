"""The safetensors format, read lazily and written as a stream.

The format is eight bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, and the data. Reading
maps the file, so a tensor costs no memory until it is used; writing takes one array at a time, so exporting a model
never holds more than one. (The library's own writer wants the whole file's arrays at once.) Header offsets are
checked against the file's size: a truncated download is an error by name, not a crash in the middle of an import.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sla_jax.errors import UserError
from sla_jax.files import naming

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes; the format's own limit


class Tensor(NamedTuple):
    """Where a tensor lies in its file; `offset` counts from the start of the file, in bytes."""

    code: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Spec(NamedTuple):
    """A tensor that is about to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata. A damaged or truncated file raises UserError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
        if length > min(MAX_HEADER, size - 8):
            raise damaged(path, f"its header should take {length} bytes and the file has {size}")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            tensors = {name: _tensor(entry, 8 + length) for name, entry in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise damaged(path, f"its header cannot be read ({error})") from None
    for name, tensor in tensors.items():
        _check(path, name, tensor, size)
    return tensors, metadata


def _tensor(entry: Mapping[str, Any], base: int) -> Tensor:
    begin, end = entry["data_offsets"]
    return Tensor(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), base + int(begin), int(end) - int(begin))


def _check(path: Path, name: str, tensor: Tensor, size: int) -> None:
    if tensor.offset + tensor.size > size:
        raise damaged(path, f"the tensor {name!r} ends at byte {tensor.offset + tensor.size} and the file has {size}")
    if tensor.code in DTYPES and math.prod(tensor.shape) * DTYPES[tensor.code].itemsize != tensor.size:
        raise damaged(path, f"the tensor {name!r} of shape {tensor.shape} has {tensor.size} bytes")


def damaged(path: Path, what: str) -> UserError:
    """The error for a file that is not whole."""
    return UserError(f"{path} is damaged or truncated: {what}. Download it again.")


def dtype_of(path: Path, name: str, tensor: Tensor) -> np.dtype[Any]:
    """The tensor's type; integer and 8-bit (quantized) types are not supported."""
    if tensor.code not in DTYPES:
        raise UserError(
            f"{path}: the tensor {name!r} has type {tensor.code}; supported are {', '.join(DTYPES)}. Quantized "
            "checkpoints other than GGUF are not supported: import the unquantized one."
        )
    return DTYPES[tensor.code]


def read_tensor(path: Path, name: str, tensor: Tensor) -> np.ndarray:
    """A read-only view into the file."""
    dtype = dtype_of(path, name, tensor)
    if tensor.size == 0:
        return np.zeros(tensor.shape, dtype)
    data = np.memmap(path, np.uint8, "r", offset=tensor.offset, shape=(tensor.size,))
    return data.view(dtype).reshape(tensor.shape)


def write(path: Path, specs: list[Spec], arrays: Iterable[np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write `arrays`, which must come in the order of `specs`, one at a time."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.size],
        }
        offset += spec.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with naming(path), path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for spec, array in zip(specs, arrays, strict=True):
            assert array.shape == spec.shape and array.dtype == spec.dtype, f"{spec.name}: {array.shape} {array.dtype}"
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
