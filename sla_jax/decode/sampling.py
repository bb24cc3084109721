"""How a request chooses its tokens, as plain values: what HTTP, `generate.py` and Python callers write down.

The device's half of it is `choice.py`. Everything here is per request and compiles nothing.
"""

import dataclasses
import math

from sla_jax.errors import UserError

MAX_BIASES = 300  # OpenAI's own limit
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "seed": (-(2**63), 2**64 - 1),
    "repetition_penalty": (0.01, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "min_tokens": (0, 2**31 - 1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Temperature 0 takes the best token; above it tokens are drawn, reproducibly for a seed.

    The order is: bias, penalties, min_tokens, then temperature, top-k, top-p (of what top-k left), min-p. A search at a
    temperature draws the first tokens of sibling branches without replacement and the rest one by one, so that width 1
    is plain sampling. Raises UserError out of range.
    """

    temperature: float = 0.0
    """0: the most probable token."""
    top_k: int = 0
    """Draw from the k most probable tokens only; 0 for all."""
    top_p: float = 1.0
    """Draw from the fewest tokens that hold this much probability."""
    min_p: float = 0.0
    """Draw from tokens at least this times as probable as the best."""
    seed: int = 0
    """Same seed, same answer."""
    repetition_penalty: float = 1.0
    """Above 1: divide (multiply, if negative) the logits of tokens in the prompt or the answer."""
    presence_penalty: float = 0.0
    """Subtracted once from the logits of tokens in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for every time it is in the answer."""
    min_tokens: int = 0
    """No end token before this many tokens."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit), at most 300."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise UserError(f"{name}={value} is out of range; it has to be from {low:g} to {high:g}.")
        if self.top_p == 0:
            raise UserError("top_p=0.0 leaves no token; it has to be above 0 and at most 1.")
        if len(self.logit_bias) > MAX_BIASES:
            raise UserError(f"logit_bias has {len(self.logit_bias)} tokens; at most {MAX_BIASES} are taken.")
        for token, bias in self.logit_bias:
            if token < 0 or not (math.isfinite(bias) and -100 <= bias <= 100):
                raise UserError(
                    f"logit_bias gives {bias} to the token {token}; it has to be from -100 to 100, of a token."
                )
        if len({token for token, _ in self.logit_bias}) < len(self.logit_bias):
            raise UserError("logit_bias names a token twice.")
