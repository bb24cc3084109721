"""The training program, read from top to bottom: join, open the run, load, restore, step, evaluate, save, write.

`train` is the whole of it. The state after step N depends on the config and the data alone: the order of examples is a
function of (seed, epoch), what is trained starts from the seed, and nothing else is random; so a run killed at any
moment and started again ends with bit-identical parameters on the same mesh, and equal up to rounding on another.
"""

import contextlib
import functools
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from sla_jax.errors import UserError, nearest
from sla_jax.files import write_text
from sla_jax.progress import Tell, bar, say
from sla_jax.sharding import make_mesh
from sla_jax.training import cost, hosts
from sla_jax.training.batch import Batch, Source, TokenSource, divided, put_batch, read_tokens, waste
from sla_jax.training.config import TrainConfig
from sla_jax.training.examples import length_weights
from sla_jax.training.heldout import evaluate, shown
from sla_jax.training.metrics import DESCRIPTIONS, as_json
from sla_jax.training.objective import Frozen, Plan
from sla_jax.training.order import NOTHING, epoch_order, steps_per_epoch
from sla_jax.training.result import write_result
from sla_jax.training.resume import BEST, STEPS, Log, Steps, check_inputs, opened
from sla_jax.training.setup import (
    Base,
    cached_reference,
    fingerprints,
    load_base,
    make_plan,
    make_source,
    read_examples,
    start_frozen,
    start_parts,
)
from sla_jax.training.state import (
    TrainState,
    check_fits,
    check_mesh,
    init_state,
    make_optimizer,
    make_schedule,
    state_shardings,
)
from sla_jax.training.step import OutputsFn, TrainStep, jit_outputs, jit_train_step
from sla_jax.training.tiny import generated_pairs, write_pairs

LOWER_IS_BETTER = ("loss", "nll", "perplexity")


class Run(NamedTuple):
    """Everything about a run that does not change while it runs."""

    config: TrainConfig
    out: Path
    mesh: Mesh
    plan: Plan
    frozen: Frozen
    source: Source
    train: np.ndarray  # numbers of the examples to train on
    heldout: np.ndarray
    reference: np.ndarray | None  # of the held-out examples, where the reference's log-probabilities are cached

    @property
    def step_examples(self) -> int:
        """Examples of one optimizer step."""
        return self.config.optimizer.batch_size * self.config.optimizer.accumulation

    @property
    def per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return steps_per_epoch(len(self.train), self.step_examples)

    @property
    def total(self) -> int:
        """Optimizer steps of the run."""
        options = self.config.optimizer
        return min(self.per_epoch * options.epochs, options.max_steps or self.per_epoch * options.epochs)


class Programs(NamedTuple):
    """The compiled functions of a run."""

    step: TrainStep
    outputs: OutputsFn


def train(config: TrainConfig) -> Path:
    """Run or go on with a training run; returns OUT, which then holds the result. Raises UserError; SystemExit(0) after
    a SIGTERM and KeyboardInterrupt after Ctrl-C, both with everything saved."""
    hosts.join(config.hosts)
    axes = check_mesh(config.mesh, config.optimizer.batch_size, jax.device_count())
    return train_on(config, make_mesh(data=axes.data, fsdp=axes.fsdp, tensor=axes.tensor))


def train_on(config: TrainConfig, mesh: Mesh) -> Path:
    """`train` on the devices of `mesh`."""
    with hosts.together(), opened(config) as out, jax.set_mesh(mesh):
        base = load_base(config, out, mesh)
        run = _prepare(config, base, out, mesh)
        optimizer = make_optimizer(config.optimizer, config.policy, run.total)
        parts, ema = start_parts(config, base, run.plan.model, mesh), config.optimizer.ema > 0
        shardings = state_shardings(parts, optimizer, ema, mesh)
        programs = Programs(jit_train_step(run.plan, optimizer, shardings), jit_outputs(run.plan, mesh))
        fresh = jax.jit(lambda p: init_state(p, optimizer, ema), out_shardings=shardings, donate_argnums=0)
        with _checkpoints(config, out) as (steps, best):
            state = fresh(parts)
            state = steps.restore(state) or state
            if int(state.step):
                say(f"going on from step {int(state.step)} of {run.total}")
            with contextlib.closing(Log(out, int(state.step), config.wandb)) as log:
                hosts.meet("log")
                state = fit(run, state, programs, steps, best, log)
            chosen = state.best_parts
            if best is not None:
                best.wait()
                chosen = best.restore(chosen) or chosen
        write_result(config, run.plan, base, chosen, int(state.step), out)
    return out


def _prepare(config: TrainConfig, base: Base, out: Path, mesh: Mesh) -> Run:
    """Everything that can be refused is read and checked here, before the first step."""
    plan = make_plan(config, base.config, jax.default_backend())
    check_fits(plan.model, mesh)
    examples = read_examples(config, base)
    check_inputs(out, fingerprints(config, base, examples))
    if config.data.generated and hosts.first():
        write_pairs(out / "pairs.jsonl", generated_pairs(config.data.generated, config.seed))
    train, heldout = (np.flatnonzero(part) for part in (~examples.heldout, examples.heldout))
    if not len(train):
        raise UserError(
            f"none of the {len(examples)} rows is left to train on; data.heldout={config.data.heldout} holds out all."
        )
    _check_metric(config.best.metric, len(heldout))
    say(f"{len(train)} rows to train on, {len(heldout)} held out")
    reference = cached_reference(config, base, plan, examples, out, mesh)
    weights = None
    if config.balance_lengths:
        weights = np.ones(len(examples), np.float32)
        weights[train] = length_weights(examples.select(train))
    tokens = TokenSource(examples, shared=plan.shared, weights=weights, reference=reference)
    source = make_source(config, base, plan, tokens, mesh)
    known = None if reference is None else reference[heldout]
    return Run(config, out, mesh, plan, start_frozen(config, base, plan), source, train, heldout, known)


def _check_metric(metric: str | None, heldout: int) -> None:
    if metric is not None and metric not in DESCRIPTIONS:
        names, hint = ", ".join(DESCRIPTIONS), nearest(metric, DESCRIPTIONS)
        raise UserError(f"best.metric={metric} is no held-out figure; these are: {names}.{hint}")
    if metric is not None and not heldout:
        raise UserError(f"best.metric={metric} needs held-out rows; set data.heldout or data.heldout_split.")


@contextlib.contextmanager
def _checkpoints(config: TrainConfig, out: Path) -> Iterator[tuple[Steps, Steps | None]]:
    with contextlib.ExitStack() as stack:
        steps = stack.enter_context(contextlib.closing(Steps(out / STEPS, config.keep)))
        best = None
        if config.best.metric is not None:
            best = stack.enter_context(contextlib.closing(Steps(out / BEST, 1)))
        yield steps, best


class _Pending(NamedTuple):
    """A step under way: its scalars are read when the next batch is ready, so that batches are made meanwhile."""

    done: int
    scalars: dict[str, Array]
    numbers: np.ndarray
    began: float
    padding: float


def fit(run: Run, state: TrainState, programs: Programs, steps: Steps, best: Steps | None, log: Log) -> TrainState:
    """Take the remaining steps; see `train` for how it ends."""
    options, pending = run.config, None
    begin = int(state.step)
    if begin == 0 and options.policy.weight and len(run.heldout) and not hosts.agreed(len(log.heldout())):
        _evaluate(run, state, programs, best, log)  # what the policy could before
    with hosts.stopping() as stop, _profiler(run) as profile, bar("training") as tell:
        for step in range(begin, begin if _enough(run, log) else run.total):
            profile(step)
            numbers = step_numbers(run, step)
            batch = put_batch(run.source, numbers, run.mesh)
            if step == begin:
                _announce(run, state, batch)
            if pending is not None:
                _finish(run, pending, log, tell)
            began = time.perf_counter()
            state, scalars = programs.step(state, run.frozen, batch)
            done, last = step + 1, step + 1 == run.total
            pending = _Pending(done, scalars, numbers, began, waste(run.source.examples, numbers, batch))
            evaluating = last or done % (options.eval_every or run.per_epoch) == 0
            saving = last or done % (options.save_every or run.per_epoch) == 0
            stopped = stop.after(done)
            if not (evaluating or saving or stopped):
                continue
            _finish(run, pending, log, tell)
            pending = None
            if evaluating and len(run.heldout):
                saving |= _evaluate(run, state, programs, best, log)
            enough = _enough(run, log)
            if saving or stopped or enough:
                log.flush()
                steps.save(done, state)
            if enough:
                say(f"stopping at step {done}: {options.best.metric} was not better {options.best.patience} times")
                break
            if stopped and not last:
                steps.wait()
                say(f"saved step {done} in {run.out}; run the same command to go on")
                raise SystemExit(0) if stop.signal == signal.SIGTERM else KeyboardInterrupt
    return state


def step_numbers(run: Run, step: int) -> np.ndarray:
    """The examples of a step, [M, G, b]: a function of (seed, step) and the data."""
    epoch, position = divmod(step, run.per_epoch)
    stored = run.config.policy.train == "frozen" and run.config.features.mode != "recompute"
    pool = run.config.data.length_pool or (1 if stored else 16)  # by the config alone, wherever the run goes on
    order = _order(
        tuple(run.source.examples.totals[run.train].tolist()), run.step_examples, pool, run.config.seed, epoch
    )
    places = order[position]
    numbers = np.where(places == NOTHING, NOTHING, run.train[places])
    return divided(numbers, run.config.optimizer.accumulation, run.mesh)


@functools.lru_cache(maxsize=2)
def _order(lengths: tuple[int, ...], step_examples: int, pool: int, seed: int, epoch: int) -> np.ndarray:
    return epoch_order(lengths, step_examples, pool, seed, epoch)


def _announce(run: Run, state: TrainState, batch: Batch) -> None:
    """Say what is about to be compiled, and refuse what will not fit."""
    memory = cost.estimate(run.plan, state, run.frozen, batch, run.mesh)
    say(cost.table(memory))
    cost.check_memory(run.plan, memory, cost.device_memory(jax.local_devices()[0]))


def _finish(run: Run, pending: _Pending, log: Log, tell: Tell) -> None:
    """Read a step's scalars, stop if they are not finite, log and show them."""
    scalars = {name: value.item() for name, value in pending.scalars.items()}
    if not scalars.pop("sound"):
        _save_batch(run, pending, scalars)
    if pending.done != run.total and pending.done % run.config.log_every:
        return
    seconds = time.perf_counter() - pending.began
    tokens = read_tokens(run.source.examples, pending.numbers, shared=run.plan.shared)
    extra = {
        "epoch": pending.done / run.per_epoch,
        "learning_rate": float(make_schedule(run.config.optimizer, run.total)(pending.done - 1)),
        "padding": pending.padding,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
    }
    peak = cost.peak(jax.local_devices()[0].device_kind)
    if peak is not None:
        scored = int(run.source.examples.scored[pending.numbers[pending.numbers != NOTHING]].sum())
        row = tokens // max(int((pending.numbers != NOTHING).sum()), 1)
        flops = cost.step_flops(run.plan, tokens, scored, row)
        extra["mfu"] = flops / seconds / (peak * jax.device_count())
    log.write("train", pending.done, scalars | extra)
    shown = [f"loss {scalars['loss']:.4f}", f"{tokens / seconds:.0f} tokens/s"]
    shown += [f"accuracy {scalars['accuracy']:.3f}"] if "accuracy" in scalars else []
    shown += [f"MFU {extra['mfu']:.0%}"] if "mfu" in extra else []
    tell(pending.done, run.total, "steps  " + "  ".join(shown))


def _save_batch(run: Run, pending: _Pending, scalars: dict[str, Any]) -> None:
    """Write the examples of a step that was not finite, and stop."""
    file = run.out / f"bad-step-{pending.done}.json"
    if hosts.first():
        numbers = [int(i) for i in pending.numbers.ravel() if i != NOTHING]
        examples = run.source.examples
        rows = [
            {
                "row": examples.origin(i),
                "prompt": examples[i].prompt.tolist(),
                "answers": [answer.tokens.tolist() for answer in examples[i].answers],
            }
            for i in numbers
        ]
        said = {name: repr(value) for name, value in scalars.items()}
        write_text(file, json.dumps({"step": pending.done, "metrics": said, "examples": rows}))
    raise UserError(
        f"step {pending.done} is not finite (loss {scalars['loss']}, gradient norm {scalars['grad_norm']}); its rows "
        f"are in {file} and nothing of it was applied. A checkpoint in {run.out / STEPS} is good: look at the "
        "rows, lower optimizer.learning_rate or optimizer.grad_clip, or set dtype to float32."
    )


def _evaluate(run: Run, state: TrainState, programs: Programs, best: Steps | None, log: Log) -> bool:
    """Evaluate into the log and keep the best state; True when this one is the best so far."""
    step, metric = int(state.step), run.config.best.metric
    figures = evaluate(
        run.config,
        programs.outputs,
        state.best_parts,
        run.frozen,
        run.source,
        run.heldout,
        run.mesh,
        reference=run.reference,
    )
    if metric is not None and metric not in figures:
        raise UserError(f"best.metric={metric} is no held-out figure of this run; these are: {', '.join(figures)}.")
    log.write("heldout", step, as_json(figures))
    say(f"step {step}, {len(run.heldout)} held out: {shown(figures)}")
    hosts.meet(f"evaluated.{step}")
    better = best is not None and hosts.agreed(_since_best(run, log)) == 0
    if best is not None and better:
        best.save(step, state.best_parts)
    return better


def _since_best(run: Run, log: Log) -> int:
    """Evaluations since the best one, by the log: so a run that goes on knows what it knew."""
    metric = str(run.config.best.metric)
    sign = -1.0 if metric.endswith(LOWER_IS_BETTER) else 1.0
    found = [line[metric]["value"] for line in log.heldout()]
    values = [-math.inf if value is None else sign * value for value in found]  # None: the figure does not exist
    return len(values) - 1 - int(np.argmax(values)) if values else 0


def _enough(run: Run, log: Log) -> bool:
    """Whether the figure to watch has not got better for as long as the config says."""
    patience = run.config.best.patience
    return patience > 0 and hosts.agreed(_since_best(run, log)) >= patience


@contextlib.contextmanager
def _profiler(run: Run) -> Iterator[Any]:
    """Traces steps `profile.start` … into OUT/profile; call what is yielded before every step."""
    options, running = run.config.profile, False

    def before(step: int) -> None:
        nonlocal running
        if options.start and step == options.start:
            jax.profiler.start_trace(str(run.out / "profile"))
            running = True
        elif running and step >= options.start + options.steps:
            jax.profiler.stop_trace()
            running = False

    try:
        yield before
    finally:
        if running:
            jax.profiler.stop_trace()
