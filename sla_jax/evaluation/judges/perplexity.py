"""How likely a policy finds answers: the mean log-probability of their tokens, under the chat template.

Texts are tokenized by the judging policy, so answers of any model can be judged by any other one; a policy judging its
own sampled answers reads the tokens that it would have been trained on. The end of turn counts if the answer ended.
Details, one number a turn: `perplexity` (exp of minus the score) and `tokens` (how many were counted).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from sla_jax.evaluation.judges.protocol import judgement
from sla_jax.evaluation.rows import Answer, Judgement
from sla_jax.loading import check_generates, load_model
from sla_jax.model.config import ModelConfig
from sla_jax.model.logprobs import token_logprobs
from sla_jax.model.policy import Policy
from sla_jax.scoring.model_scorer import read_batch
from sla_jax.scoring.rows import Batch, answer_row, check_rows, read
from sla_jax.text import DAY, NO_VARIABLES

CHUNK = 256  # tokens a row whose logits exist at one time


class PerplexityJudge:
    """Mean log p of an answer's tokens, one value a turn; a turn without text is judged at the prompt's last token."""

    def __init__(self, checkpoint: str | Path, *, template: Mapping[str, Any] = NO_VARIABLES, date: str = DAY):
        self.model = load_model(Path(checkpoint), generates=False, template=template, date=date)
        check_generates(self.model.config)
        self._logprobs = jax.jit(_logprobs, static_argnums=0)

    def score(self, answers: Sequence[Answer]) -> list[Judgement]:
        """One judgement an answer. Raises UserError if one is longer than the policy's context."""
        rows = [answer_row(self.model, candidate) for answer in answers for candidate in answer.candidates()]
        check_rows(self.model, rows)
        config, policy = self.model.config, self.model.policy
        found = iter(read(rows, lambda batch: self._logprobs(config, policy, batch)))
        judged = []
        for answer in answers:
            values = [next(found) for _ in answer.turns]
            means = [float(one.mean()) for one in values]
            details = {"perplexity": [_perplexity(mean) for mean in means], "tokens": [len(one) for one in values]}
            judged.append(judgement(answer, means, details))
        return judged


def _perplexity(mean: float) -> float:
    """exp(−mean); NaN stays NaN, and what no float holds is the largest one."""
    return math.exp(min(-mean, 700.0)) if mean == mean else mean


def _logprobs(config: ModelConfig, policy: Policy, batch: Batch) -> Float32[Array, "B T"]:
    """log p of every token given those before it; 0 for the first one, which has none before it."""
    hidden = read_batch(policy, config, batch).hidden
    before = jnp.take_along_axis(hidden, batch.before[..., None], axis=1)
    found = token_logprobs(policy, before[:, 1:], batch.tokens[:, 1:], chunk=CHUNK)
    return jnp.pad(found, ((0, 0), (1, 0)))
