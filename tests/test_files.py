"""`sla_jax.files`: any text, with or without a mark, line ends of any kind, packed or not, is read alike everywhere."""

import errno
import gzip
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import generate
from sla_jax import files
from sla_jax.config import load_yaml
from sla_jax.errors import UserError
from sla_jax.evaluation.entropy import texts
from sla_jax.evaluation.rows import rows_of
from sla_jax.files import BadRow, numbered_rows, read_json, read_object, read_pieces, read_rows, read_text
from sla_jax.training.data_config import DataConfig
from sla_jax.training.onpolicy_prompts import read_prompts
from sla_jax.training.resume import METRICS, Log
from sla_jax.training.sources import open_sources

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), max_size=5)
MARKS = st.sampled_from([b"", b"\xef\xbb\xbf"])
ENDS = st.sampled_from(["\n", "\r\n", "\r"])
PACKS: list[Callable[[bytes], bytes]] = [lambda raw: raw, lambda raw: gzip.compress(raw, mtime=0)]
LINES = (
    *(b'{"a": 1}\n', b"\n", b" \r\n", b'{"a": "\xc3"}\n'),
    *(b'{"b": ["\\ud83d"]}\n', b'{"c": "\\ud83d\\ude00"}\n', b'{"d":'),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@given(ROWS, MARKS, ENDS, st.sampled_from(PACKS), st.booleans(), st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_rows_are_the_same_however_they_are_saved(
    place: Path, rows: list[Any], mark: bytes, end: str, pack: Callable[[bytes], bytes], plain: bool, gaps: list[int]
) -> None:
    path, whole = place / "a.jsonl", place / "b.json"
    lines, numbers = [], []
    for row, gap in zip(rows, gaps, strict=False):
        lines += ["", " \t"][:gap] + [json.dumps(row, ensure_ascii=plain)]
        numbers.append(len(lines))
    path.write_bytes(pack(mark + "".join(line + end for line in lines).encode()))
    whole.write_bytes(pack(mark + json.dumps(rows, ensure_ascii=plain, indent=1).replace("\n", end).encode()))
    assert list(numbered_rows(path)) == list(zip(numbers, rows, strict=True))
    assert list(read_rows(path)) == [(f"{path}, line {n}", row) for n, row in zip(numbers, rows, strict=True)]
    assert list(read_rows(whole)) == [(f"{whole}, row {n}", row) for n, row in enumerate(rows, 1)]
    assert read_json(whole) == rows


@given(st.text(max_size=60), MARKS, st.sampled_from(PACKS), st.integers(1, 9))
def test_a_text_is_the_same_however_it_is_saved(
    place: Path, text: str, mark: bytes, pack: Callable[[bytes], bytes], size: int
) -> None:
    path = place / "a.txt"
    text = f"a {text}".removeprefix("\ufeff")  # the first two bytes say whether it is UTF-16
    path.write_bytes(pack(mark + text.encode()))
    wanted = text.replace("\r\n", "\n").replace("\r", "\n")
    assert read_text(path) == wanted == "".join(read_pieces(path, size))
    assert [len(piece) <= size for piece in read_pieces(path, size)] == [True] * len(list(read_pieces(path, size)))


@given(st.text(max_size=20), st.sampled_from([1, 3, 10**6]))
def test_a_byte_that_is_none_is_found_in_any_piece(place: Path, text: str, size: int) -> None:
    path, text = place / "wrong.txt", "ab" + text.replace("\r", "")  # two letters: it is not UTF-16
    path.write_bytes(text.encode() + b"\xff" + b"b\n")
    line, at = text.count("\n") + 1, len(text.rpartition("\n")[2].encode())
    with pytest.raises(UserError, match=rf"wrong.txt, line {line}: not UTF-8 text \(invalid start byte at byte {at}\)"):
        list(read_pieces(path, size))


@given(st.binary(max_size=40))
def test_bytes_of_any_kind_are_text_or_a_users_error(place: Path, raw: bytes) -> None:
    path = place / "any.jsonl"
    path.write_bytes(raw)
    for read in (lambda: list(read_rows(path)), lambda: read_text(path), lambda: read_json(path)):
        try:
            read()
        except UserError as error:
            assert str(error).startswith(str(path))


def test_what_is_wrong_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(LINES))
    found = dict(numbered_rows(path))
    bad = {number: str(row) for number, row in found.items() if isinstance(row, BadRow)}
    assert list(found) == [1, 4, 5, 6, 7] and found[1] == {"a": 1} and found[6] == {"c": "😀"}
    assert bad == {
        4: "not UTF-8 text (invalid continuation byte at byte 7)",
        5: "'b[0]' has half a character (a lone surrogate) at 0",
        7: "not JSON (Expecting value at column 6); the file ends in this line, which may have been cut off",
    }
    with pytest.raises(UserError, match=r"a\.jsonl, line 4: not UTF-8 text"):
        list(read_rows(path))
    with pytest.raises(UserError, match=r"a\.jsonl, line 4: not UTF-8 text"):
        read_text(path)
    with pytest.raises(UserError, match=r"a\.jsonl, line 4: not UTF-8 text"):
        list(read_pieces(path, 3))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("{}".encode("utf-16"), "is UTF-16 text"),
        ("{}".encode("utf-16-le"), "is UTF-16 text"),
        ("{}".encode("utf-16-be"), "is UTF-16 text"),
        (gzip.compress(b"{}", mtime=0)[:-4], "cannot be read behind line 0"),
        (gzip.compress(b"".join(b"%d\n" % n for n in range(9999)))[:-99], "cannot be read behind line [1-9]"),
        (b"[" * 10**5, "not JSON"),
        (b'[{"a": 1},\n {"a" 2}]', "line 2: not JSON .* at column 7"),
        (b'{"a": ' + b"9" * 5000 + b"}", "line 1: not JSON"),
        (b'["\\ud800"]', "row 1: 'the row' has half a character"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=said):
        list(read_rows(path))


def test_a_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"there is no file .*promts\.jsonl\. Did you mean 'prompts\.jsonl'\?"):
        list(read_rows(tmp_path / "promts.jsonl"))
    (tmp_path / "a.csv").write_text("{}")
    with pytest.raises(UserError, match=r"a\.csv is not a kind of file that is read; these are: \.jsonl"):
        list(read_rows(tmp_path / "a.csv"))
    assert list(read_rows(tmp_path / "a.csv", None)) == [(f"{tmp_path}/a.csv, line 1", {})]


def test_an_object_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{\r\n"a": 1}')
    assert read_object(path) == {"a": 1}
    for text, said in (("[1]", r"holds \[1\]; expected a JSON object"), ('{"a": "\\udc00"}', "'a' has half a char")):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            read_object(path)


def test_every_door_reads_what_windows_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"id": "a", "prompt": "Hi é", "chosen": "Yes", "rejected": "No", "kind": "heldout", "step": 0, "text": "Hi"}
    raw = b"\xef\xbb\xbf\r\n" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n"
    path, log = tmp_path / "a.jsonl", tmp_path / METRICS
    for file in (path, log):
        file.write_bytes(raw)
    source = open_sources(DataConfig(files=(str(path),)), 0)[0]
    assert (source.place, list(source.rows())) == (f"{path}, line", [(2, row)])
    assert [field.place for field, _ in rows_of(path)] == [f"{path}, line 2"]
    assert [prompt.origin for prompt in read_prompts(str(path), "prompt")] == [f"{path}, line 2"]
    assert Log.heldout(type("Opened", (Log,), {"__init__": lambda self: setattr(self, "path", log)})()) == [row]
    settings = tmp_path / "a.yaml"
    settings.write_bytes(b"\xef\xbb\xbffiles: [a.jsonl]\r\nlimit: 3\r\n")
    assert load_yaml(DataConfig, settings).limit == 3
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert [one.content for one in texts.segments(tmp_path / "a.txt", 4)] == ["one\n", "two"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfHi\r\n")))
    assert files.read_standard_input() == "Hi\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"so\nH\xff")))
    with pytest.raises(UserError, match="standard input, line 2: not UTF-8 text"):
        generate.main([str(tmp_path), "-"])


# ---- writing ----


def full(*args: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.txt"
    files.write_text(path, "one\n")
    files.write_array(path.with_name("a.npy"), np.arange(3))
    assert np.load(path.with_name("a.npy")).tolist() == [0, 1, 2]
    for write in (lambda: files.write_text(path, "two\n"), lambda: files.write_array(path, np.arange(3))):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(OSError, match="No space left") as caught:
                write()
        assert str(caught.value).endswith(f": {str(path)!r}") and path.read_text() == "one\n"
        assert sorted(file.name for file in path.parent.iterdir()) == ["a.npy", "a.txt"]


def test_a_file_is_on_disk_before_it_has_its_name_and_then_so_is_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, Path]] = []
    sync, replace = os.fsync, os.replace

    def synced(file: int) -> None:
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{file}"))))
        sync(file)

    def replaced(old: Path, new: Path) -> None:
        done.append(("name", new))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    path = tmp_path / "a"
    for write in (
        lambda: files.write_text(path, "one"),
        lambda: files.write_object(path, {"a": 1}),
        lambda: files.write_array(path, np.arange(3)),
    ):
        done.clear()
        write()
        assert done == [("sync", tmp_path / ".a.partial"), ("name", path), ("sync", tmp_path)]


@pytest.mark.parametrize(("number", "told"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_what_cannot_be_made_durable_is_an_error_unless_its_file_system_never_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: bool
) -> None:
    def fsync(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "a.txt"
    if not told:
        files.write_text(path, "one")
        assert path.read_text() == "one"
        return
    with pytest.raises(OSError, match=f"{os.strerror(number)}: {str(path)!r}"):
        files.write_text(path, "one")
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_one_and_a_device_is_written_itself(tmp_path: Path) -> None:
    link = tmp_path / "links" / "a.txt"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "real.txt")
    for text in ("one\n", "two\n"):
        files.write_text(link, text)
        assert link.is_symlink() and (tmp_path / "real.txt").read_text() == text
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with open(os.open(pipe, os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0) as reader:  # never the end of a pipe
        files.write_text(pipe, "one\n")
        assert reader.read(9) == b"one\n" and pipe.is_fifo()
    with pytest.raises(IsADirectoryError):
        files.write_text(tmp_path, "one\n")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["links", "pipe", "real.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_names_the_file() -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        files.append_lines(Path("/dev/full"), ["a\n"])


def test_an_error_of_tensorstore_is_one_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device: 'a folder'"), files.naming(Path("a folder")):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left [os_error_code='28'] [source='x.cc:3']")
    with pytest.raises(ValueError, match="no number"), files.naming(Path("a folder")):
        raise ValueError("no number")


def test_lines_are_appended_and_one_that_was_cut_goes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    files.drop_cut_line(path)
    assert not path.exists()
    files.append_lines(path, [files.json_line({"a": "é\u2028"}), files.json_line({"b": 1})])
    whole = path.read_bytes()
    assert whole == '{"a": "é\u2028"}\n{"b": 1}\n'.encode()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        files.drop_cut_line(path)
        assert path.read_bytes() == whole[: whole.rfind(b"\n", 0, cut) + 1]
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.json_line({"a": float("nan")})


def test_room_is_reserved_before_it_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.reserve(tmp_path / "a.bin", 5000)
    assert (tmp_path / "a.bin").stat().st_size == 5000
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=r"No space left on device: '.*b\.bin'"):
        files.reserve(tmp_path / "b.bin", 5000)


# ---- texts that would fill the memory ----


def test_a_line_may_not_be_longer_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a bomb of gzip stands for is not unpacked: of 8 MB no more than the bound and what is read ahead."""
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    unpacked: list[int] = []

    class Counting(gzip.GzipFile):
        def read1(self, size: int = -1) -> bytes:
            found = super().read1(size)
            unpacked.append(len(found))
            return found

    monkeypatch.setattr(gzip, "GzipFile", Counting)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' + b"0" * 8_000_000))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(files, "LONGEST_TEXT", 1000)
    line, text = "line 2: it has more than 1000 characters", "more than 1000 characters; expected a text"
    for read, said in ((lambda: list(read_rows(path)), line), (lambda: read_text(path), text)):
        unpacked.clear()
        with pytest.raises(UserError, match=said):
            read()
        assert sum(unpacked) < 200_000


def test_a_text_that_is_read_whole_may_not_be_longer_than_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LONGEST_TEXT", 1000)
    path = tmp_path / "bomb.json"
    path.write_bytes(gzip.compress(b"1\n" * 501))
    with pytest.raises(UserError, match=r"bomb.json has more than 1000 characters"):
        read_json(path)
    assert len(list(read_rows(path))) == 501, "rows are streamed"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\n" * 400)))
    with pytest.raises(UserError, match="standard input has more than 1000 characters"):
        files.read_standard_input()


def test_a_list_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_TEXT", 1000)
    path = tmp_path / "rows.json"
    path.write_bytes(gzip.compress(b"[" + b", ".join([b'{"a": "\xc3\xa9"}'] * 9000) + b"]\n"))
    assert [row for _, row in read_rows(path)] == [{"a": "é"}] * 9000
    path.write_bytes(path.read_bytes()[:-99])
    with pytest.raises(UserError, match="cannot be read behind line 0"):
        list(read_rows(path))


@pytest.mark.parametrize("head", ["", "["])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"a":' * 101 + "1" + "}" * 101, "more than 100 deep"),
        ("[" * 900 + "]" * 900, "more than 100 deep"),
        ('{"a":' * 100000, "not JSON"),
        ('{"prompt": ' + "9" * 5000 + "}", "4300 digits"),
    ],
)
def test_rows_that_no_step_could_walk_are_told(tmp_path: Path, head: str, row: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{head}{{"a": 1}}{"," if head else ""}\n{row}{"]" if head else ""}\n')
    with pytest.raises(UserError, match=said) as error:
        list(read_rows(path))
    assert len(str(error.value)) < 1000 and str(error.value).startswith(str(path))
