"""What `python train.py pairs` is told."""

import dataclasses

from sla_jax.config import Variables
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from sla_jax.scoring.registry import ScorerConfig
from sla_jax.text import DAY, check_date


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Prompts in, sampled answers scored, best and worst of each prompt out as a pair."""

    model: str
    """Checkpoint that answers: a directory made by convert.py or train.py."""
    prompts: tuple[str, ...]
    """Files with prompts: .jsonl, .json, and either with .gz."""
    out: str
    """Folder of the run; the same command again goes on where it stopped."""
    field: str | None = None
    """The rows' field that holds the prompt, if not one of messages, prompt, question, instruction, turns."""
    limit: int | None = None
    """Take this many prompts: those with the smallest md5 of "limit:" + prompt, in the order of the files."""
    exclude: tuple[str, ...] = ()
    """Files whose prompts must not be used (same formats)."""
    max_prompt_tokens: int = 512
    """Longer prompts are left out and counted."""
    samples: int = 4
    """Answers a prompt."""
    temperatures: tuple[float, ...] = (0.8,)
    """Candidate c is drawn at the c-th of these, starting again when they run out."""
    top_p: float = 1.0
    """Draw from the fewest tokens that hold this much probability."""
    top_k: int = 0
    """Draw from the k most probable tokens only; 0 for all."""
    min_p: float = 0.0
    """Draw from tokens at least this times as probable as the best."""
    max_tokens: int = 256
    """Limit of an answer."""
    rows: int = 16
    """Answers sampled together; a multiple of samples."""
    seed: int = 42
    """With the prompt and the candidate's number it decides every draw."""
    template: Variables = dataclasses.field(default_factory=dict)
    """Variables of the model's chat template: --template.enable_thinking false"""
    date: str = DAY
    """What a chat template takes for today, YYYY-MM-DD: the prompts are the same every day."""
    scorers: tuple[ScorerConfig, ...] = (ScorerConfig(),)
    """What scores the answers; several are summed by their weights. A change scores the same answers anew."""
    min_margin: float = 0.0
    """Pairs whose scores differ by less are dropped and counted."""
    overwrite: bool = False
    """Delete what OUT holds and start anew."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("there are no prompt files; name at least one with --prompts.")
        for name, low in (("limit", 1), ("max_prompt_tokens", 1), ("samples", 2), ("max_tokens", 1), ("rows", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"{name}={value} is out of range; it has to be at least {low}.")
        if self.rows % self.samples:
            raise UserError(
                f"rows={self.rows} is no multiple of samples={self.samples}; the answers to one prompt are sampled "
                f"together, so give rows as {max(self.rows // self.samples, 1) * self.samples}."
            )
        if not self.temperatures or min(self.temperatures) < 0:
            raise UserError(f"temperatures={list(self.temperatures)}; expected at least one number of 0 or more.")
        if sum(t == 0 for t in self.candidate_temperatures) > 1:
            raise UserError("two candidates at temperature 0 are the same answer; give at most one of them 0.")
        if not self.min_margin >= 0:
            raise UserError(f"min_margin={self.min_margin} is out of range; it has to be 0 or more.")
        check_date(self.date)
        self.sampling(0, 0)

    @property
    def candidate_temperatures(self) -> list[float]:
        """One a candidate."""
        return [self.temperatures[c % len(self.temperatures)] for c in range(self.samples)]

    def sampling(self, candidate: int, seed: int) -> Sampling:
        """How a candidate is drawn."""
        temperature = self.candidate_temperatures[candidate]
        return Sampling(temperature=temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p, seed=seed)
