"""Lets one process at a time write a folder or a file; the next one is told who does.

The lock is flock's on a small file, so the kernel lets go of it however its holder ends. The file says who holds it,
and one that only lies there, because a kill or `locked` has left it, is free. Where the file system has no such locks
(some NFS), a warning is printed and nothing is locked.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from sla_jax.errors import UserError

LOCK = ".lock"  # of a folder, in it
UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # of a file system without locks


@contextlib.contextmanager
def one_writer(target: Path, lock: Path | None = None) -> Iterator[None]:
    """Hold `target`, a folder that is made if it has to be, or with `lock` whatever that file is the lock of.

    Raises UserError where another process holds it. A folder that was made for the lock and is empty goes again. Where
    a file stands in the folder's place nothing is held: the program will refuse it."""
    if lock is None and target.exists() and not target.is_dir():
        yield
        return
    lock = lock or target / LOCK
    made = not lock.parent.exists()

    def refuse(holder: str) -> None:
        raise UserError(
            f"{holder} is writing {target}, and two writers would spoil each other's work. Wait until it has ended, "
            "end it, or write to another place."
        )

    try:
        with locked(lock, refuse) as file:
            try:
                yield
            finally:
                if _is_at(file, lock):
                    lock.unlink()
    finally:
        if made:
            with contextlib.suppress(OSError):
                lock.parent.rmdir()


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[TextIO]:
    """Hold the lock `path`. Where another process does, `busy` is told which and may raise; then its end is awaited."""
    with _held(path, busy) as file:
        yield file


def contents(folder: Path) -> list[Path]:
    """What a folder holds beside its lock."""
    return [path for path in folder.iterdir() if path.name != LOCK]


def clear(folder: Path) -> None:
    """Delete what a folder holds beside its lock."""
    for path in contents(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _held(path: Path, busy: Callable[[str], None]) -> TextIO:
    """The lock's file, open and locked."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(file, path, busy)
            if _is_at(file, path):  # else its last holder has removed it meanwhile
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: TextIO, path: Path, busy: Callable[[str], None]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        busy(file.read() or "another process")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in UNKNOWN:
            error.filename = str(path)
            raise
        print(
            f"warning: the file system of {path.parent} has no locks ({error.strerror}), so nothing keeps a second "
            "program from writing there at the same time",
            file=sys.stderr,
        )


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
