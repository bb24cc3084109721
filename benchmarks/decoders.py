"""Every decoder on the same prompts: how fast, how soon, how many passes, how much memory, and the floor of it.

    python -m benchmarks.decoders CHECKPOINT --prompts FILE … [--limit 8 --max-tokens 64 --write-docs]

One answer at a time, float32 on CPU, programs compiled beforehand. *Floor*: what the passes of an answer must at least
take, the larger of the weights' bytes at the read bandwidth (once a pass) and the operations of all lanes at the rate
of a large matrix product, both measured in the same run; keys and values are left out of it. *Scorer's share*: of the
operations of a pass, those of the reward channel.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

import sla_jax
from benchmarks.answers import Found, compare, mean, name_of, parser, per_token, titled
from benchmarks.report import ROOT, markdown, show, write_page
from benchmarks.timing import bandwidth, matmul_rate
from sla_jax.errors import front_door

SEARCHES: tuple[Any, ...] = (
    sla_jax.Greedy(),
    sla_jax.SLA(width=2, chunk=10, depth=0),
    sla_jax.SLA(width=2, chunk=10, depth=2),
    sla_jax.SLA(width=4, chunk=8, depth=1),
    sla_jax.SLA(width=2, chunk=10, depth=2, branch_above=2.5),
    sla_jax.BeamSearch(beams=4),
    sla_jax.BestOfN(n=8),
    sla_jax.SpeculativeRejection(n=8),
    sla_jax.StepBeam(n=8),
    sla_jax.DVTS(n=8),
)


def main(argv: list[str]) -> None:
    """Answer what has no answer yet, print the table, write the page."""
    options = parser("decoders", __doc__, limit=8, max_tokens=64).parse_args(argv)
    found = compare(options, SEARCHES)
    policy = sla_jax.load(options.checkpoint).policy
    channel = _numbers(policy.channel)
    size = (_numbers(policy) - channel, channel, policy.norm[...].dtype.itemsize)
    rates = (bandwidth(5), matmul_rate(5))
    title = titled(f"Decoders, {options.limit} prompts", options)
    rows = [row(search, found, size, rates) for search in found]
    show(title, rows)
    if options.write_docs:
        read, multiplied = rates[0] / 1e9, rates[1] / 1e9
        text = f"Reads {read:.1f} GB/s, multiplies {multiplied:.0f} GFLOP/s.\n\n{markdown(title, rows)}"
        write_page(ROOT / "docs" / "benchmarks.md", "decoders", text)


def row(
    search: Any, found: Mapping[Any, Sequence[Found]], size: tuple[int, int, int], rates: tuple[float, float]
) -> dict[str, str]:
    """One line."""
    mine = found[search]
    numbers = size[0] + size[1]
    least = [max(one.steps * numbers * size[2] / rates[0], 2 * one.lane_steps * numbers / rates[1]) for one in mine]
    seconds = sum(one.seconds for one in mine)
    return {
        "method": name_of(search),
        "tokens/s": f"{1 / per_token(mine, 'seconds'):.1f}",
        "first text after s": f"{mean(mine, 'first_seconds'):.2f}",
        "passes a token": f"{per_token(mine, 'steps'):.2f}",
        "lane-steps a token": f"{per_token(mine, 'lane_steps'):.2f}",
        "explored a token": f"{per_token(mine, 'explored'):.2f}",
        "scorer's share": f"{size[1] / numbers:.2%}",
        "peak KV MB": f"{mean(mine, 'kv_bytes') / 1e6:.1f}",
        "÷ floor": f"{seconds / sum(least):.2f}",
        "mean reward": f"{mean(mine, 'reward'):+.3f}",
    }


def _numbers(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    front_door(main)
