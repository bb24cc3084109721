"""Answers from a model in this process. What is asked of the model is `stream`, so that every decoder comes through one
door, with its cost account.

An answer during which something was compiled is made once more: the same answer, and seconds in which nothing was.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.monitoring
import numpy as np

from sla_jax.decode.completion import Completion
from sla_jax.decode.methods import Decoder, Steppers, reads_rewards
from sla_jax.decode.program import check_prompt
from sla_jax.errors import UserError
from sla_jax.evaluation.answering import Ask, Reply
from sla_jax.evaluation.settings import MethodConfig
from sla_jax.scoring.registry import make_scorer
from sla_jax.text import decode

COMPILED = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@runtime_checkable
class Model(Protocol):
    """What is needed of a `LanguageModel`."""

    config: Any
    tokenizer: Any

    @property
    def prompt_ids(self) -> Callable[[Any], list[int]]:
        """Messages → token ids."""

    @property
    def stream(self) -> Callable[..., Iterator[Any]]:
        """Messages, search, max_tokens, sampling, scorer → chunks of an answer."""


class Local:
    """A model as an answerer of these methods; scorers are made, and what cannot work is refused, at once."""

    parallel = 1

    def __init__(self, model: Model, methods: Sequence[MethodConfig], about: Mapping[str, str]):
        self.model, self.about = model, dict(about)
        self.has_channel = model.config.channel is not None
        for method in methods:
            self._check_method(method)
        self.scorers = {one.name: make_scorer(one.scorer) for one in methods if one.scorer is not None}
        self._last: Decoder | None = None

    def options(self, method: MethodConfig) -> dict[str, Any]:
        """All of them."""
        return dataclasses.asdict(method.decoder())

    def check(self, ask: Ask) -> None:
        """Raise UserError for a conversation that the context does not hold."""
        config = self.model.config
        ids = self.model.prompt_ids(ask.messages)
        check_prompt(ids, ask.max_tokens, context=config.max_positions, vocabulary=config.vocab_size)

    def answer(self, ask: Ask) -> Reply:
        """The answer, in seconds without compilation. What was compiled for the decoder before is dropped: a process
        has room for some hundred programs (of Linux: vm.max_map_count), and every decoder has one a bucket. Methods
        that differ in sampling alone have one decoder.
        """
        decoder = ask.method.decoder()
        if decoder != self._last:
            jax.clear_caches()
            self._last = decoder
        with compilations() as seen:
            reply = self._answer(ask)
        return self._answer(ask) if seen else reply

    def _answer(self, ask: Ask) -> Reply:
        method = ask.method
        chunks = list(
            self.model.stream(
                ask.messages,
                search=method.decoder(),
                max_tokens=ask.max_tokens,
                sampling=dataclasses.replace(method.sampling, seed=ask.seed),
                scorer=self.scorers.get(method.name),
            )
        )
        ended = sorted((one for chunk in chunks for one in chunk.ended), key=lambda one: one.candidate)
        rewards = [reward for chunk in chunks for reward in chunk.rewards] if self.has_channel else []
        return Reply(
            text="".join(chunk.text for chunk in chunks),
            token_ids=[token for chunk in chunks for token in chunk.token_ids],
            finish_reason=chunks[-1].finish_reason,
            rewards=[_reward(place, reward) for place, reward in enumerate(rewards)],
            cost=dataclasses.asdict(chunks[-1].cost),
            candidates=[self._candidate(one) for one in ended] or None,
        )

    def _candidate(self, one: Completion) -> dict[str, Any]:
        return {
            "text": decode(self.model.tokenizer, one.tokens),
            "score": short(one.score),
            "step_scores": [short(score) for score in one.step_scores],
            "finish": one.finish,
            "n_tokens": len(one.tokens),
        }

    def _check_method(self, method: MethodConfig) -> None:
        decoder = method.decoder()
        if method.scorer is not None:
            return
        if reads_rewards(decoder) and not self.has_channel:
            raise UserError(
                f"the method {method.name} ranks by rewards, and this checkpoint has no reward channel; give it a "
                "scorer or an option score that needs none, or another checkpoint."
            )
        if isinstance(decoder, Steppers) and decoder.aggregate == "prod":
            raise UserError(
                f"the method {method.name}: aggregate 'prod' multiplies probabilities, and the score "
                f"{decoder.score!r} gives none; use last, min or mean, or give a scorer that does."
            )


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Everything that JAX lowers meanwhile."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **details: str | int) -> None:
        if event == COMPILED:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def short(value: float) -> float | None:
    """The number that was float32 with the fewest digits that give it back; None for one that is not finite."""
    return float(str(np.float32(value))) if math.isfinite(value) else None


def _reward(place: int, value: float) -> float:
    reward = short(value)
    if reward is None:
        raise UserError(f"the reward of token {place} is {value}; a channel with such weights measures nothing.")
    return reward
