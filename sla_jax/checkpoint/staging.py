"""A directory that appears whole or not at all, and that tells when it is not whole any more.

Everything is written into a hidden sibling `.NAME.partial`, which is on disk and renamed at the end; a program that is
killed leaves at most that sibling, which nothing loads and which the next attempt removes. One process at a time fills
it (`locks`).

The last file that is written is `sla_jax.sha256`, the SHA-256 of all others, as `sha256sum -c sla_jax.sha256` reads it.
What reads the directory compares (`check`). Files that it does not list, and directories without it, are taken as they
are: those of other programs, of older releases, and whatever a user has put there.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sla_jax.errors import UserError
from sla_jax.files import naming, read_text, sync, write_text
from sla_jax.locks import LOCK, clear, one_writer

SUMS = "sla_jax.sha256"
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
READERS = 8  # files that are read at a time; hashing lets other threads run


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

    When several processes fill it together, only the `first` makes and renames it, and all meet in `wait`. Raises
    UserError where another program is filling it."""
    target, part = target.absolute(), partial_path(target)
    with one_writer(target, part / LOCK) if first else contextlib.nullcontext():
        if first:
            clear(part)
            _finish_replacing(target)
        wait()
        try:
            with naming(target):
                yield part
            wait()
            if first:
                with naming(target):
                    write_sums(part)
                _replace(part, target)
                (target / LOCK).unlink(missing_ok=True)
            wait()
        except BaseException:
            if first:
                shutil.rmtree(part, ignore_errors=True)
            raise


def _replace(part: Path, target: Path) -> None:
    old = _old(target)
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        os.rename(target, old)
    os.rename(part, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _finish_replacing(target: Path) -> None:
    """Put back what a kill between the two renames has left without its name."""
    if _old(target).exists() and not target.exists():
        os.rename(_old(target), target)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


# ---- the sums ----


def write_sums(folder: Path, leave: Collection[str] = ()) -> None:
    """List the SHA-256 of every file of a folder but those to `leave`; all of it is on disk when this returns.

    Files that are listed already are not read again."""
    known = read_sums(folder) or {}
    new = [name for name in _names(folder) if name not in known and name not in leave]
    found = known | dict(zip(new, _each(_published, folder, new), strict=True))
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        sync(inner)
    write_text(folder / SUMS, "".join(f"{found[name]}  {name}\n" for name in sorted(found)))


def read_sums(folder: Path) -> dict[str, str] | None:
    """Hex digests by the files' paths in a folder; None of a folder without a list. Raises UserError."""
    path = folder / SUMS
    if not path.exists():
        return None
    found = {}
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
        match = LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f"{path}, line {number} is damaged: it is not a SHA-256, two blanks and a file's name. Copy it again, "
                "or delete it to use the files unchecked."
            )
        found[match[2]] = match[1]
    return found


def check(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Raise UserError for the first file that is not as it was written, of those whose path in the folder is wanted."""
    found = damage(folder, wanted)
    if found is not None:
        raise UserError(
            f"{found} Take it from a copy, or have {folder} made anew. If you changed it yourself, delete its line in "
            f"{folder / SUMS}; without that file nothing is checked."
        )


def damage(folder: Path, wanted: Callable[[str], bool] = lambda name: True, most: int | None = None) -> str | None:
    """What is wrong with the first wanted file that is not as it was written, None where all are.

    A file of more than `most` bytes only has to be there."""
    try:
        listed = read_sums(folder) or {}
    except UserError as error:
        return str(error)
    names = [name for name in listed if wanted(name)]
    for name in names:
        if not (folder / name).is_file():
            return f"{folder / name} is missing, and {SUMS} lists it."
    small = [name for name in names if most is None or (folder / name).stat().st_size <= most]
    for name, digest in zip(small, _each(_digest, folder, small), strict=True):
        if digest != listed[name]:
            return f"{folder / name} is damaged or truncated: its SHA-256 is not that of {SUMS}."
    return None


def _names(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name not in (SUMS, LOCK))


def _each(act: Callable[[Path], str], folder: Path, names: list[str]) -> list[str]:
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(act, [folder / name for name in names]))


def _published(path: Path) -> str:
    sync(path)
    return _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
