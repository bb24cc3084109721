"""One forward pass over a given text: a reward and a log-probability for every token (`/v1/rewards`, `echo`)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sla_jax.serving.reader import Look, Reader, Reading, look
from sla_jax.serving.request import Inspected, Inspection, Top


class Inspector:
    """Reads whole texts with the reader's programs, keeping what each position said."""

    def __init__(self, reader: Reader, *, tops: int, has_channel: bool):
        self.reader, self.tops, self.has_channel = reader, tops, has_channel

    def start(self, inspection: Inspection) -> Callable[[], Inspected]:
        """Dispatch the pass; what is returned waits for it."""
        tokens = inspection.tokens
        reading = Reading(tokens, 0, 0, None)
        pieces: list[tuple[Any, Look]] = []
        while reading.at < len(tokens):
            start = reading.at
            piece = self.reader.step(reading)
            pieces.append((piece.reward, self._look(piece.hidden, tokens[start + 1 : reading.at + 1])))
        return lambda: self._result(pieces, inspection)

    def warm_up(self) -> None:
        """Compile what reading prompts has not."""
        for size in self.reader.sizes.pieces:
            tokens = tuple([0] * size)
            self.start(Inspection(id="", tokens=tokens))()

    def _look(self, hidden: Any, following: tuple[int, ...]) -> Look:
        padded = np.zeros((1, hidden.shape[1]), np.int32)
        padded[0, : len(following)] = following
        return look(self.reader.params, hidden, padded, tops=self.tops)

    def _result(self, pieces: list[tuple[Any, Look]], inspection: Inspection) -> Inspected:
        count = len(inspection.tokens)
        fetched = jax.device_get(pieces)
        rewards = _joined([reward for reward, _ in fetched])[:count]
        logprobs, ids, best = (_joined([getattr(one, name) for _, one in fetched]) for name in Look._fields)
        known: list[float | None] = [None, *logprobs[: count - 1].tolist()]
        wanted = inspection.top_logprobs
        tops: list[Top] = [
            [],
            *(list(zip(i[:wanted], p[:wanted], strict=True)) for i, p in _rows(ids, best, count - 1)),
        ]
        return Inspected(rewards.tolist() if self.has_channel else None, known, tops)


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    """[1, T] or [1, T, A] of every piece, one behind the other. Only the last piece is padded."""
    return np.concatenate(pieces, axis=1)[0]


def _rows(ids: np.ndarray, best: np.ndarray, count: int) -> list[tuple[list[int], list[float]]]:
    return list(zip(ids[:count].tolist(), best[:count].tolist(), strict=True))
