"""Scorers by name: what a configuration says, made into something that scores."""

import dataclasses
from collections.abc import Sequence

from sla_jax.errors import UserError, nearest
from sla_jax.scoring.candidate import Candidate, Score, Scorer, detailed

KINDS = ("rules", "channel", "reward_model", "verifier", "python")
NEEDS = {"channel": "checkpoint", "reward_model": "checkpoint", "verifier": "answers", "python": "function"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """One scorer; each kind takes the field that it needs and no other."""

    kind: str = "rules"
    """rules, channel (mean reward), reward_model (score head), verifier (exact answers) or python (any function)."""
    checkpoint: str | None = None
    """channel, reward_model: a checkpoint directory."""
    answers: str | None = None
    """verifier: a file of {question or prompt, answer} rows."""
    function: str | None = None
    """python: MODULE:FUNCTION, called with a list of candidates, giving a list of numbers."""
    weight: float = 1.0
    """Its part in a sum of scorers."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"there is no scorer {self.kind!r}; known: {', '.join(KINDS)}.{nearest(self.kind, KINDS)}")
        for name in ("checkpoint", "answers", "function"):
            needed = NEEDS.get(self.kind) == name
            if needed and not getattr(self, name):
                raise UserError(f"the scorer {self.kind!r} needs {name!r}; add it.")
            if not needed and getattr(self, name) is not None:
                raise UserError(f"{name!r} means nothing to the scorer {self.kind!r}; drop it.")


def make_scorer(configs: ScorerConfig | Sequence[ScorerConfig]) -> Scorer:
    """The scorer of one config, or the weighted sum of several. Raises UserError."""
    given = [configs] if isinstance(configs, ScorerConfig) else list(configs)
    if not given:
        raise UserError(f"there is no scorer; give at least one of {', '.join(KINDS)}.")
    made = [(_make(config), config.weight) for config in given]
    return made[0][0] if len(made) == 1 and made[0][1] == 1.0 else Weighted(made)


def _make(config: ScorerConfig) -> Scorer:
    """Imported here: a rule must not cost the import of a model."""
    if config.checkpoint and config.kind == "channel":
        from sla_jax.scoring.channel import ChannelScorer

        return ChannelScorer(config.checkpoint)
    if config.checkpoint:
        from sla_jax.scoring.reward_model import RewardModelScorer

        return RewardModelScorer(config.checkpoint)
    if config.answers:
        from sla_jax.scoring.verifier import Verifier

        return Verifier.read(config.answers)
    if config.function:
        from sla_jax.scoring.function import FunctionScorer

        return FunctionScorer(config.function)
    from sla_jax.scoring.rules import RuleScorer

    return RuleScorer()


class Weighted:
    """The sum of weight · score; its parts are its members' parts under their names."""

    def __init__(self, members: Sequence[tuple[Scorer, float]]):
        self.members = list(members)

    @property
    def name(self) -> str:
        """`0.5·rules + 1·channel NAME`."""
        return " + ".join(f"{weight:g}·{scorer.name}" for scorer, weight in self.members)

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Weighted sums."""
        return [score.total for score in self.detailed(candidates)]

    def detailed(self, candidates: Sequence[Candidate]) -> list[Score]:
        """Weighted sums with every member's parts."""
        columns = [detailed(scorer, candidates) for scorer, _ in self.members]
        return [self._sum(row) for row in zip(*columns, strict=True)]

    def _sum(self, row: Sequence[Score]) -> Score:
        total = sum(weight * score.total for (_, weight), score in zip(self.members, row, strict=True))
        named = zip((scorer.name for scorer, _ in self.members), row, strict=True)
        return Score(total, {f"{name}/{part}": value for name, score in named for part, value in score.parts.items()})
