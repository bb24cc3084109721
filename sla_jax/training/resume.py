"""The run's folder: resumable checkpoints, the metrics log, and the rule that a run goes on only as itself.

OUT/train.yaml        resolved config, written before the first step
OUT/data.json         fingerprint of the tokens and of the starting channel
OUT/steps/N           orbax: channel, optimizer state and step (the data position and all randomness derive from it)
OUT/metrics.jsonl     one line a logged step or evaluation; after a resume cut back to the checkpoint's step
OUT/tensorboard       the same figures
OUT/checkpoint        the result: policy + channel + tokenizer + train.yaml
OUT/channel.safetensors
"""

import contextlib
import dataclasses
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
from sla_jax.training.config import TrainConfig
from sla_jax.training.step import TrainState

CONFIG_FILE = "train.yaml"
STEPS = "steps"
NOT_COMPARED = ("out", "overwrite")


@contextlib.contextmanager
def opened(config: TrainConfig) -> Iterator[Path]:
    """`open_run`; a UserError inside leaves nothing behind of a run that has not saved a step."""
    out = open_run(config)
    try:
        yield out
    except UserError:
        if not (out / STEPS).exists():
            shutil.rmtree(out)
        raise


def open_run(config: TrainConfig) -> Path:
    """Create OUT, or check that what is there is the same run. Raises UserError that names the differing fields."""
    out = Path(config.out)
    saved = out / CONFIG_FILE
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
    return out


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
    if not file.exists():
        write_text(file, json.dumps(dict(fingerprints)))
        return
    saved = json.loads(file.read_text())
    changed = [name for name, value in fingerprints.items() if saved.get(name) != value]
    if changed:
        raise UserError(
            f"the {' and the '.join(changed)} of the run in {out} changed since it started, so it cannot go on as "
            "itself; restore them, give --out another folder, or pass --overwrite to start anew."
        )


class Steps:
    """Resumable checkpoints of a TrainState under OUT/steps; each is complete or not there."""

    def __init__(self, out: Path, keep: int):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, create=True)
        self.manager = ocp.CheckpointManager((out / STEPS).absolute(), options=options)

    def save(self, state: TrainState) -> None:
        """Save at the state's own step; a step that is already there is left as it is."""
        step = int(state.step)
        if step not in self.manager.all_steps():
            self.manager.save(step, args=ocp.args.StandardSave(_flat(state)))
            self.manager.wait_until_finished()

    def restore(self, like: TrainState) -> TrainState | None:
        """The latest saved state with the shardings of `like`, or None when there is none."""
        step = self.manager.latest_step()
        if step is None:
            return None
        flat = self.manager.restore(step, args=ocp.args.StandardRestore(_flat(like)))
        leaves = [flat[name] for name in _flat(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def close(self) -> None:
        """Release orbax's threads."""
        self.manager.close()


def _flat(state: TrainState) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


class Log:
    """metrics.jsonl and TensorBoard from one call. Opening it at step N drops everything that was logged after N."""

    def __init__(self, out: Path, step: int):
        from tensorboardX import SummaryWriter

        self.path = out / "metrics.jsonl"
        _truncate(self.path, step)
        self.file = self.path.open("a", encoding="utf-8", buffering=1)  # a line at a time
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line {"kind", "step", …}; numbers also go to TensorBoard as kind/name."""
        self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            number = value.get("value") if isinstance(value, dict) else value
            if number is not None:
                self.board.add_scalar(f"{kind}/{name}", np.float64(number), step)

    def flush(self) -> None:
        """Make the lines durable; called before a checkpoint of the same step is saved."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Flush and close both."""
        self.flush()
        self.file.close()
        self.board.close()


def _truncate(path: Path, step: int) -> None:
    if path.exists():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_text(path, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
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
