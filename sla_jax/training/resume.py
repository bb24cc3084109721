"""The run's folder: resumable checkpoints, the metrics log, and the rule that a run goes on only as itself.

OUT/.lock             held by the program that writes here, while it does
OUT/train.yaml        resolved config, written before the first step
OUT/data.json         fingerprint of the tokens and of the starting channel
OUT/steps/N           orbax: what is trained, optimizer state and step (the data position derives from it)
OUT/best/N            orbax: what was trained when the chosen held-out figure was best (only with best.metric)
OUT/steps-damaged/N   a state that could not be used, set aside when an older one was
OUT/reference         DPO: the reference's log-probabilities
OUT/metrics.jsonl     one line a logged step or evaluation; after a resume cut back to the checkpoint's step
OUT/metrics.crc32     the sums of its lines, one a line
OUT/tensorboard       the same figures
OUT/checkpoint        the result: policy (+ channel or head) + tokenizer + train.yaml
OUT/channel.safetensors, OUT/adapter

With several processes all of them see OUT; process 0 writes what is not an array.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from sla_jax import sums
from sla_jax.checkpoint import staging
from sla_jax.config import as_yaml, load_yaml
from sla_jax.errors import UserError
from sla_jax.files import (
    drop_cut_line,
    naming,
    read_object,
    read_pieces,
    read_rows,
    read_text,
    sync,
    write_object,
    write_text,
)
from sla_jax.locks import clear, contents, one_writer
from sla_jax.progress import say
from sla_jax.training import hosts
from sla_jax.training.boards import Board, open_wandb
from sla_jax.training.config import TrainConfig
from sla_jax.training.states import LATE, set_aside, sift

T = TypeVar("T")
CONFIG_FILE = "train.yaml"
PATIENCE = 60.0  # seconds that showing a line may take
SAVING = 1800.0  # seconds that a state may take to be on disk when the run waits for it
STEPS, BEST, METRICS = "steps", "best", "metrics.jsonl"
# what may change when a run goes on: where and how it runs, and what it tells
NOT_COMPARED = (
    "out overwrite dry_run target keep save_every log_every wandb profile mesh hosts "
    "features.dir features.batch_tokens data.workers data.cache"
).split()


@contextlib.contextmanager
def opened(config: TrainConfig) -> Iterator[Path]:
    """`open_run`, with OUT held by this run alone; what the user can mend leaves nothing behind of a run that has not
    taken a step."""
    with one_writer(Path(config.out)) if hosts.first() else contextlib.nullcontext():
        out, fresh = open_run(config)
        try:
            yield out
        except (UserError, OSError):
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
        clear(out)
    if saved.exists():
        changes = list(differences(read_config(TrainConfig, saved), config))
        if changes:
            raise UserError(
                f"{out} holds a run with another config ({'; '.join(changes)}). Give --out another folder, pass "
                f"{saved} to go on with that run, or pass --overwrite to delete it."
            )
    elif out.exists() and (not out.is_dir() or contents(out)):
        raise UserError(
            f"{out} exists and no training run made it (it has no {CONFIG_FILE}); give --out another folder."
        )
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_config(dataclasses.replace(config, overwrite=False), saved)


def write_config(config: Any, path: Path) -> None:
    """A run's resolved config, with its sum in its last line."""
    write_text(path, sums.with_comment(as_yaml(config)))


def read_config(cls: type[T], path: Path) -> T:
    """What `write_config` wrote. Raises UserError for what is damaged, or no config of this kind."""
    wrong = sums.wrong_comment(read_text(path))
    if wrong is not None:
        raise UserError(f"{path}: {wrong}.")
    return load_yaml(cls, path)


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
        write_object(file, fingerprints)
    hosts.meet("inputs")
    saved = read_object(file)
    changed = [name for name, value in fingerprints.items() if saved.get(name) != value]
    if changed:
        raise UserError(
            f"the {' and the '.join(changed)} of the run in {out} changed since it started, so it cannot go on as "
            "itself; restore them, give --out another folder, or pass --overwrite to start anew."
        )


@contextlib.contextmanager
def _kept(what: Path) -> Iterator[None]:
    """What has to be on disk for the run to go on: where it cannot be written, the run ends as one that can."""
    try:
        with naming(what):
            yield
    except (OSError, ValueError) as error:  # some of orbax's are ValueErrors
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise UserError(
            f"{what} cannot be written: {reason}. The run ends here; when there is room for it and {what.parent} can "
            "be written, run the same command again: it goes on from its last saved step."
        ) from error


class Steps:
    """Checkpoints of a pytree under OUT/steps or OUT/best, written in the background; each is complete or not there.

    Each lists the sums of its files (`checkpoint.staging`): those of the arrays are in it when it appears, the rest
    when it has been waited for. Opening compares them, from the newest state on; `UserError` if there are states and
    none is whole.

    A state that could not be written, or is not within half an hour, is a UserError of the next `save`, `wait` or
    `close`. orbax may log such an error and say no more, so whether the state is there is looked up. Its threads go on
    to wait for what a failed one was to tell them, for many minutes; they are started by a thread that is a daemon, and
    so are such too, and the program can end without them.
    """

    def __init__(self, folder: Path, keep: int):
        logging.getLogger("absl").addFilter(_is_not_error)
        listed = ocp.AsyncOptions(post_finalization_callback=self._list)
        self.options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, async_options=listed, create=True
        )
        self.folder = folder
        self.saving: int | None = None  # the step that may not be on disk yet
        self.named = ""  # the state that is to get its name next
        with _kept(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if hosts.first():
            sift(folder)
        hosts.meet(f"states.{folder.name}")
        self._open()

    def _open(self) -> None:
        with _kept(self.folder):
            self.manager = ocp.CheckpointManager(self.folder.absolute(), options=self.options)

    def _list(self) -> None:
        """Called by orbax, in process 0, when all of a state is written and before it gets its name."""
        for part in self.folder.glob(f"{self.named}.orbax-checkpoint-tmp*"):
            staging.write_sums(part, LATE)

    def save(self, step: int, tree: Any) -> None:
        """Save a step; one that is already there is left as it is. Raises UserError."""
        self.wait()
        if step not in self.manager.all_steps():
            self.named = str(step)
            with _kept(self.folder / str(step)):
                _in_daemon(lambda: self.manager.save(step, args=ocp.args.StandardSave(_flat(tree))), None)
                self.saving = step

    def wait(self) -> None:
        """Until what was saved is on disk. Raises UserError if it is not."""
        step, self.saving = self.saving, None
        if step is None:
            return
        with _kept(self.folder / str(step)):
            _in_daemon(self.manager.wait_until_finished, SAVING)
            if hosts.first():
                if not (self.folder / str(step)).is_dir():
                    raise OSError("its writing was given up")
                staging.write_sums(self.folder / str(step))
                sync(self.folder)

    def latest(self) -> int | None:
        """The last complete step."""
        return self.manager.latest_step()

    def restore(self, like: Any) -> Any | None:
        """The latest saved tree with types and shardings of `like` (arrays or shapes); None when there is none.

        A state without sums, of an older release, that cannot be restored is set aside where there is another one."""
        step = self.latest()
        if step is None:
            return None
        try:
            flat = self.manager.restore(step, args=ocp.args.StandardRestore(_flat(like)))
        except Exception as error:  # orbax has no error of its own for files that are damaged
            state, reason = self.folder / str(step), " ".join(str(error).split())[:300]
            if (state / staging.SUMS).exists():  # and they are right: it is no damage
                raise
            if step == min(self.manager.all_steps()):
                raise UserError(
                    f"the state {state} cannot be restored: {reason}. Take it from a copy, or move {self.folder} away "
                    "and run the same command again to go on without it."
                ) from error
            self.manager.close()
            if hosts.first():
                set_aside(state, reason)
            hosts.meet(f"restored.{self.folder.name}")
            self._open()
            return self.restore(like)
        leaves = [flat[name] for name in _flat(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def close(self) -> None:
        """Finish writing and release orbax's threads. Raises UserError if the last state is not on disk."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(OSError, ValueError):  # orbax raises once more what `wait` has raised
                _in_daemon(self.manager.close, PATIENCE)


def _is_not_error(record: logging.LogRecord) -> bool:
    """Errors of orbax are raised: in its log each would stand two or three times more, with tracebacks."""
    return record.levelno != logging.ERROR


def _in_daemon(act: Callable[[], Any], patience: float | None) -> None:
    """Call `act` in a daemon thread and wait, so many seconds at most. Raises what it raises, and TimeoutError."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="writer", daemon=True)
    thread.start()
    thread.join(patience)
    if raised:
        raise raised[0]
    if thread.is_alive():
        raise TimeoutError(f"no answer within {patience:g} seconds")


def _flat(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


class Log:
    """metrics.jsonl, TensorBoard and, if asked, Weights & Biases from one call, on process 0.

    Opening it at step N drops everything that was logged after N. metrics.jsonl belongs to the run: what cannot be
    written there ends it. The others show it: one that fails, or takes a minute over a line, is left out from then on,
    which is told once.
    """

    def __init__(self, out: Path, step: int, wandb: str | None = None):
        self.path, self.file = out / METRICS, None
        self.shows: dict[str, Any] = {}  # None: it has failed
        if not hosts.first():
            return
        if wandb is not None:
            self.shows["Weights & Biases"] = self._tried("Weights & Biases", lambda: open_wandb(wandb, out))
        with _kept(self.path):
            _truncate(self.path, step)
            self.sums = _beside(self.path).open("a", encoding="utf-8", buffering=1)
            self.file = self.path.open("a", encoding="utf-8", buffering=1)  # a line at a time
        self.shows["TensorBoard"] = self._tried("TensorBoard", lambda: Board(out / "tensorboard", step))

    def _tried(self, name: str, act: Callable[[], T]) -> T | None:
        """What `act` returns; where it fails, that show is over. Raises UserError only."""
        try:
            return act()
        except UserError:
            raise
        except Exception as error:  # of a network, a disk, a library: whatever it is, the run does not depend on it
            say(f"{name} is left out from now on: {' '.join(str(error).split())[:300]}; {METRICS} has the figures")
            self.shows[name] = None
            return None

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line {"kind", "step", …}; numbers also go to TensorBoard and W&B as kind/name. Raises UserError."""
        if self.file is None:
            return
        line = json.dumps({"kind": kind, "step": step, **values}) + "\n"
        with _kept(self.path):
            self.sums.write(f"{sums.crc32(line)}\n")  # first: no line lacks its sum
            self.file.write(line)
        numbers = {name: value.get("value") if isinstance(value, dict) else value for name, value in values.items()}
        shown = {f"{kind}/{name}": float(value) for name, value in numbers.items() if value is not None}
        for name, show in self.shows.items():
            if show is not None:
                log = functools.partial(show.log, shown, step=step)
                self._tried(name, functools.partial(_in_daemon, log, PATIENCE))

    def heldout(self) -> list[dict[str, Any]]:
        """The evaluations so far. Raises UserError."""
        rows = read_rows(self.path) if self.path.exists() else ()
        return [row for _, row in rows if row["kind"] == "heldout"]

    def flush(self) -> None:
        """Make the lines durable; called before a checkpoint of the same step is saved. Raises UserError."""
        if self.file is not None:
            with _kept(self.path):
                for file in (self.sums, self.file):
                    file.flush()
                    os.fsync(file.fileno())

    def close(self) -> None:
        """Flush and close all."""
        for name, show in self.shows.items():
            if show is not None:
                self._tried(name, functools.partial(_in_daemon, show.finish, PATIENCE))
        if self.file is not None:
            with _kept(self.path), self.sums, self.file:
                os.fsync(self.sums.fileno())
                os.fsync(self.file.fileno())


def _truncate(path: Path, step: int) -> None:
    """Drop the lines after `step`, and what a kill has left of a line. Raises UserError for a line that is damaged."""
    beside = _beside(path)
    for file in (path, beside):
        drop_cut_line(file)
    if not path.exists():
        beside.unlink(missing_ok=True)
        return
    digits = read_text(beside).split() if beside.exists() else []  # an older release has written none
    for number, (line, wanted) in enumerate(zip(read_pieces(path), digits, strict=False), 1):
        if sums.crc32(line) != wanted:
            raise UserError(
                f"{path}, line {number} is damaged: its CRC-32 is not that of line {number} of {beside}. Take both "
                f"files from a copy, or delete {beside.name} to take all lines as they are."
            )
    kept = [json.dumps(row) + "\n" for _, row in read_rows(path) if row["step"] <= step]
    write_text(path, "".join(kept))
    write_text(beside, "".join(f"{sums.crc32(line)}\n" for line in kept))


def _beside(path: Path) -> Path:
    """Where the sums of a log's lines are."""
    return path.with_suffix(".crc32")
