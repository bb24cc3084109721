"""From a run's answers and judgements to the arrays that the formulas take."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sla_jax.evaluation.report.gather import Judge, Run
from sla_jax.evaluation.report.rewards import Scored
from sla_jax.evaluation.report.statistics import Sample, sample
from sla_jax.evaluation.report.wins import Comparison, credits
from sla_jax.evaluation.rows import Answer, Judgement, Turn


def comparisons(run: Run, judge: Judge, baseline: str) -> dict[tuple[str, str], Comparison]:
    """Every method against the baseline on every set that the judge has judged both on, by (method, benchmark)."""
    found = {}
    for (benchmark, method), answers in run.answers.items():
        if method == baseline or (benchmark, baseline) not in run.answers:
            continue
        base = run.answers[benchmark, baseline]
        mine, theirs = judge.scores.get((benchmark, method)), judge.scores.get((benchmark, baseline))
        if mine is not None and theirs is not None:
            (scores, prompts), (against, _) = parts(mine), parts(theirs)
            excess = np.concatenate([_lengths(one) for one in answers]) - np.concatenate([_lengths(b) for b in base])
            won, differences = credits(scores, against), scores - against
        elif (benchmark, method) in judge.credits:
            won, differences = judge.credits[benchmark, method], None
            prompts = np.arange(len(won))
            excess = np.array([_lengths(one).sum() - _lengths(b).sum() for one, b in zip(answers, base, strict=True)])
        else:
            continue
        found[method, benchmark] = Comparison(benchmark, method, won, prompts, differences, excess)
    return found


def parts(judgements: Sequence[Judgement]) -> tuple[np.ndarray, np.ndarray]:
    """The scores of all turns, and whose they are: float64 [M], int [M]."""
    scores = np.array([score for one in judgements for score in one.scores], np.float64)
    return scores, np.repeat(np.arange(len(judgements)), [len(one.scores) for one in judgements])


def score_sample(judgements: Sequence[Judgement]) -> Sample:
    """The scores by prompt."""
    return sample(*parts(judgements))


def spent(answers: Sequence[Answer], name: str) -> np.ndarray:
    """A field of the cost, over all turns of each answer, float64 [N]; NaN where it is not known."""
    return np.array([sum(float(turn.cost.get(name, np.nan)) for turn in one.turns) for one in answers], np.float64)


def stopped(answers: Sequence[Answer]) -> float:
    """The share of turns that ended by themselves, in percent."""
    return 100.0 * float(np.mean([turn.finish_reason == "stop" for one in answers for turn in one.turns]))


def finished(turn: Turn) -> list[dict[str, Any]]:
    """A turn's candidates that were not given up on the way, in their order."""
    return [one for one in turn.candidates or [] if one["finish"] != "rejected"]


def candidate_scores(answers: Sequence[Answer]) -> list[list[float]] | None:
    """Of each prompt's first turn, the scores of its finished candidates; None unless every prompt has some."""
    found = [[one["score"] for one in finished(answer.turns[0])] for answer in answers]
    if not all(found) or any(score is None for scores in found for score in scores):
        return None
    return [[float(score) for score in scores] for scores in found]


def rewarded(run: Run, judge: Judge, benchmark: str) -> list[list[Scored]]:
    """Of each prompt, all methods' answers to its first turn that have token rewards, with the judge's scores."""
    methods = [method for method in run.methods if (benchmark, method) in judge.scores]
    prompts: list[list[Scored]] = []
    for number in range(len(run.answers[benchmark, methods[0]]) if methods else 0):
        first = [(run.answers[benchmark, m][number].turns[0], judge.scores[benchmark, m][number]) for m in methods]
        prompts.append([Scored(np.array(t.rewards, np.float64), j.scores[0]) for t, j in first if t.rewards])
    return prompts


def _lengths(answer: Answer) -> np.ndarray:
    return np.array([float(len(turn.text)) for turn in answer.turns])
