"""The public process reward models in and out: their heads under their own names, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sla_jax.checkpoint import export_checkpoint, import_checkpoint, info, raw_with_score
from sla_jax.errors import UserError
from sla_jax.model.config import ScoreConfig, from_hf
from tests.checkpoint import models
from tests.checkpoint.test_roundtrip import assert_same
from tests.process_models import qwen, skywork

MAKE = {"skywork": skywork, "qwen": qwen}
HEADS = {
    "skywork": {"v_head.summary.weight", "v_head.summary.bias"},
    "qwen": {"score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"},
}


@pytest.mark.parametrize("name", MAKE)
def test_there_and_back_without_the_head_that_is_not_read(name: str, tmp_path: Path) -> None:
    MAKE[name](tmp_path / "src")
    notes = import_checkpoint(str(tmp_path / "src"), tmp_path / "ours")
    assert notes == ["1 tensors were not needed: lm_head.weight"]
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    assert models.tensors(tmp_path / "back").keys() >= HEADS[name]
    models.rewrite(tmp_path / "src", {"lm_head.weight": None})
    assert_same(tmp_path / "src", tmp_path / "back")
    assert import_checkpoint(str(tmp_path / "back"), tmp_path / "again") == []
    assert info(tmp_path / "again").config == info(tmp_path / "ours").config


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("skywork", {"v_head.summary.bias": None}, "lacks the tensor 'v_head.summary.bias'"),
        ("skywork", {"v_head.summary.weight": (2, 32)}, r"has shape \(2, 32\); config.json says \(1, 32\)"),
        ("skywork", {"score.weight": (1, 32)}, "holds the tensor 'score.weight'"),
        ("qwen", {"score.0.weight": None, "score.0.bias": None}, "lacks 2 tensors"),
        ("qwen", {"score.2.weight": (3, 32)}, r"'score.2.weight' has shape \(3, 32\)"),
    ],
    ids=repr,
)
def test_wrong_tensors_are_named(name: str, changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    MAKE[name](tmp_path / "src")
    models.rewrite(tmp_path / "src", {key: shape and np.zeros(shape, np.float32) for key, shape in changed.items()})
    with pytest.raises(UserError, match=message):
        import_checkpoint(str(tmp_path / "src"), tmp_path / "ours")


def test_a_head_without_its_architecture(tmp_path: Path) -> None:
    skywork(tmp_path / "src")
    models.rewrite(tmp_path / "src", {}, architectures=["Qwen2ForCausalLM"])
    with pytest.raises(UserError, match="v_head.summary.*v_head.summary to Qwen2ForPrmModel"):
        import_checkpoint(str(tmp_path / "src"), tmp_path / "ours")


def test_a_linear_head_put_on_one_is_transformers() -> None:
    """What training saves when it began from a process reward model's own checkpoint."""
    for architecture in ("Qwen2ForPrmModel", "Qwen2ForProcessRewardModel"):
        raw = models.tiny_hf("qwen2", architectures=[architecture])
        again = raw_with_score(raw, ScoreConfig(outputs=2, bias=True))
        assert again["architectures"] == ["Qwen2ForTokenClassification"]
        assert from_hf(again).score == ScoreConfig(outputs=2, bias=True)
