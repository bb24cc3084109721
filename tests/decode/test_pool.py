"""Best-of-N and Speculative Rejection against the oracle on toys, and the identities that tie them together."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sla_jax.decode import measures
from sla_jax.decode.best_of_n import BestOfN
from sla_jax.decode.completion import Completion, PoolRound, best
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.pool_program import PoolDecoder
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.speculative_rejection import SpeculativeRejection
from sla_jax.errors import UserError
from tests import pool_oracles, toys
from tests.pool_oracles import Draws, Fate
from tests.toys import Row

STATES, VOCAB = 6, 4
SMALL = [
    (1, 0.5, 1),
    (2, 0.25, 1),
    (2, 0.5, 3),
    (5, 0.0, 3),
    *itertools.product([5], [0.25, 0.5, 0.75], [1, 3]),
]  # n, alpha, chunk


def some_rows(seed: int, limit: int, worlds: int = 6) -> list[Row]:
    """Worlds with no, one or two end tokens and rewards with and without ties; every one its own seed."""
    draw = np.random.default_rng(seed)
    rows = []
    for world in range(worlds):
        tables = toys.random_tables(int(draw.integers(2**31)), STATES, VOCAB, fine=world % 2 == 0)
        ends = draw.choice(VOCAB, size=world % 3, replace=False)
        sampling = Sampling(temperature=float(draw.choice([0.7, 1.0, 2.0])), seed=int(draw.integers(2**63)))
        rows.append(Row(tables, int(draw.integers(STATES)), limit, tuple(map(int, ends)), sampling))
    return rows


def draws_of(row: Row) -> Draws:
    """How a row samples, in the oracle's terms."""
    temperature, seed = row.sampling.temperature, row.sampling.seed
    return Draws(temperature=temperature, seed=seed, limit=row.limit, ends=frozenset(row.ends))


def expected(row: Row, n: int, rounds: list[tuple[int, int]]) -> dict[int, Fate]:
    """What the oracle says of one row."""
    world = toys.plain(row.tables, row.start)
    answers = [pool_oracles.sample(world, candidate, draws_of(row)) for candidate in range(n)]
    return pool_oracles.reject(answers, rounds, pool_oracles.mean)


def completions(log: list[PoolRound]) -> dict[int, Completion]:
    """Every candidate of one request, each decided once."""
    found = [one for round_ in log for one in round_.ended]
    assert len({one.candidate for one in found}) == len(found)
    return {one.candidate: one for one in found}


def same(log: list[PoolRound], fates: dict[int, Fate], row: Row) -> None:
    """Tokens, fates, rounds and the answer exactly; float32 scores nearly."""
    ours = completions(log)
    assert ours.keys() == fates.keys()
    for number, one in ours.items():
        theirs = fates[number]
        assert (tuple(one.tokens), one.round) == (theirs.tokens, theirs.round)
        ended = "stop" if one.tokens[-1] in row.ends else "length"
        assert one.finish == ("rejected" if theirs.finish == "rejected" else ended)
        assert one.score == pytest.approx(float(theirs.score), abs=1e-5)
    assert best(list(ours.values())).candidate == pool_oracles.answer(fates)
    assert log[-1].explored == sum(len(one.tokens) for one in ours.values())


@pytest.mark.parametrize(("n", "alpha", "chunk"), SMALL)
def test_every_small_rejection_is_the_oracles(n: int, alpha: float, chunk: int) -> None:
    rows = some_rows(seed=int(100 * n + 10 * chunk + 4 * alpha), limit=9)
    budget = max(9, n * 9 // 3, n * chunk) if alpha else n * 9
    decoder = SpeculativeRejection(n=n, alpha=alpha, budget=budget, chunk=chunk)
    rounds = pool_oracles.schedule(n, Fraction(alpha), budget, chunk, 9)
    assert [(phase.lanes, min(phase.tokens, 9)) for phase in decoder.phases(9)] == rounds
    for log, row in zip(toys.play_pool(decoder, rows), rows, strict=True):
        same(log, expected(row, n, rounds), row)


def fates(decoder: PoolDecoder, rows: list[Row]) -> list[list[Completion]]:
    """Every request's candidates, in order."""
    return [sorted(completions(log).values()) for log in toys.play_pool(decoder, rows)]


def test_nothing_rejected_is_best_of_n_sample_for_sample() -> None:
    rows = some_rows(seed=1, limit=10)
    assert fates(SpeculativeRejection(n=5, alpha=0.0, chunk=4), rows) == fates(BestOfN(n=5, chunk=4), rows)


def test_progress_changes_nothing() -> None:
    """The chunk is only how often progress is told."""
    rows = some_rows(seed=2, limit=10)
    assert fates(BestOfN(n=3, chunk=2), rows) == fates(BestOfN(n=3, chunk=10), rows)


def test_candidate_0_is_plain_sampling() -> None:
    rows = some_rows(seed=3, limit=10)
    sampled = [list(answer.tokens) for answer in toys.play(Greedy(chunk=3), rows)]
    assert [row[0].tokens for row in fates(BestOfN(n=4, chunk=3), rows)] == sampled


def test_a_candidate_depends_on_seed_and_number_only() -> None:
    """Neither on how many candidates there are nor on who else is in the batch."""
    rows = some_rows(seed=4, limit=10)
    many, few = fates(BestOfN(n=6, chunk=5), rows), fates(BestOfN(n=2, chunk=5), rows[::-1])[::-1]
    assert [row[:2] for row in many] == few


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 4000), st.sampled_from([0.25, 0.5, 0.75]), st.integers(1, 64), st.integers(1, 400))
def test_a_schedule_keeps_its_budget(budget: int, alpha: float, n: int, limit: int) -> None:
    n = min(n, budget)
    decoder = SpeculativeRejection(n=n, alpha=alpha, budget=budget, chunk=1)
    if budget < limit:
        with pytest.raises(UserError, match="never fewer"):
            decoder.phases(limit)
        return
    phases = decoder.phases(limit)
    assert all(phase.lanes * phase.tokens <= budget for phase in phases)
    assert [phase.tokens for phase in phases] == sorted({phase.tokens for phase in phases})
    assert (phases[0].lanes, phases[-1].tokens) == (n, limit)


def test_the_papers_schedule() -> None:
    phases = SpeculativeRejection(n=1000, alpha=0.5, budget=263_000, chunk=1).phases(2078)
    assert [(p.lanes, p.tokens) for p in phases] == [(1000, 263), (500, 526), (250, 1052), (125, 2078)]


def test_lanes_and_steps_really_shrink() -> None:
    """Rows computed: 8 lanes × 4 steps, 4 × 4, 2 × 8 against 8 × 16 of Best-of-N."""
    (row,) = some_rows(seed=5, limit=16, worlds=1)

    def cost(decoder: PoolDecoder) -> int:
        (log,) = toys.play_pool(decoder, [row._replace(ends=())])
        steps = [0, *(round_.steps for round_ in log)]
        return sum(
            round_.lanes * (after - before) for round_, before, after in zip(log, steps, steps[1:], strict=False)
        )

    assert cost(BestOfN(n=8, chunk=4)) == 128
    assert cost(SpeculativeRejection(n=8, alpha=0.5, budget=32, chunk=4)) == 8 * 4 + 4 * 4 + 2 * 8


def test_a_judge_replaces_the_score_and_sees_each_candidate_in_play() -> None:
    """The fewest tokens of kind 0 win; unfinished candidates are told as such."""
    rows = some_rows(seed=6, limit=8)[:2]
    seen: list[tuple[int, int, str]] = []

    def judge(request: int, found: list[Completion]) -> list[float]:
        seen.extend((request, one.candidate, one.finish) for one in found)
        return [-float(one.tokens.count(0)) for one in found]

    logs = toys.play_pool(SpeculativeRejection(n=4, alpha=0.5, budget=16, chunk=4), rows, judge)
    for log in logs:
        ended = [one for one in completions(log).values() if one.finish != "rejected"]
        assert best(list(completions(log).values())).score == max(one.score for one in ended)
        assert all(one.score == -one.tokens.count(0) for one in ended)
    assert {(r, c) for r, c, _ in seen} == {(r, c) for r in range(2) for c in range(4)}
    assert "rejected" in {finish for *_, finish in seen}


@pytest.mark.parametrize(
    ("score", "slow"),
    [
        ("reward_last", lambda c: c.rewards[-1]),
        ("reward_min", lambda c: min(c.rewards)),
        ("logprob", lambda c: sum(c.logprobs)),
        ("logprob_mean", lambda c: sum(c.logprobs) / len(c.logprobs)),
        ("self_reward", lambda c: -np.exp(-sum(c.logprobs) / len(c.logprobs))),
        ("reward + 0.5*logprob_mean", lambda c: np.mean(c.rewards) + 0.5 * np.mean(c.logprobs)),
    ],
)
def test_measures_are_plain_arithmetic(score: str, slow: Any) -> None:
    for found in fates(BestOfN(n=4, chunk=3, score=score), some_rows(seed=7, limit=8)):
        assert [one.score for one in found] == pytest.approx([slow(one) for one in found], abs=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BestOfN(n=0), "n=0 is out of range"),
        (lambda: BestOfN(score="rewards"), "'rewards'; known: reward, .*Did you mean"),
        (lambda: BestOfN(score="x*reward"), "has the weight 'x'"),
        (lambda: SpeculativeRejection(alpha=1.0), "alpha=1.0 is out of range"),
        (lambda: SpeculativeRejection(n=8, budget=10, chunk=4), "give at least 32"),
        (lambda: SpeculativeRejection(n=4, alpha=0.0, budget=20, chunk=4).phases(100), "give a budget of 400"),
    ],
)
def test_bad_settings_say_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_what_needs_a_channel() -> None:
    assert measures.needs_rewards(measures.terms("0.5*logprob + reward_min"))
    assert not measures.needs_rewards(measures.terms("self_reward"))
