"""What look-ahead gains, and what it costs, when its lanes are spent where they matter (docs/adaptive.md).

    python -m benchmarks.adaptive CHECKPOINT --prompts FILE … [--limit 64 --max-tokens 64 --write-docs]

Every search answers the same prompts, one at a time. *Gain* is the answers' mean channel score less greedy's; beside it
stand lane-steps a token; both also as shares of the plain search's of the same width, chunk and depth.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sla_jax
from benchmarks.answers import Found, compare, gain, mean, name_of, parser, per_token, titled
from benchmarks.report import ROOT, markdown, show, write_page
from sla_jax.errors import front_door

SMALL, LARGE = {"width": 2, "chunk": 10, "depth": 2}, {"width": 4, "chunk": 8, "depth": 2}
SEARCHES: tuple[dict[str, Any], ...] = (
    SMALL,
    {**SMALL, "budget": 4},
    {**SMALL, "budget": 4, "token_weight": 1.0},
    {**SMALL, "budget": 3},
    {**SMALL, "budget": 3, "token_weight": 1.0},
    {**SMALL, "budget": 2},
    {**SMALL, "branch_above": 1.5},
    LARGE,
    {**LARGE, "budget": 32},
    {**LARGE, "budget": 21},
)


def main(argv: list[str]) -> None:
    """Answer what has no answer yet, print the table, write the page."""
    arguments = parser("adaptive", __doc__, limit=64, max_tokens=64)
    arguments.add_argument("--search", type=json.loads, action="append", help='{"width": 2, "depth": 2, …}, repeatable')
    options = arguments.parse_args(argv)
    searches = [sla_jax.Greedy(), *(sla_jax.SLA(**given) for given in options.search or SEARCHES)]
    found = compare(options, searches)
    count = len(next(iter(found.values())))
    title = titled(f"Adaptive look-ahead, {count} prompts", options)
    rows = [row(search, found) for search in searches]
    show(title, rows)
    if options.write_docs:
        write_page(ROOT / "docs" / "adaptive.md", "adaptive", markdown(title, rows))


def row(search: Any, found: Mapping[Any, Sequence[Found]]) -> dict[str, str]:
    """One line; shares where the plain search was run too."""
    mine, greedy = found[search], next(iter(found.values()))
    more, error = gain(mine, greedy)
    full = None
    if isinstance(search, sla_jax.SLA):
        full = found.get(sla_jax.SLA(width=search.width, chunk=search.chunk, depth=search.depth))
    return {
        "search": name_of(search),
        "mean reward": f"{mean(mine, 'reward'):+.4f}",
        "gain over greedy": f"{more:+.4f} ± {error:.4f}",
        "of the plain gain": "" if full is None else _share(more, gain(full, greedy)[0]),
        "lane-steps a token": f"{per_token(mine, 'lane_steps'):.2f}",
        "of the plain steps": ""
        if full is None
        else _share(per_token(mine, "lane_steps"), per_token(full, "lane_steps")),
    }


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else ""


if __name__ == "__main__":
    front_door(main)
