"""The library's front door: load a checkpoint, stream an answer, read rewards.

model = sla_jax.load("checkpoints/smollm2")
for chunk in model.stream([{"role": "user", "content": "Hi"}], search=sla_jax.SLA(width=2, chunk=10, depth=2)):
    print(chunk.text, end="")
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sla_jax.decode.beam import BeamSearch
from sla_jax.decode.beam_program import BeamProgram
from sla_jax.decode.completion import Completion, PoolRound, best
from sla_jax.decode.cost import Cost
from sla_jax.decode.dvts import DVTS, boxed
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.measures import needs_rewards
from sla_jax.decode.memory import fitted, free_bytes
from sla_jax.decode.methods import Decoder, Pools, Steppers, useless_option
from sla_jax.decode.pool_program import PoolProgram
from sla_jax.decode.program import Program, bucket, check_biases, check_prompt
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.separator import separator_table
from sla_jax.decode.sla import SLA
from sla_jax.decode.snapshot import Tree
from sla_jax.decode.step_program import StepProgram
from sla_jax.errors import UserError
from sla_jax.loading import engine, load_model
from sla_jax.model import forward
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy
from sla_jax.scoring.candidate import Scorer
from sla_jax.scoring.judge import Judge, messages_of
from sla_jax.text import (
    NO_VARIABLES,
    TextStream,
    chat_ids,
    check_variables,
    check_vocabulary,
    decode,
    encode,
    response_ids,
    token_bytes,
)

GREEDY = Sampling()
Item = TypeVar("Item")
Messages = Sequence[Mapping[str, Any]]
Search = Decoder


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
    cost: Cost
    phase: int | None = None  # of a decoder that samples whole answers
    ended: tuple[Completion, ...] = ()  # its candidates whose fate this round decided
    tree: Tree | None = None  # what the round grew, with return_tree
    finish_reason: str | None = None  # "stop" or "length" with the last chunk


class LanguageModel:
    """A policy, its tokenizer and its reward channel if it has one; programs compile on first use and are kept."""

    def __init__(self, policy: Policy, config: ModelConfig, tokenizer: Any, end_tokens: Sequence[int], name: str = ""):
        self.policy, self.config, self.tokenizer = policy, config, tokenizer
        self.end_tokens, self.name = tuple(end_tokens), name
        self._engine = engine(config)
        self._programs: dict[tuple[Greedy | SLA, bool], Program] = {}
        self._pool_program, self._beam_program = PoolProgram(self._engine), BeamProgram(self._engine)
        self._step_program, self._separators = StepProgram(self._engine), dict[str, np.ndarray]()
        self._rewards = jax.jit(_rewards, static_argnums=0)

    def stream(
        self,
        prompt: Messages | Sequence[int] | str,
        *,
        search: Search | None = None,
        max_tokens: int = 256,
        sampling: Sampling = GREEDY,
        scorer: Scorer | None = None,
        return_tree: bool = False,
        template: Mapping[str, Any] = NO_VARIABLES,
        continues: bool | None = None,
    ) -> Iterator[Chunk]:
        """Yield text as it is committed. `prompt`: messages (chat template), a raw string, or token ids.

        `template`: variables of the chat template. Unless `continues` says otherwise, an answer's text goes on with
        that of a raw string or of token ids, and stands alone behind messages.
        Decoders that sample whole answers yield chunks without text while they work, and the answer with the last one;
        `scorer` ranks their candidates in place of what their `score` says, and needs a prompt of messages or a string.
        With `return_tree` every chunk of the others has the tree that its round grew (docs/traces.md).
        Raises UserError if the prompt and max_tokens exceed the context, or a search needs rewards the model lacks.
        """
        decoder = fitted(search or Greedy(), self.kv_bytes(1), free_bytes())
        ids = self.prompt_ids(prompt, template)
        before = ids if (not is_chat(prompt) if continues is None else continues) else []
        if useless := useless_option(decoder, sampling):
            raise UserError(useless[1])
        if scorer is not None and not isinstance(decoder, Pools | Steppers):
            raise UserError("a scorer ranks candidates; it goes with BestOfN, SpeculativeRejection, StepBeam and DVTS.")
        if isinstance(decoder, Greedy | SLA):
            return self._trees(ids, before, decoder, max_tokens, sampling, return_tree)
        if return_tree:
            raise UserError(
                "a tree is grown by Greedy and SLA; the candidates of whole answers come in `ended` anyway."
            )
        if isinstance(decoder, BeamSearch):
            self._check(ids, max_tokens, sampling)
            rounds = self._beam_program.stream(self.policy, decoder, [ids], max_tokens, self.end_tokens)
            return self._whole(rounds, ids, before)
        judge = None if scorer is None else Judge(scorer, messages_of(prompt), self.tokenizer)
        self._check_pool(decoder, judge)
        self._check(ids, max_tokens, sampling)
        common = (max_tokens, self.end_tokens, [sampling], judge)
        if isinstance(decoder, Steppers):
            return self._whole(self._stepwise(decoder, ids, *common), ids, before, judge, complete_first=True)
        return self._whole(self._pool_program.stream(self.policy, decoder, [ids], *common), ids, before, judge)

    def _stepwise(self, decoder: Steppers, ids: list[int], *common: Any) -> Iterator[list[PoolRound]]:
        if decoder.separator not in self._separators:
            pieces = token_bytes(self.tokenizer, self.config.vocab_size)
            self._separators[decoder.separator] = separator_table(pieces, decoder.separator.encode())
        over = (lambda tokens: boxed(decode(self.tokenizer, tokens))) if _ends_boxed(decoder) else None
        table = self._separators[decoder.separator]
        return self._step_program.stream(self.policy, decoder, [ids], *common, table=table, over=over)

    def _trees(
        self,
        ids: list[int],
        before: list[int],
        decoder: Greedy | SLA,
        limit: int,
        sampling: Sampling,
        trace: bool,
    ) -> Iterator[Chunk]:
        text, spent, clock = TextStream(self.tokenizer, before), 0, Clock()
        program, state = self._begin([ids], decoder, [limit], [sampling], trace)
        for number, (round_,) in enumerate(clock.timed(program.stream(self.policy, state))):
            spent += len(round_.tokens)
            piece = text.push(round_.tokens) + (text.finish() if round_.done else "")
            yield Chunk(
                round=number,
                token_ids=round_.tokens,
                text=piece,
                rewards=round_.rewards,
                score=round_.score,
                margin=round_.margin,
                alive=round_.alive,
                usage=Usage(prompt_tokens=len(ids), completion_tokens=spent, explored_tokens=round_.explored),
                cost=Cost(
                    steps=round_.steps,
                    lane_steps=round_.lane_steps,
                    drafted_tokens=round_.drafted,
                    accepted_tokens=round_.accepted,
                    explored_tokens=round_.explored,
                    committed_tokens=spent,
                    kv_bytes=self.kv_bytes(len(ids) + spent + decoder.lanes * decoder.held),
                    seconds=clock.seconds,
                ),
                tree=round_.tree,
                finish_reason=("stop" if round_.stopped else "length") if round_.done else None,
            )

    def _whole(
        self,
        rounds: Iterator[list[PoolRound]],
        ids: list[int],
        before: list[int],
        judge: Judge | None = None,
        *,
        complete_first: bool = False,
    ) -> Iterator[Chunk]:
        """Chunks of a decoder that has no text before its end."""
        clock, ended, steps, lane_steps, places = Clock(), list[Completion](), 0, 0, 0
        for number, (round_,) in enumerate(clock.timed(rounds)):
            ended += round_.ended
            lane_steps += round_.lanes * (round_.steps - steps)
            steps, places = round_.steps, max(places, round_.lanes * round_.tokens * round_.copies)
            answer = best(ended, complete_first) if round_.done else None
            tokens = [] if answer is None else answer.tokens
            yield Chunk(
                round=number,
                token_ids=tokens,
                text=decode(self.tokenizer, tokens, before),
                rewards=[] if answer is None else answer.rewards or self._rewards_of(ids, tokens),
                score=None if answer is None else answer.score,
                margin=None,
                alive=round_.alive,
                usage=Usage(prompt_tokens=len(ids), completion_tokens=len(tokens), explored_tokens=round_.explored),
                cost=Cost(
                    steps=steps,
                    lane_steps=lane_steps,
                    explored_tokens=round_.explored,
                    committed_tokens=len(tokens),
                    kv_bytes=self.kv_bytes(len(ids) + places),
                    scorer_tokens=0 if judge is None else judge.tokens,
                    scorer_seconds=0.0 if judge is None else judge.seconds,
                    seconds=clock.seconds,
                ),
                phase=round_.phase,
                ended=tuple(round_.ended),
                finish_reason=None if answer is None else answer.finish,
            )

    def kv_bytes(self, positions: int) -> int:
        """Bytes of the keys and values of so many positions."""
        return self.config.kv_numbers * self.policy.norm[...].dtype.itemsize * positions

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

    def rewards(self, messages: Messages, response: str, *, template: Mapping[str, Any] = NO_VARIABLES) -> list[float]:
        """One reward per response token (the end-of-turn token included); `template` as in `stream`."""
        self._require_channel("reading rewards")
        check_variables(self.tokenizer, template)
        prompt, answer = response_ids(self.tokenizer, messages, response, variables=template)
        return self.token_rewards(prompt, answer)

    def token_rewards(self, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        """One reward per response token, from one forward pass. Raises UserError for a token without an embedding."""
        ids = [*prompt, *response]
        check_vocabulary(self.tokenizer, ids, self.config.vocab_size, "the conversation")
        padded = np.zeros((1, bucket(len(ids))), np.int32)
        padded[0, : len(ids)] = ids
        return np.asarray(self._rewards(self.config, self.policy, padded))[0, len(prompt) : len(ids)].tolist()

    def prompt_ids(
        self, prompt: Messages | Sequence[int] | str, template: Mapping[str, Any] = NO_VARIABLES
    ) -> list[int]:
        """Token ids of a raw string, of messages under the chat template with its variables, or the ids themselves.

        Raises UserError for a text with a token that the model has no embedding for."""
        if is_chat(prompt):
            check_variables(self.tokenizer, template)
            messages = [message for message in prompt if isinstance(message, Mapping)]
            ids = chat_ids(self.tokenizer, messages, variables=template)
        elif template:
            raise UserError(
                "variables of the chat template belong to messages; a plain prompt goes without a template."
            )
        elif isinstance(prompt, str):
            ids = encode(self.tokenizer, prompt, special=True)
        else:
            ids = [int(token) for token in prompt if not isinstance(token, Mapping)]
        check_vocabulary(self.tokenizer, ids, self.config.vocab_size, "the prompt")
        return ids

    def _begin(
        self,
        prompts: Sequence[Sequence[int]],
        decoder: Greedy | SLA,
        limits: Sequence[int],
        samplings: Sequence[Sampling],
        trace: bool = False,
    ) -> tuple[Program, Any]:
        for prompt, limit, sampling in zip(prompts, limits, samplings, strict=True):
            self._check(prompt, limit, sampling)
        if decoder.needs_rewards:
            self._require_channel("look-ahead search")
        if (decoder, trace) not in self._programs:
            self._programs[decoder, trace] = Program(self._engine, decoder, trace=trace)
        program = self._programs[decoder, trace]
        return program, program.start(self.policy, prompts, limits, self.end_tokens, samplings)

    def _check(self, ids: Sequence[int], limit: int, sampling: Sampling) -> None:
        check_prompt(ids, limit, context=self.config.max_positions, vocabulary=self.config.vocab_size)
        check_biases(sampling, vocabulary=self.config.vocab_size)

    def _check_pool(self, decoder: Pools | Steppers, judge: Judge | None) -> None:
        if judge is None and isinstance(decoder, Steppers) and decoder.aggregate == "prod":
            raise UserError(
                f"aggregate 'prod' multiplies probabilities, and the score {decoder.score!r} gives none; use last, min "
                "or mean, or give a scorer that does."
            )
        if judge is None and needs_rewards(decoder.terms):
            self._require_channel(f"the score {decoder.score!r}")

    def _rewards_of(self, ids: list[int], tokens: list[int]) -> list[float]:
        return [] if self.config.channel is None else self.token_rewards(ids, tokens)

    def _require_channel(self, what: str) -> None:
        if self.config.channel is None:
            raise UserError(
                f"{what} needs a reward channel and this checkpoint has none; train one with train.py, or attach one "
                "with `python convert.py import SRC DST --channel FILE`."
            )


class Clock:
    """Seconds spent waiting for an iterator's items."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items."""
        while True:
            began = time.perf_counter()
            item = next(items, None)
            self.seconds += time.perf_counter() - began
            if item is None:
                return
            yield item


def load(
    directory: str | Path,
    *,
    dtype: Any = None,
    template: Mapping[str, Any] = NO_VARIABLES,
    date: str | None = None,
) -> LanguageModel:
    """Load a checkpoint directory for decoding. `dtype` defaults to float32 on CPU and bfloat16 on accelerators.

    Chats are rendered with the variables `template`, as if on the day `date` (YYYY-MM-DD; None: today).
    """
    wanted = None if dtype is None else jnp.dtype(dtype)
    loaded = load_model(Path(directory), dtype=wanted, template=template, date=date)
    name = Path(directory).resolve().name
    return LanguageModel(loaded.policy, loaded.config, loaded.tokenizer, loaded.end_tokens, name)


def _ends_boxed(decoder: Steppers) -> bool:
    return isinstance(decoder, DVTS) and decoder.boxed


def is_chat(prompt: Messages | Sequence[int] | str) -> bool:
    """Whether a prompt is a conversation."""
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _rewards(config: ModelConfig, policy: Policy, tokens: jax.Array) -> jax.Array | None:
    return forward.trunk(policy, config, tokens).reward
