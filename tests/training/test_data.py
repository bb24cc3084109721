"""Rows, bad rows, truncation, order and batches."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sla_jax.errors import UserError
from sla_jax.training import batches, data
from sla_jax.training.batches import NO_PAIR, TokenPair, TokenPairs
from sla_jax.training.data import Pair

GOOD = {"prompt": "hello there", "chosen": "good answer", "rejected": "bad answer"}


def write(path: Path, *rows: object) -> str:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return str(path)


def test_every_form_of_a_row(tmp_path: Path) -> None:
    user = [{"role": "user", "content": "hello there"}]
    answers = {name: [*user, {"role": "assistant", "content": GOOD[name]}] for name in ("chosen", "rejected")}
    forms = [
        GOOD,
        {**GOOD, "prompt": user},
        {"messages": user, "chosen": GOOD["chosen"], "rejected": GOOD["rejected"]},
        answers,
    ]
    rows = data.read_files((write(tmp_path / "a.jsonl", *forms),), None, "raise")
    assert rows.pairs == [Pair(user, "good answer", "bad answer")] * 4


def test_parquet_and_gzip_hold_the_same(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{**GOOD, "split": split} for split in ("train", "test", "train")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    packed = write(tmp_path / "a.jsonl.gz", *rows)
    one = data.read_files((str(tmp_path / "a.parquet"),), "train", "raise")
    two = data.read_files((packed,), "train", "raise")
    assert one == two
    assert (len(one.pairs), one.other_split) == (2, 1)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ("", "empty line"),
        ([1], "not a JSON object"),
        ({"prompt": "a", "chosen": "b"}, "no 'rejected' field"),
        ({**GOOD, "chosen": " "}, "'chosen' is empty"),
        ({**GOOD, "chosen": 3}, "'chosen' is not text"),
        ({**GOOD, "chosen": "bad answer"}, "the same text"),
        ({"chosen": "a", "rejected": "b"}, "neither 'prompt' nor 'messages'"),
        ({**GOOD, "messages": []}, "both 'prompt' and 'messages'"),
        ({**GOOD, "prompt": ""}, "'prompt' is not a non-empty text"),
        ({**GOOD, "prompt": [{"role": "robot", "content": ""}]}, "the role 'robot'"),
        ({**GOOD, "prompt": [{"role": "assistant", "content": "x"}]}, "the assistant's own"),
    ],
)
def test_a_bad_row_is_named_or_counted(tmp_path: Path, row: object, reason: str) -> None:
    file = write(tmp_path / "a.jsonl", GOOD, row, GOOD)
    with pytest.raises(UserError, match="line 2") as caught:
        data.read_files((file,), None, "raise")
    assert reason in str(caught.value)
    rows = data.read_files((file,), None, "skip")
    assert len(rows.pairs) == 2
    assert sum(rows.bad.values()) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole = Path(write(tmp_path / "a.jsonl.gz", *[{**GOOD, "prompt": str(i)} for i in range(500)])).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    empty = write(tmp_path / "empty.jsonl")
    for name, said in (
        (tmp_path / "cut.jsonl.gz", "cannot be read behind line"),
        (tmp_path / "a.parquet", "not a readable Parquet"),
        (tmp_path / "none.jsonl", "no data file"),
        (tmp_path, "no data file"),
        (empty, "holds no pair"),
    ):
        with pytest.raises(UserError, match=said):
            data.read_files((str(name),), None, "raise")


def test_a_dataset_that_is_not_there_says_what_to_do() -> None:
    with pytest.raises(UserError, match="--data.files"):
        data.read_dataset("nobody/no-such-set", None, "train", "raise")


def test_a_local_dataset_is_read(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD, {**GOOD, "prompt": "other"})
    rows = data.read_dataset(str(tmp_path), None, "train", "raise")
    assert [pair.chosen for pair in rows.pairs] == ["good answer"] * 2


def test_held_out_goes_by_prompt() -> None:
    pairs = [Pair([{"role": "user", "content": str(i // 2)}], "a", "b") for i in range(2000)]
    held = [data.held_out(pair, 5) for pair in pairs]
    assert held[::2] == held[1::2]
    assert 0.15 < np.mean(held) < 0.25
    assert not any(data.held_out(pair, 0) for pair in pairs)


def test_truncation_keeps_the_last_turn_and_cuts_left(tiny_tokenizer) -> None:
    turns = [
        {"role": "user", "content": "first " * 20},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "last"},
    ]
    pair = Pair(turns, "yes", "no " * 30)
    whole = batches.tokenize(tiny_tokenizer, [pair], 10_000, 9_999).pairs[0]
    last_turn = len(batches.chat_ids(tiny_tokenizer, turns[-1:]))
    assert len(whole.prompt) > last_turn + 10
    limit = len(whole.rejected) + last_turn + 5
    cut = batches.tokenize(tiny_tokenizer, [pair], limit, limit - 1)
    assert (cut.cut_prompts, cut.cut_responses) == (1, 0)
    assert cut.pairs[0].prompt.tolist() == whole.prompt[-(last_turn + 5) :].tolist()
    tight = batches.tokenize(tiny_tokenizer, [pair], last_turn + 4, last_turn + 3)
    assert tight.cut_responses == 1
    assert tight.pairs[0].prompt.tolist() == whole.prompt[-last_turn:].tolist()
    assert tight.pairs[0].rejected.tolist() == whole.rejected[:4].tolist()


def test_an_epoch_holds_every_pair_once_in_an_order_of_its_own() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, size=1003).tolist()
    first, again, second = (batches.epoch_order(lengths, 8, 16, 1, epoch) for epoch in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    assert Counter(first[first != NO_PAIR].tolist()) == Counter(range(1003))
    assert first.shape == (batches.steps_per_epoch(1003, 8), 8)
    padded = sum(8 * max(lengths[i] for i in step if i != NO_PAIR) for step in first)
    assert padded < 1.15 * sum(lengths)


def test_forward_batches_hold_every_pair_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 900, size=500).tolist()
    todo = np.arange(0, 500, 2)
    groups = batches.forward_batches(lengths, todo, 2048, 4)
    assert sorted(i for group in groups for i in group if i != NO_PAIR) == todo.tolist()
    for group in groups:
        assert len(group) % 4 == 0
        longest = max(lengths[i] for i in group if i != NO_PAIR)
        assert len(group) == batches.rows_per_pass(longest, 2048, 4)


def test_buckets_cover_and_are_few() -> None:
    sizes = [batches.bucket(n) for n in range(1, 1025)]
    assert all(size >= n for n, size in zip(range(1, 1025), sizes, strict=True))
    assert sorted(set(sizes)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]


def test_fingerprints_tell_boundaries_apart() -> None:
    ids = np.arange(6, dtype=np.int32)
    one, two = (TokenPairs([TokenPair(ids[:cut], ids[cut:5], ids[5:])], 0, 0) for cut in (2, 3))
    assert one.fingerprint() != two.fingerprint()
