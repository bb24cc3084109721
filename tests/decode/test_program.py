"""What a round may not do: compile again, copy to the host twice, wait for the host, or keep its old state alive."""

from typing import Any

import jax
import numpy as np
import pytest

from sla_jax.decode import program as programs
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.sla import SLA
from sla_jax.errors import UserError
from tests import families, toys
from tests.decode.test_policy import engine, unrolled

DECODERS = [SLA(width=2, chunk=2, depth=1), Greedy(chunk=3)]
both = pytest.mark.parametrize("decoder", DECODERS, ids=repr)
READS = ("__array__", "__bool__", "__int__", "__float__", "__index__", "__iter__", "item", "tolist")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every copy of a device array to the host."""
    seen: list[str] = []
    array = type(jax.numpy.zeros(()))
    for name in READS:
        original = getattr(array, name)

        def counted(self: Any, *args: Any, _original: Any = original, _name: str = name, **kwargs: Any) -> Any:
            seen.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(array, name, counted)
    for name in ("asarray", "array"):  # these read a device array's memory without asking it
        original = getattr(np, name)

        def converted(value: Any, *args: Any, _original: Any = original, _name: str = name, **kwargs: Any) -> Any:
            if isinstance(value, array):
                seen.append(_name)
            return _original(value, *args, **kwargs)

        monkeypatch.setattr(np, name, converted)
    return seen


@both
def test_nothing_compiles_after_the_first_round_of_a_bucket(decoder: Any, compiled: list[str]) -> None:
    """Other prompts, lengths, limits and end tokens of the same bucket find every program ready."""
    one, weights = families.family("llama31"), unrolled("llama31")
    program = programs.Program(engine(one.config), decoder)
    draw = np.random.default_rng(0)
    counts = []
    for lengths, limits, ends in (((5, 9), (7, 12), [3]), ((20, 1), (9, 9), [60]), ((44, 31), (11, 2), [0])):
        prompts = [draw.integers(0, 61, length).tolist() for length in lengths]
        for _ in program.stream(weights, program.start(weights, prompts, limits, ends)):
            counts.append(len(compiled))
    assert counts[0] > 0  # the listener works
    assert counts == [counts[0]] * len(counts)
    assert len(counts) >= 9


@both
def test_one_copy_to_the_host_per_round(decoder: Any, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    fetch = programs.fetch

    def counted(tree: Any) -> Any:
        assert len(jax.tree.leaves(tree)) == 1
        fetched.append(tree)
        return fetch(tree)

    monkeypatch.setattr(programs, "fetch", counted)
    rows = [toys.Row(toys.random_tables(seed, 5, 4), 0, 9 + seed, ()) for seed in range(3)]
    program = toys.program(decoder)
    state = toys.state(decoder, rows)
    next(program.stream(None, toys.state(decoder, rows)))  # compiles
    reads.clear()
    fetched.clear()
    with jax.transfer_guard("disallow"):  # nothing implicit, in either direction
        rounds = list(program.stream(None, state))
    assert len(rounds) >= 4
    assert len(fetched) == len(rounds)
    assert len(reads) == len(rounds)


@both
def test_a_round_takes_its_state_with_it(decoder: Any) -> None:
    rows = [toys.Row(toys.random_tables(seed, 5, 4), 0, 9, ()) for seed in range(2)]
    state = toys.state(decoder, rows)
    old = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 2]  # an unused number per lane may stay behind
    toys.program(decoder).round(None, state)
    assert all(leaf.is_deleted() for leaf in old)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 96, 97, 129, 385, 1000, 8192])
def test_buckets_hold_what_they_must(n: int) -> None:
    size = programs.bucket(n)
    assert n <= size <= max(64, 3 * n // 2)
    assert programs.bucket(size) == size


def test_settings_out_of_range_are_named() -> None:
    wrong: list[dict[str, Any]] = [{"width": 0}, {"chunk": 0}, {"depth": -1}, {"width": 65}]
    for bad in wrong:
        with pytest.raises(UserError, match=next(iter(bad))):
            SLA(**bad)
    with pytest.raises(UserError, match="lanes"):
        SLA(width=8, depth=5)
    with pytest.raises(UserError, match="chunk"):
        Greedy(chunk=0)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "said"),
    [([], 5, "empty"), ([1], 0, "max_tokens=0"), ([1] * 90, 11, "90.*11.*101.*100"), ([1, 61], 5, "61")],
)
def test_requests_that_cannot_be_answered_are_refused(prompt: list[int], max_tokens: int, said: str) -> None:
    with pytest.raises(UserError, match=f"(?s){said}"):
        programs.check_prompt(prompt, max_tokens, context=100, vocabulary=61)
    programs.check_prompt([0, 60], 98, context=100, vocabulary=61)


def test_a_bias_on_a_token_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="61.*0 to 60"):
        programs.check_biases(Sampling(logit_bias=((3, 1.0), (61, 1.0))), vocabulary=61)
    programs.check_biases(Sampling(logit_bias=((60, 1.0),)), vocabulary=61)
