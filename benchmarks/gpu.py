"""`python -m benchmarks.gpu`: random weights of the 8B shape in bfloat16 on one accelerator.

*Decoding*, prefix 2048: greedy, SLA 2/10/2 and SLA 4/8/2 in their steady state, each beside plain batch decoding of as
many rows, turn by turn. *Training*: the step of a channel on the frozen policy over packed pairs of 2048 tokens (prompt
and two answers, a third each), as many as the estimate of `training/cost.py` fits, beside a forward pass over the same
rows; MFU counts useful operations over the device's published peak. `--tiny` runs the same program on a tiny model
anywhere.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.report import ROOT, markdown, show, write_json, write_page
from benchmarks.shapes import LLAMA3_8B, SEARCHES, TINY
from benchmarks.steps import Forward, Steps
from benchmarks.timing import Plain, Rounds, Task, turns
from sla_jax.config import parse
from sla_jax.errors import UserError, front_door
from sla_jax.loading import engine
from sla_jax.machine import machine
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy, init_channel, init_policy, unstack, without_channel
from sla_jax.sharding import make_mesh
from sla_jax.training import cost, dry_run
from sla_jax.training.batch import Shapes, TokenSource, put_batch
from sla_jax.training.config import ChannelOptions, DataConfig, FeaturesConfig, OptimizerConfig, TrainConfig
from sla_jax.training.examples import Answer, Example, Examples
from sla_jax.training.objective import Frozen, Parts, Plan
from sla_jax.training.order import bucket, padded_length, token_bucket
from sla_jax.training.setup import make_plan

MOST = 32  # pairs a step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the searches on an accelerator, with random weights."""

    prefix: int = 2048
    """Prompt length in tokens."""
    length: int = 2048
    """Tokens of a packed pair in training."""
    attention: Literal["auto", "xla", "blocked", "cudnn"] = "auto"
    """Of the training step; cudnn needs a GPU."""
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
    training = measure_training(config, options)
    model, where = "Tiny model" if options.tiny else "Llama-3-8B shape", machine()["device"]
    tables = {
        f"{model}, bfloat16, prefix {options.prefix}, {where}": rows,
        f"{model}, channel {channel_width(config)}, bfloat16, training on {options.length} tokens a row": training,
    }
    for title, table in tables.items():
        show(title, table)
    write_json(options.json, {"prefix": options.prefix, "rows": rows, "length": options.length, "training": training})
    if jax.default_backend() != "gpu":
        print(f"measured on {where}: nothing here is a figure of a GPU")
    if options.write_docs:
        text = "\n\n".join(markdown(title, table) for title, table in tables.items())
        write_page(ROOT / "docs" / "benchmarks.md", "gpu", text)


def channel_width(config: ModelConfig) -> int:
    """C of a config that has a channel."""
    assert config.channel is not None
    return config.channel.width


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


def measure_training(config: ModelConfig, options: Options) -> list[dict[str, str]]:
    """The channel's step and a forward pass over the same rows."""
    base, mesh = without_channel(config), make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        run, plan = fitting(config, options, mesh)
        policy = jax.jit(lambda key: init_policy(base, key, jnp.dtype(jnp.bfloat16)))(jax.random.key(0))
        examples = random_pairs(run.optimizer.batch_size, options.length, config.vocab_size)
        numbers = np.arange(len(examples)).reshape(1, 1, -1)
        batch = put_batch(TokenSource(examples, shared=plan.shared), numbers, mesh)
        parts = Parts(channel=init_channel(plan.model, jax.random.key(0)))
        steps = Steps(plan, parts, Frozen(policy=policy), [batch], mesh)
        seconds = turns({"step": steps, "forward": Forward(base, policy, steps)}, options.repeats)
    device = jax.devices()[0]
    tokens, peak = int(examples.totals.sum()), cost.peak(device.device_kind)
    flops = cost.step_flops(plan, tokens, int(examples.scored.sum()), options.length)
    return [
        {
            "step": f"channel {channel_width(config)}, frozen policy",
            "pairs": f"{len(examples)}",
            "attention": plan.attention,
            "seconds": f"{seconds['step']:.3f}",
            "tokens/s": f"{tokens / seconds['step']:.0f}",
            "÷ forward": f"{seconds['step'] / seconds['forward']:.3f}",
            "Tflop/s": f"{flops / seconds['step'] / 1e12:.1f}",
            "MFU": f"{flops / seconds['step'] / peak:.1%}" if peak else "no peak known",
        }
    ]


def fitting(config: ModelConfig, options: Options, mesh: Mesh) -> tuple[TrainConfig, Plan]:
    """The run with the most pairs a step, a power of two up to MOST, that the device's memory is estimated to hold."""
    memory = cost.device_memory(jax.devices()[0]) or 0.0
    base, third, pairs = without_channel(config), options.length // 3, 1

    def made(pairs: int) -> tuple[TrainConfig, Plan]:
        run = TrainConfig(
            data=DataConfig(generated=1, max_length=options.length, max_prompt_length=third),
            channel=ChannelOptions(width=channel_width(config)),
            optimizer=OptimizerConfig(batch_size=pairs),
            features=FeaturesConfig(mode="recompute"),
            dtype="bfloat16",
            attention=options.attention,
        )
        return run, make_plan(run, base, jax.default_backend())

    while pairs < MOST:
        run, plan = made(2 * pairs)
        shapes = Shapes(padded_length(options.length), token_bucket(2 * pairs * 2 * third), bucket(third))
        need = cost.estimate(plan, *dry_run.arguments(run, plan, base, shapes, mesh), mesh)
        if need.total > memory:
            break
        pairs *= 2
    return made(pairs)


def random_pairs(count: int, length: int, vocabulary: int) -> Examples:
    """Pairs of random tokens: a prompt and two answers, a third of `length` each."""
    third, random = length // 3, np.random.default_rng(0)

    def text(size: int) -> np.ndarray:
        return random.integers(0, vocabulary, size, dtype=np.int32)

    marks = np.ones(third, np.int8)
    return Examples.of(
        [Example(text(length - 2 * third), (Answer(text(third), marks), Answer(text(third), marks)))] * count
    )


if __name__ == "__main__":
    front_door(main)
