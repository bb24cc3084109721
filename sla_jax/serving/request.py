"""What travels between HTTP, the service and the engine: plain values, no arrays, no text."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

from sla_jax.decode.completion import Completion
from sla_jax.decode.cost import Cost
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.snapshot import Tree

MAX_STOP_TOKENS = 8  # that a request may add to the model's end tokens; every program has room for them
Top = list[tuple[int, float]]  # (token, log-probability), best first
Finish = Literal["stop", "length", "abort", "continued", "refused", "timeout", "error"]
# continued: by another request; refused: no slot came in time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One answer that somebody waits for. A request for n choices is n of these."""

    id: str
    profile: str
    prompt: tuple[int, ...]
    max_tokens: int  # exact; at least 1
    ends: tuple[int, ...]  # tokens that end the answer; none to ignore them
    sampling: Sampling = Sampling()
    top_logprobs: int = 0  # alternatives wanted beside each token
    tree: bool = False  # whether every round is to bring what it grew
    deadline: float | None = None  # time.monotonic() seconds
    began: float | None = None  # when the answer began that this goes on with; it then goes before all who wait


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """One forward pass over a text: a reward and a log-probability for every token of it."""

    id: str
    tokens: tuple[int, ...]
    top_logprobs: int = 0


class Progress(NamedTuple):
    """How far a search is that has no text before its end."""

    phase: int  # from 0
    lanes: int  # lanes computed
    alive: int  # candidates that have not ended
    tokens: int  # of the longest candidate
    explored_tokens: int  # read by all candidates so far
    steps: int  # forward passes so far


class Event(NamedTuple):
    """What one round did for one request. An answer is a sequence of these; exactly the last one has a `finish`.

    The first event may come straight from the prompt's prefill: one token, which every branch shares, without a reward
    yet (`round` is None, `rewards` empty). The round that follows repeats it, now with its reward: `repeated` says how
    many leading tokens were in an earlier event. So a round's `tokens` and `rewards` always belong together.
    """

    tokens: list[int] = []
    repeated: int = 0
    rewards: list[float] = []
    logprobs: list[float] = []
    tops: list[Top] = []  # one a token, empty for a request that wants none
    round: int | None = None
    score: float | None = None
    margin: float | None = None
    alive: int = 0  # lanes in this request's tree
    explored: int = 0  # tokens read for this request since its prompt
    cached: int = 0  # prompt tokens whose prefill was saved by the prefix cache
    progress: Progress | None = None  # of a search without text before its end
    ended: list[Completion] = []  # its candidates whose fate this round decided
    tree: Tree | None = None  # what the round grew, for requests that want it
    cost: Cost | None = None  # of the answer so far, of everything that the engine says
    finish: Finish | None = None
    error: str | None = None
    retry_after: int = 0  # seconds after which whoever was refused may come again


class Inspected(NamedTuple):
    """Per token of the text: its reward (none without a channel), and from the second on its log-probability."""

    rewards: list[float] | None
    logprobs: list[float | None]
    tops: list[Top]
    error: str | None = None


class Overloaded(Exception):
    """A request cannot be served in time, or not even queued; try again after `retry_after` seconds (503)."""

    def __init__(self, message: str, retry_after: int, reason: Literal["queue", "deadline"] = "queue"):
        super().__init__(message)
        self.retry_after, self.reason = retry_after, reason


class Unavailable(Exception):
    """The server is starting, draining, or has failed: nothing new is taken (503)."""


Sink = Callable[[Event], None]  # called on the service's thread, in order; must not block
Answer = Callable[[Inspected], None]  # likewise, once
