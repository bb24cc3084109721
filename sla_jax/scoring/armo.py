"""ArmoRM as a scorer: its mixed score, and what it is made of.

The text is what the release's own example reads: the whole conversation under the chat template, the answer's end of
turn included whether or not the answer ended. The gate reads at the last token of the prompt, in front of what opens
the answer; in Llama 3's template that is the `<|eot_id|>` of the user's turn, where the release looks for it too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from sla_jax.checkpoint.armo import load_armo
from sla_jax.errors import UserError
from sla_jax.loading import load_model
from sla_jax.model.armo import Gating, gate, mix
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy
from sla_jax.model.score import score_values
from sla_jax.scoring.candidate import Candidate, Score
from sla_jax.scoring.model_scorer import read_batch
from sla_jax.scoring.rows import Batch, Row, check_rows, read
from sla_jax.text import DAY, NO_VARIABLES, chat_ids


class ArmoScorer:
    """The gated sum of the objectives' ratings; `detailed` gives each objective's rating and weight too."""

    def __init__(self, checkpoint: str | Path, *, template: Mapping[str, Any] = NO_VARIABLES, date: str = DAY):
        self.armo = load_armo(Path(checkpoint))
        self.model = load_model(Path(checkpoint), generates=False, template=template, date=date)
        self.name = f"ArmoRM {checkpoint}"
        self._values = jax.jit(_values, static_argnums=(0, 1))

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """One score a candidate. Raises UserError if one is longer than the model's context."""
        return [score.total for score in self.detailed(candidates)]

    def detailed(self, candidates: Sequence[Candidate]) -> list[Score]:
        """Scores with `rating NAME` and `weight NAME` of every objective as their parts."""
        if not candidates:
            return []
        rows = [self._row(candidate) for candidate in candidates]
        check_rows(self.model, rows)
        policy, gating, fixed = self.model.policy, self.armo.gating, (self.model.config, self.armo.temperature)
        found = np.stack(read(rows, lambda batch: self._values(*fixed, policy, gating, batch))).astype(np.float32)
        outputs = found.shape[-1] // 2
        ratings, weights = found[:, 1, :outputs], found[:, 0, outputs:]
        totals = mix(gating, jnp.asarray(ratings), jnp.asarray(weights))
        return [self._score(*one) for one in zip(totals, ratings, weights, strict=True)]

    def _row(self, candidate: Candidate) -> Row:
        """The prompt's last token and the conversation's. Raises UserError if the template rewrites the prompt."""
        tokenizer, answer = self.model.tokenizer, {"role": "assistant", "content": candidate.text}
        prompt = chat_ids(tokenizer, candidate.messages, add_generation_prompt=False)
        ids = chat_ids(tokenizer, [*candidate.messages, answer], add_generation_prompt=False)
        if ids[: len(prompt)] != prompt:
            raise UserError(
                f"the chat template of {self.name} writes the prompt differently once there is a response, so where "
                "the prompt ends cannot be said. Use the template that the model was released with."
            )
        return Row(ids, [len(prompt) - 1, len(ids) - 1], len(prompt))

    def _score(self, total: Array, ratings: np.ndarray, weights: np.ndarray) -> Score:
        parts = {f"rating {name}": float(value) for name, value in zip(self.armo.names, ratings, strict=True)}
        parts |= {f"weight {name}": float(value) for name, value in zip(self.armo.names, weights, strict=True)}
        return Score(float(total), parts)


def _values(
    config: ModelConfig, temperature: float, policy: Policy, gating: Gating, batch: Batch
) -> Float32[Array, "B T O2"]:
    """The ratings at every token, and behind them the weights; which tokens count is for the rows to say."""
    assert policy.score is not None, "an ArmoRM is stored as a sequence classifier"
    hidden = read_batch(policy, config, batch).hidden
    return jnp.concatenate([score_values(policy.score, hidden), gate(gating, hidden, temperature)], axis=-1)
