"""Texts of any length read by a model: in windows that overlap, batched by length, in few compiled shapes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from sla_jax.decode.program import bucket
from sla_jax.errors import UserError
from sla_jax.evaluation.entropy.device import Read, read
from sla_jax.loading import Loaded

LONGEST = 2048  # tokens of a window, if the model's context is longer and none is asked for


class Window(NamedTuple):
    """Tokens [start, end) of a text, of which those from `new` on are looked at; the others are their context."""

    start: int
    end: int
    new: int


class Reading(NamedTuple):
    """What a model thought of every token of a text, before it came. The first token has none: NaN, and id -1."""

    entropy: np.ndarray  # [T]
    loss: np.ndarray  # [T]
    ids: np.ndarray  # [T, A]
    logprobs: np.ndarray  # [T, A]
    rewards: np.ndarray | None  # [T], after the token was read; without a channel None


def windows(count: int, size: int, overlap: int) -> list[Window]:
    """Windows of `size` tokens, each beginning `overlap` or more before the tokens that are new to it.

    The last one is moved back to be as long as the others, so its new tokens have more context, never less.
    """
    found, new = list[Window](), 0
    while new < count:
        end = min(new + size - (overlap if new else 0), count)
        found.append(Window(max(0, end - size), end, new))
        new = end
    return found


class TextReader:
    """Reads token ids with one model. Raises UserError for a window that the model's context does not hold."""

    def __init__(
        self,
        model: Loaded,
        *,
        window: int | None = None,
        overlap: int | None = None,
        tops: int = 1,
        chunk: int = 256,
        batch_tokens: int = 4096,
    ):
        context = model.config.max_positions
        self.window = min(context, LONGEST) if window is None else window
        self.overlap = self.window // 2 if overlap is None else overlap
        if not 2 <= self.window <= context:
            raise UserError(f"window={self.window} tokens; it has to be 2 or more, and the context holds {context}.")
        if not 1 <= self.overlap < self.window:
            raise UserError(
                f"overlap={self.overlap} tokens of a window of {self.window}; it has to be 1 or more, and less than "
                "the window."
            )
        self._model, self._tops, self._chunk, self._batch_tokens = model, tops, chunk, batch_tokens

    def read(self, texts: Sequence[Sequence[int]]) -> list[Reading]:
        """One reading a text. Texts that are read together always give the same bits, in whatever run."""
        channel = self._model.config.channel is not None
        found = [blank(len(ids), self._tops, channel) for ids in texts]
        cut = [(number, one) for number, ids in enumerate(texts) for one in windows(len(ids), *self._sizes)]
        for group, size, length in self._batches(cut):
            tokens = np.zeros((size, length), np.int32)
            for row, (number, one) in enumerate(group):
                tokens[row, : one.end - one.start] = texts[number][one.start : one.end]
            said = jax.device_get(self._pass(tokens))
            for row, (number, one) in enumerate(group):
                _fill(found[number], one, said, row)
        return found

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.window, self.overlap

    def _pass(self, tokens: np.ndarray) -> Read:
        return read(self._model.policy, tokens, config=self._model.config, tops=self._tops, chunk=self._chunk)

    def _batches(self, cut: Sequence[tuple[int, Window]]) -> Iterator[tuple[list[tuple[int, Window]], int, int]]:
        """(windows, B, T) of each batch; B is always the same for a T, so that a length is compiled once."""
        by_length: dict[int, list[tuple[int, Window]]] = {}
        for number, one in cut:
            by_length.setdefault(bucket(one.end - one.start), []).append((number, one))
        for length, group in sorted(by_length.items()):
            size = max(1, self._batch_tokens // length)
            yield from ((group[i : i + size], size, length) for i in range(0, len(group), size))


def blank(count: int, tops: int, channel: bool) -> Reading:
    """Of a text of T=count tokens, before any is read."""
    nothing = np.full(count, np.nan, np.float32)
    return Reading(
        entropy=nothing,
        loss=nothing.copy(),
        ids=np.full((count, tops), -1, np.int32),
        logprobs=np.full((count, tops), np.nan, np.float32),
        rewards=nothing.copy() if channel else None,
    )


def _fill(reading: Reading, one: Window, said: Read, row: int) -> None:
    """What place p of a window says is of the token behind it."""
    first = max(one.new, 1)
    here, there = slice(first, one.end), slice(first - one.start - 1, one.end - one.start - 1)
    for name, values in said.looks._asdict().items():
        getattr(reading, name)[here] = values[row, there]
    if reading.rewards is not None and said.reward is not None:
        reading.rewards[one.new : one.end] = said.reward[row, one.new - one.start : one.end - one.start]
