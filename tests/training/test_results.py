"""What policy and reward model runs leave: checkpoints that transformers reads, with the same numbers."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import convert
import train
from sla_jax.checkpoint import store
from sla_jax.checkpoint.adapter_file import load_adapter
from sla_jax.model.forward import logits, trunk
from sla_jax.model.lora import merged
from sla_jax.model.score import score_values
from tests.programs import tiny_checkpoint
from tests.training import rows
from tests.training.test_program import lines

TOKENS = np.random.default_rng(0).integers(3, 384, (2, 12)).astype(np.int32)


def run(folder: Path, out: str, words: str, kind: str = "pairs") -> Path:
    """A few steps of a run on toy rows."""
    made = {"pairs": rows.pairs, "steps": rows.solutions, "sft": rows.conversations}[kind](24)
    file = rows.write(folder / f"{kind}.jsonl", made)
    common = (
        f"--data.files {file} --data.generated 0 --task {kind} --data.max_length 128 --data.max_prompt_length 64 "
        f"--data.cache {folder / 'tokens'} --features.mode recompute --optimizer.batch_size 8 --optimizer.max_steps 3 "
        f"--optimizer.learning_rate 1e-2 --data.heldout 4 --out {folder / out} --channel.weight 0"
    )
    train.main([*common.split(), *words.split()])
    return folder / out


def test_dpo_with_lora_merges_exports_and_loads_in_transformers(tmp_path: Path) -> None:
    words = "--policy.train lora --policy.weight 1 --policy.loss.name dpo --policy.lora.rank 4 --policy.lora.alpha 8"
    out = run(tmp_path, "dpo", words)
    ours = store.load(out / "checkpoint")
    convert.main(["export", str(out / "checkpoint"), str(tmp_path / "hf")])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()
    found = logits(ours.policy, trunk(ours.policy, ours.config, jnp.asarray(TOKENS)).hidden)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    base = store.load(out / "base")
    before = logits(base.policy, trunk(base.policy, base.config, jnp.asarray(TOKENS)).hidden)
    assert float(np.abs(np.asarray(before) - expected).max()) > 1e-2  # the run did change the policy
    figures = [line for line in lines(out) if line["kind"] == "heldout"][-1]
    assert {"logps_accuracy", "logps_accuracy_reference", "nll"} <= figures.keys()


def test_an_adapter_on_its_own_is_what_merging_gives(tmp_path: Path) -> None:
    words = "--policy.train lora --policy.weight 1 --policy.loss.name simpo --policy.save"
    one, other = (run(tmp_path, save, f"{words} {save}") for save in ("merged", "separate"))
    base = store.load(other / "checkpoint")
    lora, described = load_adapter(other / "adapter", base.config)
    assert not (one / "adapter").exists()
    whole: Any = merged(base.policy, lora, described.scale)
    expected = store.load(one / "checkpoint").policy
    np.testing.assert_allclose(whole.blocks.attn.q[...], expected.blocks.attn.q[...], atol=1e-6)
    np.testing.assert_allclose(whole.blocks.mlp.down[...], expected.blocks.mlp.down[...], atol=1e-6)


@pytest.mark.parametrize("kind", ["pairs", "steps"])
def test_a_reward_model_loads_in_transformers(tmp_path: Path, kind: str) -> None:
    loss = "--loss.name last_bt" if kind == "pairs" else ""
    out = run(tmp_path, "rm", f"--head.weight 1 --policy.train full {loss}", kind)
    ours = store.load(out / "checkpoint")
    convert.main(["export", str(out / "checkpoint"), str(tmp_path / "hf")])
    auto = {
        "pairs": transformers.AutoModelForSequenceClassification,
        "steps": transformers.AutoModelForTokenClassification,
    }[kind]
    theirs = auto.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()
    score: Any = ours.policy.score
    values = score_values(score, trunk(ours.policy, ours.config, jnp.asarray(TOKENS)).hidden)
    np.testing.assert_allclose(values[:, -1] if kind == "pairs" else values, expected, atol=1e-4)


def test_sft_lowers_the_loss_of_what_it_saw_and_leaves_the_old_channel_behind(tmp_path: Path) -> None:
    """A channel that was trained to read another policy does not come along."""
    base = tiny_checkpoint(tmp_path / "with-channel", sharpness=1.0)
    words = f"--model {base} --policy.train full --policy.weight 1 --optimizer.max_steps 6"
    out = run(tmp_path, "sft", words, "sft")
    assert store.load(base).config.channel is not None
    assert store.load(out / "checkpoint").config.channel is None
    losses = [line["loss"] for line in lines(out) if line["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.5
