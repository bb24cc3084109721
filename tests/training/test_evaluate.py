"""`eval.py channel` and `eval.py steps` on what train.py makes: a channel, a reward model, a two-class head."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import eval as front
from sla_jax.errors import UserError, front_door
from sla_jax.sharding import make_mesh
from sla_jax.training import heldout
from sla_jax.training.config import (
    ChannelOptions,
    FeaturesConfig,
    HeadOptions,
    OptimizerConfig,
    StepsConfig,
    TrainConfig,
)
from sla_jax.training.data_config import DataConfig
from sla_jax.training.evaluate import evaluate_steps
from sla_jax.training.loop import train_on
from sla_jax.training.rows import held_out, parse_row
from tests.training import rows

SEPARATOR = " ;"
SIZES: dict[str, Any] = {"max_length": 96, "max_prompt_length": 32}
FLAGS = ["--max-length", "96", "--max-prompt-length", "32", "--batch-tokens", "512"]
SHORT = ["--max-length", "16", "--max-prompt-length", "8", "--max-bad", "0.9"]
HEAD: dict[str, Any] = {"channel": ChannelOptions(weight=0.0), "head": HeadOptions(weight=1.0)}


def trained(folder: Path, name: str, data: dict, **options: Any) -> Path:
    """The checkpoint of a run of one step on one device."""
    config = TrainConfig(
        data=DataConfig(**SIZES, cache=None, **data),
        features=FeaturesConfig(dir=str(folder / "features"), dtype="float32"),
        optimizer=OptimizerConfig(batch_size=4, max_steps=1, learning_rate=0.01),
        out=str(folder / name),
        **options,
    )
    return train_on(config, make_mesh(devices=jax.devices()[:1])) / "checkpoint"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("evaluated")
    rows.write(place / "steps.jsonl", rows.solutions(12))
    rows.write(place / "pairs.jsonl", rows.pairs(8))
    return place


@pytest.fixture(scope="module")
def stepwise(folder: Path) -> Path:
    """A two-class head."""
    data = {"files": (str(folder / "steps.jsonl"),), "heldout": 2, "separator": SEPARATOR}
    return trained(folder, "stepwise", data, task="steps", **HEAD)


@pytest.fixture(scope="module")
def channel(folder: Path) -> Path:
    return trained(folder, "channel", {"generated": 8, "heldout": 0}, channel=ChannelOptions(width=4))


@pytest.fixture(scope="module")
def scalar(folder: Path) -> Path:
    """A reward model."""
    return trained(folder, "scalar", {"generated": 8, "heldout": 0}, **HEAD)


def measured(command: str, checkpoint: Path, data: Path, folder: Path, *words: str) -> dict:
    """What the program writes as JSON."""
    front.main([command, str(checkpoint), "--data", str(data), "--json", str(folder / "figures.json"), *FLAGS, *words])
    return json.loads((folder / "figures.json").read_text())


# ---- pairs ----


@pytest.mark.parametrize("name", ["channel", "scalar"])
def test_pairs_are_ranked_by_a_channel_and_by_a_reward_model(
    folder: Path, name: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured("channel", request.getfixturevalue(name), folder / "pairs.jsonl", tmp_path)
    assert found["pairs"] == 8
    assert found["figures"]["accuracy_mean"]["n"] == 8
    assert found["figures"]["reward_chosen"]["value"] != found["figures"]["reward_rejected"]["value"]
    assert "length-balanced" in capsys.readouterr().out


def test_a_channel_file_stands_for_the_checkpoints_own(folder: Path, channel: Path, tmp_path: Path) -> None:
    own = measured("channel", channel, folder / "pairs.jsonl", tmp_path)
    file = channel.parent / "channel.safetensors"
    given = measured("channel", channel.parent / "base", folder / "pairs.jsonl", tmp_path, "--channel", str(file))
    assert given["figures"] == own["figures"]


# ---- steps ----


def test_steps_get_the_figures_of_the_runs_own_evaluation(stepwise: Path, folder: Path, tmp_path: Path) -> None:
    """On the rows that the run held out, at its threshold; the separator comes from the checkpoint."""
    (logged,) = [
        line
        for line in map(json.loads, (stepwise.parent / "metrics.jsonl").read_text().splitlines())
        if line["kind"] == "heldout"
    ]
    held = [row for row in rows.solutions(12) if held_out(parse_row(row, "steps"), 2)]
    found = measured("steps", stepwise, rows.write(tmp_path / "held.jsonl", held), tmp_path)
    assert found["answers"] == len(held) > 2
    assert found["threshold"] == heldout.THRESHOLD
    assert found["figures"] == {name: logged[name] for name in found["figures"]}


def test_a_channel_judges_steps_too(channel: Path, folder: Path, tmp_path: Path) -> None:
    found = measured("steps", channel, folder / "steps.jsonl", tmp_path)
    labels = [label for row in rows.solutions(12) for label in row["labels"]]
    assert found["figures"]["step_accuracy"]["n"] == len(labels)
    assert found["figures"]["step_accuracy_good"]["n"] == sum(labels)


def test_processbench_rows_give_the_same_f1(stepwise: Path, folder: Path, tmp_path: Path) -> None:
    """What stands behind the first bad step has no label there, and no part in F1."""
    bench = []
    for row in rows.solutions(12):
        first = row["labels"].index(False) if False in row["labels"] else -1
        bench.append({"id": "x", "problem": row["prompt"], "steps": row["completions"], "label": first})
    one = measured("steps", stepwise, folder / "steps.jsonl", tmp_path)["figures"]
    two = measured("steps", stepwise, rows.write(tmp_path / "bench.jsonl", bench), tmp_path)["figures"]
    assert all(one[name] == two[name] for name in ("f1", "accuracy_wrong", "accuracy_right"))
    assert two["step_accuracy_bad"]["n"] == two["accuracy_wrong"]["n"] < one["step_accuracy_bad"]["n"]


def test_the_threshold_is_given_or_chosen_on_other_rows(
    stepwise: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder / "steps.jsonl"
    for threshold in (0.0, 1.0):  # nothing is called bad; everything is
        found = measured("steps", stepwise, data, tmp_path, "--threshold", str(threshold))
        assert found["figures"]["step_accuracy_good"]["value"] == 1.0 - threshold
        assert found["figures"]["step_accuracy_bad"]["value"] == threshold
    other = rows.write(tmp_path / "other.jsonl", rows.solutions(11))
    found = measured("steps", stepwise, data, tmp_path, "--choose", str(other))
    assert f"P(good) = {found['threshold']:.4f}, chosen on {other}" in capsys.readouterr().out
    at = [evaluated(stepwise, other, threshold) for threshold in (found["threshold"], *np.linspace(0.05, 0.95, 4))]
    assert at[0] == max(at)


def evaluated(checkpoint: Path, data: Path, threshold: float) -> float:
    config = StepsConfig(checkpoint=str(checkpoint), data=(str(data),), threshold=float(threshold), **SIZES)
    return evaluate_steps(dataclasses.replace(config, batch_tokens=512)).figures["f1"].value


def test_the_separator_that_is_given_counts(stepwise: Path, folder: Path, tmp_path: Path) -> None:
    own = measured("steps", stepwise, folder / "steps.jsonl", tmp_path, "--threshold", "0.5")
    same = measured("steps", stepwise, folder / "steps.jsonl", tmp_path, "--separator", SEPARATOR)
    assert same["figures"] == own["figures"]


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("steps", ["CHECKPOINT", "--threshold", "1.5"], "threshold=1.5"),
        ("steps", ["CHECKPOINT", "--data", "a", "--threshold", "0.5", "--choose", "b"], "give one of them"),
        ("steps", ["CHECKPOINT", "--data", "a", "--choose-split", "train"], "without choose"),
        ("steps", ["CHECKPOINT", "--data", "a", "--choose", "a"], "which flatters"),
        ("steps", ["CHECKPOINT"], "eval.py steps needs a checkpoint directory and --data"),
        ("channel", ["CHECKPOINT"], "eval.py channel needs a checkpoint directory and --data"),
        ("steps", ["CHECKPOINT", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        ("steps", ["CHECKPOINT", "--data", "PAIRS"], "no 'completions' field"),
        ("steps", ["CHECKPOINT", "--data", "STEPS", *SHORT], "lie beyond max_length=16 tokens"),
        ("steps", ["CHECKPOINT", "--data", "STEPS", *SHORT[:4]], "no scored token is left"),
        ("steps", ["SCALAR", "--data", "STEPS"], "Is `eval.py channel` meant?"),
        ("channel", ["CHECKPOINT", "--data", "PAIRS"], "Is `eval.py steps` meant?"),
        ("channel", ["BASE", "--data", "PAIRS"], "has no reward channel"),
        ("channel", ["SCALAR", "--data", "PAIRS", "--channel", "c"], "Leave --channel out"),
        ("step", [], "steps"),
    ],
)
def test_refused(
    command: str,
    words: list[str],
    said: str,
    folder: Path,
    stepwise: Path,
    scalar: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {
        "CHECKPOINT": stepwise,
        "SCALAR": scalar,
        "BASE": scalar.parent / "base",
        "PAIRS": folder / "pairs.jsonl",
        "STEPS": folder / "steps.jsonl",
    }
    with pytest.raises(SystemExit) as stop:
        front_door(front.main, [command, *(str(names.get(word, word)) for word in words)])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_threshold_needs_right_and_wrong_answers(stepwise: Path, folder: Path, tmp_path: Path) -> None:
    good = [row for row in rows.solutions(12) if all(row["labels"])]
    config = StepsConfig(
        checkpoint=str(stepwise),
        data=(str(folder / "steps.jsonl"),),
        choose=(str(rows.write(tmp_path / "good.jsonl", good)),),
        **SIZES,
    )
    with pytest.raises(UserError, match="answers with a mistake and answers without"):
        evaluate_steps(config)
