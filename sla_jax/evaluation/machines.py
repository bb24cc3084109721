"""OUT/seconds/machines.jsonl: {since, cpu, cores, device, python, jax}, where a run was timed from which day on.

A run that is gone on with elsewhere, or after an upgrade, has several lines.
"""

import datetime
from pathlib import Path
from typing import Any

from sla_jax.evaluation.rows import SECONDS, rows_of
from sla_jax.files import append_lines, drop_cut_line, own_line
from sla_jax.machine import machine


def note_machine(out: Path) -> None:
    """Write down that seconds are measured on this machine from today on, unless that was the last thing written."""
    path, here = _path(out), machine()
    drop_cut_line(path)
    there = read_machines(out)
    if not there or {**there[-1], **here} != there[-1]:
        since = datetime.datetime.now(datetime.UTC).date().isoformat()
        append_lines(path, [own_line({"since": since, **here})])


def read_machines(out: Path) -> tuple[dict[str, Any], ...]:
    """The lines; none of a run that a server answered. Raises UserError."""
    path = _path(out)
    return tuple(row for _, row in rows_of(path)) if path.exists() else ()


def _path(out: Path) -> Path:
    return out / SECONDS / "machines.jsonl"
