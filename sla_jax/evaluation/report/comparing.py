"""The tables of methods against the baseline: wins, tests, length; and of each method's scores and costs."""

from collections.abc import Mapping, Sequence

import numpy as np

from sla_jax import escape
from sla_jax.evaluation.report import arrays
from sla_jax.evaluation.report.gather import Judge, Run
from sla_jax.evaluation.report.statistics import Draws, estimate, singles
from sla_jax.evaluation.report.tables import NONE, Cell, Column, Table
from sla_jax.evaluation.report.wins import (
    Comparison,
    Shares,
    equity,
    gain,
    latex_row,
    length_bias,
    paper_order,
    score_test,
    shares,
    wins_test,
)

Comparisons = Mapping[tuple[str, str], Comparison]  # by (method, benchmark)
COSTS = (("lane_steps", "lane-steps"), ("steps", "passes"), ("committed_tokens", "tokens"), ("seconds", "seconds"))


def methods_of(run: Run, found: Comparisons) -> list[str]:
    """Those that are compared, in the run's order."""
    return [method for method in run.methods if any(name == method for name, _ in found)]


def sets_of(found: Comparisons) -> list[str]:
    """The sets of a judge, the paper's first."""
    return paper_order(sorted({benchmark for _, benchmark in found}))


def wins(run: Run, judge: Judge, found: Comparisons, baseline: str, draws: Draws) -> Table:
    """The paper's table: a line a method."""
    sets = sets_of(found)
    rows = []
    for method in methods_of(run, found):
        mine = [found[method, one] for one in sets if (method, one) in found]
        cells: list[Cell] = [_three(found.get((method, one))) for one in sets]
        whole = len(mine) == len(sets)
        rows.append((method, *cells, equity(mine, draws) if whole else None, wins_test(mine) if whole else None))
    note = (
        f"Percent of comparisons with {baseline}, one a turn: win / tie / loss, a tie being exactly the same score. "
        "Overall is the mean over the sets of win + tie/2 with its 95 % bootstrap interval over prompts; p is the sign "
        "test's over prompts. A method that lacks a set has no overall figure."
    )
    columns = (Column("method"), *(Column(one) for one in sets), Column("overall"), Column("p", ".2g"))
    return Table(f"wins-{judge.name}", f"Against {baseline}, judged by {judge.title}", note, columns, tuple(rows))


def details(run: Run, judge: Judge, found: Comparisons, draws: Draws) -> Table:
    """A line a method and set."""
    rows = []
    for method, benchmark, one in _lines(run, found):
        won = shares(one.credits)
        tests = (wins_test([one]), gain(one, draws), score_test(one, draws))
        rows.append((method, benchmark, len(one.credits), *won, equity([one], draws), *tests))
    note = (
        "Gain is the mean difference of scores. Intervals are 95 % bootstrap intervals over prompts; p (wins) is the "
        "sign test over prompts, p (gain) the paired permutation test of the mean difference."
    )
    names = (("method", ""), ("set", ""), ("n", ""), ("win %", ".1f"), ("tie %", ".1f"), ("loss %", ".1f"))
    more = (("win + tie/2 %", ".1f"), ("p (wins)", ".2g"), ("gain", "+.4g"), ("p (gain)", ".2g"))
    columns = tuple(Column(*one) for one in (*names, *more))
    return Table(f"comparisons-{judge.name}", f"Set by set, judged by {judge.title}", note, columns, tuple(rows))


def lengths(run: Run, judge: Judge, found: Comparisons) -> Table:
    """What length explains, a line a method and set."""
    rows = []
    for method, benchmark, one in _lines(run, found):
        bias = length_bias(one)
        figures = (bias.longer_wins, bias.correlation, shares(one.credits).equity, bias.balanced)
        rows.append((method, benchmark, bias.excess, *figures))
    note = (
        "Characters are the mean excess over the baseline's answer. Longer wins: of the comparisons that are no tie "
        "and of unequal length, those that the longer answer wins; 50 if length explains nothing. r: correlation of "
        "the difference of scores with that of lengths. Balanced: the mean of win + tie/2 where the method's answer "
        "is the longer one and where it is the shorter one."
    )
    names = (("method", ""), ("set", ""), ("characters", "+.0f"), ("longer wins %", ".1f"), ("r", "+.2f"))
    columns = tuple(Column(*one) for one in (*names, ("win + tie/2 %", ".1f"), ("balanced %", ".1f")))
    return Table(f"length-{judge.name}", f"Length, judged by {judge.title}", note, columns, tuple(rows))


def scores(run: Run, draws: Draws) -> Table:
    """Every method's mean scores and what an answer cost, a line a method and set."""
    judges = [judge for judge in run.judges if judge.scores]
    rows = []
    for benchmark in paper_order(run.benchmarks):
        for method in run.methods:
            if (benchmark, method) not in run.answers:
                continue
            answers = run.answers[benchmark, method]
            judged = [judge.scores.get((benchmark, method)) for judge in judges]
            means = [None if one is None else estimate([arrays.score_sample(one)], draws) for one in judged]
            costs = [float(np.mean(arrays.spent(answers, name))) for name, _ in COSTS]
            rows.append((benchmark, method, len(answers), *means, *costs, arrays.stopped(answers)))
    note = (
        "Mean scores with 95 % bootstrap intervals, and the mean cost of an answer, all its turns together: rows of "
        "forward passes (lane-steps), forward passes, tokens of the answer, seconds of wall clock. Stopped: turns "
        "that ended by themselves."
    )
    heads = (Column("set"), Column("method"), Column("n"), *(Column(judge.title, ".4g") for judge in judges))
    columns = (*heads, *(Column(name, ".4g") for _, name in COSTS), Column("stopped %"))
    return Table("scores", "Scores and costs", note, columns, tuple(rows))


def relative_costs(run: Run, baseline: str, draws: Draws) -> Table:
    """Lane-steps and seconds of each method over the baseline's on the same prompts."""
    rows = []
    for (benchmark, method), answers in sorted(run.answers.items()):
        base = run.answers.get((benchmark, baseline))
        if base is None or method == baseline:
            continue
        ratios = []
        for name in ("lane_steps", "seconds"):
            mine, theirs = arrays.spent(answers, name), arrays.spent(base, name)
            ratios.append(estimate([singles(mine / theirs)], draws) if (theirs > 0).all() else None)
        rows.append((benchmark, method, *ratios))
    note = f"Means over prompts of the method's cost ÷ {baseline}'s of the same prompt, with 95 % bootstrap intervals."
    columns = (Column("set"), Column("method"), Column("lane-steps ×", ".3g"), Column("seconds ×", ".3g"))
    return Table("costs", f"Cost of an answer against {baseline}", note, columns, tuple(rows))


def latex(run: Run, judge: Judge, found: Comparisons) -> str:
    """The original's rows for one judge; methods that lack a set are named in a comment."""
    sets = sets_of(found)
    lines = [f"% {escape.line(judge.title)}: win & tie & loss of {escape.line(', '.join(sets))}; overall win + tie/2"]
    for method in methods_of(run, found):
        mine = [found[method, one] for one in sets if (method, one) in found]
        if len(mine) == len(sets):
            lines.append(latex_row(method, [shares(one.credits) for one in mine]))
        else:
            missing = [one for one in sets if (method, one) not in found]
            lines.append(f"% {escape.line(method)}: not judged on {escape.line(', '.join(missing))}")
    return "\n".join(lines) + "\n"


def _lines(run: Run, found: Comparisons) -> Sequence[tuple[str, str, Comparison]]:
    names = [(method, one) for method in methods_of(run, found) for one in sets_of(found)]
    return [(*name, found[name]) for name in names if name in found]


def _three(one: Comparison | None) -> str:
    if one is None:
        return NONE
    won: Shares = shares(one.credits)
    return f"{won.win:.1f} / {won.tie:.1f} / {won.loss:.1f}"
