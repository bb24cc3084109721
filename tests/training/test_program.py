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
from tests.flags import QUICK

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
    places = {"out": folder / out, "features.dir": folder / "features", "data.cache": folder / "tokens"}
    options = OPTIONS | places | changes
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def environment() -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK, "PYTHONPATH": str(ROOT)}


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


def test_killed_it_goes_on_on_another_mesh(finished: Path) -> None:
    """Killed on one device, resumed on four: the same data order, the same losses up to rounding."""
    import train

    run = finished.parent / "moved"
    kill_at(command("train.py", *flags(finished.parent, "moved")), run, 7)
    train.main(flags(finished.parent, "moved", **{"mesh.data": 2, "mesh.fsdp": 2}))
    told = [[line for line in lines(path) if line["kind"] == "train"] for path in (run, finished)]
    assert [line["step"] for line in told[0]] == [line["step"] for line in told[1]]
    for name in ("loss", "epoch", "learning_rate"):
        np.testing.assert_allclose([line[name] for line in told[0]], [line[name] for line in told[1]], atol=1e-5)


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


TIMES = ("seconds", "tokens_per_second")


def without_time(line: dict) -> dict:
    return {name: value for name, value in line.items() if name not in TIMES}


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


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_saves_and_the_run_goes_on(finished: Path, sent: signal.Signals, code: int) -> None:
    run = finished.parent / f"interrupted by {sent.name}"
    words = command("train.py", *flags(finished.parent, run.name, save_every=1000))
    process = start(words)
    while process.poll() is None and not lines(run):
        time.sleep(0.002)
    process.send_signal(sent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "run the same command to go on" in err
    code, _, err = finish(words)
    assert code == 0, err
    assert "going on from step" in err
    assert (run / "channel.safetensors").read_bytes() == (finished / "channel.safetensors").read_bytes()


def test_a_step_that_is_not_finite_stops_with_its_batch(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A learning rate at which float32 overflows; what was saved before is good, and the batch can be looked at."""
    import train
    from sla_jax.errors import front_door

    words = flags(finished.parent, "wild", save_every=1, **{"optimizer.learning_rate": 1e38, "optimizer.grad_clip": 0})
    with pytest.raises(SystemExit) as stop:
        front_door(train.main, words)
    assert stop.value.code == 2
    assert "is not finite" in capsys.readouterr().err
    (file,) = (finished.parent / "wild").glob("bad-step-*.json")
    saved = json.loads(file.read_text())
    assert len(saved["examples"]) == 8 and saved["examples"][0]["answers"][1]
    assert all("row" in example and example["prompt"] for example in saved["examples"])


def test_the_best_state_is_kept_and_the_run_stops_early(finished: Path) -> None:
    """The moving average is what is evaluated and saved; without learning, nothing gets better after the first time."""
    from safetensors.numpy import load_file

    import train

    changes = {"best.metric": "accuracy_mean", "best.patience": 2, "optimizer.learning_rate": 1e-12, "eval_every": 1}
    train.main(flags(finished.parent, "early", **changes, **{"optimizer.ema": 0.5}))
    run = finished.parent / "early"
    heldout = [line for line in lines(run) if line["kind"] == "heldout"]
    values = [line["accuracy_mean"]["value"] for line in heldout]
    at = values.index(max(values))
    assert len(values) == at + 3 < TOTAL
    assert [int(path.name) for path in (run / "best").iterdir() if path.name.isdigit()] == [heldout[at]["step"]]
    before = {path: path.stat().st_mtime_ns for path in (run / "checkpoint").rglob("*")}
    train.main(flags(finished.parent, "early", **changes, **{"optimizer.ema": 0.5}))
    assert {path: path.stat().st_mtime_ns for path in (run / "checkpoint").rglob("*")} == before
    assert load_file(run / "channel.safetensors")


def test_a_dry_run_says_what_it_would_be_and_writes_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import train

    train.main([*flags(finished.parent, "dry"), "--dry-run"])
    said = capsys.readouterr().out
    for word in ("longer answer wins", "⟦", "<|im_end|>⟧", "estimated memory", "fsdp 1", "generated: 64"):
        assert word in said, word
    assert not (finished.parent / "dry").exists()


def test_a_profile_is_written(finished: Path) -> None:
    import train

    train.main(flags(finished.parent, "traced", **{"profile.start": 2, "profile.steps": 1, "optimizer.max_steps": 4}))
    assert list((finished.parent / "traced" / "profile").rglob("*.xplane.pb"))
    assert [line["step"] for line in lines(finished.parent / "traced") if line["kind"] == "train"] == [1, 2, 3, 4]


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
        (["--data.generated", "0"], "--data.files"),
        (["--channel.width", "8"], "channel.width: was 4, now 8"),
        (["--optimizer.batch_size", "0"], "batch_size=0"),
        (["--model", "nowhere"], "nowhere"),
        (["--best.metric", "acuracy_mean"], "accuracy_mean"),
        (["--optimizer.batch_size", "6", "--mesh.data", "4"], "multiple of 4"),
        (["--policy.weight", "1"], "policy.train=frozen"),
        (["--channel.weight", "0"], "nothing to train"),
        (["--head.weight", "1"], "channel.weight=1.0 and head.weight=1.0"),
        (["--target", "v5e:2x4"], "--dry_run"),
        (["--hosts.processes", "2"], "hosts.coordinator"),
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
