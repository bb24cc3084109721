"""Which loss, and its numbers: frozen dataclasses, refused with the field and its range when they make no sense.

A field that the chosen loss does not read is refused, not ignored. Process rewards have nothing to choose: labels go
to the reward or to the two-class head, whichever is being trained (`losses.step_loss`).
"""

import dataclasses
import math
from typing import Literal

from sla_jax.errors import UserError

RewardName = Literal["seqwise_bt", "tokenwise_bt", "tokenwise_ce", "seqwise_ce", "last_bt"]
PolicyName = Literal["sft", "simpo", "dpo"]
BETA = {"simpo": 2.5, "dpo": 0.1}  # the SimPO recipe for Llama-3-Instruct; TRL's default
GAMMA_RATIO = 0.55  # γ/β of the same recipe


def _within(what: str, name: str, value: float, allowed: str, right: bool) -> None:
    if not (math.isfinite(value) and right):
        raise UserError(f"{name}={value} of the {what} loss must be {allowed}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardLoss:
    """A loss on token rewards of pairs, and temporal coherence added to it (TCRM is last_bt with both weights)."""

    name: RewardName = "seqwise_bt"
    scale: float = 1.0  # a, tokenwise_bt only
    shift: float = 0.0  # b, tokenwise_bt only
    coherence_mc: float = 0.0  # λ_mc: pulls every token's reward to the last one
    coherence_td: float = 0.0  # λ_td: pulls every token's reward to the next one

    def __post_init__(self) -> None:
        if self.name != "tokenwise_bt" and (self.scale, self.shift) != (1.0, 0.0):
            raise UserError(
                f"scale={self.scale} and shift={self.shift} were given to the reward loss {self.name}, which has "
                "neither; they belong to tokenwise_bt: drop them or choose it."
            )
        _within("reward", "scale", self.scale, "above 0", self.scale > 0)
        _within("reward", "shift", self.shift, "a finite number", True)
        _within("reward", "coherence_mc", self.coherence_mc, "at least 0", self.coherence_mc >= 0)
        _within("reward", "coherence_td", self.coherence_td, "at least 0", self.coherence_td >= 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """A loss on log-probabilities. `sft` reads the chosen answer (or the only one), the others read pairs."""

    name: PolicyName = "sft"
    beta: float | None = None  # None = 2.5 for simpo, 0.1 for dpo
    gamma_ratio: float | None = None  # γ/β, the target margin per token, simpo only; None = 0.55
    kind: Literal["sigmoid", "hinge"] = "sigmoid"
    label_smoothing: float = 0.0  # part of the labels taken to be flipped, sigmoid only
    sft_weight: float = 0.0  # adds this times SFT on the chosen answers to simpo or dpo

    def __post_init__(self) -> None:
        self._refuse_unread()
        beta, ratio, smoothing = self.strength, self.margin, self.label_smoothing
        _within("policy", "beta", beta, "above 0", beta > 0)
        _within("policy", "gamma_ratio", ratio, "at least 0", ratio >= 0)
        _within("policy", "label_smoothing", smoothing, "at least 0 and below 0.5", 0 <= smoothing < 0.5)
        _within("policy", "sft_weight", self.sft_weight, "at least 0", self.sft_weight >= 0)

    def _refuse_unread(self) -> None:
        unread = {
            "beta": self.name == "sft" and self.beta is not None,
            "gamma_ratio": self.name != "simpo" and self.gamma_ratio is not None,
            "kind": self.name == "sft" and self.kind != "sigmoid",
            "label_smoothing": (self.name == "sft" or self.kind == "hinge") and self.label_smoothing != 0,
            "sft_weight": self.name == "sft" and self.sft_weight != 0,
        }
        for name in [name for name, given in unread.items() if given]:
            loss = f"{self.name} with kind={self.kind}" if name == "label_smoothing" else self.name
            raise UserError(
                f"{name}={getattr(self, name)} was given to the policy loss {loss}, which has none: drop it."
            )

    @property
    def strength(self) -> float:
        """β in effect (1 for sft, which has none)."""
        return BETA.get(self.name, 1.0) if self.beta is None else self.beta

    @property
    def margin(self) -> float:
        """γ/β in effect: what is taken off the difference before β multiplies it (0 but for simpo)."""
        default = GAMMA_RATIO if self.name == "simpo" else 0.0
        return default if self.gamma_ratio is None else self.gamma_ratio
