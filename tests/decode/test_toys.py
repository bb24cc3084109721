"""Every decoder against the oracle, on toys: all small settings, end tokens anywhere, any max_tokens, many rows."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sla_jax.decode.greedy import Greedy
from sla_jax.decode.sla import SLA
from tests import oracles, toys
from tests.decode import golden_file
from tests.toys import Row

SMALL = list(itertools.product([1, 2, 3], [1, 2, 3], [0, 1, 2]))  # n, k, d
STATES, VOCAB = 6, 4


def some_rows(seed: int, limits: int = 12, worlds: int = 8) -> list[Row]:
    """Every limit 1 … limits in several worlds, with no, one or two end tokens."""
    draw = np.random.default_rng(seed)
    rows = []
    for limit, world in itertools.product(range(1, limits + 1), range(worlds)):
        tables = toys.random_tables(int(draw.integers(2**31)), STATES, VOCAB, fine=world % 2 == 0)
        ends = draw.choice(VOCAB, size=world % 3, replace=False)
        rows.append(Row(tables, int(draw.integers(STATES)), limit, tuple(map(int, ends))))
    return rows


def constant(row: Row, reward: float) -> Row:
    """The same world with one reward everywhere."""
    return row._replace(tables=row.tables._replace(rewards=np.full(STATES, reward, np.float32)))


def asked(row: Row, decoder: SLA) -> oracles.Settings:
    """A row's search in the oracle's terms."""
    return oracles.Settings(
        width=decoder.width,
        chunk=decoder.chunk,
        depth=decoder.depth,
        max_tokens=row.limit,
        end_tokens=frozenset(row.ends),
        branch_first=decoder.branch_first,
        early_margin=decoder.early_margin,
    )


def expected(row: Row, decoder: SLA) -> oracles.Answer:
    """What the oracle says of one row."""
    return oracles.sla(toys.plain(row.tables, row.start), asked(row, decoder))


def greedy(row: Row) -> oracles.Text:
    """The greedy text of one row."""
    return oracles.greedy(toys.plain(row.tables, row.start), row.limit, frozenset(row.ends))


def same(ours: oracles.Answer, theirs: oracles.Answer) -> None:
    """Tokens, finish and counts exactly; float32 scores nearly."""
    assert ours.tokens == theirs.tokens
    assert (ours.finish, ours.explored) == (theirs.finish, theirs.explored)
    assert [round_.tokens for round_ in ours.rounds] == [round_.tokens for round_ in theirs.rounds]
    assert [round_.rewards for round_ in ours.rounds] == [round_.rewards for round_ in theirs.rounds]
    assert [round_.explored for round_ in ours.rounds] == [round_.explored for round_ in theirs.rounds]
    assert [round_.score for round_ in ours.rounds] == pytest.approx([r.score for r in theirs.rounds], abs=1e-5)
    for mine, yours in zip(ours.rounds, theirs.rounds, strict=True):
        assert (mine.margin is None) == (yours.margin is None)
        assert mine.margin is None or mine.margin == pytest.approx(yours.margin, abs=1e-5)


FIRST = [(*sizes, True) for sizes in itertools.product([2, 3], [1, 3], [0, 2])]


@pytest.mark.parametrize(("width", "chunk", "depth", "branch_first"), [*((*sizes, False) for sizes in SMALL), *FIRST])
def test_every_small_search_is_the_oracles(width: int, chunk: int, depth: int, branch_first: bool) -> None:
    decoder = SLA(width=width, chunk=chunk, depth=depth, branch_first=branch_first)
    rows = some_rows(seed=100 * width + 10 * chunk + depth)
    for ours, row in zip(toys.play(decoder, rows), rows, strict=True):
        same(ours, expected(row, decoder))


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_greedy_is_the_oracles(chunk: int) -> None:
    rows = some_rows(seed=chunk)
    for ours, row in zip(toys.play(Greedy(chunk=chunk), rows), rows, strict=True):
        assert ours.tokens == greedy(row)
        assert ours.finish == ("stop" if ours.tokens[-1] in row.ends else "length")
        assert ours.explored == len(ours.tokens)


@pytest.mark.parametrize(
    "decoder", [SLA(width=1, chunk=3, depth=0), SLA(width=1, chunk=2, depth=2), SLA(width=1, chunk=4, depth=1)]
)
def test_width_one_is_greedy(decoder: SLA) -> None:
    rows = some_rows(seed=9)
    assert [answer.tokens for answer in toys.play(decoder, rows)] == [greedy(row) for row in rows]


@pytest.mark.parametrize("decoder", [SLA(width=3, chunk=2, depth=1), SLA(width=2, chunk=3, depth=2, branch_first=True)])
def test_constant_rewards_are_greedy(decoder: SLA) -> None:
    """0.1 has no exact sum in float32: the scores of branches of different lengths must still tie."""
    rewards = itertools.cycle([0.0, 0.1, -3.7, 1e-3, 1 / 3, 1e4])
    rows = [constant(row, reward) for row, reward in zip(some_rows(seed=11), rewards, strict=False)]
    assert [answer.tokens for answer in toys.play(decoder, rows)] == [greedy(row) for row in rows]


def test_the_golden_replay() -> None:
    def decoder(case: tuple[oracles.Settings, Row, oracles.Answer]) -> tuple[int, int, int, bool]:
        asked = case[0]
        return asked.width, asked.chunk, asked.depth, asked.branch_first

    for (width, chunk, depth, branch_first), group in itertools.groupby(golden_file.read(), decoder):
        cases = list(group)
        search = SLA(width=width, chunk=chunk, depth=depth, branch_first=branch_first)
        answers = toys.play(search, [row for _, row, _ in cases])
        for ours, (asked, row, written) in zip(answers, cases, strict=True):
            same(ours, written)
            assert oracles.sla(toys.plain(row.tables, row.start), asked) == written


# hypothesis varies worlds; the two programs are compiled once, at four rows each
DRAWN = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
PROGRAMS = {d: toys.program(d) for d in (SLA(width=2, chunk=2, depth=1), SLA(width=3, chunk=2, depth=0))}


@st.composite
def any_row(draw: st.DrawFn) -> Row:
    """A world of few distinct numbers (ties everywhere), with up to two end tokens."""

    def table(low: int, high: int, *shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        return np.array(draw(st.lists(st.integers(low, high), min_size=size, max_size=size))).reshape(shape)

    tables = toys.Tables(
        table(-2, 2, STATES, VOCAB).astype(np.float32),
        table(-3, 3, STATES).astype(np.float32),
        table(0, STATES - 1, STATES, VOCAB).astype(np.int32),
    )
    first, second = draw(st.integers(-1, VOCAB - 1)), draw(st.integers(-1, VOCAB - 1))
    return Row(tables, draw(st.integers(0, STATES - 1)), draw(st.integers(1, 14)), (first, second))


@DRAWN
@given(st.sampled_from(sorted(PROGRAMS, key=repr)), st.lists(any_row(), min_size=4, max_size=4))
def test_any_world_is_the_oracles(decoder: SLA, rows: list[Row]) -> None:
    log = list(PROGRAMS[decoder].stream(None, toys.state(decoder, rows)))
    for ours, row in zip(toys.answers(log), rows, strict=True):
        theirs = expected(row, decoder)
        same(ours, theirs)
        assert 1 <= len(ours.tokens) <= row.limit
        assert len(ours.tokens) == row.limit or ours.finish == "stop"
        assert not set(ours.tokens[:-1]) & set(row.ends)
        assert all(len(round_.tokens) % decoder.chunk == 0 for round_ in ours.rounds[:-1])


def test_the_loop_on_the_device_gives_the_streamed_rounds() -> None:
    decoder = SLA(width=2, chunk=3, depth=1)
    rows = some_rows(seed=21, worlds=3)
    program = toys.program(decoder)
    streamed = list(program.stream(None, toys.state(decoder, rows)))
    looped = program.complete(None, toys.state(decoder, rows), max(row.limit for row in rows))
    assert looped == streamed


def test_an_end_token_beyond_the_limit_is_length() -> None:
    """The limit is exact, and an end token just at the limit still says stop."""
    stay = np.zeros((1, 3), np.int32)
    tables = toys.Tables(np.array([[0.0, 2.0, 1.0]], np.float32), np.zeros(1, np.float32), stay)
    rows = [Row(tables, 0, limit, ends) for limit, ends in ((1, (1,)), (4, (0,)), (5, (1,)))]
    answers = toys.play(SLA(width=2, chunk=3, depth=1), rows)
    assert [(answer.tokens, answer.finish) for answer in answers] == [
        ((1,), "stop"),
        ((1, 1, 1, 1), "length"),
        ((1,), "stop"),
    ]


@pytest.mark.parametrize("decoder", [SLA(width=2, chunk=2, depth=2), Greedy(chunk=2)])
def test_rows_are_independent(decoder: SLA | Greedy) -> None:
    """Row 0 keeps its packed bits whatever happens beside it: early ends, long texts, NaN and infinite numbers."""
    calm, *others = some_rows(seed=31, limits=1, worlds=4)
    calm = calm._replace(limit=11, ends=(3,))
    wild = toys.random_tables(5, STATES, VOCAB)
    trouble = [
        others,
        [row._replace(limit=40, ends=()) for row in others],
        [row._replace(ends=(0, 1, 2, 3)) for row in others],
        [constant(row, 0.1) for row in others],
        [Row(wild._replace(rewards=np.full(STATES, bad, np.float32)), 0, 9, ()) for bad in (np.nan, np.inf, -np.inf)],
        [Row(wild._replace(logits=np.full((STATES, VOCAB), bad, np.float32)), 0, 9, ()) for bad in (np.nan, 3e38, 0)],
    ]
    program = toys.program(decoder)
    seen = []
    for beside in trouble:
        rows = [calm, *(row._replace(ends=(*row.ends, -1, -1, -1, -1)[:4]) for row in beside)]
        state: Any = toys.state(decoder, rows)
        rounds: list[list[int]] = []
        while not rounds or not rounds[-1][1]:  # column 1 says done
            state, packed = program.round(None, state)
            rounds.append(jax.device_get(packed)[0].tolist())
        seen.append(rounds)
    assert all(rounds == seen[0] for rounds in seen)
    assert len(seen[0]) > 1
