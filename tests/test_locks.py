"""One process at a time writes a place: the second is told who does, and a kill frees it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sla_jax.errors import UserError
from sla_jax.locks import LOCK, clear, contents, locked, one_writer

# holds the lock argv[1] until it is killed
HOLDER = """
import fcntl, os, signal, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(f"process {os.getpid()} on there")
file.flush()
print("held", flush=True)
signal.pause()
"""


def test_a_second_writer_is_told_who_writes_and_may_when_that_one_was_killed(tmp_path: Path) -> None:
    lock = tmp_path / LOCK
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        said = rf"process {holder.pid} on there is writing {tmp_path}, and two writers .* write to another place"
        with pytest.raises(UserError, match=said), one_writer(tmp_path):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert lock.exists()
    with one_writer(tmp_path):
        assert str(os.getpid()) in lock.read_text() and "there" not in lock.read_text()
        with pytest.raises(UserError, match=f"process {os.getpid()} on "), one_writer(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_made_for_the_lock_goes_unless_it_was_used(tmp_path: Path) -> None:
    with one_writer(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    with one_writer(tmp_path / "c"):
        (tmp_path / "c" / "file").write_text("")
    with one_writer(tmp_path / "c" / "file"):
        assert contents(tmp_path / "c") == [tmp_path / "c" / "file"]
    assert not (tmp_path / "a" / "b").exists() and os.listdir(tmp_path / "c") == ["file"]


def test_clearing_a_folder_leaves_its_lock(tmp_path: Path) -> None:
    (tmp_path / "inner" / "most").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "inner" / "link").symlink_to(tmp_path / "elsewhere")
    with one_writer(tmp_path / "inner"):
        clear(tmp_path / "inner")
        assert os.listdir(tmp_path / "inner") == [LOCK]
    assert (tmp_path / "elsewhere").is_dir()


def test_who_waits_for_a_lock_that_is_removed_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder removes the file after the other has opened it: a lock on a file without a name is worth nothing."""
    path, real, locked_files = tmp_path / "a.lock", fcntl.flock, list[Any]()

    def flock(file: Any, how: int) -> None:
        if not locked_files:
            path.unlink()
        locked_files.append(file)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(path, lambda holder: None):
        assert path.read_text().startswith(f"process {os.getpid()} on ") and len(locked_files) == 2


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(file: Any, how: int) -> None:
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(fcntl, "flock", flock)
    failure = errno.ENOLCK
    with one_writer(tmp_path):
        pass
    assert f"warning: the file system of {tmp_path} has no locks" in capsys.readouterr().err
    failure = errno.EIO
    with pytest.raises(OSError, match=LOCK), one_writer(tmp_path):
        pass
