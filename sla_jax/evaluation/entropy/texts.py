"""Texts from files of rows, plain text and the `datasets` library, one at a time, each with the place where it stands.

Files are streamed: what is in memory is one row (a .json list is the exception: JSON has to be read whole). A plain
text is cut into segments at line ends, and a segment begins a text of its own: nothing of the one before is context.
"""

import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

from sla_jax.errors import UserError, nearest
from sla_jax.evaluation.entropy.config import EntropyConfig
from sla_jax.scoring.files import SUFFIXES as ROWS
from sla_jax.scoring.files import load_splits, read_rows

PLAIN = (".txt", ".txt.gz")
LINES = (".jsonl", ".jsonl.gz")
Messages = list[dict[str, str]]


class Text(NamedTuple):
    """A text or a conversation; `id` is the same for every model that reads the same data."""

    id: str
    content: str | Messages
    where: str


class Source:
    """All texts that a config names, as often as they are asked for, and a fingerprint of them."""

    def __init__(self, config: EntropyConfig):
        self._config = config
        otherwise = "give its files with --data, or fill its cache"
        named = None if config.dataset is None else (config.dataset, config.subset, config.split)
        self._tables = {} if named is None else load_splits(*named, otherwise)
        for name in config.data:
            _check_file(Path(name))

    def fingerprint(self) -> str:
        """Of the files' contents, or of the data set's rows."""
        if self._tables:
            return " ".join(f"{split}:{table._fingerprint}" for split, table in self._tables.items())
        found = []
        for name in self._config.data:
            with Path(name).open("rb") as file:
                found.append(hashlib.file_digest(file, "sha256").hexdigest()[:16])
        return " ".join(found)

    def __iter__(self) -> Iterator[Text]:
        every = self._of_tables() if self._tables else self._of_files()
        return itertools.islice(every, self._config.limit or None)

    def _of_tables(self) -> Iterator[Text]:
        for split, table in self._tables.items():
            for number, row in enumerate(table):
                place = f"{self._config.dataset}, {split} row {number}"
                yield _text(row, self._config.field, f"data set {place}", f"{self._config.dataset}:{split}:{number}")

    def _of_files(self) -> Iterator[Text]:
        for name in self._config.data:
            path = Path(name)
            if path.name.endswith(PLAIN):
                yield from segments(path, self._config.segment)
            else:
                rows = json_lines(path) if path.name.endswith(LINES) else read_rows(path)
                for where, row in rows:
                    yield _text(row, self._config.field, where, f"{path}:{where.split()[-1]}")


def segments(path: Path, size: int) -> Iterator[Text]:
    """A plain text in pieces of at most `size` characters that end with a line, else with a word; joined, it is whole.

    The number in an id is the character of the file at which the piece begins.
    """
    begin, held = 0, ""
    with _opened(path) as file:
        while True:
            held += _next(path, file, size - len(held))
            if not held:
                return
            end = len(held) if len(held) < size else held.rfind("\n") + 1 or held.rfind(" ") + 1 or size
            yield Text(f"{path}:{begin}", held[:end], f"{path}, character {begin}")
            begin, held = begin + end, held[end:]


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, row) of every line that is not blank."""
    with _opened(path) as file:
        for number in itertools.count(1):
            line = _next(path, file, None)
            if not line:
                return
            if line.strip():
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except json.JSONDecodeError as error:
                    place = f"{path}, line {number}"
                    raise UserError(f"{place}: not JSON ({error.msg} at column {error.colno}).") from None


def _opened(path: Path) -> TextIOWrapper:
    """As UTF-8 with line ends as they are, so that characters are counted as they stand in the file."""
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8", newline="\n")
    return path.open(encoding="utf-8", newline="\n")


def _next(path: Path, file: TextIOWrapper, count: int | None) -> str:
    """So many characters, or with None a line; nothing at the end. Raises UserError."""
    try:
        return file.readline() if count is None else file.read(count)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}. Is it complete, and gzip if its name says so?") from None


def _check_file(path: Path) -> None:
    if not path.is_file():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no file of texts {path}.{nearest(path.name, beside)}")
    if not path.name.endswith(ROWS + PLAIN):
        raise UserError(f"{path} is not a kind of file that is read; these are: {', '.join(ROWS + PLAIN)}.")


def _text(row: Any, field: str, where: str, identity: str) -> Text:
    """A row's text. Raises UserError that names the place and the field."""
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: a row has to be a JSON object with the field {field!r}; this one is {_kind(row)}.")
    if field not in row:
        known = ", ".join(map(repr, row)) or "no field"
        raise UserError(
            f"{where}: the row has no field {field!r}; it has {known}.{nearest(field, row)} Name one with --field."
        )
    content, given = row[field], row.get("id", identity)
    if isinstance(content, str):
        checked: str | Messages = _encodable(content, where, field)
    elif isinstance(content, list) and content and all(map(_is_message, content)):
        checked = [{key: _encodable(one[key], where, field) for key in ("role", "content")} for one in content]
    else:
        raise UserError(
            f"{where}: {field!r} is {_kind(content)}; it has to be a string, or a list of messages, each with the "
            "strings 'role' and 'content'."
        )
    return Text(str(identity if given is None else given), checked, where)


def _is_message(one: Any) -> bool:
    return isinstance(one, Mapping) and all(isinstance(one.get(key), str) for key in ("role", "content"))


def _encodable(text: str, where: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {field!r} holds half a surrogate pair at character {error.start}.") from None
    return text


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a string"}
    found = names.get(type(value))
    return found or ("a list" if isinstance(value, list) else "an object")
