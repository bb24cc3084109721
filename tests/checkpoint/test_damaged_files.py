"""Weights of strangers, cut, flipped and lying: one paragraph or a whole tensor; no number is believed."""

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from sla_jax.checkpoint import safetensors_file as ours
from sla_jax.checkpoint import store
from sla_jax.checkpoint.sources import TorchSource, open_weights
from sla_jax.checkpoint.staging import SUMS
from sla_jax.errors import UserError

WHOLE = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}, {"made": "here"})
HEAD = 8 + struct.unpack("<Q", WHOLE[:8])[0]
A: dict[str, Any] = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B: dict[str, Any] = {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]}


def read(path: Path) -> dict[str, np.ndarray] | str:
    """All tensors of a safetensors file, or what is told instead."""
    try:
        tensors, metadata = ours.read_header(path)
        assert all(isinstance(value, str) for value in metadata.values())
        return {
            name: ours.read_tensor(path, name, one).copy() for name, one in tensors.items() if one.code in ours.DTYPES
        }
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) <= 4100
        return str(error)


def agrees_with_the_library(path: Path, raw: bytes) -> None:
    """What the format's own reader takes is read alike, and nothing else is."""
    path.write_bytes(raw)
    found = read(path)
    try:
        theirs = dict(safetensors.deserialize(raw))
    except (safetensors.SafetensorError, OverflowError):
        assert isinstance(found, str), raw[:HEAD]
        return
    if isinstance(found, str):  # names that are there twice are the last one's with the library
        assert "is there twice" in found or "supported are" in found, found
        return
    assert found.keys() <= theirs.keys()
    for name, array in found.items():
        assert array.tobytes() == bytes(theirs[name]["data"]) and list(array.shape) == theirs[name]["shape"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def test_a_whole_file_is_read(place: Path) -> None:
    agrees_with_the_library(place / "a.safetensors", WHOLE)
    found = read(place / "a.safetensors")
    assert isinstance(found, dict)
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in load(WHOLE).items()
    }


def test_a_file_that_is_cut_anywhere_is_told(place: Path) -> None:
    for keep in range(len(WHOLE)):
        agrees_with_the_library(place / "cut.safetensors", WHOLE[:keep])
    for more in (b"\0", b"\0" * 100):
        agrees_with_the_library(place / "cut.safetensors", WHOLE + more)


@given(
    place=st.integers(0, HEAD - 1),
    byte=st.integers(0, 255),
    other=st.integers(8, HEAD - 1),
    character=st.sampled_from('0123456789-.e[]{}",:'),
)
def test_a_header_with_other_bytes_is_read_as_the_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, other: int, character: str
) -> None:
    raw = bytearray(WHOLE)
    raw[place] = byte
    raw[other] = ord(character)
    agrees_with_the_library(tmp_path_factory.getbasetemp() / "flipped.safetensors", bytes(raw))


LIES: dict[str, Any] = {
    "a negative begin": {"a": A, "b": B | {"data_offsets": [-8, 32]}},
    "a negative size": {"a": A, "b": B | {"data_offsets": [32, 24]}},
    "two in one place": {"a": A, "b": B | {"shape": [2, 4], "data_offsets": [8, 24]}},
    "the same place twice": {"a": A, "c": A, "b": B},
    "a hole": {"a": A, "b": B | {"shape": [2], "data_offsets": [28, 32]}},
    "nothing at the end": {"a": A},
    "beyond the end": {"a": A, "b": B | {"shape": [400], "data_offsets": [24, 824]}},
    "larger than its place": {"a": A | {"shape": [2**40, 3]}, "b": B},
    "as large as 64 bits": {"a": A | {"shape": [2**32, 2**32, 6]}, "b": B},
    "a size that is none": {"a": A | {"shape": [float("inf"), 3]}, "b": B},
    "a size that is no number": {"a": A | {"shape": [float("nan"), 3]}, "b": B},
    "a fraction": {"a": A | {"shape": [1.5, 4]}, "b": B},
    "a bool": {"a": A | {"shape": [True, 6]}, "b": B},
    "a negative size in a shape": {"a": A | {"shape": [-2, -3]}, "b": B},
    "a number of 4,000 digits": {"a": A | {"shape": [10**4000, 3]}, "b": B},
    "offsets of 4,000 digits": {"a": A | {"data_offsets": [10**4000, 10**4000 + 24]}, "b": B},
    "a shape without an end": {"a": A | {"shape": [2, 3] + [1] * 500}, "b": B},
    "nothing of too much": {"a": A, "b": B, "c": {"dtype": "F32", "shape": [0, 2**60], "data_offsets": [32, 32]}},
    "a type that there is not": {"a": A | {"dtype": "F33"}, "b": B},
    "a type that is none": {"a": A | {"dtype": ["F32"]}, "b": B},
    "another type's size": {"a": A | {"dtype": "I64"}, "b": B},
    "an entry that is none": {"a": A, "b": [24, 32]},
    "an entry without a place": {"a": A, "b": {"dtype": "F16", "shape": [4]}},
    "three ends": {"a": A, "b": B | {"data_offsets": [24, 28, 32]}},
    "a list": [A, B],
    "a text": "a",
    "metadata that is none": {"__metadata__": [1], "a": A, "b": B},
    "metadata of numbers": {"__metadata__": {"a": 1}, "a": A, "b": B},
    "a name of a million": {"n" * 10**6: B, "a": A | {"shape": [7]}},
}
RAW = {
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "deep lists": b'{"a": ' + b"[" * 100000 + b"]" * 100000 + b"}",
    "a number of 5,000 digits": json.dumps({"a": A}).encode().replace(b"24]", b"9" * 5000 + b"]"),
    "a name twice": json.dumps({"a": A, "b": B}).encode().replace(b'"b"', b'"a"'),
    "a key twice": json.dumps({"a": A, "b": B}).encode().replace(b'"dtype": "F16"', b'"shape": [1], "dtype": "F16"'),
    "UTF-16": json.dumps({"a": A, "b": B}).encode("utf-16"),
    "half a character": json.dumps({"\udc00": A, "b": B}).encode()[:-3],
    "nothing": b"",
}


@pytest.mark.parametrize(
    "header", [*(json.dumps(lie).encode() for lie in LIES.values()), *RAW.values()], ids=[*LIES, *RAW]
)
def test_what_a_header_says_is_compared_with_the_file(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))
    found = read(path)
    assert isinstance(found, str) and found.startswith(f"{path} is damaged or truncated: ") and len(found) < 1500


@pytest.mark.parametrize("length", [2**24 + 1, 2**63, 2**64 - 1])
def test_a_header_is_no_longer_than_its_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(2**25)  # a file with nothing in it takes no room
    assert "its header should take" in str(read(path))


# ---- indexes and PyTorch's files ----


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "", "a\0b", "b.safetensors", 7, None, ["a"]],
)
def test_an_index_names_files_of_its_folder_alone(tmp_path: Path, name: Any) -> None:
    (tmp_path / "a.safetensors").write_bytes(WHOLE)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "sub").mkdir()
    (folder / "sub" / "a.safetensors").write_bytes(WHOLE)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match=r"which is no file in|has no weight_map of tensors to files"):
        open_weights(folder)


def test_an_index_may_lead_over_a_link_to_a_file_and_to_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(WHOLE)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.safetensors").symlink_to(tmp_path / "blob")  # as the hub's cache has them
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    assert open_weights(folder).shapes() == {"a": (2, 3), "b": (3,)}
    for target in ("/dev/zero", str(tmp_path)):
        (folder / "a.safetensors").unlink()
        (folder / "a.safetensors").symlink_to(target)
        with pytest.raises(UserError, match="which is no file in"):
            open_weights(folder)


SCALAR = torch.zeros(1)
TORCH: dict[str, tuple[Any, str]] = {
    "a view of a million million": ({"a": SCALAR.expand(10**6, 10**6)}, "is larger than what the file has of it"),
    "a number": ({"a": 1}, "'a', which is no plain tensor"),
    "another name": ({1: SCALAR}, "1, which is no plain tensor"),
    "tensors in a mapping": ({"state_dict": {"a": SCALAR}}, "'state_dict', which is no plain tensor"),
    "a sparse tensor": ({"a": torch.eye(2).to_sparse()}, "no plain tensor"),
    "a tensor without data": ({"a": torch.empty(10**6, 10**6, device="meta")}, "no plain tensor"),
    "a list": ([SCALAR], "cannot be read by torch.load"),
    "code": ({"a": pytest.raises}, "cannot be read by torch.load"),
}


@pytest.mark.parametrize(("content", "said"), TORCH.values(), ids=list(TORCH))
def test_torch_files_hold_plain_tensors_as_large_as_they_are(tmp_path: Path, content: Any, said: str) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path)
    with pytest.raises(UserError, match=said):
        TorchSource([path])


def test_torch_files_with_packed_parts_are_told(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.bin", tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(2, 3).T}, plain)
    assert TorchSource([plain]).read("a").tolist() == [[1.0, 1.0]] * 3
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    with pytest.raises(UserError, match="holds the packed part"):
        TorchSource([packed])


def test_torch_files_that_are_cut_anywhere_are_told(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": SCALAR}, path)
    whole = path.read_bytes()
    for keep in range(0, len(whole), 37):
        path.write_bytes(whole[:keep])
        with pytest.raises(UserError, match="cannot be read by torch.load"):
            TorchSource([path])


# ---- our own checkpoints, made by strangers ----


@pytest.mark.parametrize("keep", [0, 20])
def test_a_parameter_whose_files_are_cut_is_told(bare_checkpoint: Path, tmp_path: Path, keep: int) -> None:
    shutil.copytree(bare_checkpoint, tmp_path / "ours")
    (tmp_path / "ours" / SUMS).unlink()
    found, told = store.info(tmp_path / "ours"), 0
    whole = store.read_param(found, "norm")
    for path in [path for path in (tmp_path / "ours" / "params" / "norm").rglob("*") if path.is_file()]:
        raw = path.read_bytes()
        path.write_bytes(raw[:keep])
        try:
            assert np.array_equal(store.read_param(found, "norm"), whole)
        except UserError as error:
            told += 1
            assert "the parameter 'norm' cannot be restored" in str(error)
        path.write_bytes(raw)
    assert told > 0
