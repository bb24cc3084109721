"""Our decoders on tiny random policies against a naive search in PyTorch that has no cache, and against themselves."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from sla_jax.decode.greedy import Greedy
from sla_jax.decode.program import Engine, Program
from sla_jax.decode.sla import SLA
from sla_jax.decode.steps import Steps
from sla_jax.model import decoding, policy
from sla_jax.model.config import ModelConfig
from tests import families, oracles, toys
from tests.torch_reference import TorchWorld

PROMPTS = [(5, 9, 60, 3, 3, 17, 22, 8, 1, 40), (7,), (2, 2, 50, 33), (11, 12, 13, 14, 15, 16, 17)]
LIMITS = (23, 14, 1, 19)
CASES = {
    "llama31": SLA(width=2, chunk=4, depth=2),
    "mistral": SLA(width=3, chunk=3, depth=1),
    "qwen2-sliding": SLA(width=2, chunk=2, depth=2, branch_first=True),
    "qwen3": SLA(width=2, chunk=5, depth=0),
}


@functools.cache
def unrolled(name: str) -> Any:
    """A family's policy in the decoding layout."""
    return policy.unstack(families.family(name).policy)


@functools.cache
def engine(config: ModelConfig) -> Engine:
    """The model as decoders want it."""

    def prefill(params: Any, prompts: Any, lengths: Any, decoder: Any, capacity: int) -> Any:
        sizes = {"lanes": decoder.lanes, "capacity": capacity, "held": decoder.held}
        return decoding.prefill(params, config, prompts, lengths, **sizes)

    def steps(params: Any, decoder: Any) -> Steps:
        return Steps(
            functools.partial(decoding.step, params, config, decoder.chunk),
            functools.partial(decoding.read, params, config, decoder.chunk),
            decoding.fork,
            functools.partial(decoding.commit, decoder.chunk),
            decoding.regroup,
        )

    return Engine(prefill, steps)


@functools.cache
def program(name: str, decoder: Any) -> Program:
    """Compiled once a family and decoder."""
    return Program(engine(families.family(name).config), decoder)


def world(name: str, prompt: tuple[int, ...]) -> oracles.World:
    """PyTorch, a whole forward a token."""
    one = families.family(name)
    return TorchWorld(one.model, one.channel, prompt)


@functools.cache
def end_token(name: str) -> int:
    """The token that the first prompt's greedy answer says last for the first time: so that something ends there."""
    text = oracles.greedy(world(name, PROMPTS[0]), 20)
    return max(text, key=text.index)


def decode(name: str, decoder: Any, prompts: Any, limits: Any) -> list[oracles.Answer]:
    """Our answers, all prompts in one program."""
    ours, weights = program(name, decoder), unrolled(name)
    state = ours.start(weights, prompts, limits, [end_token(name)])
    return toys.answers(list(ours.stream(weights, state)))


@pytest.mark.parametrize(("name", "decoder"), CASES.items(), ids=list(CASES))
def test_look_ahead_is_the_naive_searchs(name: str, decoder: SLA) -> None:
    answers = decode(name, decoder, PROMPTS, LIMITS)
    for ours, prompt, limit in zip(answers, PROMPTS, LIMITS, strict=True):
        ties = oracles.NearTies()
        asked = oracles.Settings(
            width=decoder.width,
            chunk=decoder.chunk,
            depth=decoder.depth,
            max_tokens=limit,
            end_tokens=frozenset({end_token(name)}),
            branch_first=decoder.branch_first,
        )
        theirs = oracles.sla(world(name, prompt), asked, ties)
        assert not ties.seen  # these seeds have none: nothing to excuse
        assert (ours.tokens, ours.finish, ours.explored) == (theirs.tokens, theirs.finish, theirs.explored)
        assert [round_.explored for round_ in ours.rounds] == [round_.explored for round_ in theirs.rounds]
        for mine, yours in zip(ours.rounds, theirs.rounds, strict=True):
            assert mine.tokens == yours.tokens
            assert mine.rewards == pytest.approx(yours.rewards, abs=1e-4)
            assert mine.score == pytest.approx(yours.score, abs=1e-4)
            assert mine.margin == (None if yours.margin is None else pytest.approx(yours.margin, abs=1e-4))


@pytest.mark.parametrize("name", ["llama31", "mistral"])
def test_greedy_is_pytorchs(name: str) -> None:
    answers = decode(name, Greedy(chunk=4), PROMPTS, LIMITS)
    for ours, prompt, limit in zip(answers, PROMPTS, LIMITS, strict=True):
        assert ours.tokens == oracles.greedy(world(name, prompt), limit, frozenset({end_token(name)}))


def test_four_together_are_each_alone() -> None:
    """Different lengths and limits in one program: the tokens of each alone, the rewards to rounding."""
    name, decoder = "mistral", CASES["mistral"]
    together = decode(name, decoder, PROMPTS, LIMITS)
    for ours, prompt, limit in zip(together, PROMPTS, LIMITS, strict=True):
        (alone,) = decode(name, decoder, [prompt], [limit])
        assert (ours.tokens, ours.finish, ours.explored) == (alone.tokens, alone.finish, alone.explored)
        for mine, yours in zip(ours.rounds, alone.rounds, strict=True):
            assert mine.rewards == pytest.approx(yours.rewards, abs=1e-5)


def test_width_one_is_greedy() -> None:
    name = "llama31"
    ours = decode(name, SLA(width=1, chunk=4, depth=1), PROMPTS, LIMITS)
    assert [answer.tokens for answer in ours] == [a.tokens for a in decode(name, Greedy(chunk=4), PROMPTS, LIMITS)]


def test_constant_rewards_are_greedy() -> None:
    """A head of zeros gives the reward 0 to everything; every tie goes to the more probable branch."""
    name, decoder = "llama31", CASES["llama31"]
    weights = jax.tree.map(lambda leaf: leaf, unrolled(name))
    weights.channel.head[0][...] = np.zeros_like(weights.channel.head[0][...])
    ours = program(name, decoder)
    log = list(ours.stream(weights, ours.start(weights, PROMPTS, LIMITS, [end_token(name)])))
    greedy = decode(name, Greedy(chunk=4), PROMPTS, LIMITS)
    assert [answer.tokens for answer in toys.answers(log)] == [answer.tokens for answer in greedy]
    chosen = decode(name, decoder, PROMPTS, LIMITS)
    assert any(a.tokens != b.tokens for a, b in zip(chosen, greedy, strict=True))  # or this shows nothing
