"""Conversations with their answers as padded rows, batched by length: what scorers that read with a model share.

Answers to one prompt stand in one row, `prompt | answer | answer | … | padding`, each reading the prompt and itself
alone (`forward.Branches`): the prompt is computed once. Of twelve answers of 64 tokens behind a prompt of 150 that
leaves 0.36 of the tokens.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sla_jax.decode.program import bucket
from sla_jax.errors import UserError
from sla_jax.loading import Loaded
from sla_jax.scoring.candidate import Candidate
from sla_jax.text import chat_ids, check_vocabulary, decode, response_ids

BATCH_TOKENS = 1024  # of one batch, padding included; what the last batch of a length leaves empty is computed too
SHARED_TOKENS = 1024  # of one prompt and the answers that stand behind it in one row
Ids = Any  # int32 [B, T]: np.ndarray while it is built, jax.Array in a program


class Batch(NamedTuple):
    """Padded rows of prompts with their answers; of numpy, or of JAX inside a program."""

    tokens: Ids
    positions: Ids  # of each token in its own text: every answer goes on where the prompt ends
    branch: Ids  # 0 for the prompt, 1, 2, … for the answers
    before: Ids  # the column of the token in front of each in its own text


Reader = Callable[[Batch], np.ndarray]


class Row(NamedTuple):
    """A candidate as the scoring model reads it, in that model's own tokens."""

    ids: list[int]  # prompt and answer
    places: list[int]  # the tokens at which its values count
    prompt: int = 0  # how many of `ids` are the prompt, which is read once for all rows that begin with it


class Pack(NamedTuple):
    """Rows of one prompt that are read side by side."""

    prompt: int
    members: list[int]  # row numbers
    columns: list[int]  # where each one's answer begins
    length: int


def answer_row(model: Loaded, candidate: Candidate) -> Row:
    """The candidate under the model's chat template; the values of all its answer's tokens count.

    The end-of-turn token is read only if the answer ended; an answer without any token is the prompt's last one."""
    if not candidate.text:
        prompt = chat_ids(model.tokenizer, candidate.messages)
        return Row(prompt, [len(prompt) - 1], len(prompt))
    prompt, answer = response_ids(model.tokenizer, candidate.messages, candidate.text)
    if not candidate.finished and len(answer) > 1 and answer[-1] in model.end_tokens:
        answer = answer[:-1]
    ids = [*prompt, *answer]
    return Row(ids, list(range(len(prompt), len(ids))), len(prompt))


def check_rows(model: Loaded, rows: Sequence[Row]) -> None:
    """Raise UserError if a row is longer than the model's context, or has a token that it has no embedding for."""
    context, vocabulary = model.config.max_positions, model.config.vocab_size
    for row in rows:
        if max(row.ids, default=0) >= vocabulary:
            begin = decode(model.tokenizer, row.ids)[:60]
            check_vocabulary(model.tokenizer, row.ids, vocabulary, f"the conversation that begins with {begin!r}")
    longest = max((len(row.ids) for row in rows), default=0)
    if longest > context:
        raise UserError(
            f"an answer and its conversation have {longest} tokens for the scoring model, whose context holds "
            f"{context}. Lower max_prompt_tokens or max_tokens, or name another scorer."
        )


def read(rows: Sequence[Row], reader: Reader) -> list[np.ndarray]:
    """The values at every row's places, float64 [P]: `reader(batch) -> values [B, T]` over all rows.

    Packs of one batch have one bucketed length, and a batch of a length always has the same B, so that a length is
    compiled once; what the last batch leaves empty is zeros.
    """
    found: dict[int, np.ndarray] = {}
    for group, size, length in _groups(packs(rows)):
        values = np.asarray(reader(_batch(rows, group, size, length)), np.float64)
        for line, pack in enumerate(group):
            for number, column in zip(pack.members, pack.columns, strict=True):
                places = np.asarray(rows[number].places)
                found[number] = values[line, np.where(places < pack.prompt, places, places - pack.prompt + column)]
    return [found[number] for number in range(len(rows))]


def packs(rows: Sequence[Row]) -> list[Pack]:
    """Which rows are read side by side: those of one prompt, evenly over as few packs as SHARED_TOKENS allows."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        alone = (-1, number)  # no prompt's ids
        by_prompt.setdefault(tuple(row.ids[: row.prompt]) or alone, []).append(number)
    found = []
    for numbers in by_prompt.values():
        prompt = rows[numbers[0]].prompt
        longest = max(len(rows[number].ids) - prompt for number in numbers)
        most = max(1, (SHARED_TOKENS - prompt) // max(1, longest))
        size = math.ceil(len(numbers) / math.ceil(len(numbers) / most))
        found += [_pack(rows, prompt, numbers[i : i + size]) for i in range(0, len(numbers), size)]
    return found


def _pack(rows: Sequence[Row], prompt: int, members: list[int]) -> Pack:
    columns, end = [], prompt
    for number in members:
        columns.append(end)
        end += len(rows[number].ids) - prompt
    return Pack(prompt, members, columns, end)


def _groups(found: Sequence[Pack]) -> Iterator[tuple[list[Pack], int, int]]:
    """(packs, B, T) of each batch."""
    by_length: dict[int, list[Pack]] = {}
    for pack in found:
        by_length.setdefault(bucket(pack.length), []).append(pack)
    for length, group in sorted(by_length.items()):
        size = max(1, BATCH_TOKENS // length)
        yield from ((group[i : i + size], size, length) for i in range(0, len(group), size))


def _batch(rows: Sequence[Row], group: Sequence[Pack], size: int, length: int) -> Batch:
    batch = Batch(*(np.zeros((size, length), np.int32) for _ in Batch._fields))
    for line, pack in enumerate(group):
        _write(batch, line, slice(0, pack.prompt), rows[pack.members[0]].ids[: pack.prompt], 0, 0)
        for branch, (number, column) in enumerate(zip(pack.members, pack.columns, strict=True), 1):
            answer = rows[number].ids[pack.prompt :]
            _write(batch, line, slice(column, column + len(answer)), answer, pack.prompt, branch)
    return batch


def _write(batch: Batch, line: int, columns: slice, ids: Sequence[int], start: int, branch: int) -> None:
    """A part of a row whose first token has the position `start`; in front of it stands the prompt's last one."""
    count = len(ids)
    batch.tokens[line, columns] = ids
    batch.positions[line, columns] = np.arange(start, start + count)
    batch.branch[line, columns] = branch
    batch.before[line, columns] = np.arange(columns.start - 1, columns.start + count - 1)
    if count:
        batch.before[line, columns.start] = max(start - 1, 0)
