"""What a scoring model has read of one request's candidates: their tokens, the values at them, their keys and values.

A candidate comes again longer than it was, and not quite as it was: its chat template's end of turn is no longer where
it stood, and the last tokens of its text may have become others. So what is kept of a text is exactly the longest
common prefix of its token ids with any text that was read the last time; whose candidate that was does not matter. What
texts have in common when they are read for the first time, the prompt, is read once.

New tokens are read in slices of a fixed length and texts are counted in powers of two, so the shapes (texts, capacity)
are few, and with them the compiled programs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sla_jax.decode.program import bucket
from sla_jax.model import rereading
from sla_jax.scoring.rows import Row

SLICE = 64  # tokens of every text that are read together
NOTHING = -1  # no token's id
# (tokens [B, T], starts [B], keys and values) → values [B, T], longer keys and values
Rereader = Callable[[np.ndarray, np.ndarray, Any], tuple[Any, Any]]
fork = jax.jit(rereading.fork, static_argnums=2)


class Memory:
    """The texts of the last time. `tokens_read` counts every token that the model has read, once."""

    def __init__(self, blank: Callable[[int, int], Any], rereader: Rereader):
        self.tokens_read = 0
        self._blank, self._rereader = blank, rereader
        self._kept: Any = None
        self._ids = np.zeros((0, 0), np.int32)  # [M, S], NOTHING behind each text
        self._values = np.zeros((0, 0), np.float64)

    def read(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """The values at every row's places, float64 [P]. These texts are what is remembered from now on."""
        texts = [np.asarray(row.ids, np.int32) for row in rows]
        if not texts:
            return []
        if self._kept is None and len(texts) > 1:
            shared = common_prefix(texts)
            if len(shared):
                self._advance([shared])
        self._advance(texts)
        return [self._values[i, row.places] for i, row in enumerate(rows)]

    def _advance(self, texts: Sequence[np.ndarray]) -> None:
        """Go from the texts of the last time to these."""
        lengths = np.array([len(text) for text in texts])
        near = [self._nearest(text) for text in texts]
        parents, starts = (np.array(column) for column in zip(*near, strict=True))
        capacity = max(bucket(int(lengths.max()) + SLICE), self._ids.shape[1])
        size = 1 << (len(texts) - 1).bit_length()
        ids = np.full((len(texts), capacity), NOTHING, np.int32)
        values = np.zeros((len(texts), capacity))
        for i, text in enumerate(texts):
            ids[i, : len(text)] = text
            values[i, : starts[i]] = self._values[parents[i], : starts[i]] if starts[i] else 0.0
        self._keep(np.pad(parents, (0, size - len(texts))), size, capacity)
        for begin in range(0, int((lengths - starts).max()), SLICE):
            self._slice(ids, values, np.minimum(starts + begin, lengths), lengths, size)
        self.tokens_read += int((lengths - starts).sum())
        self._ids, self._values = ids, values

    def _nearest(self, text: np.ndarray) -> tuple[int, int]:
        """(which text of the last time, how many of its tokens this one begins with)."""
        known = min(len(text), self._ids.shape[1])
        if not len(self._ids) or not known:
            return 0, 0
        differs = self._ids[:, :known] != text[None, :known]
        same = np.where(differs.any(axis=1), differs.argmax(axis=1), known)
        best = int(same.argmax())
        return best, int(same[best])

    def _keep(self, parents: np.ndarray, size: int, capacity: int) -> None:
        if self._kept is None:
            self._kept = self._blank(size, capacity)
        else:
            self._kept = fork(self._kept, jnp.asarray(parents), capacity)

    def _slice(self, ids: np.ndarray, values: np.ndarray, at: np.ndarray, lengths: np.ndarray, size: int) -> None:
        """Read SLICE tokens of every text from `at` on; what lies past a text's end is read and forgotten."""
        tokens, starts = np.zeros((size, SLICE), np.int32), np.zeros(size, np.int32)
        counts = np.minimum(lengths - at, SLICE)
        for i, (start, count) in enumerate(zip(at, counts, strict=True)):
            tokens[i, :count], starts[i] = ids[i, start : start + count], start
        read, self._kept = self._rereader(tokens, starts, self._kept)
        found = np.asarray(read, np.float64)
        for i, (start, count) in enumerate(zip(at, counts, strict=True)):
            values[i, start : start + count] = found[i, :count]


def common_prefix(texts: Sequence[np.ndarray]) -> np.ndarray:
    """The tokens that all texts begin with."""
    shortest = min(len(text) for text in texts)
    same = np.all([text[:shortest] == texts[0][:shortest] for text in texts], axis=0)
    return texts[0][: shortest if same.all() else int(same.argmin())]
