"""Conversations with their answers as padded rows, batched by length: what scorers that read with a model share."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sla_jax.decode.program import bucket
from sla_jax.errors import UserError
from sla_jax.loading import Loaded
from sla_jax.scoring.candidate import Candidate
from sla_jax.text import chat_ids, response_ids

BATCH_TOKENS = 1024  # of one batch, padding included; what the last batch of a length leaves empty is computed too
Reader = Callable[[np.ndarray], np.ndarray]


class Row(NamedTuple):
    """A candidate as the scoring model reads it, in that model's own tokens."""

    ids: list[int]  # prompt and answer
    places: list[int]  # the tokens at which its values count


def answer_row(model: Loaded, candidate: Candidate) -> Row:
    """The candidate under the model's chat template; the values of all its answer's tokens count.

    The end-of-turn token is read only if the answer ended; an answer without any token is the prompt's last one."""
    if not candidate.text:
        prompt = chat_ids(model.tokenizer, candidate.messages)
        return Row(prompt, [len(prompt) - 1])
    prompt, answer = response_ids(model.tokenizer, candidate.messages, candidate.text)
    if not candidate.finished and len(answer) > 1 and answer[-1] in model.end_tokens:
        answer = answer[:-1]
    ids = [*prompt, *answer]
    return Row(ids, list(range(len(prompt), len(ids))))


def check_context(model: Loaded, rows: Sequence[Row]) -> None:
    """Raise UserError if a row is longer than the model's context."""
    context = model.config.max_positions
    longest = max((len(row.ids) for row in rows), default=0)
    if longest > context:
        raise UserError(
            f"an answer and its conversation have {longest} tokens for the scoring model, whose context holds "
            f"{context}. Lower max_prompt_tokens or max_tokens, or name another scorer."
        )


def read(rows: Sequence[Row], reader: Reader) -> list[np.ndarray]:
    """The values at every row's places, float64 [P]: `reader(tokens [B, T]) -> values [B, T]` over all rows.

    Rows of one batch have one bucketed length, and a batch of a length always has the same B, so that a length is
    compiled once; what the last batch leaves empty is zeros.
    """
    found: dict[int, np.ndarray] = {}
    for group, size, length in _groups(rows):
        tokens = np.zeros((size, length), np.int32)
        for i, number in enumerate(group):
            tokens[i, : len(rows[number].ids)] = rows[number].ids
        values = np.asarray(reader(tokens), np.float64)
        found |= {number: values[i, rows[number].places] for i, number in enumerate(group)}
    return [found[number] for number in range(len(rows))]


def _groups(rows: Sequence[Row]) -> Iterator[tuple[list[int], int, int]]:
    """(row numbers, B, T) of each batch."""
    by_length: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_length.setdefault(bucket(len(row.ids)), []).append(number)
    for length, numbers in sorted(by_length.items()):
        size = max(1, BATCH_TOKENS // length)
        yield from ((numbers[i : i + size], size, length) for i in range(0, len(numbers), size))
