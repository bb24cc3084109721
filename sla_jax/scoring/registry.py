"""Scorers by name: what a configuration says, made into something that scores."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sla_jax.config import Variables
from sla_jax.errors import UserError, nearest
from sla_jax.scoring.candidate import Candidate, ReadingScorer, Score, Scorer, detailed
from sla_jax.scoring.steps import check_steps
from sla_jax.text import check_date

# what each kind takes; the first of it is what it needs
TAKES: dict[str, tuple[str, ...]] = {
    "rules": (),
    "channel": ("checkpoint", "template", "date"),
    "reward_model": ("checkpoint", "template", "date"),
    "prm": ("checkpoint", "format", "aggregate", "separator", "label_ids", "template", "date"),
    "verifier": ("answers",),
    "python": ("function",),
}
KINDS = tuple(TAKES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """One scorer; each kind takes the field that it needs and no other."""

    kind: str = "rules"
    """rules, channel (mean reward), reward_model (score head), prm (a score a step), verifier (exact answers) or python
    (any function)."""
    checkpoint: str | None = None
    """channel, reward_model, prm: a checkpoint directory."""
    answers: str | None = None
    """verifier: a file of {question or prompt, answer} rows."""
    function: str | None = None
    """python: MODULE:FUNCTION, called with a list of candidates, giving a list of numbers."""
    format: str | None = None
    """prm: math_shepherd, rlhflow, skywork, qwen, head (train.py's) or channel, where the checkpoint leaves a doubt."""
    aggregate: str | None = None
    """prm: what makes a score of the steps': last (if not given), min, prod or mean."""
    separator: str | None = None
    """prm: what stands between the steps of an answer; an empty line if not given."""
    label_ids: tuple[int, int] | None = None
    """prm of format math_shepherd or rlhflow: the tokens good and bad, if not the tokenizer's + and -."""
    template: Variables | None = dataclasses.field(default=None, hash=False)
    """channel, reward_model, prm: variables of the checkpoint's chat template."""
    date: str | None = None
    """channel, reward_model, prm: what that template takes for today, YYYY-MM-DD; 2024-07-26 if not given."""
    weight: float = 1.0
    """Its part in a sum of scorers."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"there is no scorer {self.kind!r}; known: {', '.join(KINDS)}.{nearest(self.kind, KINDS)}")
        taken = TAKES[self.kind]
        if taken and not getattr(self, taken[0]):
            raise UserError(f"the scorer {self.kind!r} needs {taken[0]!r}; add it.")
        for name in [field.name for field in dataclasses.fields(self) if field.name not in ("kind", "weight", *taken)]:
            if getattr(self, name) is not None:
                raise UserError(f"{name!r} means nothing to the scorer {self.kind!r}; drop it.")
        check_steps(self.format, self.aggregate, self.separator)
        if self.date is not None:
            check_date(self.date)

    def options(self) -> dict[str, Any]:
        """What is given beside the field that the kind needs."""
        given = {name: getattr(self, name) for name in TAKES[self.kind][1:]}
        return {name: value for name, value in given.items() if value is not None}


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

        return ChannelScorer(config.checkpoint, **config.options())
    if config.checkpoint and config.kind == "prm":
        from sla_jax.scoring.process import ProcessScorer

        return ProcessScorer(config.checkpoint, **config.options())
    if config.checkpoint:
        from sla_jax.scoring.reward_model import RewardModelScorer

        return RewardModelScorer(config.checkpoint, **config.options())
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
        self._given = 0  # tokens that members without a model were given

    @property
    def name(self) -> str:
        """`0.5·rules + 1·channel NAME`."""
        return " + ".join(f"{weight:g}·{scorer.name}" for scorer, weight in self.members)

    @property
    def tokens_read(self) -> int:
        """Of members that read with a model, what they read; of each other one, what it was given."""
        return self._given + sum(one.tokens_read for one, _ in self.members if isinstance(one, ReadingScorer))

    def session(self) -> Scorer:
        """The sum of the members' sessions."""
        members = [(one.session() if isinstance(one, ReadingScorer) else one, weight) for one, weight in self.members]
        return Weighted(members)

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Weighted sums."""
        return [score.total for score in self.detailed(candidates)]

    def detailed(self, candidates: Sequence[Candidate]) -> list[Score]:
        """Weighted sums with every member's parts."""
        columns = [detailed(scorer, candidates) for scorer, _ in self.members]
        blind = sum(not isinstance(scorer, ReadingScorer) for scorer, _ in self.members)
        self._given += blind * sum(len(one.tokens) for one in candidates)
        return [self._sum(row) for row in zip(*columns, strict=True)]

    def _sum(self, row: Sequence[Score]) -> Score:
        total = sum(weight * score.total for (_, weight), score in zip(self.members, row, strict=True))
        named = zip((scorer.name for scorer, _ in self.members), row, strict=True)
        return Score(total, {f"{name}/{part}": value for name, score in named for part, value in score.parts.items()})
