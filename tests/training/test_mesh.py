"""Every objective family on data 2 × fsdp 2 × tensor 2 fake devices gives the losses of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.flags import QUICK
from tests.training.mesh_program import FAMILIES, STEPS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    flags = f"--xla_force_host_platform_device_count=8 {QUICK}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    folder = tmp_path_factory.mktemp("mesh")
    words = [sys.executable, "-m", "tests.training.mesh_program", str(folder)]
    process = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1500, cwd=ROOT)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_losses_are_those_of_one_device(found: dict[str, Any], family: str) -> None:
    one, eight = found[family]["one"], found[family]["eight"]
    assert len(one) == len(eight) == STEPS
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)
    assert one[-1] < one[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_really_split(found: dict[str, Any], family: str) -> None:
    split = found[family]["split"]
    wanted = {
        "channel": {"channel.first", "channel.linear"},
        "reward model": {"policy.blocks.attn.q", "policy.blocks.mlp.down", "policy.embed", "score.weight"},
        "channel and simpo": {"channel.linear", "lora.attn.q.a", "lora.attn.q.b", "lora.mlp.down.a"},
        "dpo": {"policy.blocks.attn.o", "policy.blocks.mlp.gate", "policy.embed"},
        "sft": {"policy.blocks.attn.v", "policy.blocks.mlp.up", "policy.embed"},
        "steps": {"score.weight", "lora.attn.v.a", "lora.mlp.up.b"},
    }[family]
    assert wanted <= set(split), split
