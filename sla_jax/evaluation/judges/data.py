"""Pairs for an independent judge: none of its prompts is one that the channel was trained on (`eval.py judge-data`).

OUT/NAME.jsonl   the pairs of each source, as they came, with split "train" or "test" by their prompt
OUT/data.json    what was read, kept and dropped, with digests: what the judge's card says of its data

A prompt counts as the same if its messages differ in white space and case alone. Rows of the channel's prompts are
dropped before anything else. Which of the others are kept (`limit`) and which are held out (one prompt in `one_in`)
depends on the seed and the row alone; it is salted, and so independent of splits by md5(prompt) in the data. What was
written is read again and compared with the channel's rows at the end.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sla_jax.errors import UserError
from sla_jax.files import own_line, read_rows, write_text
from sla_jax.locks import one_writer

DESCRIPTION = "data.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairFile:
    """A file of {prompt or messages, chosen, rejected} rows; of the channel's, the answers may be missing."""

    file: str
    split: str | None = None
    """Only rows whose `split` says so; all if not given."""
    limit: int = 0
    """Only so many of them; 0: all."""
    name: str | None = None
    """sources: what its file in OUT is called; the file's own name without its endings if not given."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise UserError(f"{self.file}: limit={self.limit} must be at least 0.")

    @property
    def stem(self) -> str:
        """The name in effect."""
        return self.name or Path(self.file).name.partition(".")[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeData:
    """What the channel was trained on, what the judge may learn from, and how that is divided."""

    channel: tuple[PairFile, ...]
    """All that the channel learned from: its pairs, or the prompts that they were made of."""
    sources: tuple[PairFile, ...]
    out: str
    one_in: int = 4
    """One prompt in so many is held out."""
    seed: int = 7

    def __post_init__(self) -> None:
        if not self.channel or not self.sources:
            raise UserError("give the files that the channel was trained on (channel) and the judge's own (sources).")
        if self.one_in < 2:
            raise UserError(f"one_in={self.one_in} must be at least 2: the judge learns from the rest.")
        names = [source.stem for source in self.sources]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"two sources are called {twice[0]!r}; give one of them a name.")


class PairRow(NamedTuple):
    """A row, and what stands for its prompt."""

    key: str
    row: dict[str, Any]


def write_judge_data(config: JudgeData) -> dict[str, Any]:
    """Write OUT; returns what data.json says. Raises UserError naming file and row."""
    with one_writer(Path(config.out)):
        return _write(config)


def _write(config: JudgeData) -> dict[str, Any]:
    taken = {one.key for file in config.channel for one in read_prompts(file)}
    out, about = Path(config.out), dict[str, Any]()
    for source in config.sources:
        rows = list(read_pairs(source))
        free = [one for one in rows if one.key not in taken]
        kept = limited(free, source.limit, config.seed)
        parts = [held_out(one.key, config) for one in kept]
        if not kept or all(parts) or not any(parts):
            raise UserError(f"{source.file} leaves {len(kept)} pairs of other prompts than the channel's: too few.")
        split = [one.row | {"split": "test" if part else "train"} for one, part in zip(kept, parts, strict=True)]
        write_text(out / f"{source.stem}.jsonl", "".join(map(own_line, split)))
        about[source.stem] = {
            "file": Path(source.file).name,
            "sha256": digest(source.file),
            "read": len(rows),
            "of the channel's prompts": len(rows) - len(free),
            "train": len(kept) - sum(parts),
            "test": sum(parts),
        }
    written = [PairFile(file=str(out / f"{source.stem}.jsonl")) for source in config.sources]
    shared = shared_prompts(written, config.channel)
    assert not shared, "rows of the channel's prompts were dropped"
    channel = [{"file": Path(one.file).name, "split": one.split, "sha256": digest(one.file)} for one in config.channel]
    whole = {"seed": config.seed, "one_in": config.one_in, "channel": channel, "sources": about, "shared_prompts": 0}
    write_text(out / DESCRIPTION, json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    return whole


def shared_prompts(some: Sequence[PairFile], others: Sequence[PairFile]) -> set[str]:
    """What stands for the prompts that both sides have."""
    first, second = ({one.key for file in files for one in read_prompts(file)} for files in (some, others))
    return first & second


def read_pairs(file: PairFile) -> Iterator[PairRow]:
    """The pairs of a file. Raises UserError naming file, row and field."""
    return _read(file, needed=("chosen", "rejected"))


def read_prompts(file: PairFile) -> Iterator[PairRow]:
    """The rows of a file, of which only the prompts matter. Raises UserError naming file, row and field."""
    return _read(file, needed=())


def _read(file: PairFile, needed: Sequence[str]) -> Iterator[PairRow]:
    for where, row in read_rows(file.file):
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: expected an object with {', '.join(('prompt or messages', *needed))}.")
        for name in needed:
            if not row.get(name):
                raise UserError(f"{where}: {name!r} is missing or empty; expected a pair of answers.")
        if file.split is None or row.get("split") == file.split:
            yield PairRow(prompt_key(row, where), dict(row))


def prompt_key(row: Mapping[str, Any], where: str) -> str:
    """md5 of the prompt's messages without case and white space; a prompt is one user's message."""
    prompt, messages = row.get("prompt"), row.get("messages")
    given = messages if prompt is None else [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        plain = [[one["role"], " ".join(one["content"].split()).casefold()] for one in given or ()]
    except (TypeError, KeyError, AttributeError):
        plain = []
    if not plain:
        raise UserError(f"{where}: no prompt (a text) and no messages (of role and content).")
    return md5(json.dumps(plain, ensure_ascii=False))


def limited(rows: Sequence[PairRow], limit: int, seed: int) -> list[PairRow]:
    """The `limit` rows with the smallest salted md5, in their order; 0 = all."""
    if not limit:
        return list(rows)
    numbers = [md5(f"{seed}:limit:{json.dumps(one.row, ensure_ascii=False)}") for one in rows]
    chosen = set(sorted(range(len(rows)), key=numbers.__getitem__)[:limit])
    return [one for number, one in enumerate(rows) if number in chosen]


def held_out(key: str, config: JudgeData) -> bool:
    """Whether a prompt is in the test part."""
    return int(md5(f"{config.seed}:judge:{key}"), 16) % config.one_in == 0


def md5(text: str) -> str:
    """Hexadecimal digest of a text."""
    return hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def digest(file: str) -> str:
    """sha256 of a file as it is."""
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
