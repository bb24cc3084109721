"""The safetensors format, read lazily and written as a stream.

The format is eight bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, and the data. Reading
maps the file, so a tensor costs no memory until it is used; writing takes one array at a time, so exporting a model
never holds more than one. (The library's own writer wants the whole file's arrays at once.) Nothing in a header is
believed before it is compared with the file: as the format asks, tensors lie one behind the other without a gap, fill
the file, and take what their shapes and types say. A truncated download is an error by name, not a crash in the middle
of an import.
"""

import collections
import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sla_jax.errors import UserError, quoted, shortened
from sla_jax.files import naming

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
# the format's other types, which are not imported, and the bits of one number
OTHERS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64}
OTHERS |= {"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
OTHERS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS = OTHERS | {code: 8 * dtype.itemsize for code, dtype in DTYPES.items()}
MAX_HEADER = 2**24  # bytes, of the format's 100 million: in memory JSON takes up to twenty times as much
MAX_DIMENSIONS = 16


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
        raw = file.read(length)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_once)
        said = header.pop("__metadata__", None)
        tensors = {name: _tensor(entry, 8 + length) for name, entry in header.items()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise damaged(path, f"its header cannot be read ({shortened(str(error))})") from None
    metadata = {} if said is None else said
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(path, "its __metadata__ is no mapping to texts")
    for name, tensor in tensors.items():
        _check(path, name, tensor, size)
    _check_places(path, tensors, 8 + length, size)
    return tensors, metadata


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header. Raises ValueError for a name that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = collections.Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{quoted(name, 200)} is there twice")
    return found


def _tensor(entry: Any, base: int) -> Tensor:
    """One entry of the header. Raises ValueError, TypeError or LookupError for anything but whole numbers from 0."""
    begin, end = entry["data_offsets"]
    shape = list(entry["shape"])
    if not all(type(n) is int and 0 <= n < 2**63 for n in (begin, end, *shape)):
        raise ValueError(f"a tensor of shape {shape} at {[begin, end]}; expected whole numbers from 0")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(shape)} dimensions")
    return Tensor(str(entry["dtype"]), tuple(shape), base + begin, end - begin)


def _check(path: Path, name: str, tensor: Tensor, size: int) -> None:
    """Raise UserError unless a tensor lies in the file and is as large as its shape and type say."""
    if tensor.size < 0:
        raise damaged(path, f"the tensor {name!r:.200} ends {-tensor.size} bytes before it begins")
    if tensor.offset + tensor.size > size:
        end = tensor.offset + tensor.size
        raise damaged(path, f"the tensor {name!r:.200} ends at byte {end} and the file has {size}")
    if tensor.code not in BITS:
        raise damaged(
            path, f"the tensor {name!r:.200} has the type {tensor.code!r:.80}, which the format does not have"
        )
    fits = max(tensor.shape, default=0) <= size * 8  # else another is 0
    if not fits or math.prod(tensor.shape) * BITS[tensor.code] != tensor.size * 8:
        raise damaged(
            path, f"the tensor {name!r:.200} of shape {tensor.shape} and type {tensor.code} has {tensor.size} bytes"
        )


def _check_places(path: Path, tensors: Mapping[str, Tensor], begin: int, size: int) -> None:
    """Raise UserError unless tensors fill the file from `begin` on, without a gap and without sharing a byte."""
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != begin:
            raise damaged(path, f"the tensor {name!r:.200} begins at byte {tensor.offset}; expected {begin}")
        begin += tensor.size
    if begin != size:
        raise damaged(path, f"its tensors end at byte {begin} and the file has {size}")


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
