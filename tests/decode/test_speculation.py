"""Guesses change what decoding costs and nothing else: every token, number and round is the plain decoder's."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sla_jax.decode import drafting
from sla_jax.decode.drafting import LONGEST, NOTHING, SHORTEST, History
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.program import Program
from sla_jax.decode.result import Round
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.sla import SLA
from sla_jax.errors import UserError
from tests import toys
from tests.decode.test_policy import LIMITS, PROMPTS, end_token, program, unrolled
from tests.toys import Row

STATES, VOCAB = 4, 3  # few of both: texts run into loops
SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.7, seed=5),
    Sampling(repetition_penalty=1.3, frequency_penalty=0.2, min_tokens=5),
    Sampling(temperature=1.1, top_k=2, presence_penalty=0.4, seed=9),
)
UNSURE: dict[str, Any] = {"budget": 2, "branch_above": 0.8, "behind": 0.5, "end_above": 0.9, "least": 2}
DECODERS = (
    Greedy(chunk=7, draft=3),
    SLA(width=2, chunk=3, depth=2, draft=2),
    SLA(width=2, chunk=4, depth=1, draft=3, **UNSURE),
)
TOGETHER = 4  # rows of a program, so that each is compiled once
COST: dict[str, Any] = {"steps": 0, "lane_steps": 0, "drafted": 0, "accepted": 0}


@functools.cache
def toy(decoder: Any) -> Program:
    return toys.program(decoder)


def log(decoder: Any, rows: Sequence[Row]) -> list[list[Round]]:
    """The rounds of four rows, decoded together."""
    assert len(rows) == TOGETHER
    return list(toy(decoder).stream(None, toys.state(decoder, rows)))


def plain(decoder: Any) -> Any:
    return dataclasses.replace(decoder, draft=0)


def costless(rounds: list[list[Round]]) -> list[list[Round]]:
    """All that they say but what it cost."""
    return [[one._replace(**COST) for one in row] for row in rounds]


def some_rows(seed: int) -> list[Row]:
    """Small worlds with every kind of sampling, limits from 1 on, an end token in one, and prompts to guess from."""
    draw = np.random.default_rng(seed)
    rows = []
    for world in range(TOGETHER):
        tables = toys.random_tables(int(draw.integers(2**31)), STATES, VOCAB, fine=world % 2 == 0)
        ends = (int(draw.integers(VOCAB)), -1) if world == seed % 4 else (-1, -1)
        prompt = tuple(map(int, draw.integers(0, VOCAB, draw.integers(1, 9))))
        limit = int(draw.integers(1, 30))
        rows.append(Row(tables, int(draw.integers(STATES)), limit, ends, SAMPLINGS[world], prompt))
    return rows


def loop(period: int, limit: int) -> Row:
    """A world that says 0, 1, … period - 1 again and again, and whose prompt has said it twice."""
    state = np.arange(STATES)
    tables = toys.Tables(
        np.eye(STATES, VOCAB, dtype=np.float32),
        np.zeros(STATES, np.float32),
        np.broadcast_to(((state + 1) % period)[:, None], (STATES, VOCAB)).astype(np.int32),
    )
    return Row(tables, 0, limit, (-1, -1), prompt=(*range(period), *range(period)))


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_guesses_change_nothing_but_the_cost(decoder: Any) -> None:
    saved, right = 0, 0
    for seed in range(12):
        rows = some_rows(seed)
        theirs, ours = log(plain(decoder), rows), log(decoder, rows)
        assert costless(ours) == costless(theirs)
        for mine, yours in zip(ours[-1], theirs[-1], strict=True):
            assert yours.drafted == yours.accepted == 0
            assert mine.steps <= yours.steps and mine.accepted <= mine.drafted
            saved, right = saved + yours.steps - mine.steps, right + mine.accepted
    assert saved > 50 and right >= saved


SEVERAL = DECODERS[:2]
DRAWN = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def any_row(draw: st.DrawFn) -> Row:
    """A world of few distinct numbers (ties everywhere), with up to two end tokens, sampled in any way."""

    def table(low: int, high: int, *shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        return np.array(draw(st.lists(st.integers(low, high), min_size=size, max_size=size))).reshape(shape)

    tables = toys.Tables(
        table(-2, 2, STATES, VOCAB).astype(np.float32),
        table(-3, 3, STATES).astype(np.float32),
        table(0, STATES - 1, STATES, VOCAB).astype(np.int32),
    )
    ends = draw(st.integers(-1, VOCAB - 1)), draw(st.integers(-1, VOCAB - 1))
    prompt = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8))
    start, limit = draw(st.integers(0, STATES - 1)), draw(st.integers(1, 24))
    return Row(tables, start, limit, ends, draw(st.sampled_from(SAMPLINGS)), tuple(prompt))


@DRAWN
@given(st.sampled_from(SEVERAL), st.lists(any_row(), min_size=TOGETHER, max_size=TOGETHER))
def test_no_world_can_tell(decoder: Any, rows: list[Row]) -> None:
    assert costless(log(decoder, rows)) == costless(log(plain(decoder), rows))


def test_a_loop_takes_as_many_passes_as_guesses_allow() -> None:
    """Every pass reads 1 + draft tokens, as far as the chunk and the limit have room for them."""
    periods, limit, decoder = (1, 2, 3, 3), 19, SEVERAL[0]
    chunks = [min(decoder.chunk, limit - begun) for begun in range(0, limit, decoder.chunk)]
    alone = sum(chunk % (1 + decoder.draft) == 1 for chunk in chunks)  # passes with room for one token
    for end in log(decoder, [loop(period, limit) for period in periods])[-1]:
        assert end.steps == sum(-(-chunk // (1 + decoder.draft)) for chunk in chunks)
        assert end.drafted == end.accepted == limit - end.steps
        assert end.lane_steps == (end.steps - alone) * (1 + decoder.draft) + alone
        assert (end.committed, end.explored) == (limit, limit)


def test_a_request_costs_the_same_beside_any_other() -> None:
    first = some_rows(3)[0]._replace(limit=20, ends=(-1, -1))
    seen = []
    for beside in (some_rows(4)[1:], some_rows(5)[1:], [loop(3, 20)] * 3, [first] * 3):
        rounds = [one for one, *_ in log(SEVERAL[1], [first, *beside])]
        seen.append(rounds[: next(i for i, one in enumerate(rounds) if one.done) + 1])
    assert all(rounds == seen[0] for rounds in seen)
    assert seen[0][-1].accepted > 0


def looked_up(branches: Sequence[Sequence[int]], text: Sequence[int], count: int) -> list[int]:
    """The guess, from the rule as it is written."""
    read = [token for branch in branches for token in (*branch, NOTHING)] + list(text)
    for size in range(min(LONGEST, len(text)), SHORTEST - 1, -1):
        for end in range(len(read) - 2, size - 2, -1):
            if read[end - size + 1 : end + 1] == list(text[-size:]):
                told = read[end + 1 :]
                guess = [told[i % len(told)] for i in range(count)]
                return guess[: guess.index(NOTHING)] if NOTHING in guess else guess
    return []


SOME = st.lists(st.integers(0, 2), max_size=9)


@DRAWN
@given(SOME, SOME, st.lists(st.lists(st.integers(0, 2), min_size=5, max_size=5), min_size=3, max_size=3))
def test_the_guess_is_the_rules(said: list[int], own: list[int], branches: list[list[int]]) -> None:
    """What is held may stand anywhere in its places, and what is said may have been forgotten in part."""
    count, size, places, start = 4, 6, 11, min(2, 11 - len(own))
    text = [*said, *own, 1]
    history = History(
        jnp.asarray([([NOTHING] * size + said)[-size:]], jnp.int32),
        jnp.asarray([[[*branch, NOTHING] for branch in branches]], jnp.int32),
    )
    tokens = np.full((1, 1, places), 2, np.int32)
    tokens[0, 0, start : start + len(own)] = own
    held, first = jnp.full((1, 1), len(own), jnp.int32), jnp.full((1, 1), start, jnp.int32)
    texts = drafting.texts(history, jnp.asarray(tokens), first, held, jnp.ones((1, 1), jnp.int32))
    kept = text[-(min(len(said), size) + len(own) + 1) :]
    assert [token for token in texts[0, 0].tolist() if token != NOTHING] == kept
    guessed, there = drafting.guess(history, texts, count)
    expected = looked_up(branches, kept, count)
    assert guessed[0, 0][there[0, 0]].tolist() == expected
    assert there[0, 0].tolist() == [i < len(expected) for i in range(count)]


def test_a_history_forgets_the_oldest() -> None:
    lanes, held = 8, 30
    prompt = jnp.arange(3, dtype=jnp.int32)[None, :]
    history = drafting.begun(prompt, jnp.asarray([2], jnp.int32), lanes=lanes, held=held, draft=1)
    assert history.said[0, -3:].tolist() == [NOTHING, 0, 1]
    told = drafting.told(history, jnp.asarray([[7, 8, 9]], jnp.int32), jnp.asarray([2], jnp.int32))
    assert told.said[0, -5:].tolist() == [NOTHING, 0, 1, 7, 8]
    texts = jnp.broadcast_to(jnp.arange(40, dtype=jnp.int32), (1, lanes, 40))
    read = jnp.arange(lanes)[None, :] != 1
    rows = drafting.noted(told, texts, read).tried[0, -lanes:].tolist()
    assert rows[0] == [*range(40 - held - LONGEST, 40), NOTHING] == rows[7]
    assert set(rows[1]) == {NOTHING}
    assert history.tried.shape == (1, 24, held + LONGEST + 1)  # three rounds, in about 1024 places
    nothing = drafting.begun(prompt, jnp.asarray([2], jnp.int32), lanes=lanes, held=held, draft=0)
    assert nothing.said.size == nothing.tried.size == 0


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("llama31", Greedy(chunk=4, draft=3)),
        ("qwen2-sliding", SLA(width=2, chunk=2, depth=2, branch_first=True, draft=1)),
    ],
    ids=["greedy", "look-ahead"],
)
def test_a_model_says_the_same(name: str, decoder: Any) -> None:
    """Several rows a lane round differently: the same tokens, and the same numbers nearly."""
    weights, ends = unrolled(name), [end_token(name)]
    prompts = [(*prompt, *prompt) for prompt in PROMPTS]
    ours, theirs = (
        list(one.stream(weights, one.start(weights, prompts, LIMITS, ends)))
        for one in (program(name, decoder), program(name, plain(decoder)))
    )
    assert sum(a.accepted for a in ours[-1]) > 0
    for mine, yours in zip((r for row in ours for r in row), (r for row in theirs for r in row), strict=True):
        for field in ("tokens", "done", "stopped", "explored", "committed"):
            assert getattr(mine, field) == getattr(yours, field)
        for field in ("rewards", "logprobs", "entropies"):
            assert getattr(mine, field) == pytest.approx(getattr(yours, field), abs=1e-4)


@pytest.mark.parametrize("make", [Greedy, SLA])
def test_a_draft_that_no_chunk_has_room_for_says_so(make: Any) -> None:
    with pytest.raises(UserError, match=r"draft=4.*chunk=4 it takes 0 to 3"):
        make(chunk=4, draft=4)
    with pytest.raises(UserError, match="draft=-1"):
        make(draft=-1)
