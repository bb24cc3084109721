"""train.py and eval.py as programs: killed and resumed bit-identically, refused inputs, what a run leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sla_jax.training.tiny import generated_pairs

ROOT = Path(__file__).parents[2]
TOTAL = 14
OPTIONS = {
    "data.generated": 64,
    "data.heldout": 8,
    "channel.width": 4,
    "optimizer.batch_size": 4,
    "optimizer.accumulation": 2,
    "optimizer.epochs": 2,
    "save_every": 3,
    "eval_every": 5,
    "data.length_pool": 2,
    "features.dtype": "float32",
}


def command(program: str, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / program), *words]


def flags(folder: Path, out: str, **changes: object) -> list[str]:
    options = OPTIONS | {"out": folder / out, "features.dir": folder / "features"} | changes
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def environment() -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def finish(words: list[str]) -> tuple[int, str, str]:
    process = start(words)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def lines(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    return (
        [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if file.exists()
        else []
    )


def kill_at(words: list[str], run: Path, step: int) -> None:
    """Start a run and SIGKILL it as soon as its log shows `step`."""
    process = start(words)
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if any(line["step"] >= step for line in lines(run)):
            break
        time.sleep(0.002)
    assert process.poll() is None, f"ended before step {step}: {process.communicate()[1]}"
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs")
    code, out, err = finish(command("train.py", *flags(folder, "whole")))
    assert code == 0, err
    assert str(folder / "whole" / "checkpoint") in out
    return folder / "whole"


def test_killed_at_three_random_steps_it_ends_bit_identical(finished: Path) -> None:
    run = finished.parent / "killed"
    words = command("train.py", *flags(finished.parent, "killed"))
    for step in sorted(random.Random(time.time_ns()).sample(range(1, TOTAL), 3)):
        kill_at(words, run, step)
    code, _, err = finish(words)
    assert code == 0, err
    assert (run / "channel.safetensors").read_bytes() == (finished / "channel.safetensors").read_bytes()
    assert [without_time(line) for line in lines(run)] == [without_time(line) for line in lines(finished)]
    for file in sorted((finished / "checkpoint" / "params").rglob("*")):
        if file.name[0].isdigit():  # array chunks; the rest are orbax's own records with times in them
            assert file.read_bytes() == (run / file.relative_to(finished)).read_bytes()


def test_four_devices_give_what_one_gives(finished: Path) -> None:
    """In this process, under the tests' strict rules; `finished` ran on one device."""
    from safetensors.numpy import load_file

    import train

    assert jax.device_count() == 4
    train.main(flags(finished.parent, "four"))
    one, four = (load_file(finished.parent / out / "channel.safetensors") for out in ("whole", "four"))
    assert one.keys() == four.keys()
    for name in one:
        np.testing.assert_allclose(four[name], one[name], rtol=1e-3, atol=1e-5)


def test_features_recomputed_at_every_step_give_what_stored_ones_give(finished: Path) -> None:
    from safetensors.numpy import load_file

    import train

    train.main(flags(finished.parent, "again", **{"features.mode": "recompute"}))
    stored, again = (load_file(finished.parent / out / "channel.safetensors") for out in ("whole", "again"))
    for name in stored:
        np.testing.assert_allclose(again[name], stored[name], rtol=1e-3, atol=1e-4)


def without_time(line: dict) -> dict:
    return {name: value for name, value in line.items() if name != "seconds"}


def test_the_log_has_every_step_once_and_the_evaluations(finished: Path) -> None:
    train = [line["step"] for line in lines(finished) if line["kind"] == "train"]
    heldout = [line["step"] for line in lines(finished) if line["kind"] == "heldout"]
    assert train == list(range(1, TOTAL + 1))
    assert heldout == [5, 10, 14]
    assert list((finished / "tensorboard").glob("events*"))


def test_the_same_command_again_changes_nothing(finished: Path) -> None:
    before = (finished / "channel.safetensors").read_bytes(), lines(finished)
    code, _, err = finish(command("train.py", *flags(finished.parent, "whole")))
    assert code == 0, err
    assert ((finished / "channel.safetensors").read_bytes(), lines(finished)) == before


def test_ctrl_c_saves_and_the_run_goes_on(finished: Path) -> None:
    run = finished.parent / "interrupted"
    words = command("train.py", *flags(finished.parent, "interrupted", save_every=1000))
    process = start(words)
    while process.poll() is None and not lines(run):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "run the same command to go on" in err
    code, _, err = finish(words)
    assert code == 0, err
    assert "going on from step" in err
    assert (run / "channel.safetensors").read_bytes() == (finished / "channel.safetensors").read_bytes()


def test_eval_prints_figures_with_standard_errors(finished: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [p._asdict() | {"split": "test" if i % 2 else "train"} for i, p in enumerate(generated_pairs(12, 1))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "channel",
        str(finished / "checkpoint"),
        "--data",
        str(data),
        "--split",
        "test",
        "--json",
        str(tmp_path / "f"),
    ]
    code, out, err = finish(command("eval.py", *words, "--max-length", "256", "--max-prompt-length", "128"))
    assert code == 0, err
    assert "length-balanced" in out and "±" in out and "n=6" in out
    figures = json.loads((tmp_path / "f").read_text())["figures"]
    assert figures["accuracy_mean"]["n"] == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimizer.learning_rat", "1"], "learning-rate"),
        (["--channel.width", "0"], "channel.width=0"),
        (["--data.files", "nowhere.jsonl", "--data.generated", "0"], "nowhere.jsonl"),
        (["--data.generated", "0"], "no training data"),
        (["--channel.width", "8"], "channel.width: was 4, now 8"),
        (["--optimizer.batch_size", "0"], "batch_size=0"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_refused(finished: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    """Exit code 2, a message that names the culprit, and nothing half-written."""
    import train
    from sla_jax.errors import front_door

    before = sorted(path for path in finished.rglob("*"))
    out = "whole" if "was 4" in said else "new"
    with pytest.raises(SystemExit) as stop:
        front_door(train.main, [*flags(finished.parent, out), *words])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert sorted(path for path in finished.rglob("*")) == before
    assert not (finished.parent / "new").exists()
