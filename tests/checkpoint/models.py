"""Models on disk for the tests of the converter: tiny, random, made by transformers and torch or by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.tiny import tiny_hf

CONFIGS = {
    "LlamaForCausalLM": transformers.LlamaConfig,
    "MistralForCausalLM": transformers.MistralConfig,
    "Qwen2ForCausalLM": transformers.Qwen2Config,
    "Qwen3ForCausalLM": transformers.Qwen3Config,
}


def hf_model(family: str, **changes: Any) -> Any:
    """A random model of `tests.tiny.HF_FAMILIES`, biases and norms random too."""
    raw = tiny_hf(family, **changes)
    config = CONFIGS[raw["architectures"][0]](**raw)
    torch.manual_seed(0)
    model = getattr(transformers, raw["architectures"][0])(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    return model


def hf_dir(path: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """The same, saved by transformers: config.json, generation_config.json, model.safetensors."""
    hf_model(family, **changes).to(dtype).save_pretrained(path)
    return path


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a directory's safetensors files, read by the safetensors library."""
    found: dict[str, np.ndarray] = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= load_file(file)
    return found


def config(path: Path) -> dict[str, Any]:
    """config.json of a directory."""
    value: dict[str, Any] = json.loads((path / "config.json").read_text())
    return value


def rewrite(path: Path, changed: dict[str, np.ndarray | None], **fields: Any) -> Path:
    """Replace (or with None remove) tensors of a directory and fields of its config.json."""
    found = {**tensors(path), **changed}
    save_file({name: array for name, array in found.items() if array is not None}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({**config(path), **fields}))
    return path


def sla_dir(path: Path, width: int = 12, head: tuple[int, ...] = (2,), **changes: Any) -> Path:
    """A public SLA checkpoint; `head` gives the outputs of the head's layers."""
    hf_dir(path, "llama3", **changes)
    raw = config(path)
    channel = channel_tensors(raw["hidden_size"], raw["num_hidden_layers"], width, head)
    fields: dict[str, Any] = {"architectures": ["LlamaForCausalLMRewardTransformer"], "tt_hidden_size": width}
    fields |= {"sr_head_layer": len(head), "sr_out_dim": head[-1]}
    if len(head) > 1:
        fields["sr_hidden_size_rate"] = head[0] // raw["hidden_size"]
    return rewrite(path, dict(channel), **fields)


def channel_tensors(d: int, layers: int, width: int, head: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A random channel under its public names."""
    rng = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        size = d + width if i else d
        shapes[f"tt_layers.{i}.tt_layernorm.weight"] = (size,)
        shapes[f"tt_layers.{i}.tt_linear.weight"] = (width, size)
    ins = (d + width, *head[:-1])
    names = ["sr_head.weight"] if len(head) == 1 else [f"sr_head.{2 * j}.weight" for j in range(len(head))]
    shapes |= {name: (out, size) for name, out, size in zip(names, head, ins, strict=True)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
