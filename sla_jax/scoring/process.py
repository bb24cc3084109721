"""Process reward models as a scorer: one score a step of the answer, and one number made of them."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from sla_jax.checkpoint.store import TRAIN_CONFIG
from sla_jax.config import read_yaml
from sla_jax.decode.aggregate import AGGREGATES
from sla_jax.errors import UserError
from sla_jax.files import read_text
from sla_jax.loading import Loaded, load_model
from sla_jax.model.config import ModelConfig
from sla_jax.model.forward import token_logits
from sla_jax.model.policy import Policy
from sla_jax.model.score import score_values
from sla_jax.scoring.candidate import Candidate, Score
from sla_jax.scoring.channel import rewards
from sla_jax.scoring.formats import EXTRA, LAYOUTS, label_tokens
from sla_jax.scoring.model_scorer import ModelScorer, Values
from sla_jax.scoring.reward_model import scalar
from sla_jax.scoring.rows import Row
from sla_jax.scoring.steps import SEPARATOR, check_steps, split
from sla_jax.text import DAY, NO_VARIABLES

UNTEMPLATED = ("math_shepherd", "skywork")
LABELLED = ("math_shepherd", "rlhflow")  # P(+) of the tokens + and -


class ProcessScorer(ModelScorer):
    """Scores of steps: P(good), or the reward of a channel; `aggregate` makes an answer's score of them.

    `separator` is what stands between the steps of an answer. `label_ids` are the tokens good and bad of the formats
    that have such tokens, if not the tokenizer's + and -.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        format: str | None = None,
        aggregate: str = "last",
        separator: str = SEPARATOR,
        label_ids: tuple[int, int] | None = None,
        template: Mapping[str, Any] = NO_VARIABLES,
        date: str = DAY,
    ):
        check_steps(format, aggregate, separator)
        model = load_model(Path(checkpoint), generates=False, template=template, date=date)
        self.format = _format(model.config, format, str(checkpoint))
        if template and self.format in UNTEMPLATED:
            raise UserError(f"the format {self.format!r} reads no chat template, so it takes no template variables.")
        if self.format == "channel" and aggregate == "prod":
            raise UserError(
                "aggregate 'prod' multiplies probabilities, and a channel gives rewards; use last, min, mean."
            )
        if self.format == "qwen" and EXTRA not in model.tokenizer.get_vocab():
            raise UserError(
                f"the format 'qwen' judges at the token {EXTRA}, which the tokenizer of {checkpoint} lacks."
            )
        if label_ids is not None and self.format not in LABELLED:
            raise UserError(
                f"the format {self.format!r} has no label tokens; label_ids belong to {', '.join(LABELLED)}."
            )
        self.separator, self._behind = separator, _trained_separator(Path(checkpoint)) or separator
        self._aggregate = AGGREGATES[aggregate]
        name = f"{aggregate} step of PRM {checkpoint} ({self.format})"
        super().__init__(name, model, _values(self.format, model, label_ids))

    def row(self, candidate: Candidate) -> Row:
        """The ends of steps count."""
        steps = split(candidate.text, self.separator)
        return LAYOUTS[self.format](self.model.tokenizer, candidate.messages, steps, self._behind)

    def conclude(self, values: np.ndarray) -> float:
        """The aggregate of the steps' scores."""
        return self._aggregate(values)

    def steps(self, candidates: Sequence[Candidate]) -> list[list[float]]:
        """One score a step; what follows the last separator counts as a step if it is more than white space."""
        return [values.tolist() for values in self.read(candidates)]

    def detailed(self, candidates: Sequence[Candidate]) -> list[Score]:
        """Scores, and those of the steps as their parts."""
        found = self.read(candidates)
        return [
            Score(self.conclude(values), {f"step {i}": float(value) for i, value in enumerate(values, 1)})
            for values in found
        ]


def _format(config: ModelConfig, given: str | None, checkpoint: str) -> str:
    """The format that is given, if the checkpoint can have it, or the one that its head leaves no doubt of."""
    possible = _possible(config)
    if given in possible:
        return given
    score = config.score
    if not possible:
        raise UserError(f"{checkpoint} has a score head of {score and score.outputs} outputs; a PRM has one or two.")
    if given is not None:
        fits = ", ".join(possible)
        raise UserError(f"{checkpoint} cannot be read in the format {given!r}; by its head it is one of: {fits}.")
    if config.channel is not None:
        return "channel"
    if score is not None and score.kind == "value":
        return "skywork"
    if score is not None and score.outputs == 2:
        return "qwen" if score.kind == "mlp" else "head"
    why = "has a score head of one output, as reward models have (that is the scorer kind reward_model)"
    why = "is a language model without a reward channel" if score is None else why
    raise UserError(f"{checkpoint} {why}; if it is a PRM, say by format which it is: {', '.join(possible)}.")


def _possible(config: ModelConfig) -> tuple[str, ...]:
    """The formats that a checkpoint can have."""
    if config.score is None:
        return (*LABELLED, "channel") if config.channel is not None else LABELLED
    return {1: ("skywork",), 2: ("qwen", "head")}.get(config.score.outputs, ())


def _values(format: str, model: Loaded, labels: tuple[int, int] | None) -> Values:
    """What the model says of every token."""
    if format in LABELLED:
        good, bad = labels or label_tokens(model.tokenizer)
        vocabulary = model.config.vocab_size
        if not 0 <= min(good, bad) <= max(good, bad) < vocabulary:
            raise UserError(f"label_ids={good}, {bad}: this model's tokens are 0 to {vocabulary - 1}.")
        return functools.partial(_labelled, (good, bad))
    return {"skywork": _scalar, "qwen": _two, "head": _two, "channel": rewards}[format]


def _labelled(
    tokens: tuple[int, int], policy: Policy, hidden: Float[Array, "B T D"], reward: Array | None
) -> Float[Array, "B T"]:
    """P(good) of the two tokens as what comes next."""
    values = token_logits(policy, hidden, tokens)
    return jax.nn.sigmoid(values[..., 0] - values[..., 1])


def _scalar(policy: Policy, hidden: Float[Array, "B T D"], reward: Array | None) -> Float[Array, "B T"]:
    """P(good) of one output."""
    return jax.nn.sigmoid(scalar(policy, hidden, reward))


def _two(policy: Policy, hidden: Float[Array, "B T D"], reward: Array | None) -> Float[Array, "B T"]:
    """P(good) of two classes (bad, good)."""
    assert policy.score is not None, "formats of two classes are refused without a score head"
    values = score_values(policy.score, hidden)
    return jax.nn.sigmoid(values[..., 1] - values[..., 0])


def _trained_separator(checkpoint: Path) -> str | None:
    """What stood behind every step in training, if the checkpoint was trained here on steps."""
    file = checkpoint / TRAIN_CONFIG
    if not file.is_file():
        return None
    trained = read_yaml(read_text(file), str(file))
    try:
        return str(trained["data"]["separator"]) if trained["task"] == "steps" else None
    except (LookupError, TypeError):
        raise UserError(
            f"{file} does not say its task and data.separator, as train.py writes it. Train again."
        ) from None
