"""Where rows come from: JSON lines and lists, Parquet, Arrow, the `datasets` library, and mixes of these.

A mix is the largest one that uses no row twice. With n_i rows of source i for training and weights w_i, source i gives
floor(min_j(n_j / w_j) · w_i) rows: the source that runs out first gives all it has. Which rows the others give depends
on (seed, number of the source) alone; they keep their order, and the sources stand one after another. The held-out part
holds the held-out rows of all sources, in whatever proportion they come.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sla_jax.errors import UserError, shortened
from sla_jax.files import ROW_KINDS, check_file, numbered_rows, row_unit
from sla_jax.scoring.files import load_splits
from sla_jax.training.data_config import DataConfig, SourceConfig

KINDS = (*ROW_KINDS, ".parquet", ".arrow")
BATCH = 256  # rows of a table that are Python's at a time: one text in its file may stand in all of them
Numbered = Iterator[tuple[int, Any]]  # (line or row number, row, or a BadRow for a line that is none)


class Source(NamedTuple):
    """One file, or one split of a data set."""

    place: str  # "FILE, line": with a number behind it, where a row stands
    content: str  # stands for the rows in the key of the token cache
    split: str | None  # that all rows belong to; None: a row may name its own
    wanted: str | None  # the split to train on; None = all
    part: int  # of the mix
    rows: Callable[[], Numbered]


def open_sources(data: DataConfig, seed: int) -> list[Source]:
    """What `data` names, in order; contents are hashed, rows not read. Raises UserError."""
    if data.generated:
        content = f"generated {data.generated} {seed}"
        return [Source("generated pair", content, None, None, 0, lambda: _generated(data.generated, seed))]
    if not (data.sources or data.files or data.dataset):
        raise UserError("there is no training data; give --data.files FILE … or --data.dataset NAME.")
    found: list[Source] = []
    mix: Sequence[SourceConfig | DataConfig] = data.sources or [data]
    for part, source in enumerate(mix):
        if source.dataset:
            wanted = (source.split, data.heldout_split)
            found += _dataset(source.dataset, source.subset, wanted, part)
        else:
            found += [_file(Path(name), source.split, part) for name in source.files]
    return found


def mix_rows(sizes: Sequence[int], weights: Sequence[float], seed: int) -> list[np.ndarray]:
    """Per source the numbers of the rows that it gives, ascending."""
    least = min(size / weight for size, weight in zip(sizes, weights, strict=True))
    chosen = []
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        count = min(size, int(least * weight + 1e-9))
        if count == 0:
            rows = ", ".join(map(str, sizes))
            raise UserError(
                f"source {number + 1} of data.sources would give no row to the mix: the sources have {rows} rows to "
                f"train on and the weights {', '.join(f'{w:g}' for w in weights)}. Check its files and split, or the "
                "weights."
            )
        chosen.append(np.sort(np.random.default_rng([seed, number]).permutation(size)[:count]))
    return chosen


def _generated(count: int, seed: int) -> Numbered:
    from sla_jax.training.tiny import generated_pairs

    for number, pair in enumerate(generated_pairs(count, seed)):
        yield number, pair._asdict()


# ---- the `datasets` library ----


def _dataset(name: str, subset: str | None, wanted: tuple[str | None, str | None], part: int) -> list[Source]:
    """Splits of a data set: the one to train on (or all) and the one to hold out."""
    train, heldout = wanted
    names = [train] if heldout is None or train is None else [train, heldout]
    sources = []
    for split in names:
        tables = load_splits(name, subset, split, "pass its files with --data.files, or fill its cache")
        for key, table in tables.items():
            place = f"data set {name}, {key} row"
            sources.append(Source(place, f"data set {table._fingerprint}", str(key), train, part, _rows_of(table)))
    return sources


def _rows_of(table: Any) -> Callable[[], Numbered]:
    return lambda: enumerate(table)


# ---- files ----


def _file(path: Path, wanted: str | None, part: int) -> Source:
    check_file(path, KINDS)
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    if path.name.endswith((".parquet", ".arrow")):
        return Source(f"{path}, row", content, None, wanted, part, lambda: _table_rows(path))
    return Source(f"{path}, {row_unit(path)}", content, None, wanted, part, lambda: numbered_rows(path))


def _table_rows(path: Path) -> Numbered:
    import pyarrow

    start = 0
    try:
        for batch in _parquet(path) if path.name.endswith(".parquet") else _arrow(path):
            batch.validate(full=True)  # an Arrow file says where its values lie, and is believed otherwise
            rows = batch.to_pylist()
            yield from enumerate(rows, start)
            start += len(rows)
    # ValueError and the like are of values that Python has not: text that is not UTF-8, a day in the year 90,000
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        kind = "Parquet" if path.name.endswith(".parquet") else "Arrow"
        raise UserError(f"{path} is not a readable {kind} file: {shortened(str(error), 400)}") from error


def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=BATCH)


def _arrow(path: Path) -> Iterator[Any]:
    """Record batches of an Arrow file: the stream format that `datasets` writes, or the file format."""
    from pyarrow import ipc, memory_map

    with memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            file.seek(0)
            reader = ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            file.seek(0)
            batches = iter(ipc.open_stream(file))
        for batch in batches:
            yield from (batch.slice(start, BATCH) for start in range(0, batch.num_rows, BATCH))
