"""A text of ours tells when it was damaged, every bit of it, by name; what others wrote is read as before."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax import files, sums
from sla_jax.errors import UserError
from sla_jax.files import own_line, read_object, read_rows, write_object
from sla_jax.training.data_config import DataConfig
from sla_jax.training.resume import read_config, write_config

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.none() | st.booleans() | NUMBERS | TEXTS | st.lists(TEXTS, max_size=3)
OBJECTS = st.dictionaries(TEXTS.filter(lambda name: name != sums.NAME), VALUES, min_size=1, max_size=4)
ROW = {"id": "a", "text": "é ,}", "n": [1, 0.5, {"b": None}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sums")


@given(OBJECTS, st.sampled_from([None, 1, 2]))
def test_a_sum_is_taken_out_where_it_is_read(place: Path, value: dict[str, Any], indent: int | None) -> None:
    path = place / "a.json"
    write_object(path, value, indent)
    assert read_object(path) == value and json.loads(path.read_text()) == {**value, sums.NAME: sums_of(path)}
    path.write_text(own_line(value) * 2)
    assert [row for _, row in read_rows(path)] == [value] * 2


def sums_of(path: Path) -> str:
    return path.read_text().rstrip("}\n \t").rpartition('"')[0][-8:]


def flips(raw: bytes) -> Iterator[bytes]:
    """The bytes with one bit changed: each bit of the last ones, where the sum is, and one of each byte before them."""
    for at in range(len(raw)):
        for bit in range(8) if at > len(raw) - 60 else (at % 8,):
            yield raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


def write_lines(path: Path) -> None:
    path.write_text(own_line(ROW) + own_line({"id": "b"}), encoding="utf-8")


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (write_lines, lambda path: list(read_rows(path))),
        (lambda path: write_object(path, ROW), read_object),
        (lambda path: write_config(DataConfig(generated=8), path), lambda path: read_config(DataConfig, path)),
    ],
    ids=["lines", "object", "config"],
)
def test_every_flipped_bit_is_noticed_by_name(
    tmp_path: Path, write: Callable[[Path], None], read: Callable[[Path], Any]
) -> None:
    path = tmp_path / "ours.jsonl"
    write(path)
    read(path)
    for damaged in flips(path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"ours\.jsonl"):
            read(path)


def test_the_line_is_named_and_the_way_out_works(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = own_line(ROW) + own_line({"id": "b", "n": 1})
    path.write_text(lines.replace('"n": 1', '"n": 3'))
    said = (
        r"a\.jsonl, line 2: it is damaged: its CRC-32 is \w{8}, and was \w{8} when .* or remove sla_jax_crc32 from it"
    )
    with pytest.raises(UserError, match=said):
        list(read_rows(path))
    edited = {name: value for name, value in json.loads(lines.splitlines()[1]).items() if name != sums.NAME}
    path.write_text(lines.splitlines(keepends=True)[0] + json.dumps(edited | {"n": 3}))
    assert [row["id"] for _, row in read_rows(path)] == ["a", "b"]
    config = tmp_path / "train.yaml"
    write_config(DataConfig(generated=8), config)
    config.write_text(config.read_text().replace("generated: 8", "generated: 9"))
    with pytest.raises(UserError, match=r"train\.yaml: it is damaged: its CRC-32"):
        read_config(DataConfig, config)
    config.write_text("\n".join(config.read_text().splitlines()[:-1]))
    assert read_config(DataConfig, config).generated == 9


def test_lines_may_be_moved_dropped_and_joined(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(own_line({"id": "b"}) + '{"id": "foreign", "crc32": "1"}\r\n' + own_line({"id": "a"}).strip())
    assert [row["id"] for _, row in read_rows(path)] == ["b", "foreign", "a"]
    assert dict(read_rows(path))[f"{path}, line 2"] == {"id": "foreign", "crc32": "1"}


def test_a_sum_that_is_not_at_the_end_is_one_that_was_moved(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({sums.NAME: "00000000", "a": 1}))
    with pytest.raises(UserError, match=r"a\.json: it is damaged: sla_jax_crc32 is not its last member"):
        read_object(path)


def test_lines_for_others_have_no_sum() -> None:
    assert files.json_line({"a": 1}) == '{"a": 1}\n'
    assert (
        own_line({"a": 1}) == f'{{"a": 1, "{sums.NAME}": "{sums.crc32(chr(123) + chr(34) + "a" + chr(34) + ": 1")}"}}\n'
    )
