"""A directory that appears whole or not at all.

Everything is written into a hidden sibling `.NAME.partial`, which is renamed at the end; a program that is killed
leaves at most that sibling, which nothing loads and which the next attempt removes.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sla_jax.errors import UserError
from sla_jax.files import naming


def refuse(target: Path, *, overwrite: bool, ours: Callable[[Path], bool]) -> None:
    """Raise UserError unless `target` is free, or `overwrite` is asked for and `ours(target)` allows it."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file; the destination must be a new or empty directory.")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"{target} exists and is not empty. Choose another destination, or pass --overwrite to replace a "
            "checkpoint."
        )
    if not ours(target):
        raise UserError(
            f"{target} exists and is not a sla-jax checkpoint, so --overwrite does not replace it. Choose another "
            "destination."
        )


def partial_path(target: Path) -> Path:
    """The hidden sibling in which `target` is prepared."""
    target = target.absolute()
    return target.with_name(f".{target.name}.partial")


@contextlib.contextmanager
def staged(target: Path, *, first: bool = True, wait: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """An empty directory to fill; on leaving it becomes `target` (replacing it), on an error it is removed.

    When several processes fill it together, only the `first` makes and renames it, and all meet in `wait`."""
    target, part = target.absolute(), partial_path(target)
    if first:
        part.parent.mkdir(parents=True, exist_ok=True)
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
    wait()
    try:
        with naming(target):
            yield part
        wait()
        if first:
            _replace(part, target)
        wait()
    except BaseException:
        if first:
            shutil.rmtree(part, ignore_errors=True)
        raise


def _replace(part: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        os.rename(target, old)
    os.rename(part, target)
    shutil.rmtree(old, ignore_errors=True)
