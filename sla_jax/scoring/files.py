"""Rows of JSON files, plain or gzipped, with the place of each; and the splits of a data set."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sla_jax.errors import UserError, nearest

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def read_rows(name: str | Path) -> Iterator[tuple[str, Any]]:
    """(where, row); a file is one JSON array or one object a line. Raises UserError."""
    path = Path(name)
    if not path.is_file():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no file of prompts or answers {path}.{nearest(path.name, beside)}")
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path} is not a kind of file that is read; these are: {', '.join(SUFFIXES)}.")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.name.endswith(".gz") else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Is it complete, and gzip if its name says so?") from None
    if text.lstrip().startswith("["):
        rows = _json(text, str(path))
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", _json(line, f"{path}, line {number}")


def load_splits(name: str, subset: str | None, split: str | None, otherwise: str) -> dict[str, Any]:
    """The splits of a data set that the `datasets` library loads, by name: one, or with None all of them.

    Raises UserError; `otherwise` says how its rows can be given without a connection."""
    import datasets

    try:
        found = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # the library raises a dozen unrelated types: connection, not found, bad config …
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the data set {name!r} (subset {subset}, split {split or 'all'}) cannot be loaded: {reason} If this "
            f"machine is offline, download it elsewhere and {otherwise}."
        ) from error
    return dict(found) if split is None else {split: found}


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}).") from None
