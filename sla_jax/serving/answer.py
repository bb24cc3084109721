"""One answer's text as it arrives: whole characters, and nothing that could still become a stop string.

Tokens are read one by one, so what is said does not depend on how they were bundled. An answer ends at the first token
that completes a stop string; the text is cut before the stop string, the token is counted, later ones are dropped.
A token that the client asked to stop at is counted and has no text either. A thinking that has used its budget up ends
there too: what comes after the last token that it may have is not read.
"""

import dataclasses
from collections.abc import Sequence

from sla_jax.serving.reasoning import Splitter, Thinking, overlap
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
    thinking: str = ""  # said now, where it is told apart
    thought: int = 0  # tokens of the thinking so far, tags included
    cut: bool = False  # the thinking ends here, whatever the model wanted


class Answer:
    """The text side of one request."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        index: int = 0,
        stops: Sequence[str] = (),
        before: Sequence[int] = (),  # the tokens of a text that it goes on from
        *,
        thinking: Thinking | None = None,
        stop_tokens: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ):
        self.finish: str | None = None
        self.tokens: list[int] = []
        self._stream = TextStream(tokenizer, before, skip_special_tokens=skip_special_tokens)
        self._index, self._stops, self._stop_tokens = index, tuple(stops), frozenset(stop_tokens)
        self._held = ""  # read, but not said yet
        self._length = 0  # characters read
        settings = thinking or Thinking(place="after", split=False)
        self._hidden = settings.hidden if skip_special_tokens else {}
        self._ends, self._budget = settings.ends, settings.budget
        self._read = Splitter(settings.place)  # at the last token
        self._said = Splitter(settings.place if settings.split else "after")
        self._split, self._thought = settings.split, 0

    def read(self, event: Event) -> Piece:
        """What an event adds. Nothing may be read after a finish."""
        assert self.finish is None, "this answer has ended"
        said, offsets, cut = "", list[int](), False
        for token in event.tokens[event.repeated :]:
            offsets.append(self._length)
            said += self._add(self._spell(token))
            cut = self._thinks_too_long()
            if self.finish or cut:
                break
        if event.finish and not (self.finish or cut):
            said += self._add(self._stream.finish())
        if event.finish and not (self.finish or cut):
            self.finish = event.finish
            said, self._held = said + self._held, ""
        return self._piece(event, said, offsets, cut and not self.finish)

    def _piece(self, event: Event, said: str, offsets: list[int], cut: bool) -> Piece:
        start, end = event.repeated, event.repeated + len(offsets)
        heard = event._replace(tokens=event.tokens[:end], rewards=event.rewards[:end])
        logprobs, tops = event.logprobs[start:end], event.tops[start:end]
        parts = [self._said.push(said), *([self._said.finish()] if self.finish else [])]
        thinking, text = ("".join(part) for part in zip(*parts, strict=True))
        spoken = (text, event.tokens[start:end], offsets, logprobs, tops)
        return Piece(self._index, *spoken, heard, self.finish, thinking, self._thought, cut)

    def _spell(self, token: int) -> str:
        """The text that a token completes."""
        self.tokens.append(token)
        place, text = self._read.place, "" if token in self._stop_tokens else self._stream.push([token])
        shown = text + self._hidden.get(token, "")
        self._read.push(shown)
        if place != "after" and self._read.opened:
            self._thought = len(self.tokens)
        return shown if self._split else text

    def _thinks_too_long(self) -> bool:
        """Whether the thinking has used its budget up and goes on; it is said once."""
        budget = self._budget
        over = budget is not None and len(self.tokens) >= budget and self._read.place == "inside"
        if not over or self.tokens[-1] in self._ends:
            return False
        self._budget = None
        return True

    def _add(self, text: str) -> str:
        """Take in new text and say what can be said of it."""
        self._length += len(text)
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.finish = "stop"
            said, self._held = self._held[: min(found)], ""
            return said
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        said, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return said
