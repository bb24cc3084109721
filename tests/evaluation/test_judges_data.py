"""The independent judge's data: disjoint from the channel's, divided by prompt, the same every time."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sla_jax.config import load_yaml
from sla_jax.errors import UserError
from sla_jax.evaluation.judges.data import JudgeData, PairFile, read_pairs, shared_prompts, write_judge_data
from sla_jax.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]


def row(prompt: str, split: str, number: int = 0) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": f"yes {number}", "rejected": f"no {number}", "split": split}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    raw = "".join(json.dumps(one) + "\n" for one in rows).encode()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.name.endswith(".gz") else raw)
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> JudgeData:
    """40 prompts of the channel and 40 others in one file; the other source repeats ten of each, spelled otherwise."""
    people = [row(f"How do I do {i}?", "train" if i < 40 else "test") for i in range(80)]
    machine = [row(f"how do I  DO {i}?", "train", k) for i in (*range(10), *range(40, 70)) for k in range(3)]
    files = write(tmp_path / "hh.jsonl.gz", people), write(tmp_path / "machine.jsonl", machine)
    return JudgeData(
        channel=(PairFile(file=files[0], split="train"),),
        sources=(PairFile(file=files[0], split="test"), PairFile(file=files[1], name="gpt", limit=60)),
        out=str(tmp_path / "out"),
    )


def parts(config: JudgeData, name: str, split: str) -> list[Any]:
    return list(read_pairs(PairFile(file=f"{config.out}/{name}.jsonl", split=split)))


def test_no_prompt_is_one_that_the_channel_learned_from(config: JudgeData) -> None:
    assert len(shared_prompts(config.sources, config.channel)) == 10  # of what it could have taken
    about = write_judge_data(config)
    written = [PairFile(file=f"{config.out}/{name}.jsonl") for name in ("hh", "gpt")]
    assert shared_prompts(written, config.channel) == set()
    assert about["sources"]["gpt"]["of the channel's prompts"] == 30
    assert about["sources"]["hh"]["of the channel's prompts"] == 0
    assert json.loads((Path(config.out) / "data.json").read_text(encoding="utf-8")) == about


def test_no_prompt_is_both_learned_from_and_held_out(config: JudgeData) -> None:
    about = write_judge_data(config)
    sides = [{one.key for name in ("hh", "gpt") for one in parts(config, name, split)} for split in ("train", "test")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(parts(config, "hh", "test")) == about["sources"]["hh"]["test"]
    assert about["sources"]["gpt"]["train"] + about["sources"]["gpt"]["test"] == 60
    assert 0.1 < about["sources"]["hh"]["test"] / 40 < 0.45  # one in four


def test_the_same_rows_every_time_and_others_with_another_seed(config: JudgeData) -> None:
    write_judge_data(config)
    first = {path.name: path.read_bytes() for path in Path(config.out).iterdir()}
    write_judge_data(config)
    assert {path.name: path.read_bytes() for path in Path(config.out).iterdir()} == first
    other = JudgeData(channel=config.channel, sources=config.sources, out=f"{config.out}-8", seed=8)
    write_judge_data(other)
    assert (Path(other.out) / "gpt.jsonl").read_bytes() != first["gpt.jsonl"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": "Hi", "chosen": "a"}, "line 1: 'rejected' is missing"),
        ({"chosen": "a", "rejected": "b"}, "line 1: no prompt"),
        ({"messages": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "line 1: no prompt"),
    ],
)
def test_rows_that_are_no_pairs_are_named(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_pairs(PairFile(file=write(tmp_path / "bad.jsonl", [bad]))))


def test_too_little_is_refused(config: JudgeData, tmp_path: Path) -> None:
    lone = PairFile(file=write(tmp_path / "lone.jsonl", [row("How do I do 1?", "train")]))
    with pytest.raises(UserError, match="leaves 0 pairs"):
        write_judge_data(JudgeData(channel=config.channel, sources=(lone,), out=config.out))
    with pytest.raises(UserError, match="at least 2"):
        JudgeData(channel=config.channel, sources=config.sources, out="x", one_in=1)
    with pytest.raises(UserError, match="two sources are called 'lone'"):
        JudgeData(channel=config.channel, sources=(lone, lone), out="x")


def test_the_shipped_recipe_trains_on_what_the_shipped_data_writes() -> None:
    data = load_yaml(JudgeData, ROOT / "configs/eval/judge-data.yaml")
    recipe = load_yaml(TrainConfig, ROOT / "configs/train/smollm2-judge.yaml")
    channel = ROOT / "configs/train/smollm2-onpolicy.yaml"
    assert list(recipe.data.files) == [f"{data.out}/{source.stem}.jsonl" for source in data.sources]
    assert (recipe.data.split, recipe.data.heldout_split) == ("train", "test")
    assert (recipe.head.weight, recipe.channel.weight, recipe.policy.train) == (1.0, 0.0, "full")
    assert recipe.seed == data.seed != load_yaml(TrainConfig, channel).seed
    pairs = yaml.safe_load((ROOT / "configs/train/pairs-smollm2.yaml").read_text(encoding="utf-8"))
    assert [Path(one.file).name for one in data.channel] == pairs["prompts"]
    assert not any(one.split or one.limit for one in data.channel)


def test_a_channels_prompts_are_enough(config: JudgeData, tmp_path: Path) -> None:
    """Of the channel's files only the prompts are read, so those that its pairs were made of will do."""
    first = write_judge_data(config)
    bare = [{"prompt": one.row["prompt"]} for file in config.channel for one in read_pairs(file)]
    prompts = PairFile(file=write(tmp_path / "prompts.jsonl", bare))
    second = write_judge_data(dataclasses.replace(config, channel=(prompts,)))
    assert second["sources"] == first["sources"] and second["shared_prompts"] == 0
