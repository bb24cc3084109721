"""Adapters on disk: PEFT's layout and formula on a transformers model, there and back, and every way to be wrong."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from sla_jax.checkpoint import export_checkpoint, import_checkpoint, load
from sla_jax.checkpoint.adapter_file import load_adapter, save_adapter
from sla_jax.checkpoint.staging import SUMS
from sla_jax.errors import UserError
from sla_jax.model import forward, lora
from sla_jax.model.config import from_hf
from tests.checkpoint import models

CHOSEN = lora.LoraConfig(rank=3, alpha=4.5, targets=("v", "q", "gate", "down"))
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def random_lora(config: Any) -> lora.Lora:
    """Both factors random."""
    leaves, tree = jax.tree.flatten(lora.init_lora(config, CHOSEN, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def config() -> Any:
    return from_hf(models.tiny_hf("llama"))


def written(path: Path) -> Path:
    save_adapter(path / "adapter", random_lora(config()), CHOSEN, config(), base="org/model")
    return path / "adapter"


def applied_by_peft(model: Any, adapter: Path) -> Any:
    """PEFT's merge, from its documentation: W += lora_alpha / r · B @ A, for every pair of tensors in the file."""
    fields, tensors = (
        json.loads((adapter / "adapter_config.json").read_text()),
        load_file(adapter / "adapter_model.safetensors"),
    )
    with torch.no_grad():
        for name, a in tensors.items():
            if "lora_A" in name:
                b = torch.from_numpy(tensors[name.replace("lora_A", "lora_B")])
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                weight = model.get_submodule(module).weight
                weight += fields["lora_alpha"] / fields["r"] * b @ torch.from_numpy(a)
    return model


def test_transformers_with_pefts_formula_gives_our_logits(tmp_path: Path) -> None:
    import_checkpoint(str(models.hf_dir(tmp_path / "src", "llama")), tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    found = load(tmp_path / "ours")
    factors, adapter = random_lora(found.config), tmp_path / "adapter"
    save_adapter(adapter, factors, CHOSEN, found.config, base=str(tmp_path / "back"))
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "back")
    ids = np.arange(12)[None]
    with torch.no_grad():
        plain = model(torch.from_numpy(ids)).logits.numpy()
        theirs = applied_by_peft(model, adapter)(torch.from_numpy(ids)).logits.numpy()
    policy = lora.adapted(found.policy, factors, CHOSEN.scale)
    ours = forward.logits(policy, forward.trunk(policy, found.config, jnp.asarray(ids, jnp.int32)).hidden)
    assert np.abs(theirs - plain).max() > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_there_and_back_bit_for_bit(tmp_path: Path) -> None:
    adapter = written(tmp_path)
    again, chosen = load_adapter(adapter, config())
    assert (chosen.rank, chosen.alpha, chosen.scale) == (3, 4.5, 1.5)
    assert set(chosen.targets) == set(CHOSEN.targets)
    jax.tree.map(np.testing.assert_array_equal, again, random_lora(config()))
    save_adapter(adapter, again, chosen, config(), base="org/model")  # in its place
    assert {file.name for file in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", SUMS}
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * len(CHOSEN.targets)
    d = config().width
    assert tensors[FIRST].shape == (3, d)
    assert tensors[FIRST.replace("q_proj.lora_A", "v_proj.lora_B")].shape == (config().kv_heads * config().head_dim, 3)
    fields = json.loads((adapter / "adapter_config.json").read_text())
    assert fields["target_modules"] == ["q_proj", "v_proj", "gate_proj", "down_proj"]
    assert (fields["base_model_name_or_path"], fields["task_type"]) == ("org/model", "CAUSAL_LM")


def test_half_precision_adapters_are_read_as_float32(tmp_path: Path) -> None:
    adapter = written(tmp_path)
    file = adapter / "adapter_model.safetensors"
    save_file({name: array.astype(np.float16) for name, array in load_file(file).items()}, file)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is damaged .* If you changed it yourself, delete"):
        load_adapter(adapter, config())
    (adapter / SUMS).unlink()
    again, _ = load_adapter(adapter, config())
    for left, right in zip(jax.tree.leaves(again), jax.tree.leaves(random_lora(config())), strict=True):
        assert left.dtype == jnp.float32
        np.testing.assert_array_equal(left, right.astype(jnp.float16).astype(jnp.float32))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "IA3"}, r"peft_type 'IA3'"),
        ({"r": None}, r"r=None.*expected a whole number"),
        ({"r": 0}, r"lora\.rank is 0"),
        ({"r": 2.5}, r"r=2.5.*expected a whole number"),
        ({"r": 10**12}, r"has shape \(3, 32\).*ask for \(1000000000000, 32\)"),
        ({"lora_alpha": float("inf")}, r"lora_alpha=inf; expected a number above 0"),
        ({"lora_alpha": 10**400}, r"lora_alpha=1000.*expected a number above 0"),
        ({"target_modules": [["q_proj"]]}, r"the module \['q_proj'\]"),
        ({"lora_alpha": "8"}, r"lora_alpha='8'"),
        ({"use_rslora": True}, r"use_rslora=True, which is not supported; expected False"),
        ({"rank_pattern": {"q_proj": 8}}, r"rank_pattern="),
        ({"bias": "all"}, r"bias='all'"),
        ({"target_modules": "all-linear"}, r"target_modules='all-linear'; expected a list"),
        ({"target_modules": ["q_porj"]}, r"'q_porj'.*Did you mean 'q_proj'"),
        ({"target_modules": ["q_proj", "v_proj", "gate_proj"]}, r"holds '.*down_proj.*', which this adapter"),
        ({"target_modules": list("abc")}, r"the module 'a'"),
        ({"r": 4}, r"has shape \(3, 32\).*ask for \(4, 32\)"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    adapter = written(tmp_path)
    raw = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(raw | fields))
    with pytest.raises(UserError, match=said):
        load_adapter(adapter, config())


def test_bad_files_are_named(tmp_path: Path) -> None:
    adapter = written(tmp_path)
    file, described = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    tensors, text = load_file(file), described.read_text()
    save_file({name: array for name, array in tensors.items() if name != FIRST}, file)
    with pytest.raises(UserError, match=rf"lacks the tensor '{FIRST}'"):
        load_adapter(adapter, config())
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged or truncated"):
        load_adapter(adapter, config())
    described.write_text(json.dumps({name: value for name, value in json.loads(text).items() if name != "r"}))
    with pytest.raises(UserError, match="has no 'r'"):
        load_adapter(adapter, config())
    described.write_text(text[:50])
    with pytest.raises(UserError, match="cannot be read as a JSON object"):
        load_adapter(adapter, config())
    file.unlink()
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors"):
        load_adapter(adapter, config())


def test_nothing_but_an_adapter_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not"):
        written(tmp_path)
    assert (tmp_path / "adapter" / "notes.txt").read_text() == "mine"
