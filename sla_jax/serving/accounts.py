"""What an answer has cost so far, in the terms of `decode/cost.py` and of `LanguageModel.stream`."""

import dataclasses
import time
from typing import NamedTuple

from sla_jax.decode.cost import Cost


class Ledger(NamedTuple):
    """What is known of a request's cost when it sits down."""

    prompt: int  # tokens
    position: int  # bytes of one token's keys and values
    began: float  # time.perf_counter() when reading the prompt began

    def cost(self, places: int, **counts: int) -> Cost:
        """Its cost so far, with `places` for keys and values beside the prompt's."""
        seconds = time.perf_counter() - self.began
        return Cost(**counts, kv_bytes=self.position * (self.prompt + places), seconds=seconds)


def total(first: Cost | None, second: Cost | None) -> Cost | None:
    """The cost of an answer that one request began and another went on with; the peak is the higher one's."""
    if first is None or second is None:
        return first or second
    counts = {
        field.name: getattr(first, field.name) + getattr(second, field.name) for field in dataclasses.fields(Cost)
    }
    return Cost(**{**counts, "kv_bytes": max(first.kv_bytes, second.kv_bytes)})


@dataclasses.dataclass
class Tally:
    """The account of a search for whole answers, which tells of its lanes round by round."""

    ledger: Ledger
    steps: int = 0
    lane_steps: int = 0
    places: int = 0  # at the peak

    def add(self, *, lanes: int, tokens: int, steps: int, copies: int = 1) -> None:
        """A round in so many lanes, the longest of which has `tokens` now, after `steps` passes in all."""
        self.lane_steps += lanes * (steps - self.steps)
        self.steps, self.places = steps, max(self.places, lanes * tokens * copies)

    def cost(self, explored: int, committed: int) -> Cost:
        """The cost so far."""
        counts = {"steps": self.steps, "lane_steps": self.lane_steps}
        return self.ledger.cost(self.places, **counts, explored_tokens=explored, committed_tokens=committed)
