"""Speculative Rejection against Best-of-N at equal N: what is saved, in passes and in time, and what is lost in reward.

    python -m benchmarks.rejection CHECKPOINT --prompts FILE … [--n 16 --limit 32 --max-tokens 128 --write-docs]

Every search answers the same prompts with the same seeds, one at a time; alpha 0 is Best-of-N, candidate for candidate,
through the other decoder's schedule. *Reward* is the answer's mean channel reward, which is also what selects it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sla_jax
from benchmarks.answers import Found, compare, gain, mean, name_of, parser, titled
from benchmarks.report import ROOT, markdown, show, write_page
from sla_jax.errors import front_door

ALPHAS = (0.0, 0.25, 0.5, 0.75)
PICTURE = ROOT / "docs" / "rejection.svg"


def main(argv: list[str]) -> None:
    """Answer what has no answer yet, print the table, draw the picture, write the page."""
    arguments = parser("rejection", __doc__, limit=32, max_tokens=128)
    arguments.add_argument("--n", type=int, default=16)
    options = arguments.parse_args(argv)
    searches = [sla_jax.SpeculativeRejection(n=options.n, alpha=alpha) for alpha in ALPHAS]
    found = compare(options, [sla_jax.Greedy(), sla_jax.BestOfN(n=options.n), *searches])
    title = titled(f"{options.n} candidates, {options.limit} prompts", options)
    rows = [row(search, found) for search in found]
    show(title, rows)
    if options.write_docs:
        write_page(ROOT / "docs" / "decoding.md", "rejection", markdown(title, rows))
        draw(found, PICTURE, title)


def row(search: Any, found: Mapping[Any, Sequence[Found]]) -> dict[str, str]:
    """One line, against Best-of-N."""
    greedy, best, *_ = found.values()
    mine = found[search]
    more, error = gain(mine, greedy)
    return {
        "search": name_of(search),
        "reward": f"{mean(mine, 'reward'):+.4f}",
        "gain over greedy": f"{more:+.4f} ± {error:.4f}",
        "lane-steps": f"{mean(mine, 'lane_steps'):.0f}",
        "of Best-of-N's": f"{mean(mine, 'lane_steps') / mean(best, 'lane_steps'):.0%}",
        "seconds": f"{mean(mine, 'seconds'):.2f}",
        "of Best-of-N's ": f"{mean(mine, 'seconds') / mean(best, 'seconds'):.0%}",
        "peak KV MB": f"{mean(mine, 'kv_bytes') / 1e6:.1f}",
    }


def draw(found: Mapping[Any, Sequence[Found]], path: Path, title: str) -> None:
    """Reward against seconds, with standard errors."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for search, answers in found.items():
        rewards = np.array([one.reward for one in answers])
        error = rewards.std(ddof=1) / len(rewards) ** 0.5 if len(rewards) > 1 else 0.0
        axes.errorbar(mean(answers, "seconds"), rewards.mean(), yerr=error, fmt="o", capsize=3)
        axes.annotate(name_of(search), (mean(answers, "seconds"), rewards.mean()), (6, 4), textcoords="offset points")
    axes.set(xlabel="seconds an answer", ylabel="mean reward of the answer", title=title)
    axes.margins(x=0.2)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    front_door(main)
