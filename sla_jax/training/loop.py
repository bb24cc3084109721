"""The training program, read from top to bottom: open the run, load, restore, step, evaluate, save, write the result.

`train` is the whole of it. The state after step N depends on the config and the data alone: the order of pairs is a
function of (seed, epoch), the channel's start of the seed, and nothing else is random; so a run killed at any moment
and started again ends with bit-identical parameters.
"""

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from sla_jax.checkpoint import store
from sla_jax.checkpoint.channel_file import save_channel
from sla_jax.model.channel import Channel
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import with_channel
from sla_jax.sharding import make_mesh
from sla_jax.training import metrics
from sla_jax.training.batches import epoch_order, steps_per_epoch
from sla_jax.training.config import TrainConfig
from sla_jax.training.display import bar, say
from sla_jax.training.features import Batch
from sla_jax.training.rank import RewardFn, jit_rewards, rank
from sla_jax.training.resume import CONFIG_FILE, Log, Steps, check_inputs, opened
from sla_jax.training.setup import (
    Base,
    Data,
    fingerprints,
    load_base,
    make_source,
    read_pairs,
    split_off,
    start_channel,
    to_tokens,
)
from sla_jax.training.step import (
    TrainState,
    check_mesh,
    init_state,
    jit_train_step,
    make_optimizer,
    make_schedule,
    put_batch,
    stack_microbatches,
)
from sla_jax.training.tiny import write_pairs


class Run(NamedTuple):
    """Everything about a run that does not change while it runs."""

    config: TrainConfig
    out: Path
    mesh: Mesh
    base: Base
    model: ModelConfig  # the policy's, with the channel
    train: Data
    heldout: Data

    @property
    def step_pairs(self) -> int:
        """Pairs of one optimizer step."""
        return self.config.optimizer.batch_size * self.config.optimizer.accumulation

    @property
    def per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return steps_per_epoch(len(self.train.tokens.pairs), self.step_pairs)

    @property
    def total(self) -> int:
        """Optimizer steps of the run."""
        return self.per_epoch * self.config.optimizer.epochs


def train(config: TrainConfig) -> Path:
    """Run or go on with a training run; returns OUT, which then holds `checkpoint` and `channel.safetensors`."""
    axes = check_mesh(config.mesh, config.optimizer.batch_size)
    mesh = make_mesh(data=axes.data, fsdp=axes.fsdp, tensor=axes.tensor)
    with opened(config) as out, jax.set_mesh(mesh):
        run, channel = _prepare(config, out, mesh)
        optimizer = make_optimizer(config.optimizer, run.total)
        with contextlib.closing(Steps(out, config.keep)) as steps:
            state = init_state(channel, optimizer)
            state = steps.restore(state) or state
            if int(state.step):
                say(f"going on from step {int(state.step)} of {run.total}")
            with contextlib.closing(Log(out, int(state.step))) as log:
                state = fit(run, state, optimizer, steps, log)
        write_result(run, state)
    return out


def _prepare(config: TrainConfig, out: Path, mesh: Mesh) -> tuple[Run, Channel]:
    """Everything that can be refused is read and checked here, before the first step."""
    pairs = read_pairs(config.data, config.seed)
    if config.data.generated:
        write_pairs(out / "pairs.jsonl", pairs)
    base = load_base(config, out, mesh)
    tokens = to_tokens(base, pairs, config.data.max_length, config.data.max_prompt_length)
    check_inputs(out, fingerprints(config, tokens))
    channel, model = start_channel(base, config, mesh)
    source = make_source(base, config.features, mesh.shape["data"] * mesh.shape["fsdp"], tokens)
    train, heldout = split_off(pairs, tokens, source, config.data.heldout)
    return Run(config, out, mesh, base, model, train, heldout), channel


def fit(run: Run, state: TrainState, optimizer: optax.GradientTransformation, steps: Steps, log: Log) -> TrainState:
    """Take the remaining steps. Ctrl-C saves after the step under way and raises KeyboardInterrupt."""
    options = run.config
    step_fn = jit_train_step(run.model, options.loss, optimizer)
    rate = make_schedule(options.optimizer, run.total)
    rewards = jit_rewards(run.model)
    policy = run.base.policy if options.features.mode == "recompute" else None
    with interruptible() as interrupted, bar("training") as tell:
        for step in range(int(state.step), run.total):
            began = time.perf_counter()
            state, scalars = step_fn(state, policy, step_batch(run, step))
            done = step + 1
            last = done == run.total
            if last or done % options.log_every == 0:
                shown = {name: float(value) for name, value in scalars.items()}
                extra = {
                    "epoch": done / run.per_epoch,
                    "learning_rate": float(rate(step)),
                    "seconds": time.perf_counter() - began,
                }
                log.write("train", done, shown | extra)
                tell(done, run.total, f"steps  loss {shown['loss']:.4f}  accuracy {shown['accuracy']:.3f}")
            if last or done % (options.eval_every or run.per_epoch) == 0:
                evaluate(run, state, rewards, log)
            stop = interrupted.is_set()
            if last or stop or done % (options.save_every or run.per_epoch) == 0:
                log.flush()
                steps.save(state)
            if stop and not last:
                say(f"saved step {done} in {run.out}; run the same command to go on")
                raise KeyboardInterrupt
    return state


def step_batch(run: Run, step: int) -> Batch:
    """The batch of a step: a function of (seed, step) and the data."""
    epoch, position = divmod(step, run.per_epoch)
    pool = run.config.data.length_pool or (16 if run.config.features.mode == "recompute" else 1)
    pairs = _order(tuple(run.train.tokens.lengths()), run.step_pairs, pool, run.config.seed, epoch)[position]
    microbatches = [run.train.source.batch(part) for part in np.split(pairs, run.config.optimizer.accumulation)]
    return put_batch(stack_microbatches(microbatches), run.mesh, microbatched=True)


@functools.lru_cache(maxsize=2)
def _order(lengths: tuple[int, ...], step_pairs: int, pool: int, seed: int, epoch: int) -> np.ndarray:
    return epoch_order(lengths, step_pairs, pool, seed, epoch)


def evaluate(run: Run, state: TrainState, rewards: RewardFn, log: Log) -> None:
    """Held-out figures into the log and, in short, onto the screen."""
    if not run.heldout.tokens.pairs:
        return
    policy = run.base.policy if run.config.features.mode == "recompute" else None
    pairs = rank(
        rewards,
        state.channel,
        policy,
        *run.heldout,
        run.mesh,
        batch_tokens=run.config.features.batch_tokens,
        progress=lambda done, total: None,
    )
    figures = metrics.summarize(pairs)
    log.write("heldout", int(state.step), metrics.as_json(figures))
    shown = "  ".join(
        f"{name} {figures[f'accuracy_{name}'].value:.3f}" for name in ("25", "50", "100", "last", "balanced")
    )
    error = figures["accuracy_mean"].error
    say(f"step {int(state.step)}: held-out pair accuracy {shown}  (± {error:.3f}, n={len(pairs)})")


def write_result(run: Run, state: TrainState) -> None:
    """OUT/channel.safetensors and OUT/checkpoint; a checkpoint that is already complete is left as it is."""
    channel = jax.device_get(state.channel)
    save_channel(run.out / "channel.safetensors", channel, run.model, {"trained_by": "sla-jax train.py"})
    target = run.out / "checkpoint"
    if store.is_checkpoint(target):
        return
    provenance = {**run.base.provenance, "channel": {"trained_by": "train.py", "steps": run.total}}
    store.save(
        target,
        with_channel(run.base.policy, run.model, channel),
        run.base.raw_config,
        extras=run.base.directory,
        provenance=provenance,
        train_config=(run.out / CONFIG_FILE).read_text(encoding="utf-8"),
        channel=run.model.channel,
    )


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets instead of raising; a second Ctrl-C raises at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(number: int, frame: object) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
