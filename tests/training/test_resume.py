"""A run's writers when what they write to fails: the run ends with an error and can go on, or goes on without them."""

import errno
import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from tensorboardX import record_writer
from tensorboardX.proto.event_pb2 import Event

from sla_jax.errors import UserError
from sla_jax.training import resume
from sla_jax.training.resume import METRICS, Log, Steps
from tests.damage import flip

GO_ON = "run the same command again: it goes on from its last saved step"
TREE = {"a": jnp.arange(3.0)}


def full(*args: Any, **more: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def within(act: Callable[[], Any]) -> None:
    """Call it in a thread that may not take a minute; what waits for ever would hold the tests."""
    resume._in_daemon(act, 60.0)


def written(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / METRICS).read_text().splitlines()]


def events(out: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of what TensorBoard would read: 12 bytes in front of each event, 4 behind it."""
    found = []
    for file in sorted((out / "tensorboard").iterdir()):
        raw = file.read_bytes()
        while raw:
            size = int.from_bytes(raw[:8], "little")
            event = Event.FromString(raw[12 : 12 + size])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            raw = raw[16 + size :]
    return found


# ---- the log ----


def test_the_log_shows_every_figure_and_forgets_what_came_later(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    for step in (1, 2):
        log.write("train", step, {"loss": 0.5 * step, "accuracy": {"value": 0.25, "error": 0.1}, "none": None})
    log.close()
    assert written(tmp_path)[1]["loss"] == 1.0 and len(written(tmp_path)) == 2
    assert events(tmp_path) == [
        (step, f"train/{name}", value) for step in (1, 2) for name, value in (("loss", step / 2), ("accuracy", 0.25))
    ]
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "train", "st')
    Log(tmp_path, 1).close()
    assert [line["step"] for line in written(tmp_path)] == [1]


@pytest.mark.parametrize("fails_at", range(2, 8))
def test_a_board_that_fails_is_left_out_once_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails_at: int
) -> None:
    real, calls = record_writer.RecordWriter.write, [0]

    def write(self: Any, data: bytes) -> Any:
        calls[0] += 1
        return full() if calls[0] > fails_at else real(self, data)

    monkeypatch.setattr(record_writer.RecordWriter, "write", write)

    def run() -> None:
        log = Log(tmp_path, 0)
        for step in range(100):
            log.write("train", step, {"loss": 1.0, "accuracy": 0.5})
        log.close()

    within(run)
    assert len(written(tmp_path)) == 100 and calls[0] == fails_at + 1
    assert capsys.readouterr().err.count("TensorBoard is left out from now on: [Errno 28] No space left") == 1


def test_a_board_that_cannot_be_opened_or_closed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    log = Log(tmp_path, 0)
    log.write("train", 1, {"loss": 1.0})
    log.close()
    assert len(written(tmp_path)) == 1 and "TensorBoard is left out" in capsys.readouterr().err
    (tmp_path / "tensorboard").unlink()
    log = Log(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(log.shows["TensorBoard"], "finish", full)
        board = log.shows["TensorBoard"]
        log.close()
    board.finish()
    assert "TensorBoard is left out" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["init", "log", "finish", "hang", "hang at the end"])
def test_weights_and_biases_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    seen: list[int] = []
    released = threading.Event()

    def broken(*args: Any, **more: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "the service is gone")

    def keep(values: Any, step: int) -> None:
        seen.append(step)
        if how == "hang":
            released.wait()

    finish = {"finish": broken, "hang at the end": released.wait}.get(how, lambda: None)
    run = SimpleNamespace(log=broken if how == "log" else keep, finish=finish)
    module = SimpleNamespace(init=broken if how == "init" else lambda **options: run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(resume, "PATIENCE", 0.5 if "hang" in how else 60.0)
    log = Log(tmp_path, 0, "project")
    for step in (1, 2):
        log.write("train", step, {"loss": 1.0})
    within(log.close)
    released.set()
    assert seen == {"init": [], "log": [], "hang": [1]}.get(how, [1, 2]) and len(written(tmp_path)) == 2
    assert capsys.readouterr().err.count("Weights & Biases is left out from now on") == 1


def test_weights_and_biases_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--wandb project needs the package wandb"):
        Log(tmp_path, 0, "project")


def test_a_log_that_cannot_be_written_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / METRICS).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{METRICS} cannot be written: .*{GO_ON}"):
        Log(tmp_path / "a", 0)
    if Path("/dev/full").exists():
        (tmp_path / METRICS).symlink_to("/dev/full")
        monkeypatch.setattr(resume, "_truncate", lambda path, step: None)
        log = Log(tmp_path, 0)
        with pytest.raises(UserError, match=rf"{METRICS} cannot be written: No space left on device\. .*{GO_ON}"):
            log.write("train", 1, {"loss": 1.0})
        with pytest.raises(UserError, match="No space left on device"):
            log.close()


@pytest.mark.parametrize("line", [1, 2])
def test_a_line_of_the_log_that_was_damaged_is_named(tmp_path: Path, line: int) -> None:
    log = Log(tmp_path, 0)
    for step in (1, 2, 3):
        log.write("train", step, {"loss": 0.5 * step, "seconds": math.nan})
    log.close()
    whole = (tmp_path / METRICS).read_text()
    Log(tmp_path, 2).close()
    assert (tmp_path / METRICS).read_text() == "".join(whole.splitlines(keepends=True)[:2])
    for name in (METRICS, "metrics.crc32"):
        file = tmp_path / name
        before = file.read_bytes()
        flip(file, sum(len(one) + 1 for one in before.split(b"\n")[: line - 1]) + 5)
        with pytest.raises(UserError, match=rf"{METRICS}, line {line} is damaged: .* or delete metrics\.crc32"):
            Log(tmp_path, 2)
        file.write_bytes(before)
    edited = whole.replace("0.5", "0.25")
    (tmp_path / METRICS).write_text(edited)
    (tmp_path / "metrics.crc32").unlink()
    Log(tmp_path, 3).close()
    assert (tmp_path / METRICS).read_text() == edited and len((tmp_path / "metrics.crc32").read_text()) == 27


def test_a_log_that_was_killed_between_a_sum_and_its_line_goes_on(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    log.write("train", 1, {"loss": 0.5})
    log.close()
    with (tmp_path / "metrics.crc32").open("a") as file:
        file.write("01234567\n0123")
    for step in (2, 3):
        log = Log(tmp_path, step - 1)
        log.write("train", step, {"loss": 0.5})
        log.close()
    assert [line["step"] for line in written(tmp_path)] == [1, 2, 3]
    assert len((tmp_path / "metrics.crc32").read_text().splitlines()) == 3


# ---- the states ----


def test_a_state_comes_back(tmp_path: Path) -> None:
    steps = Steps(tmp_path / "steps", 2)
    for step in (1, 2, 3, 3):
        steps.save(step, {"a": TREE["a"] + step})
    steps.close()
    steps = Steps(tmp_path / "steps", 2)
    restored = steps.restore(TREE)
    assert steps.latest() == 3 and restored is not None and restored["a"].tolist() == [3.0, 4.0, 5.0]
    steps.close()
    assert sorted(folder.name for folder in (tmp_path / "steps").iterdir()) == ["2", "3"]


@pytest.mark.parametrize("told_by", ["wait", "save", "close"])
def test_a_state_that_could_not_be_written_ends_the_run_and_the_program(
    tmp_path: Path, told_by: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before, folder = set(threading.enumerate()), tmp_path / "steps"
    steps = Steps(folder, 2)
    steps.save(1, TREE)
    steps.wait()
    shutil.rmtree(folder)
    folder.write_text("a file where the folder was")

    def go_on() -> None:
        steps.save(2, TREE)
        {"wait": steps.wait, "save": lambda: steps.save(3, TREE), "close": steps.close}[told_by]()

    with pytest.raises(UserError, match=rf"steps/2 cannot be written: .*{GO_ON}"):
        within(go_on)
    within(steps.close)
    assert [thread for thread in set(threading.enumerate()) - before if not thread.daemon] == []
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_disk_is_said_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(tmp_path / "steps", 2)
    told = "RESOURCE_EXHAUSTED: Error writing: Failed to write 9 bytes: No space left on device [os_error_code='28']"

    def save(*args: Any, **more: Any) -> None:
        raise ValueError(told)

    with monkeypatch.context() as patch:
        patch.setattr(steps.manager, "save", save)
        with pytest.raises(UserError, match=r"steps/1 cannot be written: No space left on device\. The run ends"):
            steps.save(1, TREE)
    with monkeypatch.context() as patch:
        patch.setattr(steps.manager, "save", lambda *args, **more: True)  # what orbax says of some failures: nothing
        steps.save(1, TREE)
        with pytest.raises(UserError, match=r"steps/1 cannot be written: its writing was given up"):
            steps.wait()
    steps.close()


def test_a_disk_that_never_answers_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, released = Steps(tmp_path / "steps", 2), threading.Event()
    steps.save(1, TREE)
    with monkeypatch.context() as patch:
        patch.setattr(resume, "SAVING", 0.2)
        patch.setattr(steps.manager, "wait_until_finished", released.wait)
        with pytest.raises(UserError, match=rf"steps/1 cannot be written: no answer within 0.2 seconds\. .*{GO_ON}"):
            within(steps.wait)
    released.set()
    steps.close()


def test_a_folder_of_states_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("a file")
    with pytest.raises(UserError, match=r"steps cannot be written: File exists"):
        Steps(tmp_path / "steps", 2)
