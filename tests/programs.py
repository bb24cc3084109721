"""Tiny checkpoints on disk, and running the front doors as programs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from sla_jax import checkpoint
from sla_jax.model.config import from_hf
from sla_jax.model.policy import init_policy
from tests.tiny import byte_level_tokenizer, tiny_hf

ROOT = Path(__file__).resolve().parent.parent
CHANNEL = {
    "architectures": ["LlamaForCausalLMRewardTransformer"],
    "tt_hidden_size": 8,
    "sr_head_layer": 1,
    "sr_out_dim": 2,
    "sr_hidden_size_rate": 1,
}


def tiny_checkpoint(directory: Path, *, channel: bool = True, sharpness: float = 20.0, **changes: Any) -> Path:
    """A self-sufficient checkpoint of a random tiny Llama (V=320) that does not say the same token for ever."""
    raw = tiny_hf("llama", vocab_size=320, **(CHANNEL if channel else {}), **changes)
    policy = init_policy(from_hf(raw), jax.random.key(3))
    policy = jax.tree.map(lambda leaf: leaf * sharpness if leaf.ndim > 1 else leaf, policy)
    extras = directory.parent / f"{directory.name}-tokenizer"
    byte_level_tokenizer().save_pretrained(extras)
    checkpoint.save(directory, policy, raw, extras=extras, provenance={"source": "tests"})
    return directory


def run_program(
    *words: str, ok: bool = True, cwd: Path = ROOT, timeout: float = 600, **env: str
) -> subprocess.CompletedProcess[str]:
    """`python WORDS…` at the root of the project; asserts that it succeeds unless `ok` is false."""
    command = [sys.executable, *words]
    environment = {**os.environ, **env}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
    assert not ok or done.returncode == 0, f"{words} exited {done.returncode}:\n{done.stderr}"
    return done
