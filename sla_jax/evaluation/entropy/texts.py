"""Texts from files of rows, plain text and the `datasets` library, one at a time, each with the place where it stands.

Files are streamed (`sla_jax.files`). A plain text is cut into segments at line ends, and a segment begins a text of its
own: nothing of the one before is context.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sla_jax.errors import UserError, nearest
from sla_jax.evaluation.entropy.config import EntropyConfig
from sla_jax.files import ROW_KINDS, check_file, read_pieces, read_rows
from sla_jax.scoring.files import load_splits

PLAIN = (".txt", ".txt.gz")
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
            check_file(Path(name), ROW_KINDS + PLAIN)

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
                for where, row in read_rows(path):
                    yield _text(row, self._config.field, where, f"{path}:{where.split()[-1]}")


def segments(path: Path, size: int) -> Iterator[Text]:
    """A plain text in pieces of at most `size` characters that end with a line, else with a word; joined, it is whole.

    The number in an id is the character of the text at which the piece begins; a line's end is one character.
    """
    pieces, begin, held = read_pieces(path, size), 0, ""
    while True:
        held += next(pieces, "") if len(held) < size else ""
        if not held:
            return
        head = held[:size]
        end = len(head) if len(head) < size else head.rfind("\n") + 1 or head.rfind(" ") + 1 or size
        yield Text(f"{path}:{begin}", head[:end], f"{path}, character {begin}")
        begin, held = begin + end, held[end:]


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
        checked: str | Messages = content
    elif isinstance(content, list) and content and all(map(_is_message, content)):
        checked = [{key: one[key] for key in ("role", "content")} for one in content]
    else:
        raise UserError(
            f"{where}: {field!r} is {_kind(content)}; it has to be a string, or a list of messages, each with the "
            "strings 'role' and 'content'."
        )
    return Text(str(identity if given is None else given), checked, where)


def _is_message(one: Any) -> bool:
    return isinstance(one, Mapping) and all(isinstance(one.get(key), str) for key in ("role", "content"))


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "a string"}
    found = names.get(type(value))
    return found or ("a list" if isinstance(value, list) else "an object")
