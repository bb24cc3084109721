"""Every recipe in configs/train: read, and dry-run from shapes alone, without its weights."""

from pathlib import Path

import pytest

import train
from sla_jax.errors import UserError
from sla_jax.training.dry_run import collectives

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "configs" / "train").glob("*.yaml") if not path.name.startswith("pairs"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_estimated_without_its_weights(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    train.main([str(recipe), "--dry-run"])
    said = capsys.readouterr()
    assert "estimated memory a device" in said.out
    assert f"out: runs/{recipe.stem}" in said.out
    assert recipe.stem == "tiny" or "there is no checkpoint" in said.err
    text = recipe.read_text()
    assert text.startswith("#") and f"train.py configs/train/{recipe.name}" in text or recipe.stem == "tiny"


def test_a_dry_run_names_the_knobs_when_it_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    from sla_jax.config import load_yaml
    from sla_jax.training import cost
    from sla_jax.training.config import TrainConfig
    from sla_jax.training.dry_run import model_of
    from sla_jax.training.setup import make_plan

    config = load_yaml(TrainConfig, ROOT / "configs" / "train" / "tiny.yaml")
    plan = make_plan(config, model_of(config), "cpu")
    with pytest.raises(UserError, match=r"a device has 1\.0 GB.*mesh\.fsdp.*optimizer\.batch_size"):
        cost.check_memory(plan, cost.Memory(trained=0.0, gradients=0.0, frozen=2e9, activations=1e9), 1e9)
    cost.check_memory(plan, cost.Memory(trained=0.0, gradients=0.0, frozen=2e9, activations=1e9), 4e9)


def test_collectives_are_counted_with_their_bytes() -> None:
    text = """
      %a = bf16[8,128]{1,0} all-gather(%x), dimensions={0}
      %b = (f32[4]{0}, f32[2,2]{1,0}) all-reduce-start(%y, %z), to_apply=%add
      %c = f32[4]{0} all-reduce-done(%b)
    """
    assert collectives(text) == {"all-gather": (1, 2048.0), "all-reduce": (1, 32.0)}
