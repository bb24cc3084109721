"""Shows a run's figures in TensorBoard and Weights & Biases; neither is needed for the run to go on."""

import contextlib
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sla_jax.errors import UserError


class Board:
    """A file of figures for TensorBoard, written in the calling thread: a write that fails is an error, not a wait."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._scalar, self._writer = Event, scalar, EventsWriter(str(folder / "events"))
        # TensorBoard forgets what it has of this step and later ones
        self._writer.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write the figures of a step. Raises OSError, and is closed then."""
        try:
            for name, value in values.items():
                event = self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value))
                self._writer.write_event(event)
            self._writer.flush()
        except OSError:
            with contextlib.suppress(OSError):
                self._writer.close()
            raise

    def finish(self) -> None:
        """Close the file. Raises OSError."""
        self._writer.close()


def open_wandb(project: str, out: Path) -> Any:
    """A W&B run that goes on when OUT does. Raises UserError where the package is not installed."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"--wandb {project} needs the package wandb: pip install wandb, or leave the flag out."
        ) from None
    identity = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=out.name, id=identity, resume="allow", dir=str(out))
