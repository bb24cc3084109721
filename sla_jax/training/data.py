"""The data of a run: rows are read, checked, parted, limited, tokenized, and kept by a hash of all that made them.

`load_examples` is the whole of it. Tokens lie in one folder for each combination of contents (not names) of the data,
tokenizer and chat template, task, and the settings that matter; it appears whole or not at all, one process makes it
and others wait, and finding it again parses no row and loads no tokenizer. One that is damaged is said and made anew.

`Examples.counts` has: read (rows seen), other_split, bad, left_by_mix, left_by_limit, empty (no scored token is left),
cut_prompts, cut_answers, cut_turns (SFT turns that are no longer scored), cut_labels (steps that lost their label), and
rows, what is left.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from sla_jax.checkpoint.staging import SUMS, damage, staged
from sla_jax.checkpoint.store import TEMPLATES
from sla_jax.errors import UserError
from sla_jax.files import BadRow
from sla_jax.locks import locked
from sla_jax.training.data_config import DataConfig, Task, check_task
from sla_jax.training.examples import Examples, Flat, Refused
from sla_jax.training.rows import (
    LAYOUTS,
    Pair,
    Row,
    limit_number,
    parse_row,
    prompt_number,
    prompt_of,
)
from sla_jax.training.sources import Source, mix_rows, open_sources
from sla_jax.training.tokens import CHUNK, CUTS, Chunk, Rules, tokenize_rows

__all__ = ["Pair", "load_examples"]
FORMAT = "2"
COUNTS = ("read", "other_split", "bad", "left_by_mix", "left_by_limit", "empty", *CUTS, "rows")
EMPTY = "no scored token is left"
ROW_NAMES = {"pairs": "pair", "sft": "conversation", "steps": "row of steps"}
WAITING = "another process is tokenizing the same data; waiting for it"
SHOWN = 5  # reasons for refusing rows that are told
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
# fields of DataConfig whose values decide what comes out; where things lie and how fast they are made do not
DECIDING = (
    *("split", "heldout", "heldout_split", "limit", "heldout_limit", "max_length", "max_prompt_length"),
    *("on_bad_row", "max_bad", "separator", "last_step_only", "template", "date"),
)


class Placed(NamedTuple):
    """A row and what is known of it before it becomes tokens."""

    row: Row
    source: int  # index into the sources
    number: int  # line or row there
    prompt: int  # 128-bit hash of its prompt
    heldout: bool


class Ledger:
    """Counts what becomes of rows, and refuses what `data` does not allow."""

    def __init__(self, data: DataConfig, task: Task, sources: Sequence[Source]):
        self.data, self.task, self.sources = data, task, sources
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        self.refused: dict[str, Refused] = {}  # by reason

    def refuse(self, kind: Literal["bad", "empty"], reason: str, source: int, number: int) -> None:
        """Note a row that cannot be used; a bad one is an error unless bad rows are skipped."""
        if kind == "bad" and self.data.on_bad_row == "raise":
            raise UserError(
                f"{self.sources[source].place} {number}: {reason.rstrip('.')}. Layouts of {self.task}: "
                f"{LAYOUTS[self.task]}. Correct the row, or set data.on_bad_row to skip, which counts bad rows and "
                "goes on."
            )
        self.counts[kind] += 1
        before = self.refused.get(reason, Refused(reason, 0, source, number))
        self.refused[reason] = before._replace(times=before.times + 1)

    def check(self, usable: int, rows: int) -> None:
        """Raises UserError when too many of `rows` rows are not usable, or none is."""
        counts = f"{self.counts['other_split']} rows of other splits, {self.counts['bad']} bad rows"
        counts += f", {self.counts['empty']} empty rows" if self.counts["empty"] else ""
        if rows - usable > self.data.max_bad * rows:
            shown = sorted(self.refused.values(), key=lambda refused: -refused.times)[:SHOWN]
            reasons = "; ".join(f"{r.times} × {r.reason} ({self.sources[r.source].place} {r.number})" for r in shown)
            raise UserError(
                f"{rows - usable} of {rows} rows cannot be used, more than data.max_bad={self.data.max_bad:g} "
                f"of them allows: {reasons}. Correct them, or raise data.max_bad."
            )
        if not usable:
            names = ", ".join(source.place.rpartition(" ")[0].rstrip(",") for source in self.sources)
            wanted = {source.wanted for source in self.sources} - {None}
            split = f" with split={', '.join(map(repr, sorted(wanted, key=str)))}" if wanted else ""
            raise UserError(
                f"{names} holds no {ROW_NAMES[self.task]}{split} ({counts}); nothing to work with. Check the file and "
                "the split."
            )


def load_examples(
    data: DataConfig,
    task: Task,
    tokenizer_directory: Path,
    *,
    max_positions: int,
    seed: int,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
    vocabulary: int | None = None,
) -> Examples:
    """The run's examples, training and held-out part together, from the token cache or made now.

    `max_positions` is the policy's context and `vocabulary` the rows of its embedding, by which a row with a token
    beyond it is a bad row (None: any token is taken); `progress(done, total)` is told rows while they are tokenized;
    `say` gets what a user should know (what was skipped, cut, waited for). Raises UserError, naming file and line for a
    bad row.
    """
    check_task(data, task)
    if data.max_length > max_positions:
        raise UserError(
            f"data.max_length={data.max_length} is beyond the {max_positions} positions of the policy in "
            f"{tokenizer_directory}; lower it."
        )
    sources = open_sources(data, seed)

    def make() -> Examples:
        return _make(Ledger(data, task, sources), tokenizer_directory, vocabulary, seed, progress)

    if data.cache is None:
        examples = make()
    else:
        key = _key(data, task, tokenizer_directory, vocabulary, sources, seed)
        folder = _stored(Path(data.cache) / key, make, say)
        examples = Examples.load(folder, [source.place for source in sources])
    _tell(examples, data, say)
    return examples


# ---- the cache ----


def _key(
    data: DataConfig, task: Task, directory: Path, vocabulary: int | None, sources: Sequence[Source], seed: int
) -> str:
    """Whatever decides the tokens, hashed. Names of files are not in it; the seed is where it chooses rows."""
    files, templates = [directory / name for name in TOKENIZER_FILES], sorted(directory.glob(TEMPLATES))
    named = [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in templates]
    facts = {
        "format": FORMAT,
        "task": task,
        "contents": [[source.content, source.split, source.wanted, source.part] for source in sources],
        "tokenizer": [
            *(hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None for file in files),
            *named,
        ],
        "vocabulary": vocabulary,
        "settings": {name: getattr(data, name) for name in DECIDING},
        "weights": [source.weight for source in data.sources],
        "seed": seed if data.sources else None,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _stored(folder: Path, make: Callable[[], Examples], say: Callable[[str], None]) -> Path:
    """`folder`, filled by `make` unless it is there, whole. Of several processes one makes it and the others wait."""
    if _whole(folder, lambda told: None):
        return folder
    try:
        with locked(folder.with_name(f"{folder.name}.lock"), lambda holder: say(WAITING)):
            if not _whole(folder, say):
                examples = make()
                with staged(folder) as partial:
                    examples.save(partial)
    except OSError as error:
        raise UserError(
            f"the token cache {folder.parent} cannot be written: {error}. Give a folder with room by --data.cache, or "
            "None to keep tokens in memory."
        ) from error
    return folder


def _whole(folder: Path, say: Callable[[str], None]) -> bool:
    """Whether a cache is there with its sums, which those of older releases have not, and is as they say."""
    if not (folder / SUMS).exists():
        return False
    found = damage(folder)
    if found is not None:
        say(f"the token cache is made anew: {found}")
    return found is None


# ---- reading, parting, tokenizing ----


def _make(
    ledger: Ledger, directory: Path, vocabulary: int | None, seed: int, progress: Callable[[int, int], None]
) -> Examples:
    data = ledger.data
    rows = _chosen(ledger, _read(ledger), seed)
    names = [field.name for field in dataclasses.fields(Rules) if field.name != "vocabulary"]
    rules = Rules(**{name: getattr(data, name) for name in names}, vocabulary=vocabulary)
    chunks = tokenize_rows(directory, [placed.row for placed in rows], rules, data.workers, progress)
    kept = _kept(ledger, rows, chunks)
    flats = [chunk.flat for chunk in chunks if len(chunk.kept)]
    return Examples.of_flat(
        Flat(*(np.concatenate(parts) for parts in zip(*flats, strict=True))),
        groups=np.asarray([placed.prompt % 2**64 for placed in kept], np.uint64),
        heldout=np.asarray([placed.heldout for placed in kept]),
        where=np.asarray([[placed.source, placed.number] for placed in kept], np.int64),
        places=tuple(source.place for source in ledger.sources),
        counts=dict(ledger.counts),
        refused=tuple(ledger.refused.values()),
    )


def _read(ledger: Ledger) -> list[Placed]:
    """Every usable row of every source, in order."""
    rows: list[Placed] = []
    one_in = ledger.data.heldout
    for index, source in enumerate(ledger.sources):
        for number, raw in source.rows():
            ledger.counts["read"] += 1
            try:
                heldout = _side(ledger.data, source, raw)
                if heldout is None:
                    ledger.counts["other_split"] += 1
                    continue
                row = parse_row(raw, ledger.task)
            except BadRow as reason:
                ledger.refuse("bad", str(reason), index, number)
                continue
            prompt = prompt_number(prompt_of(row))
            rows.append(Placed(row, index, number, prompt, heldout or (one_in > 0 and prompt % one_in == 0)))
    ledger.check(len(rows), len(rows) + ledger.counts["bad"])
    return rows


def _side(data: DataConfig, source: Source, raw: object) -> bool | None:
    """Whether a row belongs to the held-out split (True), to the one to train on (False) or to another (None)."""
    if isinstance(raw, BadRow):
        raise raw
    split = source.split
    if split is None and isinstance(raw, Mapping):
        split = raw.get("split")
    if data.heldout_split is not None and split == data.heldout_split:
        return True
    return False if source.wanted is None or split in (None, source.wanted) else None


def _chosen(ledger: Ledger, rows: list[Placed], seed: int) -> list[Placed]:
    """The rows that the mix and the limits leave, in their order."""
    data = ledger.data
    train = [placed for placed in rows if not placed.heldout]
    heldout = [placed for placed in rows if placed.heldout]
    if data.sources:
        whole = train
        parts = [[p for p in train if ledger.sources[p.source].part == part] for part in range(len(data.sources))]
        numbers = mix_rows([len(part) for part in parts], [source.weight for source in data.sources], seed)
        train = [part[i] for part, chosen in zip(parts, numbers, strict=True) for i in chosen]
        ledger.counts["left_by_mix"] = len(whole) - len(train)
    left = [*_limited(train, data.limit), *_limited(heldout, data.heldout_limit)]
    ledger.counts["left_by_limit"] = len(train) + len(heldout) - len(left)
    return sorted(left, key=lambda placed: (placed.source, placed.number))


def _limited(rows: list[Placed], limit: int) -> list[Placed]:
    """The `limit` rows with the smallest salted md5; 0 = all."""
    return sorted(rows, key=lambda placed: limit_number(placed.row))[:limit] if limit else rows


def _kept(ledger: Ledger, rows: list[Placed], chunks: Sequence[Chunk]) -> list[Placed]:
    """The rows that have tokens; what became of the others goes into the ledger."""
    kept: list[Placed] = []
    for start, chunk in zip(range(0, len(rows), CHUNK), chunks, strict=True):
        kept += [rows[start + i] for i in chunk.kept]
        ledger.counts.update(chunk.counts)
        for i, reason in chunk.bad:
            ledger.refuse("bad", reason, rows[start + i].source, rows[start + i].number)
        for i in chunk.empty:
            ledger.refuse("empty", EMPTY, rows[start + i].source, rows[start + i].number)
    ledger.counts["rows"] = len(kept)
    ledger.check(len(kept), len(rows))
    return kept


def _tell(examples: Examples, data: DataConfig, say: Callable[[str], None]) -> None:
    """What was left out and shortened, in words."""
    counts = examples.counts
    for reason, count, source, number in sorted(examples.refused, key=lambda refused: -refused.times)[:SHOWN]:
        say(f"skipped {count} rows: {reason} (first: {examples.places[source]} {number})")
    if len(examples.refused) > SHOWN:
        rest = sum(counts[kind] for kind in ("bad", "empty"))
        say(f"skipped {rest} rows in all, for {len(examples.refused)} reasons")
    said = {
        "other_split": f"left out {counts['other_split']} rows of other splits than {data.split!r}",
        "left_by_mix": f"left out {counts['left_by_mix']} rows that the proportions of the mix have no room for",
        "left_by_limit": f"left out {counts['left_by_limit']} rows beyond data.limit and data.heldout_limit",
        "cut_prompts": f"shortened {counts['cut_prompts']} prompts (on the left)",
        "cut_answers": f"shortened {counts['cut_answers']} responses (at the end)",
        "cut_turns": f"left {counts['cut_turns']} early turns of long conversations unscored",
        "cut_labels": f"lost {counts['cut_labels']} labels of steps that were cut",
    }
    for name, line in said.items():
        if counts[name]:
            say(line)
    shared = len(np.intersect1d(examples.groups[examples.heldout], examples.groups[~examples.heldout]))
    if shared:
        say(f"{shared} prompts stand in both the training and the held-out part; held-out figures will flatter")
