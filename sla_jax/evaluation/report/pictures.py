"""Which pictures a report has: scores against what they cost, votes against k, rewards by position, proxy and gold."""

from collections.abc import Mapping, Sequence

import numpy as np

from sla_jax.evaluation.report import arrays
from sla_jax.evaluation.report.gather import Judge, Run
from sla_jax.evaluation.report.measuring import ALL, Gains, Pool, accuracies
from sla_jax.evaluation.report.plots import Panel, Picture, Point, Series, shown
from sla_jax.evaluation.report.rewards import pairs
from sla_jax.evaluation.report.statistics import Draws, Estimate, Sample, estimate
from sla_jax.evaluation.report.voting import VOTES, powers
from sla_jax.evaluation.report.wins import paper_order
from sla_jax.scoring.partial import mean_of_first

STEPS = tuple(i / 20 for i in range(1, 21))  # fractions of an answer at which the reward curve is drawn
COSTS = (("lane_steps", "lane-steps an answer"), ("seconds", "seconds an answer"))


def score_pictures(run: Run, judge: Judge, draws: Draws) -> list[Picture]:
    """Mean score against lane-steps and against wall clock, a panel a set."""
    sets = paper_order(sorted({benchmark for benchmark, _ in judge.scores}))
    found = []
    for name, words in COSTS:
        panels = []
        for benchmark in sets:
            points = tuple(
                Point(
                    float(np.mean(arrays.spent(run.answers[benchmark, method], name))),
                    estimate([arrays.score_sample(judge.scores[benchmark, method])], draws),
                    method,
                )
                for method in run.methods
                if (benchmark, method) in judge.scores
            )
            if any(shown(point, log=True) for point in points):
                panels.append(Panel(benchmark, words, "mean score", (Series("methods", points),), log=True))
        alt = f"Mean score by {judge.title} against {words}, one mark a method with its 95 % interval."
        title = f"Score by {judge.title} against {words}"
        if panels:
            found.append(Picture(f"{name.replace('_', '-')}-{judge.name}", title, alt, tuple(panels)))
    return found


def vote_picture(benchmark: str, found: Mapping[str, Sequence[Pool]], draws: Draws) -> Picture:
    """Accuracy @k against k, a panel a method."""
    names = [f"{name} @k" for name in VOTES] + ["pass@k"]
    panels = []
    for method, problems in found.items():
        ks = powers(min(len(one.groups) for one in problems))
        by_k = [accuracies(problems, k, draws) for k in ks]
        curves = (tuple(Point(float(k), row[i]) for k, row in zip(ks, by_k, strict=True)) for i in range(len(names)))
        series = tuple(Series(name, curve, joined=True) for name, curve in zip(names, curves, strict=True))
        panels.append(Panel(f"{method}, {ALL} levels", "k", "% right", series, log=True))
    alt = f"Share of {benchmark}'s problems answered right by the first k candidates, by way of voting."
    return Picture(f"voting-{benchmark}", f"Votes on {benchmark}", alt, tuple(panels))


def reward_picture(run: Run, judge: Judge, draws: Draws) -> Picture | None:
    """Pair accuracy of the rewards against the fraction seen: the curve over which AuTRC is the area."""
    panels = []
    for benchmark in run.benchmarks:
        by_prompt = [found for prompt in arrays.rewarded(run, judge, benchmark) if (found := pairs(prompt))]
        if by_prompt:
            curve = tuple(Point(fraction, _accuracy(by_prompt, fraction, draws)) for fraction in STEPS)
            panels.append(Panel(benchmark, "fraction seen", "pair accuracy", (Series("rewards", curve, joined=True),)))
    alt = f"How often the mean reward of the first part of two answers ranks them as {judge.title} does."
    title = f"Token rewards against {judge.title}"
    return Picture(f"rewards-{judge.name}", title, alt, tuple(panels)) if panels else None


def _accuracy(by_prompt: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], fraction: float, draws: Draws) -> Estimate:
    right = [[_right(better, worse, fraction) for better, worse in found] for found in by_prompt]
    totals, counts = ([float(part(one)) for one in right] for part in (sum, len))
    return estimate([Sample(np.array(totals), np.array(counts))], draws)


def _right(better: np.ndarray, worse: np.ndarray, fraction: float) -> float:
    return 0.5 * (1.0 + float(np.sign(mean_of_first(better, fraction) - mean_of_first(worse, fraction))))


def gain_picture(found: Sequence[Gains], proxy: Judge, gold: Judge, baseline: str) -> Picture:
    """Both judges' gains against the strength of the search, and against each other."""
    curves = tuple(
        Series(title, tuple(Point(one.strength, gain, one.method) for one, gain in points), joined=True)
        for title, points in (
            (f"proxy: {proxy.title}", [(one, one.proxy) for one in found]),
            (f"gold: {gold.title}", [(one, one.gold) for one in found]),
        )
    )
    plane = Series("methods", tuple(Point(one.proxy.value, one.gold, one.method) for one in found))
    gain = f"gain over {baseline}, its standard deviations"
    panels = (
        Panel("as search strengthens", f"lane-steps, times {baseline}'s", gain, curves, log=True),
        Panel("one against the other", f"proxy {gain}", f"gold {gain}", (plane,)),
    )
    alt = "Gains under the proxy and under the gold judge, by lane-steps and against each other, a mark a method."
    return Picture("over-optimization", "Proxy and gold as search strengthens", alt, panels)
