"""The run's folder: resumable checkpoints, the metrics log, and the rule that a run goes on only as itself.

OUT/train.yaml        resolved config, written before the first step
OUT/data.json         fingerprint of the tokens and of the starting channel
OUT/steps/N           orbax: what is trained, optimizer state and step (the data position derives from it)
OUT/best/N            orbax: what was trained when the chosen held-out figure was best (only with best.metric)
OUT/reference.npy     DPO: the reference's log-probabilities
OUT/metrics.jsonl     one line a logged step or evaluation; after a resume cut back to the checkpoint's step
OUT/tensorboard       the same figures
OUT/checkpoint        the result: policy (+ channel or head) + tokenizer + train.yaml
OUT/channel.safetensors, OUT/adapter

With several processes all of them see OUT; process 0 writes what is not an array.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sla_jax.config import dump_yaml, load_yaml
from sla_jax.errors import UserError
from sla_jax.training import hosts
from sla_jax.training.config import TrainConfig

CONFIG_FILE = "train.yaml"
STEPS, BEST, METRICS = "steps", "best", "metrics.jsonl"
# what may change when a run goes on: where and how it runs, and what it tells
NOT_COMPARED = (
    "out overwrite dry_run target keep save_every log_every wandb profile mesh hosts "
    "features.dir features.batch_tokens data.workers data.cache"
).split()


@contextlib.contextmanager
def opened(config: TrainConfig) -> Iterator[Path]:
    """`open_run`; a UserError inside leaves nothing behind of a run that has not taken a step."""
    out, fresh = open_run(config)
    try:
        yield out
    except UserError:
        if fresh and hosts.first() and not (out / METRICS).exists():
            shutil.rmtree(out, ignore_errors=True)
        raise


def open_run(config: TrainConfig) -> tuple[Path, bool]:
    """(OUT, whether it was made now); what is there must be the same run, else UserError names the differing fields."""
    out = Path(config.out)
    saved = out / CONFIG_FILE
    hosts.meet("open")
    fresh = not saved.exists() or config.overwrite
    hosts.meet("opening")
    if hosts.first():
        _open(config, out, saved)
    hosts.meet("opened")
    return out, fresh


def _open(config: TrainConfig, out: Path, saved: Path) -> None:
    if config.overwrite and saved.exists():
        shutil.rmtree(out)
    if saved.exists():
        changes = list(differences(load_yaml(TrainConfig, saved), config))
        if changes:
            raise UserError(
                f"{out} holds a run with another config ({'; '.join(changes)}). Give --out another folder, pass "
                f"{saved} to go on with that run, or pass --overwrite to delete it."
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} exists and no training run made it (it has no {CONFIG_FILE}); give --out another folder."
        )
    else:
        out.mkdir(parents=True, exist_ok=True)
        dump_yaml(dataclasses.replace(config, overwrite=False), saved)


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """`field: was A, now B` for every field that differs."""
    for field in dataclasses.fields(old):
        name, a, b = prefix + field.name, getattr(old, field.name), getattr(new, field.name)
        if name in NOT_COMPARED:
            continue
        if dataclasses.is_dataclass(a):
            yield from differences(a, b, f"{name}.")
        elif a != b:
            yield f"{name}: was {a!r}, now {b!r}"


def check_inputs(out: Path, fingerprints: Mapping[str, str]) -> None:
    """Write what the run reads, or compare it: a run whose files changed underneath cannot go on."""
    file = out / "data.json"
    if not file.exists() and hosts.first():
        write_text(file, json.dumps(dict(fingerprints)))
    hosts.meet("inputs")
    saved = json.loads(file.read_text())
    changed = [name for name, value in fingerprints.items() if saved.get(name) != value]
    if changed:
        raise UserError(
            f"the {' and the '.join(changed)} of the run in {out} changed since it started, so it cannot go on as "
            "itself; restore them, give --out another folder, or pass --overwrite to start anew."
        )


class Steps:
    """Checkpoints of a pytree under OUT/steps or OUT/best, written in the background; each is complete or not there."""

    def __init__(self, folder: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True, create=True)
        self.manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, tree: Any) -> None:
        """Save a step; one that is already there is left as it is."""
        if step not in self.manager.all_steps():
            self.manager.save(step, args=ocp.args.StandardSave(_flat(tree)))

    def wait(self) -> None:
        """Until everything that was saved is on disk."""
        self.manager.wait_until_finished()

    def latest(self) -> int | None:
        """The last complete step."""
        return self.manager.latest_step()

    def restore(self, like: Any) -> Any | None:
        """The latest saved tree with types and shardings of `like` (arrays or shapes); None when there is none."""
        step = self.latest()
        if step is None:
            return None
        flat = self.manager.restore(step, args=ocp.args.StandardRestore(_flat(like)))
        leaves = [flat[name] for name in _flat(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def close(self) -> None:
        """Finish writing and release orbax's threads."""
        self.manager.close()


def _flat(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


class Log:
    """metrics.jsonl, TensorBoard and, if asked, Weights & Biases from one call, on process 0.

    Opening it at step N drops everything that was logged after N.
    """

    def __init__(self, out: Path, step: int, wandb: str | None = None):
        self.path = out / METRICS
        self.file, self.board, self.wandb = None, None, None
        if not hosts.first():
            return
        from tensorboardX import SummaryWriter

        _truncate(self.path, step)
        self.file = self.path.open("a", encoding="utf-8", buffering=1)  # a line at a time
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)
        self.wandb = None if wandb is None else _wandb(wandb, out)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line {"kind", "step", …}; numbers also go to TensorBoard and W&B as kind/name."""
        if self.file is None or self.board is None:
            return
        self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        numbers = {name: value.get("value") if isinstance(value, dict) else value for name, value in values.items()}
        shown = {f"{kind}/{name}": float(value) for name, value in numbers.items() if value is not None}
        for name, value in shown.items():
            self.board.add_scalar(name, np.float64(value), step)
        if self.wandb is not None:
            self.wandb.log(shown, step=step)

    def heldout(self) -> list[dict[str, Any]]:
        """The evaluations so far."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [line for line in map(json.loads, lines) if line["kind"] == "heldout"]

    def flush(self) -> None:
        """Make the lines durable; called before a checkpoint of the same step is saved."""
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Flush and close all."""
        self.flush()
        for writer in (self.file, self.board):
            if writer is not None:
                writer.close()
        if self.wandb is not None:
            self.wandb.finish()


def _wandb(project: str, out: Path) -> Any:
    """A W&B run that goes on when OUT does. Raises UserError where the package is not installed."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"--wandb {project} needs the package wandb: pip install wandb, or leave the flag out."
        ) from None
    identity = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=out.name, id=identity, resume="allow", dir=str(out))


def _truncate(path: Path, step: int) -> None:
    if path.exists():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_text(path, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> int | float:
    """A line's step; a line that a kill cut short is after everything."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file completely or not at all."""
    scratch = path.with_name(path.name + ".partial")
    with scratch.open("wb") as file:
        np.save(file, array)
    os.replace(scratch, path)
