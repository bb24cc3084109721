"""A text and what a model thought of its tokens, as one line of JSON; and the numbers that figures are made of.

A number that was float32 is written with the fewest digits that give the same float32 back.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sla_jax.errors import UserError
from sla_jax.evaluation.entropy.reader import Reading
from sla_jax.evaluation.entropy.texts import Text
from sla_jax.evaluation.entropy.tokens import Tokens
from sla_jax.files import read_rows


class Counted(NamedTuple):
    """The tokens of one row that figures are of: n of them."""

    position: np.ndarray  # in the row
    entropy: np.ndarray
    loss: np.ndarray
    correct: np.ndarray
    reward: np.ndarray | None
    bytes: int


def row(text: Text, tokens: Tokens, reading: Reading, names: Sequence[str], *, top: int) -> dict[str, Any]:
    """The row; every list has one entry a token. Raises UserError for numbers that are none."""
    _check(text, tokens, reading)
    ids = np.asarray(tokens.ids)
    first, end = max(tokens.counted[0], 1), tokens.counted[1]
    losses = reading.loss[first:end].astype(np.float64)
    found: dict[str, Any] = {
        "id": text.id,
        "text": tokens.text,
        "tokens": [names[i] for i in tokens.ids],
        "token_ids": tokens.ids,
        "offsets": [list(span) for span in tokens.spans],
        "counted": list(tokens.counted),
        "entropy": _but_the_first(_numbers(reading.entropy)),
        "pred_tokens": _but_the_first([names[i] for i in reading.ids[:, 0]]),
        "correct": _but_the_first((reading.ids[:, 0] == ids).tolist()),
        "losses": _but_the_first(_numbers(reading.loss)),
        "loss": float(losses.mean()) if losses.size else None,
        "bytes": _bytes(tokens, first, end),
    }
    if top:
        chances = np.exp(reading.logprobs)
        pairs = ([[names[i], p] for i, p in zip(*one, strict=True)] for one in _tops(reading.ids, chances, top))
        found["top"] = _but_the_first(list(pairs))
    if reading.rewards is not None:
        found["rewards"] = _numbers(reading.rewards)
    return found


def read_counted(path: Path) -> Iterator[Counted]:
    """What figures are made of, row by row. Raises UserError that names the line and the field."""
    for place, line in read_rows(path):
        try:
            yield _counted(line)
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{place}: this is no row of eval.py entropy: {reason}.") from None


def _counted(line: dict[str, Any]) -> Counted:
    first, end = max(line["counted"][0], 1), line["counted"][1]
    if end > len(line["entropy"]):
        raise ValueError(f"'counted' ends at {end} of {len(line['entropy'])} tokens")

    def numbers(name: str) -> np.ndarray:
        values = np.asarray(line[name][first:end], np.float64)
        if len(values) != max(end - first, 0) or not np.isfinite(values).all():
            raise ValueError(f"{name!r} has to be a number for each of the tokens {first} to {end}")
        return values

    return Counted(
        position=np.arange(first, end, dtype=np.float64),
        entropy=numbers("entropy"),
        loss=numbers("losses"),
        correct=numbers("correct"),
        reward=numbers("rewards") if "rewards" in line else None,
        bytes=int(line["bytes"]),
    )


def _check(text: Text, tokens: Tokens, reading: Reading) -> None:
    values = {"entropy": reading.entropy[1:], "loss": reading.loss[1:]}
    if reading.rewards is not None:
        values["reward"] = reading.rewards
    for name, numbers in values.items():
        bad = np.flatnonzero(~np.isfinite(numbers))
        if bad.size:
            at = int(bad[0]) + len(tokens.ids) - len(numbers)
            raise UserError(
                f"{text.where}: the model's {name} at token {at} is {float(numbers[bad[0]])}, which is no number to "
                "go on with; are the checkpoint's parameters whole, and is its type (--dtype) wide enough?"
            )


def _bytes(tokens: Tokens, first: int, end: int) -> int:
    """Of the characters that the tokens [first, end) stand for."""
    if first >= end:
        return 0
    return len(tokens.text[tokens.spans[first][0] : tokens.spans[end - 1][1]].encode())


def _but_the_first(values: list[Any]) -> list[Any]:
    return [None, *values[1:]] if values else []


def _numbers(values: np.ndarray) -> list[float]:
    return [float(str(value)) for value in values.astype(np.float32)]


def _tops(ids: np.ndarray, chances: np.ndarray, top: int) -> Iterator[tuple[list[int], list[float]]]:
    return ((one[:top].tolist(), _numbers(p[:top])) for one, p in zip(ids, chances, strict=True))
