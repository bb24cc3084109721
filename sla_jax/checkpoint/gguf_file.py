"""The GGUF format, its header read whole and its tensors left in the file.

The format (ggml's docs/gguf.md, versions 2 and 3) is a count of tensors and of metadata, the metadata, where each
tensor lies, and the data. Every number in it is a stranger's: a count is compared with the bytes that are left before
anything is made of it, and a tensor with the file and its neighbours. The `gguf` package's own reader believes them (a
list of 2 ** 60 numbers takes all memory in a file of 100 bytes); its table of types and its dequantization are used.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sla_jax.errors import UserError

MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
ALIGNMENT = 32  # where "general.alignment" does not say another one
MAX_HEADER = 2**26  # bytes; a vocabulary of 256,000 tokens takes some ten million
MAX_DIMENSIONS = 4  # ggml's own


class GgufTensor(NamedTuple):
    """Where a tensor lies in its file, in bytes; its shape is slowest first, and `kind` is gguf's type."""

    shape: tuple[int, ...]
    kind: Any
    offset: int
    size: int


class BadFileError(Exception):
    """What is wrong with a file."""


def read_header(path: Path) -> tuple[dict[str, GgufTensor], dict[str, Any]]:
    """Tensors and metadata by name. A damaged or truncated file raises UserError."""
    _package(path)
    size = path.stat().st_size
    if size < 24:
        raise _damaged(path, f"it has {size} bytes")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data, min(size, MAX_HEADER))
            tensors, metadata = _header(cursor)
            return _placed(tensors, cursor.at, _alignment(metadata), size), metadata
    except BadFileError as error:
        raise _damaged(path, str(error)) from None


def _package(path: Path) -> None:
    try:
        import gguf
    except ImportError:
        raise UserError("reading GGUF files needs the gguf package: pip install 'sla-jax[gguf]'.") from None
    assert gguf.GGML_QUANT_SIZES, "a type's numbers a block, and their bytes"
    if not path.is_file():
        raise UserError(f"there is no file {path}.")


def read_tensor(path: Path, name: str, tensor: GgufTensor) -> np.ndarray:
    """One tensor as float32, dequantized."""
    from gguf.quants import dequantize, quant_shape_to_byte_shape

    data = np.memmap(path, np.uint8, "r", offset=tensor.offset, shape=(tensor.size,))
    try:
        rows = data.reshape(quant_shape_to_byte_shape(tensor.shape, tensor.kind))
        return np.asarray(dequantize(rows, tensor.kind)).reshape(tensor.shape)
    except NotImplementedError:
        raise UserError(
            f"{path}: the tensor {name!r:.200} has the type {tensor.kind.name}, which the gguf package cannot "
            "dequantize. Upgrade gguf, or take another quantization of the model."
        ) from None


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is not a whole GGUF file ({what}). Download it again.")


class _Cursor:
    """Reads a header from the front; what would go beyond its end raises BadFileError."""

    def __init__(self, data: mmap.mmap, end: int):
        self.data, self.end, self.at = data, end, 0

    def take(self, size: int, count: int = 1) -> int:
        """The place of `count` things of `size` bytes, which are then behind the cursor."""
        place = self.at
        if size * count > self.end - place:
            raise BadFileError(f"at byte {place} of {self.end}, {count} times {size} bytes do not fit any more")
        self.at += size * count
        return place

    def number(self, code: str) -> Any:
        return struct.unpack_from(f"<{code}", self.data, self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        size = self.number("Q")
        place = self.take(1, size)
        try:
            return self.data[place : place + size].decode()
        except UnicodeDecodeError as error:
            raise BadFileError(f"the text at byte {place} is not UTF-8 ({error.reason})") from None

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        raise BadFileError(f"at byte {self.at}, there is no type {kind} of metadata")

    def array(self, kind: int, count: int) -> list[Any]:
        if kind == STRING:
            if 8 * count > self.end - self.at:  # each has its length in front
                raise BadFileError(f"at byte {self.at} of {self.end}, {count} texts do not fit any more")
            return [self.text() for _ in range(count)]
        if kind not in SCALARS:
            raise BadFileError(f"at byte {self.at}, a list of lists, or of the type {kind}, which there is not")
        code = f"<{SCALARS[kind]}"
        place = self.take(struct.calcsize(code), count)
        numbers: list[Any] = np.frombuffer(self.data[place : self.at], np.dtype(code)).tolist()
        return numbers


def _header(cursor: _Cursor) -> tuple[dict[str, GgufTensor], dict[str, Any]]:
    """Tensors, their offsets counted from where the data begins, and metadata."""
    magic, version = cursor.data[cursor.take(4) : 4], cursor.number("I")
    if magic != MAGIC or version not in VERSIONS:
        raise BadFileError(f"it begins with {magic!r} and version {version}; expected {MAGIC!r} and 2 or 3")
    tensors, metadata = dict[str, GgufTensor](), dict[str, Any]()
    tensor_count, count = cursor.number("Q"), cursor.number("Q")
    for _ in range(count):
        name = _new(cursor.text(), metadata)
        metadata[name] = cursor.value(cursor.number("I"))
    for _ in range(tensor_count):
        name = _new(cursor.text(), tensors)
        dimensions = cursor.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise BadFileError(f"the tensor {name!r:.200} has {dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
        tensors[name] = _tensor(name, shape, cursor.number("I"), cursor.number("Q"))
    return tensors, metadata


def _new(name: str, known: dict[str, Any]) -> str:
    if name in known:
        raise BadFileError(f"{name!r:.200} is there twice")
    return name


def _tensor(name: str, shape: tuple[int, ...], code: int, offset: int) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if code not in list(GGMLQuantizationType):
        raise BadFileError(f"the tensor {name!r:.200} has the type {code}, which there is not; upgrade gguf?")
    kind = GGMLQuantizationType(code)
    block, bytes_of_block = GGML_QUANT_SIZES[kind]
    if min(shape) < 1 or shape[-1] % block:
        raise BadFileError(f"the tensor {name!r:.200} has the shape {shape}, of {kind.name} in blocks of {block}")
    return GgufTensor(shape, kind, offset, math.prod(shape) // block * bytes_of_block)


def _alignment(metadata: dict[str, Any]) -> int:
    said = metadata.get("general.alignment", ALIGNMENT)
    if type(said) is not int or not 0 < said <= MAX_HEADER or said & (said - 1):
        raise BadFileError(f"general.alignment is {said!r:.80}; expected a power of two")
    return said


def _placed(tensors: dict[str, GgufTensor], end: int, alignment: int, size: int) -> dict[str, GgufTensor]:
    """The tensors with their offsets in the file, if none goes beyond its end or shares a byte with another."""
    start = end + -end % alignment
    placed = {name: tensor._replace(offset=start + tensor.offset) for name, tensor in tensors.items()}
    for name, tensor in sorted(placed.items(), key=lambda item: item[1].offset):
        if tensor.offset + tensor.size > size:
            end = tensor.offset + tensor.size
            raise BadFileError(f"the tensor {name!r:.200} ends at byte {end} and the file has {size}")
        if tensor.offset < end:
            raise BadFileError(f"the tensor {name!r:.200} begins at byte {tensor.offset}, before the last one's end")
        end = tensor.offset + tensor.size
    return placed
