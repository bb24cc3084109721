"""What `eval.py replay` takes."""

import dataclasses
from pathlib import Path

import tyro

from sla_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Which trace to check, and against what."""

    trace: tyro.conf.Positional[Path]
    """A file recorded with generate.py --trace. Alone, it is checked for agreeing with itself."""
    checkpoint: str | None = None
    """Run the same search with this checkpoint, the one that it was recorded with, and compare bit for bit."""
    tolerance: float | None = None
    """Numbers may differ by so much (another machine); with --teacher-forced 0.001 if not given."""
    teacher_forced: bool = False
    """Instead of the search, read every explored path in one forward pass; compare rewards and log-probabilities."""

    def __post_init__(self) -> None:
        if self.checkpoint is None and (self.teacher_forced or self.tolerance is not None):
            raise UserError("--tolerance and --teacher-forced compare with a model; give --checkpoint DIR with them.")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise UserError(f"--tolerance {self.tolerance} is out of range; it has to be 0 or more.")
