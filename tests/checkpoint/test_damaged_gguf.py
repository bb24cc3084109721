"""GGUF files of strangers, cut, flipped and lying: one paragraph or a whole import; no number is believed."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.checkpoint import gguf_file, mapping
from sla_jax.checkpoint.gguf import GgufSource
from sla_jax.errors import UserError
from sla_jax.model.config import from_hf
from tests.checkpoint import gguf_files


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def whole_gguf(place: Path) -> bytes:
    gguf_files.write(place / "whole.gguf")
    return (place / "whole.gguf").read_bytes()


def import_of(path: Path) -> str | None:
    """What an import would tell before it writes anything; None where nothing is wrong."""
    try:
        source = GgufSource(path)
        config = from_hf(source.config)
        mapping.check(config, source.shapes(), str(path))
        source.tokenizer_files()
        with np.errstate(all="ignore"):  # other numbers, of any size, are still numbers
            assert all(source.read(name).shape == shape for name, shape in source.shapes().items())
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def test_a_gguf_file_that_is_cut_anywhere_is_told(place: Path, whole_gguf: bytes) -> None:
    path = place / "cut.gguf"
    for keep in [*range(0, 400), *range(400, len(whole_gguf), 997), len(whole_gguf) - 1]:
        path.write_bytes(whole_gguf[:keep])
        with pytest.raises(UserError, match="is not a whole GGUF file"):
            gguf_file.read_header(path)


@given(data=st.data())
def test_a_gguf_file_with_other_bytes_is_told_or_read(place: Path, whole_gguf: bytes, data: st.DataObject) -> None:
    raw, head = bytearray(whole_gguf), whole_gguf.index(b"token_embd.weight") + 2000
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, head))] = data.draw(st.sampled_from([0, 1, 2, 4, 8, 9, 127, 128, 255]))
    path = place / "flipped.gguf"
    path.write_bytes(raw)
    import_of(path)


def kv(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def tensor(name: str, *dims: int, kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return struct.pack("<Q", len(name)) + name.encode() + shape + struct.pack("<IQ", kind, offset)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf_of(*parts: bytes, keys: int = 0, tensors: int = 0, version: int = 3) -> bytes:
    """A file of some 500 bytes."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts) + bytes(400)


GGUF_LIES: dict[str, tuple[bytes, str]] = {
    "2 ** 60 keys": (gguf_of(keys=2**60), "is there twice"),
    "2 ** 64 - 1 tensors": (gguf_of(tensors=2**64 - 1), "0 dimensions"),
    "a name of 2 ** 63 letters": (gguf_of(struct.pack("<Q", 2**63), keys=1), "do not fit"),
    "a list of 2 ** 60 bytes": (gguf_of(kv("a", 9, struct.pack("<IQ", 0, 2**60)), keys=1), "do not fit"),
    "a list of 2 ** 61 texts": (gguf_of(kv("a", 9, struct.pack("<IQ", 8, 2**61)), keys=1), "do not fit"),
    "lists in lists": (gguf_of(kv("a", 9, struct.pack("<IQ", 9, 1) * 30), keys=1), "a list of lists"),
    "a type of metadata": (gguf_of(kv("a", 77, b""), keys=1), "no type 77"),
    "a key twice": (gguf_of(kv("a", 0, b"\1"), kv("a", 0, b"\1"), keys=2), "'a' is there twice"),
    "text that is none": (gguf_of(kv("a", 8, text(b"\xff")), keys=1), "not UTF-8"),
    "an alignment of 0": (gguf_of(kv("general.alignment", 4, bytes(4)), keys=1), "expected a power of two"),
    "an alignment of 3": (gguf_of(kv("general.alignment", 4, struct.pack("<I", 3)), keys=1), "expected a power of two"),
    "a huge alignment": (gguf_of(kv("general.alignment", 10, struct.pack("<Q", 2**63)), keys=1), "power of two"),
    "an alignment in words": (gguf_of(kv("general.alignment", 8, text(b"32")), keys=1), "power of two"),
    "2 ** 32 - 1 dimensions": (gguf_of(text(b"t"), struct.pack("<I", 2**32 - 1), tensors=1), "4294967295 dimensions"),
    "no dimension": (gguf_of(tensor("t"), tensors=1), "0 dimensions"),
    "a dimension of 0": (gguf_of(tensor("t", 0, 4), tensors=1), "the shape (4, 0)"),
    "a shape of 2 ** 64": (gguf_of(tensor("t", 2**32, 2**32), tensors=1), "ends at byte"),
    "a shape beyond the end": (gguf_of(tensor("t", 1000), tensors=1), "ends at byte"),
    "an offset of 2 ** 64 - 1": (gguf_of(tensor("t", 4, offset=2**64 - 1), tensors=1), "ends at byte"),
    "two in one place": (gguf_of(tensor("t", 4), tensor("u", 4, offset=8), tensors=2), "before the last one's end"),
    "a tensor twice": (gguf_of(tensor("t", 4), tensor("t", 4, offset=32), tensors=2), "'t' is there twice"),
    "a type of tensors": (gguf_of(tensor("t", 4, kind=999), tensors=1), "the type 999"),
    "half a block": (gguf_of(tensor("t", 33, kind=2), tensors=1), "in blocks of 32"),
    "version 77": (gguf_of(version=77), "version 77"),
    "the other byte order": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(99), "version 50331648"),
    "another magic": (b"GGML" + bytes(99), "expected b'GGUF'"),
}


@pytest.mark.parametrize(("raw", "said"), GGUF_LIES.values(), ids=list(GGUF_LIES))
def test_what_a_gguf_header_says_is_compared_with_the_file(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    with pytest.raises(UserError) as error:
        gguf_file.read_header(path)
    assert str(error.value).startswith(f"{path} is not a whole GGUF file (") and said in str(error.value)


def test_a_gguf_header_is_read_as_the_package_reads_it(place: Path, whole_gguf: bytes) -> None:
    path = place / "whole.gguf"
    tensors, metadata = gguf_file.read_header(path)
    theirs = gguf.GGUFReader(path)
    assert metadata == {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(tensors) == [one.name for one in theirs.tensors]
    for one in theirs.tensors:
        mine = tensors[one.name]
        assert mine == (tuple(reversed(one.shape.tolist())), one.tensor_type, one.data_offset, one.n_bytes)


BAD_FIELDS: dict[str, list[Any]] = {
    "llama.attention.head_count": [0, "four", 2.5, True],
    "llama.attention.head_count_kv": [0, "two"],
    "llama.attention.key_length": [0, "sixteen"],
    "llama.embedding_length": ["many", 2**31],
    "llama.block_count": [2**31, 0],
    "llama.context_length": ["long"],
    "llama.rope.freq_base": ["fast", float("inf"), float("nan"), -1.0],
    "llama.attention.layer_norm_rms_epsilon": [float("nan"), 0.0, "small"],
    "tokenizer.ggml.eos_token_id": ["</s>", 1.5, [1, 2]],
    "tokenizer.ggml.tokens": [7, "a", [7, 8]],
    "tokenizer.ggml.merges": [7, [7]],
    "tokenizer.ggml.token_type": [7, [1]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD_FIELDS.items() for value in values])
def test_metadata_of_another_kind_is_told(tmp_path: Path, key: str, value: Any) -> None:
    gguf_files.write(tmp_path / "m.gguf", **{key: value})
    said = import_of(tmp_path / "m.gguf")
    assert said is not None and len(said) < 1000


def test_a_gguf_tensor_under_two_names_is_told(tmp_path: Path) -> None:
    gguf_files.write(tmp_path / "m.gguf", extra={"model.norm.weight": np.ones(gguf_files.D, np.float32)})
    assert "'model.norm.weight' under its name and under" in str(import_of(tmp_path / "m.gguf"))
