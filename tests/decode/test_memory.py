"""A budget that comes from the device's memory."""

import pytest

from sla_jax.decode.best_of_n import BestOfN
from sla_jax.decode.memory import fitted, free_bytes
from sla_jax.decode.speculative_rejection import SpeculativeRejection
from sla_jax.errors import UserError


def test_the_free_memory_less_the_reserve_is_the_budget() -> None:
    search = SpeculativeRejection(n=8, chunk=16, reserve_gb=1.0)
    found = fitted(search, position_bytes=1000, free=int(1.5e9), requests=2)
    assert found == SpeculativeRejection(n=8, chunk=16, budget=250_000)
    assert found.phases(4096) == SpeculativeRejection(n=8, chunk=16, budget=250_000).phases(4096)


def test_who_does_not_ask_is_left_alone() -> None:
    for search in (BestOfN(), SpeculativeRejection(budget=4096)):
        assert fitted(search, 1, None) is search


def test_a_cpu_does_not_say_and_too_little_is_refused() -> None:
    assert free_bytes() is None
    with pytest.raises(UserError, match="give a budget in tokens"):
        fitted(SpeculativeRejection(reserve_gb=0.0), 1000, free_bytes())
    with pytest.raises(UserError, match=r"room for 0 tokens .* need 256"):
        fitted(SpeculativeRejection(n=16, reserve_gb=2.0), 1000, int(1e9))
    with pytest.raises(UserError, match="in place of a budget"):
        SpeculativeRejection(reserve_gb=1.0, budget=4096)
