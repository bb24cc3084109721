"""Preference pairs: reading rows, checking them, and splitting off the held-out part. No tokens here (see batches.py).

A row is {prompt: str | messages: [{role, content}, …], chosen, rejected, split?}; `chosen` and `rejected` are response
texts, or message lists whose last entry is the response (as many public sets have them). A bad row is an error that
names file, line and reason; with `on_bad_row: skip` bad rows are counted by reason and shown.
"""

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sla_jax.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
Message = dict[str, str]


class Pair(NamedTuple):
    """One preference: the conversation up to the response, and the better and the worse response."""

    messages: list[Message]
    chosen: str
    rejected: str


class Rows(NamedTuple):
    """What was read: the pairs, the rows of other splits, and the bad rows by reason (only with on_bad_row=skip)."""

    pairs: list[Pair]
    other_split: int
    bad: Counter[str]


class BadRow(Exception):
    """Why one row cannot be used."""


def read_files(files: tuple[str, ...], split: str | None, on_bad_row: Literal["raise", "skip"]) -> Rows:
    """Pairs of all files in order. Raises UserError on a missing file, a bad row (unless skipped) or no pair at all."""
    rows = Rows([], 0, Counter())
    for name in files:
        rows = _collect(_file_rows(Path(name)), split, on_bad_row, rows)
    return _not_empty(rows, ", ".join(files), split)


def read_dataset(name: str, subset: str | None, split: str | None, on_bad_row: Literal["raise", "skip"]) -> Rows:
    """Pairs of one split of a data set known to the `datasets` library (a hub name or a local folder)."""
    import datasets

    try:
        table = datasets.load_dataset(name, subset, split=split or "train")
    except Exception as error:  # the library raises a dozen unrelated types: connection, not found, bad config …
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the data set {name!r} (subset {subset}, split {split or 'train'}) cannot be loaded: {reason} If this "
            "machine is offline, download it elsewhere and pass its files with --data.files, or fill its cache."
        ) from error
    located = ((f"data set {name}, row {i}", row) for i, row in enumerate(table))
    return _not_empty(_collect(located, None, on_bad_row, Rows([], 0, Counter())), name, split)


def parse_row(row: object) -> Pair:
    """One row, checked. Raises BadRow with the reason."""
    if not isinstance(row, Mapping):
        raise BadRow("the row is not a JSON object")
    for key in ("chosen", "rejected"):
        if key not in row:
            raise BadRow(f"no {key!r} field")
    messages = _prompt(row)
    chosen, rejected = (_response(row[key], key) for key in ("chosen", "rejected"))
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same text")
    return Pair(messages, chosen, rejected)


def held_out(pair: Pair, one_in: int) -> bool:
    """Whether a pair is held out, by a salted hash of its prompt: the same prompt is never on both sides.

    The salt keeps this independent of other splits by md5(prompt) that the data may already carry.
    """
    if one_in == 0:
        return False
    text = "held out:" + json.dumps(pair.messages, ensure_ascii=False, sort_keys=True)
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16) % one_in == 0


def _collect(
    located: Iterator[tuple[str, Any]], split: str | None, on_bad_row: Literal["raise", "skip"], rows: Rows
) -> Rows:
    pairs, other, bad = list(rows.pairs), rows.other_split, Counter(rows.bad)
    for where, row in located:
        try:
            if isinstance(row, BadRow):
                raise row
            if split is not None and isinstance(row, Mapping) and row.get("split") not in (None, split):
                other += 1
                continue
            pairs.append(parse_row(row))
        except BadRow as reason:
            if on_bad_row == "raise":
                raise UserError(
                    f"{where}: {reason}. A row is {{prompt or messages, chosen, rejected, optional split}}. Correct "
                    "it, or set on_bad_row to skip, which counts bad rows and goes on."
                ) from None
            bad[str(reason)] += 1
    return Rows(pairs, other, bad)


def _not_empty(rows: Rows, source: str, split: str | None) -> Rows:
    if rows.pairs:
        return rows
    counts = f"{rows.other_split} rows of other splits, {sum(rows.bad.values())} bad rows"
    wanted = f" with split={split!r}" if split is not None else ""
    raise UserError(f"{source} holds no pair{wanted} ({counts}); nothing to work with. Check the file and the split.")


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, row) of each row of a file; a line that is not JSON comes as a BadRow."""
    if not path.is_file():
        raise UserError(f"there is no data file {path}. Give the path of a {', '.join(SUFFIXES)} file.")
    if path.name.endswith(".parquet"):
        yield from _parquet_rows(path)
    elif path.name.endswith(SUFFIXES):
        yield from _json_lines(path)
    else:
        raise UserError(f"{path} is not a kind of data file that is read; these are: {', '.join(SUFFIXES)}.")


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    opener = gzip.open if path.name.endswith(".gz") else open
    line = 0
    try:
        with opener(path, "rb") as file:
            for line, raw in enumerate(file, start=1):
                yield f"{path}, line {line}", _decode(raw)
    except (gzip.BadGzipFile, EOFError, OSError) as error:
        raise UserError(
            f"{path} cannot be read behind line {line}: {error}. Is it complete, and gzip if its name says so?"
        ) from error


def _decode(raw: bytes) -> Any:
    if not raw.strip():
        return BadRow("empty line")
    try:
        return json.loads(raw)
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 text ({error.reason} at byte {error.start})")
    except json.JSONDecodeError as error:
        return BadRow(f"not JSON ({error.msg} at column {error.colno})")


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            start = 0
            for batch in file.iter_batches():
                rows = batch.to_pylist()
                yield from ((f"{path}, row {start + i}", row) for i, row in enumerate(rows))
                start += len(rows)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from error


def _prompt(row: Mapping[str, Any]) -> list[Message]:
    """The conversation before the response, from `messages`, from `prompt`, or from the turns inside `chosen`."""
    messages, prompt = row.get("messages"), row.get("prompt")
    if messages is not None and prompt is not None:
        raise BadRow("both 'prompt' and 'messages'")
    if isinstance(prompt, list):
        messages = prompt
    elif prompt is not None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadRow("'prompt' is not a non-empty text")
        return [{"role": "user", "content": prompt}]
    if messages is None and isinstance(row["chosen"], list):
        messages = row["chosen"][:-1]
    if messages is None:
        raise BadRow("neither 'prompt' nor 'messages'")
    return _messages(messages)


def _messages(messages: object) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise BadRow("'messages' is not a non-empty list")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise BadRow("a message is not {role, content}")
        if message["role"] not in ROLES:
            raise BadRow(f"a message has the role {message['role']!r}, not one of {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise BadRow("a message's content is not text")
    if messages[-1]["role"] == "assistant":
        raise BadRow("the last message before the response is the assistant's own")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _response(value: object, key: str) -> str:
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content")
    if not isinstance(value, str):
        raise BadRow(f"{key!r} is not text")
    if not value.strip():
        raise BadRow(f"{key!r} is empty")
    return value
