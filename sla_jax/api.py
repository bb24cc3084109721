"""The library's front door: load a checkpoint, stream an answer, read rewards.

model = sla_jax.load("checkpoints/smollm2")
for chunk in model.stream([{"role": "user", "content": "Hi"}], search=sla_jax.SLA(width=2, chunk=10, depth=2)):
    print(chunk.text, end="")
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sla_jax.decode.greedy import Greedy
from sla_jax.decode.program import Program, bucket, check_biases, check_prompt
from sla_jax.decode.result import Round
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.sla import SLA
from sla_jax.errors import UserError
from sla_jax.loading import engine, load_model
from sla_jax.model import forward
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy
from sla_jax.text import TextStream, chat_ids, response_ids

GREEDY = Sampling()
Messages = Sequence[dict[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one request; `explored_tokens` counts every token that any of its lanes read."""

    prompt_tokens: int
    completion_tokens: int
    explored_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """Text committed by one round. `score` and `margin` are those of the round's selection."""

    round: int
    token_ids: list[int]
    text: str
    rewards: list[float]
    score: float | None
    margin: float | None
    alive: int
    usage: Usage
    finish_reason: str | None = None  # "stop" or "length" with the last chunk


class LanguageModel:
    """A policy, its tokenizer and its reward channel if it has one; programs compile on first use and are kept."""

    def __init__(self, policy: Policy, config: ModelConfig, tokenizer: Any, end_tokens: Sequence[int]):
        self.policy, self.config, self.tokenizer = policy, config, tokenizer
        self.end_tokens = tuple(end_tokens)
        self._engine = engine(config)
        self._programs: dict[Any, Program] = {}
        self._trunk = jax.jit(functools.partial(_rewards, config))

    def stream(
        self,
        prompt: Messages | Sequence[int] | str,
        *,
        search: Greedy | SLA | None = None,
        max_tokens: int = 256,
        sampling: Sampling = GREEDY,
    ) -> Iterator[Chunk]:
        """Yield text as it is committed. `prompt`: messages (chat template), a raw string, or token ids.

        Raises UserError if the prompt and max_tokens exceed the context, or a search needs rewards the model lacks.
        """
        ids = self.prompt_ids(prompt)
        text = TextStream(self.tokenizer)
        spent = 0
        for number, (round_,) in enumerate(self._rounds([ids], search or Greedy(), [max_tokens], [sampling])):
            spent += len(round_.tokens)
            usage = Usage(prompt_tokens=len(ids), completion_tokens=spent, explored_tokens=round_.explored)
            piece = text.push(round_.tokens) + (text.finish() if round_.done else "")
            yield Chunk(
                round=number,
                token_ids=round_.tokens,
                text=piece,
                rewards=round_.rewards,
                score=round_.score,
                margin=round_.margin,
                alive=round_.alive,
                usage=usage,
                finish_reason=("stop" if round_.stopped else "length") if round_.done else None,
            )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        search: Greedy | SLA | None = None,
        max_tokens: Sequence[int],
        samplings: Sequence[Sampling] | None = None,
    ) -> list[list[int]]:
        """Answer several prompts (token ids) together in one program; the loop over rounds runs on the device."""
        decoder = search or Greedy()
        program, state = self._begin(prompts, decoder, max_tokens, samplings or [GREEDY] * len(prompts))
        answers: list[list[int]] = [[] for _ in prompts]
        for rounds in program.complete(self.policy, state, max(max_tokens)):
            for answer, round_ in zip(answers, rounds, strict=True):
                answer.extend(round_.tokens)
        return answers

    def rewards(self, messages: Messages, response: str) -> list[float]:
        """One reward per response token (the end-of-turn token included)."""
        self._require_channel("reading rewards")
        prompt, answer = response_ids(self.tokenizer, list(messages), response)
        return self.token_rewards(prompt, answer)

    def token_rewards(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        """One reward per response token, from one forward pass."""
        ids = [*prompt, *response]
        padded = np.zeros((1, bucket(len(ids))), np.int32)
        padded[0, : len(ids)] = ids
        return np.asarray(self._trunk(self.policy, padded))[0, len(prompt) : len(ids)].tolist()

    def prompt_ids(self, prompt: Messages | Sequence[int] | str) -> list[int]:
        """Token ids of a raw string, of messages under the chat template, or the ids themselves."""
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        if prompt and isinstance(prompt[0], dict):
            return chat_ids(self.tokenizer, [dict(m) for m in prompt if isinstance(m, dict)])
        return [int(token) for token in prompt if not isinstance(token, dict)]

    def _rounds(
        self,
        prompts: Sequence[Sequence[int]],
        decoder: Greedy | SLA,
        limits: Sequence[int],
        samplings: Sequence[Sampling],
    ) -> Iterator[list[Round]]:
        program, state = self._begin(prompts, decoder, limits, samplings)
        return program.stream(self.policy, state)

    def _begin(
        self,
        prompts: Sequence[Sequence[int]],
        decoder: Greedy | SLA,
        limits: Sequence[int],
        samplings: Sequence[Sampling],
    ) -> tuple[Program, Any]:
        for prompt, limit in zip(prompts, limits, strict=True):
            check_prompt(prompt, limit, context=self.config.max_positions, vocabulary=self.config.vocab_size)
        for sampling in samplings:
            check_biases(sampling, vocabulary=self.config.vocab_size)
        if decoder.needs_rewards:
            self._require_channel("look-ahead search")
        if decoder not in self._programs:
            self._programs[decoder] = Program(self._engine, decoder)
        program = self._programs[decoder]
        return program, program.start(self.policy, prompts, limits, self.end_tokens, samplings)

    def _require_channel(self, what: str) -> None:
        if self.config.channel is None:
            raise UserError(
                f"{what} needs a reward channel and this checkpoint has none; train one with train.py, or attach one "
                "with `python convert.py import SRC DST --channel FILE`."
            )


def load(directory: str | Path, *, dtype: Any = None) -> LanguageModel:
    """Load a checkpoint directory for decoding. `dtype` defaults to float32 on CPU and bfloat16 on accelerators."""
    loaded = load_model(Path(directory), dtype=None if dtype is None else jnp.dtype(dtype))
    return LanguageModel(loaded.policy, loaded.config, loaded.tokenizer, loaded.end_tokens)


def _rewards(config: ModelConfig, policy: Policy, tokens: jax.Array) -> jax.Array | None:
    return forward.trunk(policy, config, tokens).reward
