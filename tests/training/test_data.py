"""From files to examples: kinds of files, splits, mixes, limits, the token cache and what is told."""

import dataclasses
import gzip
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sla_jax.checkpoint.staging import SUMS, damage
from sla_jax.errors import UserError
from sla_jax.text import load_tokenizer
from sla_jax.training import data as reading
from sla_jax.training import tiny
from sla_jax.training.data import load_examples
from sla_jax.training.data_config import DataConfig, SourceConfig, Task
from sla_jax.training.examples import Examples, exact_text
from sla_jax.training.sources import mix_rows, open_sources
from tests.damage import flip

GOOD = {"prompt": "hello there", "chosen": "good answer", "rejected": "bad answer"}


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{**GOOD, "prompt": f"question {number}", **more} for number in range(count)]


def write(path: Path, *rows: object) -> str:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return str(path)


class Session:
    """`load_examples` with one tokenizer, and what it said."""

    def __init__(self, tokenizer: Path):
        self.tokenizer = tokenizer
        self.said: list[str] = []
        self.say: Callable[[str], None] = self.said.append
        self.told: list[tuple[int, int]] = []

    def __call__(self, task: Task = "pairs", seed: int = 0, **fields: Any) -> Examples:
        config = DataConfig(**{"heldout": 0, "cache": None, "max_length": 256, "max_prompt_length": 128, **fields})
        return load_examples(
            config,
            task,
            self.tokenizer,
            max_positions=256,
            seed=seed,
            progress=lambda done, total: self.told.append((done, total)),
            say=self.say,
        )

    def prompts(self, examples: Examples) -> list[str]:
        """The user messages, of one turn each."""
        tokenizer = load_tokenizer(self.tokenizer)
        texts = (exact_text(tokenizer, examples[i].prompt.tolist()) for i in range(len(examples)))
        return [text.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0] for text in texts]


@pytest.fixture
def load(tiny_tokenizer_dir: Path) -> Session:
    return Session(tiny_tokenizer_dir)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts rows parsed and rows tokenized."""
    seen: Counter[str] = Counter()
    parse_row, tokenize_rows = reading.parse_row, reading.tokenize_rows

    def parse(row: object, task: Task) -> Any:
        seen["parsed"] += 1
        return parse_row(row, task)

    def tokenize(directory: Path, rows: Any, *rest: Any) -> Any:
        seen["tokenized"] += len(rows)
        return tokenize_rows(directory, rows, *rest)

    monkeypatch.setattr(reading, "parse_row", parse)
    monkeypatch.setattr(reading, "tokenize_rows", tokenize)
    return seen


# ---- kinds of files ----


def as_parquet(path: Path, table: Any) -> None:
    from pyarrow import parquet

    parquet.write_table(table, path, row_group_size=2)


def as_arrow_stream(path: Path, table: Any) -> None:
    from pyarrow import ipc

    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def as_arrow_file(path: Path, table: Any) -> None:
    from pyarrow import ipc

    with ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


TABLES: dict[str, Callable[[Path, Any], None]] = {
    "a.parquet": as_parquet,
    "stream.arrow": as_arrow_stream,
    "file.arrow": as_arrow_file,
}


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_with_other_bytes_is_told_or_read(tmp_path: Path, name: str) -> None:
    """An Arrow file says where its values lie; nothing is read from elsewhere."""
    import pyarrow

    path, table = tmp_path / name, pyarrow.Table.from_pylist(rows(5))
    TABLES[name](path, table)
    whole, told = path.read_bytes(), 0
    for at in range(0, len(whole), 23):
        path.write_bytes(whole[:at] + bytes([255 - whole[at]]) + whole[at + 1 :])
        (source,) = open_sources(DataConfig(files=(str(path),)), 0)
        try:
            assert len(list(source.rows())) <= 5
        except UserError as error:
            told += 1
            assert str(error).startswith(f"{path} is not a readable")
    assert told > 5


def test_every_kind_of_file_holds_the_same(tmp_path: Path, load: Session) -> None:
    import pyarrow

    some = [{**row, "split": split} for row, split in zip(rows(5), ["train", "test", "train", None, "x"], strict=True)]
    files = [write(tmp_path / name, *some) for name in ("a.jsonl", "a.jsonl.gz", "a.json", "b.json.gz")]
    (tmp_path / "list.json").write_text(json.dumps(some, indent=1))
    for name, writer in TABLES.items():
        writer(tmp_path / name, pyarrow.Table.from_pylist(some))
    files += [str(tmp_path / name) for name in ("list.json", *TABLES)]
    found = [load(files=(file,)) for file in files]
    assert {examples.fingerprint() for examples in found} == {found[0].fingerprint()}
    assert {examples.counts["other_split"] for examples in found} == {2}
    assert [examples.origin(1) for examples in found[:1] + found[-1:]] == [f"{files[0]}, line 3", f"{files[-1]}, row 2"]
    assert load.prompts(load(files=tuple(files[:2]))) == [f"question {i}" for i in (0, 2, 3)] * 2


def test_a_local_dataset_is_read_by_split(tmp_path: Path, load: Session) -> None:
    write(tmp_path / "train.jsonl", *rows(3))
    write(tmp_path / "test.jsonl", *rows(2, prompt="other"))
    assert len(load(dataset=str(tmp_path))) == 3
    assert load.prompts(load(dataset=str(tmp_path), split="test")) == ["other"] * 2
    assert len(load(dataset=str(tmp_path), split=None)) == 5
    both = load(dataset=str(tmp_path), heldout_split="test")
    assert both.heldout.tolist() == [False] * 3 + [True] * 2
    assert load(dataset=str(tmp_path), split=None, heldout_split="test").heldout.sum() == 2
    assert both.origin(4) == f"data set {tmp_path}, test row 1"


def test_generated_pairs_are_those_of_the_tiny_preset(load: Session) -> None:
    examples = load(generated=5, seed=3)
    assert load.prompts(examples) == [pair.messages[0]["content"] for pair in tiny.generated_pairs(5, 3)]
    assert examples.origin(2) == "generated pair 2"


def test_the_other_tasks_are_read_too(tmp_path: Path, load: Session) -> None:
    talk = load("sft", files=(write(tmp_path / "a.jsonl", {"prompt": "q", "completion": "a"}),))
    assert talk.answers == 1 and talk.scored.tolist() == talk.answer_lengths.tolist()
    step = {"prompt": "q", "completions": ["a", "b", "c"], "labels": [1, 1, 0]}
    steps = load("steps", files=(write(tmp_path / "b.jsonl", step),), separator="\n\n")
    assert steps.scored.tolist() == [[3]]
    assert steps[0].answers[0].marks[-1] == 0


# ---- which rows ----


def test_a_split_can_be_the_held_out_part(tmp_path: Path, load: Session) -> None:
    file = write(tmp_path / "a.jsonl", *rows(3), *rows(2, split="test"), *rows(1, split="other"))
    examples = load(files=(file,), heldout_split="test")
    assert examples.heldout.tolist() == [False] * 3 + [True] * 2
    assert load.said == [
        "left out 1 rows of other splits than 'train'",
        "2 prompts stand in both the training and the held-out part; held-out figures will flatter",
    ]
    assert load(files=(file,), split=None, heldout_split="test").heldout.sum() == 2


def test_the_held_out_part_is_one_in_k_by_prompt(tmp_path: Path, load: Session) -> None:
    examples = load(files=(write(tmp_path / "a.jsonl", *rows(40), *rows(40)),), heldout=4)
    texts = [json.dumps([{"content": f"question {i}", "role": "user"}]) for i in range(40)]
    hashes = [int(hashlib.md5(f"held out:{text}".encode()).hexdigest(), 16) for text in texts]
    assert examples.heldout.tolist() == [number % 4 == 0 for number in hashes] * 2
    assert examples.groups.tolist() == [number % 2**64 for number in hashes] * 2


def test_limits_keep_the_smallest_hashes_of_each_part_in_file_order(tmp_path: Path, load: Session) -> None:
    file = write(tmp_path / "a.jsonl", *rows(40))
    whole = load(files=(file,), heldout=4)
    examples = load(files=(file,), heldout=4, limit=7, heldout_limit=3)
    prompts = load.prompts(whole)
    keys = []
    for prompt in prompts:
        key = json.dumps([[{"role": "user", "content": prompt}], "good answer", "bad answer"], ensure_ascii=False)
        keys.append(hashlib.md5(f"limit:{key}".encode()).hexdigest())
    expected = []
    for part, limit in ((False, 7), (True, 3)):
        numbers = [i for i in range(40) if whole.heldout[i] == part]
        expected += sorted(numbers, key=lambda i: keys[i])[:limit]
    assert load.prompts(examples) == [prompts[i] for i in sorted(expected)]
    assert examples.counts["left_by_limit"] == 30


def test_a_mix_has_the_proportions_that_it_names(tmp_path: Path, load: Session) -> None:
    one = write(tmp_path / "one.jsonl", *rows(30), *rows(2, split="test", prompt="one test"))
    two = write(tmp_path / "two.jsonl", *rows(10, chosen="another answer"), *rows(9, split="test", prompt="two test"))
    sources = (SourceConfig(files=(one,), weight=2.0), SourceConfig(files=(two,), weight=1.0))
    examples, again, other = (load(sources=sources, heldout_split="test", seed=seed) for seed in (1, 1, 2))
    assert examples.fingerprint() == again.fingerprint() != other.fingerprint()
    part = examples.where[~examples.heldout]
    assert np.bincount(part[:, 0]).tolist() == [20, 10]
    assert (np.diff(part[:20, 1]) > 0).all() and (np.diff(part[20:, 1]) > 0).all()
    assert np.bincount(examples.where[examples.heldout, 0]).tolist() == [2, 9]
    assert examples.counts["left_by_mix"] == 10


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [((30, 10), (1.0, 1.0), [10, 10]), ((10, 10, 10), (3.0, 2.0, 1.0), [10, 6, 3]), ((7, 100), (0.7, 0.3), [7, 3])],
)
def test_mix_counts(sizes: tuple[int, ...], weights: tuple[float, ...], counts: list[int]) -> None:
    chosen = mix_rows(sizes, weights, 0)
    assert [len(numbers) for numbers in chosen] == counts
    assert all(len(set(numbers.tolist())) == len(numbers) for numbers in chosen)


# ---- the cache ----


def test_a_second_run_parses_and_tokenizes_nothing(tmp_path: Path, load: Session, parsed: Counter[str]) -> None:
    file = Path(write(tmp_path / "a.jsonl", *rows(6), "{"))
    fields: dict[str, Any] = {"cache": str(tmp_path / "cache"), "on_bad_row": "skip", "max_bad": 0.5}
    first = load(files=(str(file),), **fields)
    assert parsed == {"parsed": 6, "tokenized": 6}
    moved = file.rename(tmp_path / "b.jsonl")
    again = load(files=(str(moved),), **fields)
    assert parsed == {"parsed": 6, "tokenized": 6}
    assert again.fingerprint() == first.fingerprint()
    assert isinstance(again.tokens, np.memmap)
    assert (first.origin(0), again.origin(0)) == (f"{file}, line 1", f"{moved}, line 1")
    assert dict(again.counts) == dict(first.counts)
    assert [line.replace("b.jsonl", "a.jsonl") for line in load.said[1:]] == load.said[:1]


def test_whatever_decides_the_tokens_is_in_the_key(
    tmp_path: Path, load: Session, parsed: Counter[str], tiny_tokenizer: Any
) -> None:
    file = Path(write(tmp_path / "a.jsonl", *rows(6), *rows(2, split="test")))
    fields: dict[str, Any] = {"cache": str(tmp_path / "cache"), "files": (str(file),)}
    load(**fields)
    changes: list[dict[str, Any]] = [
        *({"split": None}, {"heldout_split": "test"}, {"heldout": 2}, {"limit": 3}, {"heldout": 2, "heldout_limit": 1}),
        *(
            {"max_length": 99, "max_prompt_length": 9},
            {"max_prompt_length": 9},
            {"on_bad_row": "skip"},
            {"max_bad": 0.2},
        ),
    ]
    for count, change in enumerate(changes, start=2):
        load(**{**fields, **change})
        assert len(list((tmp_path / "cache").glob("*.lock"))) == count
    made = parsed["parsed"]
    load(workers=1, **fields)
    load(length_pool=3, **fields)
    load(seed=5, **fields)
    assert parsed["parsed"] == made
    file.write_text(file.read_text().replace("good", "fine"))
    load(**fields)
    assert parsed["parsed"] > made
    made = parsed["parsed"]
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    load.tokenizer = tmp_path / "tokenizer"
    load(**fields)
    assert parsed["parsed"] == made
    template = tmp_path / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    load(**fields)
    assert parsed["parsed"] > made


def test_a_killed_run_leaves_no_cache(tmp_path: Path, load: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"cache": str(tmp_path / "cache"), "files": (write(tmp_path / "a.jsonl", *rows(3)),)}
    save = Examples.save

    def killed(self: Examples, folder: Path) -> None:
        save(self, folder)
        (folder / "tokens.npy").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(Examples, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        load(**fields)
    monkeypatch.setattr(Examples, "save", save)
    assert len(load(**fields)) == 3
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == ["", ".lock"]


def test_a_cache_that_was_damaged_is_named_and_made_anew(tmp_path: Path, load: Session, parsed: Counter[str]) -> None:
    fields: dict[str, Any] = {"cache": str(tmp_path / "cache"), "files": (write(tmp_path / "a.jsonl", *rows(3)),)}
    whole = load(**fields).fingerprint()
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    once = parsed["parsed"]
    for name in ("tokens.npy", "facts.json", SUMS):
        flip(folder / name)
        load.said.clear()
        assert load(**fields).fingerprint() == whole
        assert any("the token cache is made anew" in said and name in said for said in load.said)
    (folder / SUMS).unlink()  # an older release's
    load(**fields)
    assert parsed["parsed"] == 5 * once and damage(folder) is None
    load(**fields)
    assert parsed["parsed"] == 5 * once


def test_a_second_writer_waits_for_the_first(tmp_path: Path, load: Session, parsed: Counter[str]) -> None:
    """The first holds the lock inside `progress` until the second has said that it waits."""
    waiting, second = threading.Event(), Session(load.tokenizer)
    fields: dict[str, Any] = {"cache": str(tmp_path / "cache"), "files": (write(tmp_path / "a.jsonl", *rows(3)),)}
    config = DataConfig(heldout=0, max_length=256, max_prompt_length=128, **fields)
    found: list[Examples] = []
    other = threading.Thread(target=lambda: found.append(second(**fields)))

    def hear(line: str) -> None:
        second.said.append(line)
        waiting.set()

    def progress(done: int, total: int) -> None:
        other.start()
        assert waiting.wait(60)

    second.say = hear
    first = load_examples(
        config, "pairs", load.tokenizer, max_positions=256, seed=0, progress=progress, say=load.said.append
    )
    other.join()
    assert second.said == ["another process is tokenizing the same data; waiting for it"]
    assert found[0].fingerprint() == first.fingerprint()
    assert parsed["tokenized"] == 3


# ---- what is told ----


def test_what_is_left_out_and_cut_is_told_and_counted(tmp_path: Path, load: Session) -> None:
    long = {**GOOD, "prompt": "very " * 300, "chosen": "yes " * 300}
    file = write(tmp_path / "a.jsonl", *rows(5), long, {**GOOD, "chosen": 3}, "", "\r", *rows(2, split="test"))
    examples = load(files=(file,), on_bad_row="skip", max_bad=0.4)
    assert load.said == [
        f"skipped 1 rows: 'chosen' is not text but a number (first: {file}, line 7)",
        "left out 2 rows of other splits than 'train'",
        "shortened 1 prompts (on the left)",
        "shortened 1 responses (at the end)",
    ]
    wanted = {"read": 9, "other_split": 2, "bad": 1, "empty": 0, "cut_prompts": 1, "cut_answers": 1, "rows": 6}
    assert {name: examples.counts[name] for name in wanted} == wanted
    assert load.told == [(6, 6)]


def test_empty_rows_are_counted_and_fatal_beyond_the_limit(tmp_path: Path, load: Session) -> None:
    short = {"prompt": "q", "completions": ["a"], "labels": [1]}
    file = write(tmp_path / "a.jsonl", *[short] * 9, {**short, "completions": ["word " * 300]})
    examples = load("steps", files=(file,), max_bad=0.1)
    assert (len(examples), examples.counts["empty"], examples.counts["cut_labels"]) == (9, 1, 1)
    assert load.said[0] == f"skipped 1 rows: no scored token is left (first: {file}, line 10)"
    with pytest.raises(UserError, match=r"1 of 10 rows cannot be used, more than data.max_bad=0.05.*line 10"):
        load("steps", files=(file,), max_bad=0.05)


def test_every_setting_is_either_in_the_key_or_known_not_to_matter() -> None:
    fields = {field.name for field in dataclasses.fields(DataConfig)}
    elsewhere = {"files", "dataset", "subset", "generated", "sources"}  # stand in the key by their contents
    assert fields == {*reading.DECIDING, *elsewhere, "workers", "cache", "length_pool"}
