"""Held-out figures of whatever is trained: rewards of pairs, log-probabilities, step labels; each with its error."""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from sla_jax.training import metrics
from sla_jax.training.batch import Source
from sla_jax.training.config import TrainConfig
from sla_jax.training.examples import Examples
from sla_jax.training.metrics import Figure, PairRewards
from sla_jax.training.objective import Frozen, Parts
from sla_jax.training.process import StepRow, good_probability, process_figures
from sla_jax.training.rank import Found, rank
from sla_jax.training.step import OutputsFn

# what is shown on the screen of what is logged
SHOWN = (
    *("accuracy_25", "accuracy_50", "accuracy_100", "accuracy_last", "accuracy_balanced", "autrc"),
    *("nll", "logps_accuracy", "logps_accuracy_mean", "logps_accuracy_reference", "f1", "step_accuracy"),
)
THRESHOLD = 0.5  # of P(good), below which a step is called bad


def evaluate(
    config: TrainConfig,
    run: OutputsFn,
    parts: Parts,
    frozen: Frozen,
    source: Source,
    numbers: np.ndarray,
    mesh: Mesh,
    *,
    reference: np.ndarray | None = None,
) -> dict[str, Figure]:
    """The figures of the examples `numbers`, in the order in which they are printed."""
    found = rank(
        run,
        parts,
        frozen,
        source,
        numbers,
        mesh,
        batch_tokens=config.features.batch_tokens,
        progress=lambda done, total: None,
    )
    if config.task == "steps":
        return process_figures(step_rows(found, source.examples, numbers), THRESHOLD)
    figures = dict[str, Figure]()
    if config.reader is not None:
        figures |= metrics.summarize([PairRewards(*one.rewards) for one in found if one.rewards is not None])
    if config.policy.weight:
        logps = [one.logps for one in found if one.logps is not None]
        figures |= metrics.text_figures([pair[0] for pair in logps])
        if config.task == "pairs":
            figures |= metrics.policy_figures([(pair[0], pair[1]) for pair in logps], reference)
    return figures


def shown(figures: dict[str, Figure]) -> str:
    """One line of the telling ones."""
    telling = [name for name in figures if name in SHOWN]
    return "  ".join(f"{name} {figures[name].value:.3f} ± {figures[name].error:.3f}" for name in telling)


def step_rows(found: Sequence[Found], examples: Examples, numbers: np.ndarray) -> list[StepRow]:
    """P(good) and label of every labelled step of each answer."""
    rows = []
    for one, number in zip(found, numbers, strict=True):
        values = one.classes if one.classes is not None else one.rewards
        assert values is not None, "step labels need rewards or classes"
        marks = examples[int(number)].answers[0].marks
        rows.append(StepRow(good_probability(values[0]), marks[marks >= 0].astype(np.int64)))
    return rows
