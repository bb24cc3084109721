"""`eval.py entropy`: every text of some files, read by a checkpoint, one row each; then the figures of all rows.

OUT.jsonl            one row a text, in the order of the data, appended block by block
OUT.settings.json    what made them, written before the first row; rows of other settings are refused

A block is so many texts, counted from the first; its texts are read together. So a run that was stopped and started
again reads the block that was cut anew, writes what is missing of it, and leaves the same bytes as one that was not.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sla_jax.errors import UserError
from sla_jax.evaluation.entropy.config import EntropyConfig
from sla_jax.evaluation.entropy.figures import Figures, as_json, figures
from sla_jax.evaluation.entropy.reader import TextReader
from sla_jax.evaluation.entropy.rows import read_counted, row
from sla_jax.evaluation.entropy.texts import Source, Text
from sla_jax.evaluation.entropy.tokens import Tokens, names, tokenized
from sla_jax.evaluation.settings import first_difference
from sla_jax.files import append_lines, drop_cut_line, own_line, read_object, read_pieces, write_object, write_text
from sla_jax.loading import Loaded
from sla_jax.locks import one_writer
from sla_jax.text import DAY, check_vocabulary

FORMAT = 1
FREE = ("checkpoint", "out", "overwrite", "json")  # what may change when a run goes on; parameters are compared
Tell = Callable[[int, int, str], None]


def measure(config: EntropyConfig, model: Loaded, fingerprint: str, tell: Tell) -> Figures:
    """Write the rows that are not there yet and return the figures of all; with `config.json` they are written too.

    `fingerprint` stands for the parameters, `tell` hears of every block. All rows of the data are checked before the
    first is read by the model. Raises UserError; what is written by then stays.
    """
    source = Source(config)
    reader = TextReader(
        model,
        window=config.window,
        overlap=config.overlap,
        tops=max(config.top, 1),
        chunk=config.chunk,
        batch_tokens=config.batch_tokens,
    )
    total = sum(1 for _ in source)
    if not total:
        raise UserError(f"there is no text in {', '.join(config.data) or config.dataset}.")
    with one_writer(config.out, config.out.with_name(f".{config.out.name}.lock")):
        done = _opened(config, _settings(config, reader, fingerprint, source.fingerprint()))
        _append(config, model, reader, source, done, total, tell)
    found = figures(read_counted(config.out))
    if config.json is not None:
        said = {"settings": _read(settings_path(config.out)), **as_json(found)}
        write_text(config.json, json.dumps(said, indent=2) + "\n")
    return found


def settings_path(out: Path) -> Path:
    """Where the settings of a file of rows are."""
    return out.with_suffix(".settings.json")


# ---- reading and writing ----


def _append(
    config: EntropyConfig, model: Loaded, reader: TextReader, source: Source, done: int, total: int, tell: Tell
) -> None:
    """The rows from number `done` on."""
    pieces, read = names(model.tokenizer, model.config.vocab_size), 0
    tell(done, total, "texts")
    for begin, block in _blocks(source, config.block):
        missing = block[max(done - begin, 0) :]
        if not missing:
            continue
        tokens = [_tokens(model, text) for text in block]
        readings = reader.read([one.ids for one in tokens])
        new = list(zip(block, tokens, readings, strict=True))[-len(missing) :]
        append_lines(config.out, (own_line(row(*one, pieces, top=config.top)) for one in new))
        read += sum(len(one.ids) for one in tokens)
        tell(begin + len(block), total, f"texts  {read:,} tokens")


def _blocks(source: Source, size: int) -> Iterator[tuple[int, Sequence[Text]]]:
    """(number of its first text, its texts) of each block."""
    texts = iter(source)
    for begin in itertools.count(0, size):
        block = list(itertools.islice(texts, size))
        if not block:
            return
        yield begin, block


def _tokens(model: Loaded, text: Text) -> Tokens:
    try:
        found = tokenized(model.tokenizer, text.content)
    except UserError as error:
        raise UserError(f"{text.where}: {error}") from None
    check_vocabulary(model.tokenizer, found.ids, model.config.vocab_size, text.where)
    return found


# ---- the settings ----


def _settings(config: EntropyConfig, reader: TextReader, fingerprint: str, texts: str) -> dict[str, Any]:
    told = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE}
    resolved = {"window": reader.window, "overlap": reader.overlap}
    return {"format": FORMAT, "model": fingerprint, "texts": texts, **told, **resolved}


def _opened(config: EntropyConfig, settings: dict[str, Any]) -> int:
    """How many rows are there already, of these settings. Raises UserError for rows of others."""
    out, beside = config.out, settings_path(config.out)
    if out.exists() and not beside.exists():
        raise UserError(f"{out} exists and this program did not make it (no {beside.name}); give --out another file.")
    if config.overwrite:
        out.unlink(missing_ok=True)
    drop_cut_line(out)
    done = sum(1 for line in read_pieces(out) if line.strip()) if out.exists() else 0
    older = {"template": {}, "date": DAY}  # of rows that were written before these were settings
    if done and (difference := first_difference(older | _read(beside), settings)):
        raise UserError(
            f"{out} holds rows of other settings ({difference}). Give --out another file, or --overwrite to delete "
            "these."
        )
    write_object(beside, settings, indent=2)
    return done


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except UserError as error:
        raise UserError(f"{error} Give --out another file, or --overwrite to start anew.") from None
