"""Look-ahead that spends its lanes where they matter: every knob against the oracle, on toys."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax.decode.following import uncertainty
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.sla import SLA
from sla_jax.errors import UserError
from tests import oracles, toys
from tests.decode.test_toys import STATES, VOCAB, same
from tests.toys import Row

KNOBS: list[dict[str, Any]] = [
    {"budget": 1},
    {"budget": 3},
    {"budget": 3, "token_weight": 1.0137},
    {"branch_above": 0.9137},
    {"behind": 0.3137},
    {"end_above": 0.9137, "least": 1},
    {"end_above": 1.1137, "least": 2},
    {"logprob_weight": 0.7137},
    {"budget": 3, "branch_above": 0.7137, "behind": 0.9137, "end_above": 1.0137, "least": 2, "logprob_weight": 0.3137},
]


def some_rows(seed: int, limits: Sequence[int] = (1, 2, 5, 7, 10), worlds: int = 6) -> list[Row]:
    """Worlds in which nothing ties: sums of logarithms are compared, in float32 here and in float64 there."""
    draw = np.random.default_rng(seed)
    rows = []
    for limit, world in itertools.product(limits, range(worlds)):
        tables = toys.random_tables(int(draw.integers(2**31)), STATES, VOCAB, fine=True)
        logits = draw.normal(size=tables.logits.shape).astype(np.float32) * 1.5
        ends = draw.choice(VOCAB, size=world % 3, replace=False)
        row = tables._replace(logits=logits)
        rows.append(Row(row, int(draw.integers(STATES)), limit, tuple(map(int, ends))))
    return rows


def expected(row: Row, decoder: SLA) -> oracles.Answer:
    """What the oracle says of one row."""
    names = {field.name for field in dataclasses.fields(oracles.Settings)}
    knobs = {name: value for name, value in dataclasses.asdict(decoder).items() if name in names}
    knobs["least"] = decoder.shortest
    ends = frozenset(row.ends)
    settings = oracles.Settings(**knobs, max_tokens=row.limit, end_tokens=ends)
    return oracles.sla(toys.plain(row.tables, row.start), settings)


SHAPES = ((2, 2, 1), (3, 3, 1), (2, 3, 2))  # width, chunk, depth; every program takes seconds to compile


@pytest.mark.parametrize(("knobs", "shape"), list(zip(KNOBS, itertools.cycle(SHAPES), strict=False)))
def test_every_knob_is_the_oracles(knobs: dict[str, Any], shape: tuple[int, int, int]) -> None:
    width, chunk, depth = shape
    decoder = SLA(width=width, chunk=chunk, depth=depth, **knobs)
    rows = some_rows(seed=17 * width + depth)
    for ours, row in zip(toys.play(decoder, rows), rows, strict=True):
        same(ours, expected(row, decoder))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3)])
def test_neutral_knobs_are_the_plain_search(sampling: Sampling) -> None:
    rows = [row._replace(sampling=sampling) for row in some_rows(5)]
    plain = SLA(width=2, chunk=3, depth=2)
    neutral = dataclasses.replace(plain, budget=8, branch_above=1e-9, end_above=99.0, behind=1e9)
    assert neutral.lanes == plain.lanes
    assert toys.play(neutral, rows) == toys.play(plain, rows)


def test_a_search_that_is_always_sure_is_greedy_at_one_lane() -> None:
    rows = some_rows(6)
    decoder = SLA(width=3, chunk=2, depth=1, branch_above=99.0)
    log = list(toys.program(decoder).stream(None, toys.state(decoder, rows)))
    answers = toys.answers(log)
    for answer, row in zip(answers, rows, strict=True):
        assert answer.tokens == oracles.greedy(toys.plain(row.tables, row.start), row.limit, frozenset(row.ends))
    for rounds in log:
        assert {round_.alive for round_ in rounds} <= {0, 1}
    assert [round_.lane_steps for round_ in log[-1]] == [round_.steps for round_ in log[-1]]


def test_lanes_that_are_not_in_the_tree_cost_nothing() -> None:
    """Of at most 9 lanes, a round computes 1, 2, 4, 8 or 9: the fewest that hold all leaves of all requests."""
    decoder = SLA(width=3, chunk=2, depth=1, behind=0.2137)
    (row, *_) = some_rows(8)
    row = row._replace(limit=12, ends=())
    before = (0, 0)
    for (round_,) in toys.program(decoder).stream(None, toys.state(decoder, [row])):
        steps, lane_steps = round_.steps - before[0], round_.lane_steps - before[1]
        assert lane_steps == steps * min(size for size in (1, 2, 4, 8, 9) if size >= round_.alive)
        before = (round_.steps, round_.lane_steps)


def test_uncertainty_is_the_entropy_and_the_doubt() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 3, 11)).astype(np.float32) * 4
    logits[..., 4] = -np.inf
    entropy, doubt = uncertainty(jnp.asarray(logits))
    for row, ours, other in zip(logits.reshape(-1, 11), entropy.reshape(-1), doubt.reshape(-1), strict=True):
        assert float(ours) == pytest.approx(oracles.entropy(row), abs=1e-5)
        assert float(other) == pytest.approx(1 - np.exp(oracles.log_softmax(row).max()), abs=1e-5)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"budget": 0}, "budget=0"),
        ({"branch_above": -1.0}, "branch_above=-1.0"),
        ({"behind": -0.5}, "behind=-0.5"),
        ({"token_weight": -1.0}, "token_weight=-1.0"),
        ({"least": 3}, "goes with end_above"),
        ({"end_above": 1.0, "least": 11}, "1 to chunk=10"),
        ({"width": 4, "depth": 9}, "give a budget"),
    ],
)
def test_wrong_knobs_name_themselves(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        SLA(**wrong)
