"""How long until a slot is free and an answer has ended, from what the latest rounds, prompts and answers took.

Everything is measured, of every profile for itself: seconds of the latest rounds and tokens that they brought (other
profiles' rounds, and the prompts read between them, are in these seconds as they are in an answer's), seconds of
reading the latest prompts, and lengths of the latest answers. What has not been measured is taken to need no time.

Many answers are cut: by max_tokens, by clients that leave, by deadlines. Such a one tells of its length only that it is
greater. So the share of answers that are longer than t tokens is the estimate of Kaplan and Meier (1958,
doi:10.1080/01621459.1958.10501452). Beyond the longest that was seen it says nothing: one that was cut there is taken
to have been half through. An answer that may have m tokens has the lesser of m and its length.
"""

import bisect
import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

LATEST = 32  # prompts and answers that an estimate is of
ROUNDS = 8  # and rounds: few, for their seconds change as soon as others come or go


class AnswerLength(NamedTuple):
    """An answer's tokens, and whether it ended there by itself: else it was cut and would have been longer."""

    tokens: int
    ended: bool


class Survival:
    """The share of answers that are longer than t tokens, a step function of t that ends at 0."""

    def __init__(self, lengths: Iterable[AnswerLength] = ()):
        ordered = sorted(lengths)
        left = len(ordered)
        self._steps, self._shares = [0], [1.0 if left else 0.0]
        self._areas = [0.0]  # under the function, up to each step
        for tokens, group in itertools.groupby(ordered, key=lambda length: length.tokens):
            ends = [length.ended for length in group]
            self._areas.append(self.area(tokens))
            share = self._shares[-1] * (1 - sum(ends) / left)
            left -= len(ends)
            self._steps.append(tokens)
            self._shares.append(share)
        if share := self._shares[-1]:
            self._areas.append(self.area(2 * self._steps[-1]))
            self._steps.append(2 * self._steps[-1])
            self._shares.append(0.0)

    def _step(self, tokens: int) -> int:
        return bisect.bisect_right(self._steps, tokens) - 1

    def share(self, tokens: int) -> float:
        """The share of answers that are longer."""
        return self._shares[self._step(tokens)]

    def area(self, tokens: int) -> float:
        """The area under the function up to there: the mean of min(length, tokens)."""
        step = self._step(tokens)
        return self._areas[step] + self._shares[step] * (tokens - self._steps[step])

    def most(self, limit: int | None, longer: float) -> int:
        """Tokens that all but a share, `longer`, of the answers of at most `limit` tokens do not exceed."""
        tokens = next(tokens for tokens, share in zip(self._steps, self._shares, strict=True) if share <= longer)
        return tokens if limit is None else min(tokens, limit)

    def mean(self, limit: int | None = None, said: int = 0) -> float:
        """What is still to come, on average, of an answer that has `said` tokens and may have `limit` in all.

        One that is longer than all that are known is taken to be half through.
        """
        end = self._steps[-1] if limit is None else limit
        if share := self.share(said):
            return max(self.area(end) - self.area(said), 0.0) / share if end > said else 0.0
        return float(said) if limit is None else float(max(min(said, limit - said), 0))


class Pace:
    """What one profile's latest rounds, prompts and answers took, and so what the next will take."""

    def __init__(self) -> None:
        self._rounds = deque[tuple[float, int, int]](maxlen=ROUNDS)  # seconds, answers that took part, their tokens
        self._prompts = deque[tuple[float, int]](maxlen=LATEST)  # seconds, tokens
        self._lengths = deque[AnswerLength](maxlen=LATEST)
        self._survival = Survival()
        self._round_seconds = 0.0
        self._token_seconds = 0.0  # of one answer
        self._best_token_seconds = 0.0  # when few were there, or nobody else
        self._prompt_seconds = 0.0
        self._prompt_token_seconds = 0.0

    def round(self, seconds: float, gains: Sequence[int]) -> None:
        """Note a round, and how many tokens it brought each answer that took part."""
        self._rounds.append((seconds, len(gains), sum(gains)))
        spent, seats, tokens = (sum(column) for column in zip(*self._rounds, strict=True))
        self._round_seconds = spent / len(self._rounds)
        if tokens:
            self._token_seconds = self._round_seconds * seats / tokens
            best = self._best_token_seconds if len(self._rounds) == ROUNDS else math.inf
            self._best_token_seconds = min(best, self._token_seconds)

    def prompt(self, seconds: float, tokens: int) -> None:
        """Note a prompt that was read."""
        self._prompts.append((seconds, tokens))
        spent, read = (sum(column) for column in zip(*self._prompts, strict=True))
        self._prompt_seconds, self._prompt_token_seconds = spent / len(self._prompts), spent / read

    def answer(self, tokens: int, ended: bool) -> None:
        """Note an answer that is over, of at least one token; `ended` by itself or cut."""
        self._lengths.append(AnswerLength(tokens, ended))
        self._survival = Survival(self._lengths)

    def late_anyway(self, seconds: float, limit: int | None) -> float:
        """The share of answers of at most `limit` tokens that take longer than `seconds` at the best pace there was."""
        within = int(seconds / self._best_token_seconds) if self._best_token_seconds else limit
        return 0.0 if within is None or (limit is not None and limit <= within) else self._survival.share(within)

    def most(self, limit: int | None, late: float, prompt: int | None = None) -> float:
        """Seconds from slot to end that all but a share, `late`, do not exceed. None: of any limit, any prompt."""
        return self._before(prompt) + self._token_seconds * self._survival.most(limit, late)

    def mean(self, limit: int | None = None, prompt: int | None = None) -> float:
        """Seconds from slot to end, on average."""
        return self._before(prompt) + self._token_seconds * self._survival.mean(limit)

    def left(self, limit: int, said: int) -> float:
        """Seconds until an answer ends whose prompt is read, on average."""
        return self._token_seconds * self._survival.mean(limit, said)

    def _before(self, prompt: int | None) -> float:
        """Seconds of reading a prompt, and of the round by which every result is late."""
        reading = self._prompt_seconds if prompt is None else self._prompt_token_seconds * prompt
        return self._round_seconds + reading


def seconds_to_slot(busy: Sequence[float], ahead: Iterable[float], slots: int) -> float:
    """Seconds until there is a slot for whoever comes now.

    busy: until each slot that is taken is free. ahead: how long each of those who wait will have one, in their order.
    """
    free = [*busy, *[0.0] * (slots - len(busy))]
    heapq.heapify(free)
    for seconds in ahead:
        heapq.heapreplace(free, free[0] + seconds)
    return free[0]
