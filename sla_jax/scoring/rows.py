"""Conversations with their answers as padded rows, batched by length: what scorers that read with a model share."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sla_jax.decode.program import bucket
from sla_jax.errors import UserError
from sla_jax.loading import Loaded
from sla_jax.scoring.candidate import Candidate
from sla_jax.text import chat_ids, response_ids

BATCH_TOKENS = 4096  # of one batch, padding included
Reader = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Row(NamedTuple):
    """A candidate as the scoring model reads it, in that model's own tokens."""

    prompt: int  # tokens before the answer
    ids: list[int]  # prompt and answer


def rows_of(model: Loaded, candidates: Sequence[Candidate]) -> list[Row]:
    """The candidates under the model's chat template. Raises UserError if one is longer than the context."""
    rows = [_row(model, candidate) for candidate in candidates]
    context = model.config.max_positions
    longest = max((len(row.ids) for row in rows), default=0)
    if longest > context:
        raise UserError(
            f"an answer and its conversation have {longest} tokens for the scoring model, whose context holds "
            f"{context}. Lower max_prompt_tokens or max_tokens, or name another scorer."
        )
    return rows


def _row(model: Loaded, candidate: Candidate) -> Row:
    """The end-of-turn token is read only if the answer ended; an answer without any token is the prompt alone."""
    if not candidate.text:
        prompt = chat_ids(model.tokenizer, candidate.messages)
        return Row(len(prompt) - 1, prompt)
    prompt, answer = response_ids(model.tokenizer, candidate.messages, candidate.text)
    if not candidate.finished and len(answer) > 1 and answer[-1] in model.end_tokens:
        answer = answer[:-1]
    return Row(len(prompt), [*prompt, *answer])


def read(rows: Sequence[Row], reader: Reader) -> list[float]:
    """`reader(tokens [B, T], starts [B], ends [B]) -> values [B]` over all rows; answers are tokens[start:end].

    Rows of one batch have one bucketed length, and a batch of a length always has the same B, so that a length is
    compiled once; what the last batch leaves empty is rows of one token.
    """
    values = np.zeros(len(rows), np.float64)
    for group, size, length in _groups(rows):
        tokens = np.zeros((size, length), np.int32)
        starts, ends = np.zeros(size, np.int32), np.ones(size, np.int32)
        for i, number in enumerate(group):
            row = rows[number]
            tokens[i, : len(row.ids)] = row.ids
            starts[i], ends[i] = row.prompt, len(row.ids)
        values[group] = np.asarray(reader(tokens, starts, ends), np.float64)[: len(group)]
    return values.tolist()


def _groups(rows: Sequence[Row]) -> Iterator[tuple[list[int], int, int]]:
    """(row numbers, B, T) of each batch."""
    by_length: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_length.setdefault(bucket(len(row.ids)), []).append(number)
    for length, numbers in sorted(by_length.items()):
        size = max(1, BATCH_TOKENS // length)
        yield from ((numbers[i : i + size], size, length) for i in range(0, len(numbers), size))
