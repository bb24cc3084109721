"""One answer's text as it arrives: whole characters, and nothing that could still become a stop string.

Tokens are read one by one, so what is said does not depend on how they were bundled. An answer ends at the first token
that completes a stop string; the text is cut before the stop string, the token is counted, later ones are dropped.
A token that the client asked to stop at is counted and has no text either.
"""

import dataclasses
from collections.abc import Sequence

from sla_jax.serving.request import Event, Top
from sla_jax.text import PreTrainedTokenizerBase, TextStream


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one event adds to one answer."""

    index: int  # which of the requests that run together
    text: str  # said now; never taken back
    tokens: list[int]  # new ones, also those whose text is still held back
    offsets: list[int]  # per new token: characters of the answer before its text
    logprobs: list[float]  # per new token
    tops: list[Top]
    event: Event  # cut where the answer is: a round's `tokens` and `rewards` in full, repeated ones included
    finish: str | None  # stop, length, abort; on an answer's last piece and no other


class Answer:
    """The text side of one request."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        index: int = 0,
        stops: Sequence[str] = (),
        before: Sequence[int] = (),  # the tokens of a text that it goes on from
        *,
        stop_tokens: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ):
        self.finish: str | None = None
        self._stream = TextStream(tokenizer, before, skip_special_tokens=skip_special_tokens)
        self._index, self._stops, self._stop_tokens = index, tuple(stops), frozenset(stop_tokens)
        self._held = ""  # read, but not said yet
        self._length = 0  # characters read

    def read(self, event: Event) -> Piece:
        """What an event adds. Nothing may be read after a finish."""
        assert self.finish is None, "this answer has ended"
        said, offsets = "", []
        for token in event.tokens[event.repeated :]:
            offsets.append(self._length)
            said += self._add("" if token in self._stop_tokens else self._stream.push([token]))
            if self.finish:
                break
        if event.finish and not self.finish:
            said += self._add(self._stream.finish())
        if event.finish and not self.finish:
            self.finish = event.finish
            said, self._held = said + self._held, ""
        return self._piece(event, said, offsets)

    def _piece(self, event: Event, said: str, offsets: list[int]) -> Piece:
        start, end = event.repeated, event.repeated + len(offsets)
        cut = event._replace(tokens=event.tokens[:end], rewards=event.rewards[:end])
        logprobs, tops = event.logprobs[start:end], event.tops[start:end]
        return Piece(self._index, said, event.tokens[start:end], offsets, logprobs, tops, cut, self.finish)

    def _add(self, text: str) -> str:
        """Take in new text and say what can be said of it."""
        self._length += len(text)
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.finish = "stop"
            said, self._held = self._held[: min(found)], ""
            return said
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        said, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return said


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
