"""The oracle itself, against a hand-worked example and against a stateless search that keeps no tree."""

import dataclasses
import itertools
import random
from fractions import Fraction

import numpy as np
import pytest

from tests import oracles, toys


def stateless(world: oracles.World, settings: oracles.Settings) -> oracles.Text:
    """SLA again, from nothing each round: try every path of depth + 1 chunks, take the best one's first chunk."""

    def read(text: oracles.Text) -> tuple[np.ndarray, float]:
        return world([text])[0]

    def over(text: oracles.Text) -> bool:
        return bool(text) and (text[-1] in settings.end_tokens or len(text) == settings.max_tokens)

    def chunk(text: oracles.Text, token: int) -> oracles.Text:
        text = (*text, token)
        for _ in range(settings.chunk - 1):
            text = text if over(text) else (*text, int(np.argmax(read(text)[0])))
        return text

    def best(text: oracles.Text, levels: int) -> Fraction:
        if levels == 0 or over(text):
            return sum((Fraction(read(text[: i + 1])[1]) for i in range(len(text))), Fraction(0)) / len(text)
        return max(best(chunk(text, token), levels - 1) for token in branches(text))

    def branches(text: oracles.Text) -> list[int]:
        scores = read(text)[0]
        return sorted(range(len(scores)), key=lambda token: (-scores[token], token))[: settings.width]

    text: oracles.Text = () if settings.branch_first else chunk((), branches(())[0])
    while not over(text):
        candidates = [chunk(text, token) for token in branches(text)]
        text = max(candidates, key=lambda candidate: best(candidate, settings.depth))  # max keeps the first of equals
    return text


@pytest.mark.parametrize("branch_first", [False, True])
@pytest.mark.parametrize(("width", "chunk", "depth"), list(itertools.product([1, 2, 3], [1, 2, 3], [0, 1, 2])))
def test_keeping_the_tree_changes_nothing(width: int, chunk: int, depth: int, branch_first: bool) -> None:
    draw = random.Random(f"{width} {chunk} {depth}")
    for seed in range(4):
        world = toys.plain(toys.random_tables(seed, states=7, vocab=4), start=draw.randrange(7))
        settings = oracles.Settings(
            width=width,
            chunk=chunk,
            depth=depth,
            max_tokens=draw.randrange(1, 9),
            end_tokens=frozenset({0}),
            branch_first=branch_first,
        )
        early = oracles.sla(world, settings)
        late = oracles.sla(world, dataclasses.replace(settings, early=False))
        assert early.tokens == late.tokens == stateless(world, settings)
        assert early.explored <= late.explored


def test_by_hand() -> None:
    """Tokens a=0, b=1, end=2; a is always likelier; only texts with b in them earn anything, and b b earns most."""
    rewards: dict[oracles.Text, float] = {(0, 0): 0.0, (0, 1): 1.0, (1, 0): 0.5, (1, 1): 2.0}

    def world(texts: list[oracles.Text]) -> list[tuple[np.ndarray, float]]:
        return [(np.array([-0.5, -1.0, -9.0]), rewards.get(text[-2:], 0.0)) for text in texts]

    settings = oracles.Settings(width=2, chunk=1, depth=1, max_tokens=4, end_tokens=frozenset({2}))
    answer = oracles.sla(world, settings)
    # a (first chunk); then a·? and b·?: a a b = 1/3 against a b b = 3/3, so b; and so on
    assert answer.tokens == (0, 1, 1, 1)
    # after the third token every leaf has 4 tokens and is finished: nothing can change, and both chunks come at once
    assert [round_.tokens for round_ in answer.rounds] == [(0,), (1,), (1, 1)]
    assert [round_.score for round_ in answer.rounds] == [0.0, 1.0, 5 / 4]
    assert [round_.margin for round_ in answer.rounds] == [None, pytest.approx(2 / 3), 5 / 4 - 3.5 / 4]
    assert [round_.explored for round_ in answer.rounds] == [1, 7, 11]
    assert (answer.finish, answer.explored) == ("length", 11)


@pytest.mark.parametrize("reward", [0.0, 0.1, -3.7])
def test_constant_rewards_and_width_one_are_greedy(reward: float) -> None:
    for seed in range(10):
        tables = toys.random_tables(seed, states=7, vocab=4)
        constant = tables._replace(rewards=np.full_like(tables.rewards, reward))
        expected = oracles.greedy(toys.plain(tables, 0), 11, frozenset({0}))
        wide = oracles.Settings(width=3, chunk=2, depth=1, max_tokens=11, end_tokens=frozenset({0}))
        narrow = oracles.Settings(width=1, chunk=3, depth=2, max_tokens=11, end_tokens=frozenset({0}))
        assert oracles.sla(toys.plain(constant, 0), wide).tokens == expected
        assert oracles.sla(toys.plain(tables, 0), narrow).tokens == expected


def test_near_ties_excuse_only_what_comes_after_them() -> None:
    ties = oracles.NearTies(1e-4)
    ties("argmax", 1.0, 0)
    assert not ties.excuse((1, 2, 3), (1, 2, 4))
    ties("selection", 5e-5, 2)
    assert ties.excuse((1, 2, 3), (1, 2, 4))
    assert not ties.excuse((1, 2, 3), (1, 5, 3))
