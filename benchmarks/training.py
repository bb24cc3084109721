"""`python -m benchmarks.training CHECKPOINT --data FILE`: a step of training beside a forward pass, a cache and torch.

One process, the same pairs, the same token ids and the same weights everywhere, float32; a turn runs every side once
over all pairs and medians over turns are compared. Batches are made beforehand, except where states come from a cache:
reading them is what such an epoch does.

*Forward*: the policy's blocks over the same rows, no LM head. *Least*: the ratio by operations alone (matrix products
and attention, `training/cost.py`): the physical floor of a ratio. *÷ floor*: seconds over the side's operations at the
rate of a large matrix product, measured in the same run. *Tokens/s*: tokens of the pairs, each prompt once, per second.
"""

import contextlib
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from jax.sharding import Mesh

from benchmarks import torch_side, torch_training
from benchmarks.report import ROOT, markdown, show, write_json, write_page
from benchmarks.steps import Forward, Steps
from benchmarks.timing import Task, matmul_rate, turns
from sla_jax.config import parse
from sla_jax.errors import UserError, front_door
from sla_jax.loading import use_compilation_cache
from sla_jax.machine import machine
from sla_jax.model.policy import with_channel
from sla_jax.sharding import make_mesh
from sla_jax.training import cost
from sla_jax.training.batch import Rows, Source, TokenSource, divided, put_batch, read_tokens, waste
from sla_jax.training.cache import cached_source
from sla_jax.training.config import (
    TINY,
    ChannelOptions,
    DataConfig,
    FeaturesConfig,
    OptimizerConfig,
    PolicyOptions,
    TrainConfig,
)
from sla_jax.training.examples import Examples
from sla_jax.training.loss_config import PolicyLoss
from sla_jax.training.objective import Frozen, Plan
from sla_jax.training.order import epoch_order
from sla_jax.training.setup import Base, load_base, make_plan, read_examples, start_parts

WIDTHS = (64, 256)
POOLS = (1, 16)
AGREE = 1e-3  # how closely both sides' losses must agree
GOALS = {"step": 1.15, "cached": 0.1, "torch": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure training on the pairs of a file."""

    checkpoint: tyro.conf.Positional[Path] = ROOT / ".cache" / "smollm2"
    """A checkpoint directory; `python convert.py import smollm2 .cache/smollm2` makes the default one."""
    data: tuple[str, ...] = ()
    """Files of preference pairs; what train.py reads."""
    split: str | None = "train"
    """Rows of this split."""
    pairs: int = 32
    """Pairs of a turn."""
    batch: int = 8
    """Pairs of a step."""
    repeats: int = 5
    """Turns; figures are medians over them."""
    limit_seconds: float = 900.0
    """No turn begins after so long."""
    torch: bool = True
    """Train in transformers + torch too."""
    tiny: bool = False
    """The tiny preset and its own pairs, to try the program itself."""
    json: Path = ROOT / "benchmarks" / "results" / "training.json"
    """Where the figures go."""
    write_docs: bool = False
    """Replace the tables in docs/benchmarks.md."""


class Subject(NamedTuple):
    """What is measured."""

    config: TrainConfig  # channel training that recomputes the policy's states
    base: Base
    whole: Examples  # all pairs of the split
    examples: Examples  # the pairs of a turn
    order: np.ndarray  # [steps, batch] their numbers
    mesh: Mesh


class Side(NamedTuple):
    """One side of the comparison."""

    task: Task
    flops: float | None = None  # operations of one call that the objective needs
    padding: float | None = None
    tokens: int = 0  # of the pairs that one call reads, each prompt once


def main(argv: list[str]) -> None:
    """Measure, print, write."""
    options = parse(Options, argv, prog="python -m benchmarks.training", description=str(__doc__))
    if not options.tiny and not options.data:
        raise UserError("--data names no file; give preference pairs, or try the program with --tiny.")
    use_compilation_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # so that no epoch compiles again
    began = time.perf_counter()
    cores = int(machine()["cores"] or 1)
    with tempfile.TemporaryDirectory() as folder, torch_training.threads(cores), subject_of(options, folder) as subject:
        sides = dict(all_sides(subject, options, Path(folder)))
        rate = matmul_rate(options.repeats)
        seconds = turns({name: side.task for name, side in sides.items()}, options.repeats, options.limit_seconds)
        tables = {
            f"Training on {len(subject.examples)} pairs, {options.batch} a step": side_rows(sides, seconds, rate),
            "Goals": goal_rows(sides, seconds),
            f"Padding of all {len(subject.whole)} pairs of the split": padding_rows(subject),
        }
    for title, rows in tables.items():
        show(title, rows)
    took = time.perf_counter() - began
    about = {"model": Path(subject.config.model).name, "matmul_gflop_s": rate / 1e9, "took": took}
    write_json(options.json, {**about, "seconds": seconds, "tables": tables})
    if options.write_docs:
        write_page(ROOT / "docs" / "benchmarks.md", "training", page(about, tables))


@contextlib.contextmanager
def subject_of(options: Options, folder: str) -> Iterator[Subject]:
    """The policy and its pairs on one device, as train.py has them."""
    if options.tiny:
        data = DataConfig(generated=2 * options.pairs, heldout=0, max_length=128, max_prompt_length=64)
    else:
        data = DataConfig(files=options.data, split=options.split, heldout=0, max_length=768, max_prompt_length=384)
    config = TrainConfig(
        model=TINY if options.tiny else str(options.checkpoint),
        data=dataclasses.replace(data, cache=None),
        channel=ChannelOptions(width=WIDTHS[0]),
        optimizer=OptimizerConfig(schedule="constant", warmup_ratio=0.0, batch_size=options.batch),
        features=FeaturesConfig(mode="recompute"),
        out=folder,
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        base = load_base(config, Path(folder), mesh)
        whole = read_examples(config, base)
        chosen = np.sort(np.random.default_rng(0).permutation(len(whole))[: options.pairs])
        examples = whole.select(chosen)
        order = epoch_order(examples.totals, options.batch, POOLS[-1], config.seed, 0)
        yield Subject(config, base, whole, examples, order, mesh)


# ---- our sides ----


class Training(Steps):
    """Steps over the batches of `order`, as train.py makes them; with `stored` the policy's states come from there."""

    def __init__(self, subject: Subject, config: TrainConfig, order: np.ndarray, stored: Source | None = None):
        base, self.mesh = subject.base, subject.mesh
        plan = make_plan(config, base.config, jax.default_backend())
        self.source = stored or TokenSource(subject.examples, shared=plan.shared)
        self.order = [divided(numbers, 1, self.mesh) for numbers in order]
        batches = [put_batch(self.source, numbers, self.mesh) for numbers in self.order]
        parts, frozen = start_parts(config, base, plan.model, self.mesh), Frozen(None if stored else base.policy)
        super().__init__(plan, parts, frozen, batches, self.mesh)

    def side(self) -> Side:
        """This side with its operations and padding."""
        examples = self.source.examples
        numbers = np.concatenate([n.ravel() for n in self.order])
        real = [n[n >= 0] for n in self.order]
        tokens = read_tokens(examples, numbers, shared=True)
        sizes = [b.source.tokens.size if isinstance(b.source, Rows) else b.places.size for b in self.batches]
        wasted = [waste(examples, *pair) for pair in zip(self.order, self.batches, strict=True)]
        padding = float(np.average(wasted, weights=sizes))
        return Side(self, sum(step_flops(self.plan, examples, n) for n in real), padding, tokens)


class Cached(Training):
    """An epoch whose states come from a cache, their reading included."""

    def __call__(self) -> float:
        """Seconds of the epoch."""
        began = time.perf_counter()
        self.train(put_batch(self.source, numbers, self.mesh) for numbers in self.order)
        return time.perf_counter() - began


class FirstEpoch:
    """The epoch that fills the cache, in an empty folder every time; tracing included, compilation kept on disk."""

    def __init__(self, subject: Subject, folder: Path):
        self.subject, self.folder = subject, folder
        config = dataclasses.replace(subject.config, features=FeaturesConfig(mode="cache"))
        self.plan = make_plan(config, subject.base.config, jax.default_backend())
        self.cached = Cached(subject, config, subject.order, self._filled())

    def _filled(self) -> Source:
        shutil.rmtree(self.folder, ignore_errors=True)
        features = FeaturesConfig(mode="cache", dir=str(self.folder))
        plan = dataclasses.replace(self.plan, config=dataclasses.replace(self.plan.config, features=features))
        tokens = TokenSource(self.subject.examples, shared=plan.shared)
        return cached_source(
            tokens, self.subject.base.policy, plan, self.subject.mesh, progress=lambda done, total: None
        )

    def __call__(self) -> float:
        """Seconds of filling it and of the steps."""
        began = time.perf_counter()
        self.cached.source = self._filled()
        self.cached()
        return time.perf_counter() - began


def step_flops(plan: Plan, examples: Examples, numbers: np.ndarray, *, scored: bool = True) -> float:
    """Operations that a step over these pairs needs; without `scored` those of a forward pass alone."""
    total = 0.0
    for i in numbers:
        tokens = int(examples.totals[i])
        total += cost.step_flops(plan, tokens, int(examples.scored[i].sum()) if scored else 0, tokens)
    return total


def all_sides(subject: Subject, options: Options, folder: Path) -> Iterator[tuple[str, Side]]:
    """Every side by its name, compiled and run once."""
    config, order = subject.config, subject.order
    trainings = {
        width: Training(subject, dataclasses.replace(config, channel=ChannelOptions(width=width)), order)
        for width in WIDTHS
    }
    first = trainings[WIDTHS[0]]
    side = first.side()
    pairs = np.arange(len(subject.examples))
    forward = step_flops(first.plan, subject.examples, pairs, scored=False)
    yield "forward", side._replace(task=Forward(subject.base.config, subject.base.policy, first), flops=forward)
    for width, training in trainings.items():
        yield f"step C {width}", training.side()
    random = epoch_order(subject.examples.totals, options.batch, POOLS[0], config.seed, 0)
    yield "step random", Training(subject, config, random).side()
    yield from cached_sides(subject, folder, forward, side)
    yield from policy_sides(subject)
    if options.torch:
        yield from torch_sides(subject, first, side)


def cached_sides(subject: Subject, folder: Path, forward: float, like: Side) -> Iterator[tuple[str, Side]]:
    """The epoch that fills the cache and those that read it."""
    first = FirstEpoch(subject, folder / "features")
    assert like.flops is not None
    yield "first epoch", like._replace(task=first, padding=None)
    yield "cached epoch", first.cached.side()._replace(flops=like.flops - forward)


def policy_sides(subject: Subject) -> Iterator[tuple[str, Side]]:
    """One DPO step of a LoRA, the reference's log-probabilities known (zeros: no time depends on them)."""
    config = dataclasses.replace(
        subject.config,
        channel=ChannelOptions(weight=0.0),
        policy=PolicyOptions(train="lora", weight=1.0, loss=PolicyLoss(name="dpo")),
    )
    middle = len(subject.order) // 2
    one = Training(subject, config, subject.order[middle : middle + 1])
    side = one.side()
    numbers = one.order[0][one.order[0] >= 0]
    flops = step_flops(dataclasses.replace(one.plan, config=subject.config), subject.examples, numbers, scored=False)
    yield "forward one", side._replace(task=Forward(subject.base.config, subject.base.policy, one), flops=flops)
    yield "dpo one", side


def torch_sides(subject: Subject, ours: Training, side: Side) -> Iterator[tuple[str, Side]]:
    """Torch on the same pairs from the same channel; both sides must have found the same losses."""
    parts = start_parts(ours.plan.config, subject.base, ours.plan.model, subject.mesh)
    policy = with_channel(subject.base.policy, ours.plan.model, parts.channel)
    model, channel = torch_side.build(subject.base.directory, policy, ours.plan.model)
    batches = [torch_training.rows_of(subject.examples, numbers) for numbers in subject.order]
    for name, like_release in (("torch release", True), ("torch", False)):
        options = ours.plan.config.optimizer
        theirs = torch_training.Training(model, channel, batches, options, like_release=like_release)
        worst = float(np.abs(np.subtract(theirs.losses, ours.losses)).max())
        print(f"{name}: losses of the first epoch within {worst:.1e} of ours", flush=True)
        assert worst <= AGREE, f"{name} does other work: losses {theirs.losses}, ours {ours.losses}"
        yield name, side._replace(task=theirs, padding=theirs.padding)


# ---- tables ----

NAMES = {
    "forward": "forward pass, no LM head",
    "step C 64": "channel step, C 64",
    "step C 256": "channel step, C 256",
    "step random": "channel step, C 64, batches not sorted by length",
    "first epoch": "first epoch, C 64: fill the cache, then train",
    "cached epoch": "later epochs from the cache, C 64",
    "forward one": "forward pass, one batch",
    "dpo one": "DPO step of a LoRA of rank 16, the same batch",
    "torch release": "torch, C 64, as the release does it",
    "torch": "torch, C 64, without logits",
}


def side_rows(sides: dict[str, Side], seconds: dict[str, float], rate: float) -> list[dict[str, str]]:
    """One line a side."""
    rows = []
    for name, (_, flops, padding, tokens) in sides.items():
        base = "forward one" if name.endswith(" one") else "forward"
        least = sides[base].flops
        assert flops is not None and least is not None
        rows.append(
            {
                "a turn of": NAMES[name],
                "seconds": f"{seconds[name]:.3g}",
                "tokens/s": f"{tokens / seconds[name]:.0f}",
                "padding": "" if padding is None else f"{padding:.0%}",
                "÷ forward": f"{seconds[name] / seconds[base]:.3f}",
                "least": f"{flops / least:.3f}",
                "÷ floor": f"{seconds[name] * rate / flops:.2f}",
            }
        )
    return rows


def goal_rows(sides: dict[str, Side], seconds: dict[str, float]) -> list[dict[str, str]]:
    """The ratios that have a goal."""
    pairs = [(f"step C {width}", "forward", "step") for width in WIDTHS]
    pairs += [("cached epoch", "first epoch", "cached")]
    pairs += [("step C 64", name, "torch") for name in ("torch release", "torch") if name in sides]
    return [
        {
            "ratio": f"{NAMES[over]} ÷ {NAMES[under]}",
            "goal": f"≤ {GOALS[goal]:g}",
            "measured": f"{seconds[over] / seconds[under]:.3f}",
            "reached": "yes" if seconds[over] <= GOALS[goal] * seconds[under] else "no",
        }
        for over, under, goal in pairs
    ]


def padding_rows(subject: Subject) -> list[dict[str, str]]:
    """Padding of an epoch's rows over the whole split, by pairs a step and steps sorted together; nothing is run."""
    source = TokenSource(subject.whole, shared=True)
    rows = []
    for batch in (subject.config.optimizer.batch_size, 32):
        row = {"pairs a step": f"{batch}"}
        for pool in POOLS:
            order = epoch_order(subject.whole.totals, batch, pool, subject.config.seed, 0)
            computed = sum(batch * source.shapes(divided(numbers, 1, subject.mesh)).rows for numbers in order)
            row[f"length_pool {pool}"] = f"{1 - subject.whole.totals.sum() / computed:.1%}"
        rows.append(row)
    return rows


def page(about: dict[str, Any], tables: dict[str, Any]) -> str:
    """What stands between the markers of docs/benchmarks.md."""
    where = machine()
    head = (
        f"{where['cpu']}, {where['cores']} cores, jax {where['jax']}, {about['model']}, float32; multiplies "
        f"{about['matmul_gflop_s']:.0f} GFLOP/s. The whole run took {about['took']:.0f} s."
    )
    return "\n\n".join([head, *(markdown(title, rows) for title, rows in tables.items())])


if __name__ == "__main__":
    front_door(main)
