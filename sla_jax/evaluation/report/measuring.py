"""The tables of what was chosen and what chose it: votes, efficiency, token rewards, over-optimization."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sla_jax.errors import UserError
from sla_jax.evaluation.correlation import pearson
from sla_jax.evaluation.report import arrays
from sla_jax.evaluation.report.efficiency import improvement, relative
from sla_jax.evaluation.report.equivalence import Equivalence
from sla_jax.evaluation.report.gather import Judge, Run
from sla_jax.evaluation.report.rewards import FRACTIONS, Scored, at, pairs
from sla_jax.evaluation.report.statistics import Draws, Estimate, Sample, estimate, sample, singles
from sla_jax.evaluation.report.tables import Cell, Column, Table
from sla_jax.evaluation.report.voting import VOTES, classes, pass_at_k, powers
from sla_jax.evaluation.rows import Answer
from sla_jax.scoring.partial import area

ALL = "all"


class Pool(NamedTuple):
    """One problem's candidates: their classes of equivalent answers, their scores, and which classes are right."""

    level: str | None
    groups: list[int]
    scores: list[float]
    right: frozenset[int]


def pools(answers: Sequence[Answer], equivalence: Equivalence) -> list[Pool] | None:
    """The first turns' finished candidates; None if some problem has no reference, or fewer than two scored ones."""
    found = []
    for answer in answers:
        some = arrays.finished(answer.turns[0])
        if answer.reference is None or len(some) < 2 or any(one["score"] is None for one in some):
            return None
        finals = [equivalence.final(one["text"]) for one in some]
        groups = classes(finals, equivalence.same)
        gold = equivalence.reference(answer.reference)
        right = frozenset(group for group, final in zip(groups, finals, strict=True) if equivalence.same(gold, final))
        found.append(Pool(answer.level, groups, [float(one["score"]) for one in some], right))
    return found


def voting(benchmark: str, found: Mapping[str, Sequence[Pool]], draws: Draws) -> Table:
    """Accuracy @k of every method with candidates, by level: `found` by method."""
    rows: list[tuple[Cell, ...]] = []
    for method, problems in found.items():
        levels = sorted({one.level for one in problems if one.level is not None})
        for level in (ALL, *levels):
            mine = [one for one in problems if level in (ALL, one.level)]
            for k in powers(min(len(one.groups) for one in mine)):
                rows.append((method, level, len(mine), k, *accuracies(mine, k, draws)))
    note = (
        "Percent of problems right, 95 % bootstrap intervals over problems. The first k candidates vote: naive takes "
        "the best score, weighted the answer whose scores add up to most, majority the most frequent one; ties go "
        "to what came first. pass@k is the unbiased estimate from all candidates. Answers are compared as maths."
    )
    columns = (Column("method"), Column("level"), Column("n"), Column("k"), *(Column(f"{name} @k") for name in VOTES))
    return Table(f"voting-{benchmark}", f"Votes on {benchmark}", note, (*columns, Column("pass@k")), tuple(rows))


def accuracies(problems: Sequence[Pool], k: int, draws: Draws) -> list[Estimate]:
    """Naive, weighted and majority @k and pass@k, in percent."""
    figures = [
        [float(vote(one.groups[:k], one.scores[:k]) in one.right) for one in problems] for vote in VOTES.values()
    ]
    figures.append([pass_at_k(len(one.groups), sum(g in one.right for g in one.groups), k) for one in problems])
    return [estimate([singles(values)], draws).times(100.0) for values in figures]


def efficiency(run: Run, best_of_n: str, devices: Mapping[str, float], draws: Draws) -> Table:
    """Improvement score and relative compute of every method with candidates against Best-of-N. Raises UserError.

    `devices`: how many each method ran on."""
    rows = []
    for benchmark in run.benchmarks:
        if (benchmark, best_of_n) not in run.answers:
            continue
        reference = run.answers[benchmark, best_of_n]
        yardstick = arrays.candidate_scores(reference)
        if yardstick is None:
            continue
        for method in run.methods:
            answers = run.answers.get((benchmark, method), ())
            mine = arrays.candidate_scores(answers) if answers else None
            if mine is None or run.ranking(method) != run.ranking(best_of_n):
                continue
            found = improvement(mine, yardstick, draws)
            ratio = devices[method] / devices[best_of_n]
            seconds, lane_steps = (
                relative(arrays.spent(answers, name), arrays.spent(reference, name), factor)
                for name, factor in (("seconds", ratio), ("lane_steps", 1.0))
            )
            rows.append((benchmark, method, found.score.n, found.left_out, found.score, seconds, lane_steps))
    if not rows:
        raise UserError(f"{best_of_n} has no scored candidates; best_of_n has to name a method that keeps them.")
    note = (
        f"Improvement score: 100 is as good as the best of {best_of_n}'s candidates, 0 as far below it as the worst of "
        "them; prompts on which they all score the same are left out. Compute is seconds × devices over those of "
        f"{best_of_n}; lane-steps are the same ratio of work. Only methods that rank candidates by the same scores."
    )
    names = (("set", ""), ("method", ""), ("n", ""), ("left out", ""), ("improvement", ".1f"))
    columns = tuple(Column(*one) for one in (*names, ("compute ×", ".3g"), ("lane-steps ×", ".3g")))
    return Table("efficiency", f"Against {best_of_n}", note, columns, tuple(rows))


def trustworthiness(run: Run, judge: Judge, draws: Draws) -> Table:
    """AuTRC and calibration by position of the answers' token rewards, under one judge."""
    rows: list[tuple[Cell, ...]] = []
    for benchmark in run.benchmarks:
        prompts = arrays.rewarded(run, judge, benchmark)
        areas = autrc(prompts)
        if not len(areas.totals):
            continue
        for number, fraction in enumerate(FRACTIONS):
            whole = estimate([areas], draws) if number == 0 else None
            rows.append((benchmark, int(areas.counts.sum()), whole, *at(prompts, fraction)))
    note = (
        f"Pairs of two methods' answers to one prompt (first turns) that {judge.title} tells apart; the reward of a "
        "fraction is the mean over the first tokens of each answer. AuTRC: area under accuracy over the fraction (our "
        "definition, docs/training.md), with its 95 % bootstrap interval over prompts. Confidence σ(|margin|); ECE "
        "its mean distance from accuracy in ten bins; *ρ* Spearman's of reward and score within a prompt."
    )
    names = (("set", ""), ("pairs", ""), ("AuTRC", ".3f"), ("seen", ".0%"), ("accuracy", ".3f"), ("confidence", ".3f"))
    columns = tuple(Column(*one) for one in (*names, ("ECE", ".3f"), ("Brier", ".3f"), ("ρ", "+.3f")))
    return Table(f"rewards-{judge.name}", f"Token rewards against {judge.title}", note, columns, tuple(rows))


def autrc(prompts: Sequence[Sequence[Scored]]) -> Sample:
    """Areas by prompt; prompts without a pair are not in it."""
    areas = [[area(*pair) for pair in pairs(prompt)] for prompt in prompts]
    some = [one for one in areas if one]
    return Sample(np.array([sum(one) for one in some], np.float64), np.array([len(one) for one in some], np.float64))


class Gains(NamedTuple):
    """One method against the baseline: cost, and both judges' gains in the baseline's standard deviations."""

    method: str
    strength: float  # lane-steps, times the baseline's
    proxy: Estimate
    gold: Estimate
    correlation: float  # Pearson's, of the two gains over prompts


def gains(run: Run, proxy: Judge, gold: Judge, baseline: str, draws: Draws) -> list[Gains]:
    """Of all methods that both judges judged beside the baseline, by strength; means over sets."""
    found = []
    for method in run.methods:
        sets = [
            benchmark
            for benchmark in run.benchmarks
            if all((benchmark, one) in judge.scores for one in (method, baseline) for judge in (proxy, gold))
        ]
        if method == baseline or not sets:
            continue
        cheap, dear = (
            sum(arrays.spent(run.answers[benchmark, one], "lane_steps").sum() for benchmark in sets)
            for one in (baseline, method)
        )
        both = [[standardized(judge, benchmark, method, baseline) for benchmark in sets] for judge in (proxy, gold)]
        means = [np.concatenate([one.totals / one.counts for one in samples]) for samples in both]
        estimates = [estimate(samples, draws) for samples in both]
        strength = float(dear / cheap) if cheap > 0 else float("nan")
        found.append(Gains(method, strength, estimates[0], estimates[1], pearson(*means)))
    return sorted(found, key=lambda one: one.strength)


def standardized(judge: Judge, benchmark: str, method: str, baseline: str) -> Sample:
    """Differences of scores from the baseline's in standard deviations of the baseline's scores of all turns."""
    (mine, prompts), (base, _) = (arrays.parts(judge.scores[benchmark, one]) for one in (method, baseline))
    spread = float(np.std(base, ddof=1)) if len(base) > 1 else 0.0
    return sample((mine - base) / spread if spread > 0 else np.full(len(base), np.nan), prompts)


def over_optimization(found: Sequence[Gains], proxy: Judge, gold: Judge, baseline: str) -> Table:
    """Proxy against gold as search strengthens."""
    rows = tuple((one.method, one.strength, one.proxy, one.gold, one.correlation) for one in found)
    note = (
        f"Mean gain over {baseline} in standard deviations of {baseline}'s scores, with 95 % bootstrap intervals, mean "
        f"over the sets; methods by lane-steps. The proxy is {proxy.title}, the gold {gold.title}. Where the proxy "
        "goes on rising and the gold does not, search exploits the proxy. r: of the two gains over prompts."
    )
    names = (("method", ""), ("lane-steps ×", ".3g"), ("proxy gain", "+.3f"), ("gold gain", "+.3f"), ("r", "+.2f"))
    columns = tuple(Column(*one) for one in names)
    return Table("over-optimization", "Proxy and gold as search strengthens", note, columns, rows)
