"""The benchmarks' own parts: the baseline gives our tokens, the tables and pages come out as written, limits bite."""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import early, gpu, minimal, report, timing, tpu, training
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.program import Program
from sla_jax.decode.sla import SLA
from sla_jax.errors import UserError
from sla_jax.loading import engine
from sla_jax.model.config import ChannelConfig
from sla_jax.model.policy import init_policy, unstack
from sla_jax.text import chat_ids, load_tokenizer
from sla_jax.training import tiny
from tests.tiny import tiny_config

PROMPT = [5, 9, 60, 3, 17]


@pytest.fixture(scope="module")
def config() -> Any:
    return tiny_config(tied=True, channel=ChannelConfig(width=8))


def test_the_minimal_loop_decodes_what_greedy_decodes(config: Any) -> None:
    policy = init_policy(config, jax.random.key(1))
    policy = jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 2 else leaf, policy)
    ours = Program(engine(config), Greedy(chunk=4))
    state = ours.start(unstack(policy), [PROMPT], [12], [])
    want = [token for (round_,) in ours.stream(unstack(policy), state) for token in round_.tokens]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        weights = minimal.weights_of(policy)
        begun = minimal.begin(config, 3, 32, jnp.asarray(PROMPT, jnp.int32), weights)
        _, tokens = minimal.decode(config, 12, weights, begun)
    assert len(set(want)) > 2
    assert np.asarray(tokens).T.tolist() == [want] * 3


def test_rounds_and_plain_steps_are_timed_in_turns(config: Any) -> None:
    policy = unstack(init_policy(config, jax.random.key(0)))
    rounds = timing.Rounds(engine(config), policy, SLA(width=2, chunk=2, depth=1), [PROMPT], rounds=2)
    seconds = timing.turns({"sla": rounds, "plain": timing.Plain(policy, config, rounds)}, repeats=2)
    assert all(value > 0 for value in seconds.values()) and rounds.capacity == 64
    kept = np.asarray(rounds.state.live & ~rounds.state.finished)
    assert kept.sum() == 4 // 2, "the steady state has every lane alive: what a round keeps fills them all again"


def test_the_floor_counts_weights_once_and_products_for_every_lane(config: Any) -> None:
    policy = unstack(init_policy(config, jax.random.key(0)))
    one, many = (timing.floor_seconds(policy, config, SLA(width=n, chunk=2, depth=0), 64, (1.0, 1.0)) for n in (1, 4))
    assert many[0] - one[0] == 3 * 2 * 4 * 2 * config.layers * config.kv_heads * config.head_dim
    assert many[1] == 4 * one[1]


def test_a_page_keeps_all_but_its_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin x -->\nold\n<!-- end x -->\nafter\n")
    report.write_page(page, "x", report.markdown("Title", [{"a": "1", "b": "2"}]))
    assert page.read_text() == (
        "before\n<!-- begin x -->\n\n**Title**\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n\n<!-- end x -->\nafter\n"
    )


def test_docs_have_the_markers_that_the_programs_fill() -> None:
    for page, name in (
        ("tpu.md", "tpu"),
        ("serving.md", "soak"),
        ("benchmarks.md", "run"),
        ("benchmarks.md", "training"),
        ("benchmarks.md", "gpu"),
        ("benchmarks.md", "speculation"),
    ):
        text = (report.ROOT / "docs" / page).read_text()
        assert text.index(report.BEGIN.format(name=name)) < text.index(report.END.format(name=name))


def test_a_program_beyond_its_limit_is_named() -> None:
    fits = {"kind": "step", "name": "small", "lanes": 8, "prefix": 2048, "total": 2e9, "ratio": 1.05}
    tpu.check([fits])
    with pytest.raises(UserError, match="big needs 17.0 GB.*wide accesses 1.070 times"):
        tpu.check([fits | {"name": "wide", "ratio": 1.07}, {"kind": "training", "name": "big", "total": 17e9}])


def test_the_gpu_program_runs_tiny_and_refuses_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no accelerator"):
        gpu.main([])
    options = ["--tiny", "--prefix", "16", "--length", "48", "--repeats", "1", "--json", str(tmp_path / "gpu.json")]
    gpu.main(options)
    said, found = capsys.readouterr().out, json.loads((tmp_path / "gpu.json").read_text())
    assert "SLA 4/8/2" in said and "nothing here is a figure of a GPU" in said
    assert found["prefix"] == 16 and found["training"][0]["MFU"] == "no peak known"


def test_no_turn_begins_after_the_limit() -> None:
    calls: list[str] = []

    def task() -> float:
        calls.append("")
        return float(len(calls))

    assert timing.turns({"a": task}, repeats=3) == {"a": 2.0}
    assert timing.turns({"a": task}, repeats=3, limit=-1.0) == {"a": 4.0}, "the first turn is always taken"


def test_the_training_program_runs_tiny_and_does_what_torch_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="--data names no file"):
        training.main([])
    options = ["--tiny", "--pairs", "2", "--batch", "2", "--repeats", "1", "--json", str(tmp_path / "training.json")]
    training.main(options)
    said, found = capsys.readouterr().out, json.loads((tmp_path / "training.json").read_text())
    assert "torch release: losses of the first epoch within" in said and "torch: losses" in said
    assert set(found["seconds"]) == set(training.NAMES) and len(found["tables"]) == 3


def test_early_reads_the_prompts_that_decoding_would(tmp_path: Path) -> None:
    tiny.make_checkpoint(tmp_path / "base", 0)
    pairs = tiny.generated_pairs(3, 0)
    tiny.write_pairs(tmp_path / "pairs.jsonl", pairs)
    options = argparse.Namespace(
        data=[str(tmp_path / "pairs.jsonl")], split="test", prompts=2, checkpoint=str(tmp_path / "base")
    )
    tokenizer = load_tokenizer(tmp_path / "base")
    assert early.prompts_of(options, 512) == [chat_ids(tokenizer, list(pair.messages)) for pair in pairs[:2]]
