"""Every decoder by its name: where generate.py, serving profiles and evaluation make theirs from options."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sla_jax.decode.beam import BeamSearch
from sla_jax.decode.best_of_n import BestOfN
from sla_jax.decode.dvts import DVTS
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.measures import needs_rewards
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.sla import SLA
from sla_jax.decode.speculative_rejection import SpeculativeRejection
from sla_jax.decode.step_beam import StepBeam
from sla_jax.errors import UserError, nearest

Trees = Greedy | SLA  # commit text as they go
Pools = BestOfN | SpeculativeRejection  # sample whole answers and choose among them
Steppers = StepBeam | DVTS  # sample answers step by step and choose after each
Decoder = Trees | Pools | Steppers | BeamSearch

METHODS: dict[str, type[Decoder]] = {
    "sla": SLA,
    "greedy": Greedy,
    "beam": BeamSearch,
    "best_of_n": BestOfN,
    "speculative_rejection": SpeculativeRejection,
    "step_beam": StepBeam,
    "dvts": DVTS,
}


def decoder_of(method: str, options: Mapping[str, Any], where: str) -> Decoder:
    """The decoder that `method` names. `options` are all that a front door offers; None and False are not given.

    `where` stands before the names of options in messages ("--search."). Raises UserError for an unknown method, an
    option that the method does not have, and a value that is out of range.
    """
    if method not in METHODS:
        raise UserError(
            f"{where}method is {method!r}; it has to be one of {', '.join(METHODS)}.{nearest(method, tuple(METHODS))}"
        )
    kind = METHODS[method]
    takes = sorted({field.name for field in dataclasses.fields(kind)} & set(options))
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    for name in given:
        if name not in takes:
            known = ", ".join(f"{where}{one}" for one in takes)
            raise UserError(f"{where}{name} means nothing to {where}method {method}; that takes {known}.")
    return kind(**given)


def reads_rewards(decoder: Decoder) -> bool:
    """Whether it ranks by the reward channel."""
    if isinstance(decoder, Pools | Steppers):
        return needs_rewards(decoder.terms)
    return isinstance(decoder, SLA)


def useless_option(decoder: Decoder, sampling: Sampling) -> tuple[str, str] | None:
    """(the name of a sampling option that cannot do what it asks for, why); None if there is none."""
    if isinstance(decoder, Pools | Steppers) and decoder.n > 1 and sampling.temperature == 0:
        why = f"at temperature 0 all n={decoder.n} candidates are the same; give a temperature above 0."
        return "temperature", why
    if isinstance(decoder, BeamSearch):
        plain = Sampling(seed=sampling.seed)
        for field in dataclasses.fields(Sampling):
            value = getattr(sampling, field.name)
            if value != getattr(plain, field.name):
                why = "beam search looks for the most probable answer and takes no sampling options; leave out "
                return field.name, f"{why}{field.name}."
    return None
