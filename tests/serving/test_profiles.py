"""Profiles of every method: what they may be, how a request chooses one, and what each cannot do."""

import dataclasses
import re
from typing import Any, get_args, get_type_hints

import pytest

from sla_jax.config import load_yaml
from sla_jax.decode.beam import BeamSearch
from sla_jax.decode.best_of_n import BestOfN
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.pool import Phase
from sla_jax.decode.speculative_rejection import SpeculativeRejection
from sla_jax.errors import UserError
from sla_jax.serving.orders import choose, describe
from sla_jax.serving.pools import roomy, schedule, schedules
from sla_jax.serving.schema import Search
from sla_jax.serving.settings import Profile, ServeConfig
from sla_jax.serving.sizes import places_of
from tests.programs import ROOT
from tests.serving.asgi import call
from tests.serving.fake import MODEL, FakeService, fake_app
from tests.serving.test_http_bad import refused

PROFILES = (
    Profile(name="greedy", method="greedy", slots=2),
    Profile(name="best", method="best_of_n", n=4, slots=2),
    Profile(name="best-eight", method="best_of_n", n=8, score="logprob_mean", chunk=8, slots=2),
    Profile(name="rejection", method="speculative_rejection", n=8, alpha=0.0, budget=128, slots=2),
    Profile(name="beam", method="beam", beams=3, slots=2),
    Profile(name="steps", method="step_beam", n=6, width=3, max_steps=9, filter_duplicates=True, slots=2),
    Profile(name="dvts", method="dvts", lookahead=1, boxed=True, slots=2),
    Profile(name="traced", method="sla", width=2, depth=1, traces=True, slots=2),
)
SERVICE = FakeService(sync=True)
APP = fake_app(SERVICE, model=dataclasses.replace(MODEL, profiles=PROFILES))
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
HOT = {"temperature": 1.0}


def test_options_that_are_not_given_are_the_methods_own():
    assert Profile(name="p", method="best_of_n", slots=1).decoder() == BestOfN()
    assert Profile(name="p", method="greedy", slots=1).decoder() == Greedy()
    assert Profile(name="p", method="speculative_rejection", slots=1).decoder() == SpeculativeRejection()
    wanted = BeamSearch(early_stopping="never", length_penalty=0.5, beams=2, chunk=3)
    given: dict[str, Any] = dataclasses.asdict(wanted)
    assert Profile(name="p", method="beam", slots=1, **given).decoder() == wanted


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "greedy", "width": 2}, "profiles.p.width means nothing to profiles.p.method greedy"),
        ({"method": "best_of_n", "beams": 2}, "profiles.p.beams means nothing .*profiles.p.n, profiles.p.score"),
        ({"method": "sla", "n": 2, "width": 2, "depth": 1}, "profiles.p.n means nothing"),
        ({"method": "sla", "width": 2}, "needs width and depth"),
        ({"method": "best_of_n", "score": "rewards"}, "Did you mean 'reward'"),
        ({"method": "speculative_rejection", "alpha": 1.0}, "alpha=1.0"),
        ({"method": "step_beam", "n": 8, "width": 3}, "n=8 .*give n=6 or n=9"),
        ({"method": "step_beam", "boxed": True}, "profiles.p.boxed means nothing"),
        ({"method": "dvts", "aggregate": "prod"}, "the profile p: aggregate 'prod' .* last, min or mean"),
        ({"method": "best_of_n", "traces": True}, "the profile p has traces .*search.return_candidates"),
    ],
)
def test_settings_that_do_not_go_together(settings, said):
    with pytest.raises(UserError, match=said):
        Profile(name="p", slots=1, **settings)


def test_a_default_that_could_not_answer_plain_requests_is_refused():
    """A request without a temperature is greedy; so are JetStream's routes, which take the default."""
    with pytest.raises(UserError, match="best is the first .*all n=4 candidates are the same.*another profile first"):
        ServeConfig(checkpoint="x", profiles=PROFILES[1:])
    ServeConfig(checkpoint="x", profiles=PROFILES[::-1])


@pytest.mark.parametrize(
    ("search", "profile"),
    [
        ({"method": "best_of_n"}, "best"),
        ({"method": "best_of_n", "n": 8}, "best-eight"),
        ({"n": 8, "alpha": 0.0}, "rejection"),
        ({"profile": "rejection"}, "rejection"),
        ({"method": "step_beam"}, "steps"),
        ({"method": "dvts", "n": 8, "width": 4}, "dvts"),
    ],
)
def test_a_search_is_chosen_by_its_settings(search, profile):
    model = dataclasses.replace(MODEL, profiles=PROFILES)
    assert choose(model, None, Search(**search)).name == profile


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"model": "tiny:best"}, "temperature", "the profile best: at temperature 0 all n=4 candidates are the same"),
        ({"model": "tiny:beam", **HOT}, "temperature", "no sampling options; leave out temperature"),
        ({"model": "tiny:beam", "logit_bias": {"5": 1.0}}, "logit_bias", "leave out logit_bias"),
        ({"model": "tiny:best", **HOT, "logprobs": 2}, "logprobs", "no alternatives beside its tokens"),
        ({"model": "tiny:beam", "search": {"return_rewards": True}}, "search.return_rewards", "/v1/rewards"),
        ({"search": {"return_candidates": True}}, "search.return_candidates", "greedy .*has no candidates"),
        ({"model": "tiny:rejection", **HOT, "max_tokens": 40}, None, "lower max_tokens to 16"),
        ({"model": "tiny:steps"}, "temperature", "the profile steps: at temperature 0 all n=6 candidates are the same"),
        ({"model": "tiny:dvts", **HOT, "logprobs": 2}, "logprobs", "no alternatives beside its tokens"),
        ({"search": {"return_tree": True}}, "search.return_tree", "greedy .*takes no snapshots .*traces: true"),
        (
            {"model": "tiny:dvts", **HOT, "search": {"return_tree": True}},
            "search.return_tree",
            "grows no tree; return_candidates",
        ),
        ({"search": {"n": 5}}, "search", r"best \(best_of_n, n 4, chunk 32\)"),
        ({"search": {"alpha": 1.0}}, "search", "less than 1"),
    ],
)
def test_what_a_search_cannot_do_is_a_400_that_says_so(body, param, said):
    before = len(SERVICE.requests)
    error = refused(call(APP, TEXT, {"prompt": "a", **body}))
    assert error["param"] == param
    assert re.search(said, error["message"])
    assert len(SERVICE.requests) == before and SERVICE.reserved == 0


def test_a_profile_is_described_by_what_it_is():
    assert [describe(profile) for profile in PROFILES] == [
        "greedy (greedy, chunk 10)",
        "best (best_of_n, n 4, chunk 32)",
        "best-eight (best_of_n, n 8, chunk 8, score logprob_mean)",
        "rejection (speculative_rejection, n 8, alpha 0.0, budget 128, chunk 16)",
        "beam (beam, beams 3, chunk 16)",
        "steps (step_beam, n 6, width 3, max_steps 9, chunk 32, filter_duplicates)",
        "dvts (dvts, n 8, width 4, lookahead 1, chunk 32, boxed)",
        "traced (sla, width 2, chunk 10, depth 1, traces)",
    ]


def test_a_shipped_config_has_every_method_that_is_served():
    configs = {path.stem: load_yaml(ServeConfig, path) for path in (ROOT / "configs" / "serve").glob("*.yaml")}
    methods = {profile.method for profile in configs["smollm2-all"].profiles}
    assert methods == set(get_args(get_type_hints(Profile)["method"]))


# ---- shapes ----


@pytest.mark.parametrize("decoder", [BestOfN(n=4, chunk=8), SpeculativeRejection(n=8), BeamSearch(chunk=7)])
@pytest.mark.parametrize("context", [17, 128, 512])
def test_every_schedule_is_compiled_for_in_few_shapes(decoder, context):
    places = places_of(context, decoder.chunk)
    known = set(schedules(decoder, context, places))
    for limit in range(1, context):
        phases = schedule(decoder, limit)
        assert tuple(roomy(phase, places) for phase in phases) in known
        assert phases[-1].tokens >= limit > phases[-1].tokens - decoder.chunk
    assert all(size % decoder.chunk == 0 for size in places) and list(places) == sorted(set(places))
    shapes = {phase for path in known for phase in path}
    assert len(shapes) <= len(places) * len({shape.lanes for shape in shapes})
    assert len(places) <= 3


def test_a_limit_that_a_budget_never_holds_has_no_shape():
    decoder = SpeculativeRejection(n=8, alpha=0.0, budget=128)
    assert schedules(decoder, 100, places_of(100, 16)) == [(Phase(lanes=8, tokens=112, chunk=16),)]
