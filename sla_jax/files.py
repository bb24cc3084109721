"""Reads and writes files: text, JSON and rows, in one way everywhere.

Reading. A text is UTF-8, with or without a byte order mark; a line ends with "\\n", "\\r\\n" or "\\r"; what begins like
gzip is unpacked, whatever it is called. Rows are JSON: one list, if the first character is "[", else one value a line;
blank lines are no rows. Rows are streamed, and no row, line or text that is read whole may be longer than a bound: a
few million bytes of gzip can stand for thousands of millions. What is wrong is named by file and line, or file and row
of a list, counted from 1: bytes that are not UTF-8, text that is not JSON, a JSON string with half a character in it.
UTF-16 is named as such.

Writing. A file appears whole or not at all (`write_text`, `replacing`), or grows by whole lines that are on disk when
`append_lines` returns; a kill cuts short at most the last of them, which `drop_cut_line` then removes. What we read
again has its sum in it (`own_line`, `write_object`; see `sums`), which every reader of rows and JSON checks and takes
out. An OSError names the file that it is about, also where Python leaves that out; `errors.front_door` shows it to the
user.
"""

import codecs
import contextlib
import errno
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sla_jax import json_text, sums
from sla_jax.errors import UserError, nearest

ROW_KINDS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
TENSORSTORE = re.compile(r"\[os_error_code='(\d+)'")
GZIP = b"\x1f\x8b"
PIECE, HEAD = 2**16, 2**10  # characters that are read at a time where lines do not matter, and to find the first one
LONGEST_LINE, LONGEST_TEXT = json_text.LONGEST, 2**27  # characters of a line, and of a text that is read whole


class BadRow(Exception):
    """Why one row cannot be used."""


# ---- reading rows ----


def check_file(path: Path, kinds: Sequence[str] | None) -> None:
    """Raise UserError unless `path` is a file whose name ends with one of `kinds`; with None whatever its name."""
    if not path.is_file():
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no file {path}.{nearest(path.name, beside)}")
    if kinds is not None and not path.name.endswith(tuple(kinds)):
        raise UserError(f"{path} is not a kind of file that is read; these are: {', '.join(kinds)}.")


def row_unit(path: Path) -> str:
    """What the rows of a file are counted by: "row" of a JSON list, else "line". Raises UserError."""
    first = (piece.lstrip() for piece in _pieces(path, str(path), HEAD))
    return "row" if next(filter(None, first), "").startswith("[") else "line"


def numbered_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of every row; in place of one that cannot be read, a BadRow. Raises UserError for the file."""
    if row_unit(path) == "row":
        with _naming_json(str(path)):
            for number, (row, bad) in enumerate(json_text.items(read_pieces(path, PIECE)), 1):
                yield number, row if bad is None else BadRow(str(bad))
        return
    for number, line in enumerate(_pieces(path, str(path), None), 1):
        if line.strip():
            yield number, _row(line)


def read_rows(path: str | Path, kinds: Sequence[str] | None = ROW_KINDS) -> Iterator[tuple[str, Any]]:
    """("FILE, line 3", value) of every row; `check_file` says what `kinds` is. Raises UserError."""
    path = Path(path)
    check_file(path, kinds)
    unit = row_unit(path)
    for number, row in numbered_rows(path):
        place = f"{path}, {unit} {number}"
        if isinstance(row, BadRow):
            raise UserError(f"{place}: {row}.")
        yield place, row


# ---- reading text and JSON ----


def read_text(path: Path) -> str:
    """The whole text of a file, its line ends as "\\n". Raises UserError."""
    return "".join(_bounded(read_pieces(path, PIECE), str(path)))


def read_pieces(path: Path, size: int | None = None) -> Iterator[str]:
    """The text of a file, at most `size` characters at a time, or with None a line with its end. Raises UserError."""
    return _checked(_pieces(path, str(path), size), str(path))


def read_standard_input() -> str:
    """All that is piped in, read as a file is. Raises UserError."""
    name, raw = "standard input", io.BytesIO(sys.stdin.buffer.read(4 * LONGEST_TEXT + 1))
    return "".join(_bounded(_checked(_pieces(raw, name, PIECE), name), name))


def read_json(path: Path) -> Any:
    """The value that a file holds. Raises UserError, with the line of what is not JSON."""
    text = read_text(path)
    with _naming_json(str(path)):
        return _without_sum(json_text.parse(text), text)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises UserError."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {json.dumps(value)[:80]}; expected a JSON object.")
    return value


def whole_characters(text: str) -> str:
    """A text that came over the network, U+FFFD in place of every half of a character (a lone surrogate)."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# ---- writing ----


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside names `path` where it names no file: a full disk does not say which file has no room.

    A ValueError of tensorstore's that has an OSError's number in it is raised as one."""
    try:
        yield
    except ValueError as error:
        found = TENSORSTORE.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
    except OSError as error:
        if error.errno is not None:  # else it is said in words alone, which a name would hide
            error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` on leaving; on an error nothing is left of it. Folders are made.

    A link stays one: the file that it leads to is replaced. A device or a pipe cannot be, and is written itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        with naming(path):
            yield path
        return
    real = path.resolve() if path.is_symlink() else path
    scratch = real.with_name(f".{real.name}.partial")
    try:
        yield scratch
        sync(scratch)
        os.replace(scratch, real)
        sync(real.parent)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)
            del error.filename2  # None would be shown
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Have the bytes of a file, or the names in a folder, on disk when this returns, where the file system can."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of folders on some network file systems
            raise
    finally:
        os.close(opened)


def write_text(path: Path, text: str) -> None:
    """A file that appears whole or not at all."""
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="\n")


def write_object(path: Path, value: Mapping[str, Any], indent: int | None = 1) -> None:
    """A JSON object that we read again, and that appears whole or not at all: its sum is its last member."""
    write_text(path, sums.with_member(json.dumps(dict(value), indent=indent, ensure_ascii=False) + "\n"))


def write_array(path: Path, array: np.ndarray) -> None:
    """An .npy file that appears whole or not at all."""
    with replacing(path) as scratch, scratch.open("wb") as file:
        np.save(file, array)


def reserve(path: Path, size: int) -> None:
    """A new file of `size` bytes that has its room on disk: writing through a memory map to a full disk is a SIGBUS."""
    with naming(path), path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Lines, their ends included, at the end of a file, and on disk when this returns. Folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def drop_cut_line(path: Path) -> None:
    """Remove a last line without an end, which a kill has cut short; a file that is not there stays so."""
    if not path.exists():
        return
    raw = path.read_bytes()
    if raw and not raw.endswith(b"\n"):
        with naming(path), path.open("r+b") as file:
            file.truncate(raw.rfind(b"\n") + 1)


def json_line(row: Mapping[str, Any]) -> str:
    """One line for others, its end included. Raises ValueError for a number that is none."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def own_line(row: Mapping[str, Any]) -> str:
    """One line that we read again: `json_line` with its sum as its last member."""
    return sums.with_member(json_line(row))


# ---- the insides ----


def _pieces(source: Path | io.BytesIO, name: str, size: int | None) -> Iterator[str]:
    """`read_pieces`; bytes that are not UTF-8 come as U+DC80 to U+DCFF."""
    line = 0
    try:
        opened = source.open("rb") if isinstance(source, Path) else io.BufferedReader(source)
        with opened as raw, _decoded(raw, name) as file:
            while piece := file.readline(LONGEST_LINE + 1) if size is None else file.read(size):
                if len(piece) > max(LONGEST_LINE, size or 0):
                    raise UserError(f"{name}, line {line + 1}: it has more than {LONGEST_LINE} characters.")
                yield piece
                line += piece.count("\n")
    except FileNotFoundError:
        raise UserError(f"there is no file {name}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name} cannot be read behind line {line}: {error}. Is it complete?") from None


def _decoded(file: Any, name: str) -> io.TextIOWrapper:
    """A buffered file (one that can `peek`) as text."""
    raw = gzip.GzipFile(fileobj=file) if file.peek(2).startswith(GZIP) else file
    head = raw.peek(2)[:2]
    if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or 0 in head:
        raise UserError(f"{name} is UTF-16 text, and UTF-8 is read; save it as that (iconv -f UTF-16 -t UTF-8).")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape")


def _checked(pieces: Iterator[str], name: str) -> Iterator[str]:
    """The pieces, if they are UTF-8. Raises UserError."""
    line, before = 1, 0  # where a piece begins: its line, and the bytes of that in earlier pieces
    for piece in pieces:
        for number, text in enumerate([] if _is_text(piece) else piece.split("\n"), line):
            if not _is_text(text):
                raise UserError(f"{name}, line {number}: {_not_utf8(text, before if number == line else 0)}.")
        _, broken, rest = piece.rpartition("\n")
        line += piece.count("\n")
        before = len(rest.encode()) + (0 if broken else before)
        yield piece


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(text: str, before: int = 0) -> str:
    try:
        text.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 text ({error.reason} at byte {before + error.start})"
    raise AssertionError("only of a text that is none")


def _bounded(pieces: Iterator[str], name: str) -> Iterator[str]:
    """The pieces of a text that is read whole. Raises UserError for a longer one than that may be."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > LONGEST_TEXT:
            raise UserError(f"{name} has more than {LONGEST_TEXT} characters; expected a text that fits into memory.")
        yield piece


def _row(line: str) -> Any:
    """The value of a line, or a BadRow."""
    if not _is_text(line):
        return BadRow(_not_utf8(line))
    try:
        return _without_sum(json_text.parse(line), line)
    except json_text.BadJsonError as error:
        cut_off = error.line is not None and not line.endswith("\n")
        return BadRow(f"{error}{'; the file ends in this line, which may have been cut off' if cut_off else ''}")


def _without_sum(value: Any, text: str) -> Any:
    """The value of a text without the sum that it may hold. Raises BadJsonError if that is not the text's."""
    if isinstance(value, dict):
        if wrong := sums.wrong_member(value, text):
            raise json_text.BadJsonError(wrong)
        value.pop(sums.NAME, None)
    return value


@contextlib.contextmanager
def _naming_json(name: str) -> Iterator[None]:
    """A BadJsonError inside becomes a UserError that names the file, and the line where it is known."""
    try:
        yield
    except json_text.BadJsonError as error:
        place = "" if error.line is None else f", line {error.line}"
        raise UserError(f"{name}{place}: {error}.") from None
