"""Decoders by name: one list, and refusals that name what was given, what is taken, and the nearest right thing."""

import dataclasses
from typing import Any

import pytest

from sla_jax.decode.beam import BeamSearch
from sla_jax.decode.best_of_n import BestOfN
from sla_jax.decode.dvts import DVTS
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.methods import METHODS, decoder_of, reads_rewards, useless_option
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.sla import SLA
from sla_jax.decode.speculative_rejection import SpeculativeRejection
from sla_jax.decode.step_beam import StepBeam
from sla_jax.errors import UserError

NONE = {"chunk": None, "width": None, "branch_first": False, "n": None, "alpha": None, "length_penalty": None}


@pytest.mark.parametrize("method", METHODS)
def test_without_options_every_method_is_its_own_default(method):
    assert decoder_of(method, NONE, "") == METHODS[method]()


@pytest.mark.parametrize("method", ["greedy", "sla", "beam", "best_of_n", "speculative_rejection"])
def test_every_option_arrives(method):
    plain = METHODS[method]()
    values = {"score": "logprob", "early_stopping": True, "uncertainty": "doubt", "branch_first": True, "least": 3}
    values |= {"aggregate": "min", "separator": "|", "filter_duplicates": True, "boxed": True}
    for field in dataclasses.fields(plain):
        another = 2 if getattr(plain, field.name) == 4 else 4
        value: Any = values.get(field.name, 0.25 if "float" in str(field.type) else another)
        value = 64 * 64 if field.name == "budget" and method != "sla" else value
        needed = {"end_above": 1.0} if field.name == "least" else {}
        decoder = decoder_of(method, {field.name: value, **needed}, "")
        assert getattr(decoder, field.name) == value != getattr(plain, field.name)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("greedy", {"n": 3, "chunk": None}, r"--n means nothing to --method greedy; that takes --chunk\."),
        ("best_of_n", {**NONE, "alpha": 0.5}, "--alpha means nothing to --method best_of_n; that takes --chunk, --n"),
        ("sla", {"width": 0}, "width=0 is out of range"),
        ("spekulative_rejection", {}, "has to be one of sla, .*Did you mean 'speculative_rejection'"),
    ],
)
def test_what_is_refused(method, options, said):
    with pytest.raises(UserError, match=said):
        decoder_of(method, options, "--")


def test_who_reads_rewards():
    assert [reads_rewards(one) for one in (Greedy(), SLA(), BeamSearch(), BestOfN())] == [False, True, False, True]
    assert [reads_rewards(one) for one in (StepBeam(), DVTS(), DVTS(score="logprob"))] == [True, True, False]
    assert not reads_rewards(SpeculativeRejection(score="logprob_mean"))
    assert reads_rewards(SpeculativeRejection(score="logprob_mean+reward_min"))


def test_options_that_cannot_do_what_they_ask_for():
    hot, cold = Sampling(temperature=0.5), Sampling(seed=4)
    for decoder in (BestOfN(n=3), SpeculativeRejection(n=3), StepBeam(n=3, width=3), DVTS(n=3, width=1)):
        assert useless_option(decoder, hot) is None
        name, why = useless_option(decoder, cold) or ("", "")
        assert name == "temperature" and "all n=3 candidates are the same" in why
    assert useless_option(BestOfN(n=1), cold) is None
    assert useless_option(BeamSearch(), cold) is None
    assert (useless_option(BeamSearch(), hot) or [""])[0] == "temperature"
    assert (useless_option(BeamSearch(), Sampling(min_tokens=3)) or [""])[0] == "min_tokens"
    assert useless_option(Greedy(), cold) is None and useless_option(SLA(), hot) is None
