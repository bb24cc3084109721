"""`python -m benchmarks.gpu`: random weights of the 8B shape in bfloat16 on one accelerator, prefix 2048.

Greedy, SLA 2/10/2 and SLA 4/8/2 in their steady state, each beside plain batch decoding of as many rows, turn by turn.
`--tiny` runs the same program on a tiny model anywhere.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.report import ROOT, machine, markdown, show, write_json, write_page
from benchmarks.shapes import LLAMA3_8B, SEARCHES, TINY
from benchmarks.timing import Plain, Rounds, Task, turns
from sla_jax.config import parse
from sla_jax.errors import UserError, front_door
from sla_jax.loading import engine
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy, init_policy, unstack, without_channel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the searches on an accelerator, with random weights."""

    prefix: int = 2048
    """Prompt length in tokens."""
    repeats: int = 15
    """Turns; figures are medians over them."""
    tiny: bool = False
    """A tiny model on whatever device there is, to try the program itself."""
    json: Path = ROOT / "benchmarks" / "results" / "gpu.json"
    """Where the figures go."""
    write_docs: bool = False
    """Replace the table in docs/benchmarks.md."""


def main(argv: list[str]) -> None:
    """Measure, print, write."""
    options = parse(Options, argv, prog="python -m benchmarks.gpu", description=str(Options.__doc__))
    if jax.default_backend() == "cpu" and not options.tiny:
        raise UserError("there is no accelerator here, and 8B weights do not suit a CPU; --tiny tries the program.")
    config = TINY if options.tiny else LLAMA3_8B
    rows = measure(random_policy(config), config, options)
    where = machine()["device"]
    title = f"{'Tiny model' if options.tiny else 'Llama-3-8B shape'}, bfloat16, prefix {options.prefix}, {where}"
    show(title, rows)
    write_json(options.json, {"prefix": options.prefix, "rows": rows})
    if options.write_docs:
        write_page(ROOT / "docs" / "benchmarks.md", "gpu", markdown(title, rows))


def random_policy(config: ModelConfig) -> Policy:
    """Random weights in decoding's layout, made on the device."""
    dtype = jnp.dtype(jnp.bfloat16)
    return jax.jit(lambda key: unstack(init_policy(config, key, dtype)))(jax.random.key(0))


def measure(policy: Policy, config: ModelConfig, options: Options) -> list[dict[str, str]]:
    """One line a search."""
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, options.prefix).tolist()
    bare = jax.tree.map(lambda leaf: leaf, policy)
    bare.channel = None
    tasks: dict[str, Task] = {}
    for name, decoder in SEARCHES.items():
        rounds = Rounds(engine(config), policy, decoder, [prompt], rounds=options.repeats)
        tasks |= {name: rounds, f"plain {name}": Plain(bare, without_channel(config), rounds)}
    seconds = turns(tasks, options.repeats)
    return [
        {
            "search": name,
            "lanes": f"{decoder.lanes}",
            "tokens/s": f"{1 / seconds[name]:.1f}",
            "of greedy's": f"{seconds['greedy'] / seconds[name]:.2f}",
            "step ms": f"{1e3 * seconds[name]:.2f}",
            "plain step ms": f"{1e3 * seconds[f'plain {name}']:.2f}",
            "tax": f"{seconds[name] / seconds[f'plain {name}']:.2f}",
        }
        for name, decoder in SEARCHES.items()
    ]


if __name__ == "__main__":
    front_door(main)
