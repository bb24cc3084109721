"""A process reward model that train.py made is a scorer, and judges steps as eval.py does."""

from pathlib import Path

import numpy as np
import pytest

import train
from sla_jax.scoring import rows as scoring_rows
from sla_jax.scoring.candidate import Candidate, StepScorer
from sla_jax.scoring.process import ProcessScorer
from sla_jax.scoring.registry import ScorerConfig, make_scorer
from sla_jax.training import evaluate
from sla_jax.training.config import StepsConfig
from sla_jax.training.process import StepRow
from tests.programs import ROOT
from tests.training import rows

SEPARATOR = " ;"
RECIPE = ROOT / "configs" / "train" / "smollm2-prm.yaml"
FLAGS = "--model tiny --data.max-length 96 --data.max-prompt-length 32 --optimizer.max-steps 3 --optimizer.batch-size 4"


@pytest.mark.parametrize("reader", ["head", "channel"])
def test_steps_are_judged_as_eval_judges_them(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sla_jax.training.evaluate` takes σ of a channel's rewards; the scorer gives the rewards."""
    monkeypatch.setattr(scoring_rows, "BATCH_TOKENS", 512)  # as in test_models
    data = rows.write(tmp_path / "steps.jsonl", rows.solutions(12))
    weights = ["--head.weight", "0", "--channel.weight", "1", "--channel.width", "4"] if reader == "channel" else []
    places = ["--data.files", str(data), "--data.cache", str(tmp_path / "tokens"), "--out", str(tmp_path / "run")]
    train.main([str(RECIPE), *FLAGS.split(), *places, *weights, "--data.separator", SEPARATOR])
    directory = tmp_path / "run" / "checkpoint"

    scorer = make_scorer(ScorerConfig(kind="prm", checkpoint=str(directory), separator=SEPARATOR))
    assert isinstance(scorer, ProcessScorer) and isinstance(scorer, StepScorer) and scorer.format == reader
    answers = [
        Candidate([{"role": "user", "content": row["prompt"]}], SEPARATOR.join(row["completions"]), [], True)
        for row in rows.solutions(12)
    ]
    found = scorer.steps(answers)

    judged: list[StepRow] = []

    def listen(rows: list[StepRow], threshold: float) -> dict:
        judged.extend(rows)
        return {}

    monkeypatch.setattr(evaluate, "process_figures", listen)
    evaluate.evaluate_steps(
        StepsConfig(checkpoint=str(directory), data=(str(data),), max_length=96, max_prompt_length=32, batch_tokens=512)
    )
    assert len(judged) == len(found) == 12
    for steps, want, row in zip(found, judged, rows.solutions(12), strict=True):
        got = np.array(steps) if reader == "head" else 1 / (1 + np.exp(-np.array(steps)))
        np.testing.assert_allclose(got, want.scores, rtol=0, atol=1e-5)
        assert len(steps) == len(row["completions"])
    assert np.concatenate([want.scores for want in judged]).std() > 1e-4
