"""JSON of strangers: what cannot be read is said in one line, whatever is wrong with it.

Python's own reader raises three kinds of errors, reads what no later step can walk through (lists a thousand deep) or
write (half a character), and takes a list whole. Here an item of a list is read at a time, in as much memory as the
longest of them takes.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

DEEPEST = 100  # objects and lists that may stand in each other
LONGEST = 2**26  # characters of one value
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # JSON's spelling of half a character; two of them may make a whole one
BEFORE_END = 16  # characters before the end of what was read so far, where an error may be the cut's alone
DECODER = json.JSONDecoder()
SPACE = re.compile(r"[ \t\n\r]*")


class BadJsonError(Exception):
    """Why a text is no JSON that can be used, and its line, from 1, where that is known."""

    def __init__(self, said: str, line: int | None = None):
        super().__init__(said)
        self.line = line


def parse(text: str) -> Any:
    """The value of a text. Raises BadJsonError."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadJsonError(f"not JSON ({error.msg} at column {error.colno})", error.lineno) from None
    except (ValueError, RecursionError) as error:  # numbers too long, lists too deep
        raise BadJsonError(f"not JSON ({error})") from None
    check(value, text)
    return value


def check(value: Any, text: str) -> None:
    """Raise BadJsonError for a value that is nested too deeply or has half a character; it was read from `text`."""
    if text.count("[") + text.count("{") > DEEPEST and _deeper(value):
        raise BadJsonError(f"lists and objects stand in each other more than {DEEPEST} deep")
    if HALF.search(text) and (said := _half(value)):
        raise BadJsonError(said)


def items(pieces: Iterable[str]) -> Iterator[tuple[Any, BadJsonError | None]]:
    """(item, None) for each item of the list that a text in pieces is; (None, why) for one that `check` refuses.

    Raises BadJsonError where the text is no JSON any more."""
    reader = _ItemReader(pieces)
    reader.take("[")
    more = reader.next() != "]"
    while more:
        yield reader.value()
        more = reader.next() == ","
        if more:
            reader.take(",")
    reader.take("]")
    if reader.next():
        raise reader.error("Extra data", reader.at)


class _ItemReader:
    """Holds what was read of a text and not used yet."""

    def __init__(self, pieces: Iterable[str]):
        self.pieces = iter(pieces)
        self.text, self.at = "", 0
        self.line, self.column = 1, 0  # where the held text begins

    def next(self) -> str:
        """The next character that is no space, or "" at the end."""
        while True:
            found = SPACE.match(self.text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self.text) or not self.read():
                return self.text[self.at : self.at + 1]

    def take(self, character: str) -> None:
        if self.next() != character:
            what = "Expecting ',' delimiter" if character == "]" else "Expecting value"
            raise self.error(what, self.at)
        self.at += 1

    def value(self) -> tuple[Any, BadJsonError | None]:
        self.next()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                whole = error.pos < len(self.text) - BEFORE_END and not error.msg.startswith("Unterminated string")
                if whole or not self.read():
                    raise self.error(error.msg, error.pos) from None
                continue
            except (ValueError, RecursionError) as error:
                raise BadJsonError(f"not JSON ({error})", self._place(self.at)[0]) from None
            if end < len(self.text) - BEFORE_END or not self.read():  # else it may go on: 1, 1e, 1e+, 1e+9
                break
        text, self.at = self.text[self.at : end], end
        try:
            check(value, text)
        except BadJsonError as error:
            return None, error
        return value, None

    def read(self) -> bool:
        """Read as much again as is held; whether there was more. Raises BadJsonError for too long a value."""
        held = [self.text[self.at :]]
        size, wanted = len(held[0]), 2 * len(held[0])
        if size > LONGEST:
            raise BadJsonError(f"a value of more than {LONGEST} characters", self._place(self.at)[0])
        for piece in self.pieces:
            held.append(piece)
            size += len(piece)
            if size > wanted:
                break
        if len(held) == 1:
            return False
        self.line, self.column = self._place(self.at)
        self.text, self.at = "".join(held), 0
        return True

    def error(self, said: str, at: int) -> BadJsonError:
        line, column = self._place(at)
        return BadJsonError(f"not JSON ({said} at column {column + 1})", line)

    def _place(self, at: int) -> tuple[int, int]:
        """(line from 1, column from 0) of a place in the held text."""
        breaks = self.text.count("\n", 0, at)
        column = at - self.text.rfind("\n", 0, at) - 1 if breaks else self.column + at
        return self.line + breaks, column


def _deeper(value: Any) -> bool:
    """Whether objects and lists stand in each other more than DEEPEST deep."""
    level = [value]
    for _ in range(DEEPEST + 1):
        parts = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for part in parts for one in part]
    return bool(parts)


def _half(value: Any, place: str = "") -> str | None:
    """Where a value has half a character, which no tokenizer takes and no file holds."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"{place or 'the row'!r} has half a character (a lone surrogate) at {error.start}"
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        parts = [(f"{place}.{key}".lstrip("."), part) for key, one in value.items() for part in (key, one)]
    elif isinstance(value, list):
        parts = [(f"{place}[{number}]", part) for number, part in enumerate(value)]
    return next(filter(None, (_half(part, at) for at, part in parts)), None)
