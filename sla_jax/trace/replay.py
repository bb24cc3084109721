"""A trace against the model: the same search again, or every explored path in one plain forward pass.

`search_again` compares all that is in the file, bit for bit, which the same programs on the same kind of machine
repeat; with a tolerance, numbers may differ by so much. `read_again` knows nothing of searches: it reads each path from
the prompt on and compares rewards and log-probabilities, so it also finds what a wrong search repeats faithfully.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sla_jax.api import LanguageModel
from sla_jax.config import from_tree
from sla_jax.decode.methods import METHODS
from sla_jax.decode.program import bucket
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError, nearest
from sla_jax.model import forward
from sla_jax.model.config import ModelConfig
from sla_jax.model.logprobs import token_logprobs
from sla_jax.model.policy import Policy
from sla_jax.trace.lines import Header, Trace, plain
from sla_jax.trace.record import fingerprint, traced
from sla_jax.trace.structure import leaves_of

LISTED = {"branches": "lane", "candidates": "candidate"}  # what one entry of a list is called
CLOCKS = ("seconds", "scorer_seconds")
TOLERANCE = 1e-3  # of forward passes, in float32
CHUNK = 128  # logits held at a time


class Difference(NamedTuple):
    """Where a trace and the model part."""

    place: str
    recorded: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.place}: the trace has {self.recorded!r}, the model gives {self.found!r}"


@dataclasses.dataclass
class Comparison:
    """What was compared, and the first thing that differs by more than it may. `tolerance` None: bit for bit."""

    tolerance: float | None = None
    values: int = 0
    largest: float = 0.0
    first: Difference | None = None

    def compare(self, recorded: Any, found: Any, place: str) -> None:
        """Compare two values as JSON has them, all that is in them included: what was decoded before what followed."""
        if isinstance(recorded, Mapping) and isinstance(found, Mapping):
            for name in sorted({**recorded, **found}, key=lambda name: (name not in LISTED, name != "tokens")):
                if name not in CLOCKS:
                    self.compare(recorded.get(name), found.get(name), f"{place}, {LISTED.get(name, name)}")
        elif isinstance(recorded, list) and isinstance(found, list):
            entry = "{} {}" if place.endswith((*LISTED.values(),)) else "{}[{}]"
            for i, (one, other) in enumerate(zip(recorded, found, strict=False)):
                self.compare(one, other, entry.format(place, i))
            self.scalar(len(recorded), len(found), f"{place}, how many")
        else:
            self.scalar(recorded, found, place)

    def scalar(self, recorded: Any, found: Any, place: str) -> None:
        """Compare two values with nothing in them. repr tells 0.0 from -0.0 and lets NaN be NaN."""
        self.values += 1
        if repr(recorded) == repr(found):
            return
        both = isinstance(recorded, float) and isinstance(found, float)
        gap = abs(recorded - found) if both else math.inf
        self.largest = max(self.largest, gap)
        if self.first is None and (self.tolerance is None or not gap <= self.tolerance):
            self.first = Difference(place, recorded, found)


def check_model(header: Header, model: LanguageModel) -> None:
    """Raise UserError unless the trace was recorded with these parameters, in this type."""
    found = fingerprint(model.policy)
    if found != header.fingerprint:
        raise UserError(
            f"the trace was recorded with the checkpoint {header.checkpoint} ({header.dtype}, fingerprint "
            f"{header.fingerprint}), and {model.name} is another one ({model.policy.norm[...].dtype}, fingerprint "
            f"{found}); give the checkpoint that it was recorded with."
        )


def search_again(trace: Trace, model: LanguageModel, tolerance: float | None = None) -> Comparison:
    """Run the search that the header describes and compare line by line, up to the first difference."""
    header = trace.header
    check_model(header, model)
    if header.scorer is not None:
        raise UserError(
            f"the candidates of this trace were ranked by the scorer {header.scorer}, which is not in the file, so the "
            "search cannot be run again; --teacher-forced checks it against the model."
        )
    sampling = from_tree(Sampling, header.sampling, "the header's sampling")
    options: dict[str, Any] = {"search": decoder_of(header), "max_tokens": header.max_tokens, "sampling": sampling}
    options["continues"] = header.continues
    found = (line for _, lines in traced(model, header.prompt, **options) for line in lines)
    comparison = Comparison(tolerance)
    for recorded, again in itertools.zip_longest([header, *trace.rounds, trace.end], found):
        if isinstance(recorded, Header) and isinstance(again, Header):
            comparison.compare(recorded.anchor, again.anchor, "header, anchor")
        elif recorded is None or again is None or recorded.kind != again.kind:
            kinds = ["nothing" if line is None else line.kind for line in (recorded, again)]
            comparison.compare(kinds[0], kinds[1], "the line behind those that are the same")
        else:
            comparison.compare(plain(recorded), plain(again), _name(recorded))
        if comparison.first is not None:
            break
    return comparison


def decoder_of(header: Header) -> Any:
    """The decoder that a header describes. Raises UserError for a method or an option that this version lacks."""
    if header.method not in METHODS:
        known = ", ".join(METHODS)
        raise UserError(
            f"the trace's method is {header.method!r}; known: {known}.{nearest(header.method, tuple(METHODS))}"
        )
    return from_tree(METHODS[header.method], header.search, "the header's search")


def _name(line: Any) -> str:
    return line.kind if line.kind != "round" else f"round {line.round}"


def read_again(trace: Trace, model: LanguageModel, tolerance: float = TOLERANCE) -> Comparison:
    """Score every explored path with one forward pass each."""
    check_model(trace.header, model)
    reread = jax.jit(functools.partial(_reread, model.config))
    comparison, prompt = Comparison(tolerance), trace.header.prompt
    for place, leaf in leaves_of(trace):
        ids = [*prompt, *leaf.tokens]
        padded = np.zeros((1, bucket(len(ids))), np.int32)
        padded[0, : len(ids)] = ids
        rewards, logprobs = jax.device_get(reread(model.policy, padded))
        first, end = len(prompt), len(ids)
        _compare_path(comparison, leaf.logprobs, logprobs[0, first - 1 : end - 1], f"{place}, log-probability")
        if rewards is not None and leaf.rewards:
            _compare_path(comparison, leaf.rewards, rewards[0, first:end], f"{place}, reward")
    return comparison


def _compare_path(comparison: Comparison, recorded: Sequence[float], found: np.ndarray, what: str) -> None:
    for i, (one, other) in enumerate(zip(recorded, found.tolist(), strict=True)):
        comparison.scalar(one, other, f"{what} of the path's token {i}")


def _reread(config: ModelConfig, policy: Policy, tokens: Int[Array, "1 T"]) -> tuple[Array | None, Array]:
    """Rewards of tokens, and at every place the log-probability of the next token."""
    out = forward.trunk(policy, config, tokens)
    return out.reward, token_logprobs(policy, out.hidden, jnp.roll(tokens, -1, axis=1), chunk=CHUNK)
