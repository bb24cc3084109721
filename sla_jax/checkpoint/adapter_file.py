"""A LoRA adapter as PEFT writes it: a directory of adapter_config.json and adapter_model.safetensors.

`peft.PeftModel.from_pretrained(model, directory)` reads what is written here, and adapters that were trained elsewhere
are read, as long as they say nothing that would change the numbers otherwise (DoRA, rank patterns, biases, …).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sla_jax.checkpoint import safetensors_file as st
from sla_jax.checkpoint.staging import check, refuse, staged
from sla_jax.errors import UserError, nearest
from sla_jax.files import read_json
from sla_jax.model.config import ModelConfig, read_number
from sla_jax.model.lora import PARTS, TARGETS, Factors, Lora, LoraConfig, init_lora
from sla_jax.model.policy import param_shapes

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MODULES = {f"{target}_proj": target for target in TARGETS}  # PEFT's name → ours
PLACES = {"attn": "self_attn", "mlp": "mlp"}
FACTORS = {"a": "lora_A", "b": "lora_B"}
Names = dict[str, tuple[str, str, str, int]]  # PEFT's tensor name → part of the block, target, factor, layer
# what PEFT's config may say that changes the result; only these values are read
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_rslora": (False, None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "layers_to_transform": ([], None),
    "exclude_modules": ([], None),
    "target_parameters": ([], None),
    "layer_replication": ([], None),
}


def save_adapter(directory: Path, lora: Lora, lora_config: LoraConfig, config: ModelConfig, *, base: str) -> None:
    """Write an adapter in float32; `base` names the model that it belongs on. Replaces an adapter that is there."""
    directory = Path(directory)
    refuse(directory, overwrite=True, ours=lambda path: (path / CONFIG).is_file())
    specs, arrays = [], []
    for name, (part, target, factor, layer) in _names(lora_config, config).items():
        stacked = getattr(getattr(lora, part)[target], factor)[...]
        arrays.append(np.asarray(stacked[layer]).T)
        specs.append(st.Spec(name, arrays[-1].shape, arrays[-1].dtype))
    with staged(directory) as part_directory:
        st.write(part_directory / TENSORS, specs, arrays, {"format": "pt"})
        described = json.dumps(_described(lora_config, base), indent=2)
        (part_directory / CONFIG).write_text(described + "\n", encoding="utf-8")


def load_adapter(directory: Path, config: ModelConfig) -> tuple[Lora, LoraConfig]:
    """Read an adapter for the policy that `config` describes. UserError: anything unknown, missing, misshapen or
    damaged."""
    directory = Path(directory)
    for name in (CONFIG, TENSORS):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory} is no adapter: there is no {name} in it. Expected a directory written by PEFT."
            )
    chosen = _read_config(directory / CONFIG)
    path = directory / TENSORS
    tensors, _ = st.read_header(path)
    names = _names(chosen, config)
    _check(path, tensors, names, config, chosen.rank)
    check(directory)
    lora = jax.eval_shape(lambda key: init_lora(config, chosen, key), jax.random.key(0))
    layers: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for name, (part, target, factor, _) in names.items():
        layers.setdefault((part, target, factor), []).append(st.read_tensor(path, name, tensors[name]).T)
    for part, targets in PARTS.items():
        for target in (one for one in targets if one in chosen.targets):
            a, b = (jnp.asarray(np.stack(layers[part, target, f]).astype(np.float32)) for f in FACTORS)
            getattr(lora, part)[target] = Factors(a, b)
    return lora, chosen


def _names(chosen: LoraConfig, config: ModelConfig) -> Names:
    """Every tensor of such an adapter, layer by layer."""
    return {
        f"base_model.model.model.layers.{layer}.{PLACES[part]}.{target}_proj.{FACTORS[factor]}.weight": (
            part,
            target,
            factor,
            layer,
        )
        for layer in range(config.layers)
        for part, targets in PARTS.items()
        for target in targets
        if target in chosen.targets
        for factor in FACTORS
    }


def _check(path: Path, tensors: Mapping[str, st.Tensor], names: Names, config: ModelConfig, rank: int) -> None:
    shapes = param_shapes(config)
    for name in tensors:
        if name not in names:
            raise UserError(f"{path} holds {name!r}, which this adapter on this policy has not.{nearest(name, names)}")
    for name, (part, target, factor, _) in names.items():
        if name not in tensors:
            raise UserError(f"{path} lacks the tensor {name!r}.")
        _, rows, columns = shapes[f"blocks.{part}.{target}"].shape
        want = (rank, rows) if factor == "a" else (columns, rank)
        if tensors[name].shape != want:
            raise UserError(
                f"{path}: the tensor {name!r} has shape {tensors[name].shape}; this policy and the adapter's rank ask "
                f"for {want}. Use the policy that it was trained on."
            )


def _read_config(path: Path) -> LoraConfig:
    try:
        raw = read_json(path)
        kind, rank, _, modules = (raw[name] for name in ("peft_type", "r", "lora_alpha", "target_modules"))
    except KeyError as error:
        raise UserError(f"{path} has no {error.args[0]!r}; expected what PEFT writes for a LoRA adapter.") from None
    except (UserError, TypeError):
        raise UserError(f"{path} cannot be read as a JSON object; expected what PEFT writes.") from None
    if kind != "LORA":
        raise UserError(f"{path} says peft_type {kind!r}; only 'LORA' is supported.")
    for name, allowed in NEUTRAL.items():
        if raw.get(name) not in allowed:
            raise UserError(f"{path} says {name}={raw[name]!r}, which is not supported; expected {allowed[0]!r}.")
    if type(rank) is not int:
        raise UserError(f"{path} says r={rank!r:.80}; expected a whole number.")
    return LoraConfig(rank=rank, alpha=read_number(raw, "lora_alpha", str(path)), targets=_targets(path, modules))


def _targets(path: Path, modules: Any) -> tuple[str, ...]:
    if not isinstance(modules, list):
        raise UserError(f"{path} says target_modules={modules!r}; expected a list of some of {', '.join(MODULES)}.")
    for module in modules:
        if not isinstance(module, str) or module not in MODULES:
            known = ", ".join(MODULES)
            raise UserError(
                f"{path} targets the module {module!r}; supported are {known}.{nearest(str(module), MODULES)}"
            )
    return tuple(target for module, target in MODULES.items() if module in modules)


def _described(chosen: LoraConfig, base: str) -> dict[str, Any]:
    """The fields that PEFT writes and that mean something here."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": chosen.rank,
        "lora_alpha": chosen.alpha,
        "lora_dropout": 0.0,
        "target_modules": [module for module, target in MODULES.items() if target in chosen.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
