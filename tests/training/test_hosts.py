"""Two processes under jax.distributed: the losses of one, a lost process is noticed, and both go on."""

import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.training.test_program import command, finish, lines, start

OPTIONS = {
    "data.generated": 64,
    "data.heldout": 8,
    "data.max_length": 128,
    "data.max_prompt_length": 64,
    "channel.width": 4,
    "features.mode": "recompute",
    "optimizer.batch_size": 8,
    "optimizer.epochs": 6,
    "save_every": 4,
}


def flags(folder: Path, out: str, **changes: object) -> list[str]:
    options = OPTIONS | {"out": folder / out, "data.cache": folder / "tokens"} | changes
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def two(folder: Path, out: str, **changes: object) -> list[subprocess.Popen[str]]:
    """Both processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    hosts = {"hosts.coordinator": f"localhost:{port}", "hosts.processes": 2, "hosts.timeout": 10}
    return [
        start(command("train.py", *flags(folder, out, **hosts, **changes, **{"hosts.process": i}))) for i in range(2)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def wait_for(processes: list[subprocess.Popen[str]], run: Path, steps: int) -> None:
    """Until the run has logged so many steps."""
    deadline = time.monotonic() + 200
    while len(losses(run)) < steps and time.monotonic() < deadline and processes[0].poll() is None:
        time.sleep(0.002)
    assert processes[0].poll() is None, processes[0].communicate()[1]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run) if line["kind"] == "train"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    code, _, said = finish(command("train.py", *flags(folder, "alone")))
    assert code == 0, said
    return folder / "alone"


def test_two_processes_train_as_one_and_survive_a_loss(alone: Path) -> None:
    """Together as alone; then one is killed: the other ends by itself and says so, and both go on to the same end."""
    folder = alone.parent
    for code, said in ended(two(folder, "both")):
        assert code == 0, said
    np.testing.assert_allclose(losses(folder / "both"), losses(alone), rtol=0, atol=1e-5)
    figures = [[line for line in lines(run) if line["kind"] == "heldout"] for run in (folder / "both", alone)]
    assert json.dumps(figures[0][-1])[:40] == json.dumps(figures[1][-1])[:40]

    processes = two(folder, "cut")
    wait_for(processes, folder / "cut", 6)
    processes[1].send_signal(signal.SIGKILL)
    (code, said), _ = ended(processes)
    assert code != 0 and "lost" in said, said
    processes = two(folder, "cut")
    wait_for(processes, folder / "cut", 10)
    processes[1].send_signal(signal.SIGTERM)  # a preemption of one is one of all: saved, and no error
    for code, said in ended(processes):
        assert code == 0, said
    assert len(losses(folder / "cut")) < len(losses(alone))
    for code, said in ended(two(folder, "cut")):
        assert code == 0, said
    np.testing.assert_allclose(losses(folder / "cut"), losses(alone), rtol=0, atol=1e-5)
