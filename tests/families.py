"""Tiny random policies of every supported family, as a PyTorch model and as ours, with equal weights.

The name table below is written from the interface's documentation and is independent of `sla_jax.checkpoint`.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch

from sla_jax.model import config as configs
from sla_jax.model import policy as policies
from tests import torch_reference

BLOCK_NAMES = {
    "attn.q": "self_attn.q_proj.weight",
    "attn.k": "self_attn.k_proj.weight",
    "attn.v": "self_attn.v_proj.weight",
    "attn.o": "self_attn.o_proj.weight",
    "attn.q_bias": "self_attn.q_proj.bias",
    "attn.k_bias": "self_attn.k_proj.bias",
    "attn.v_bias": "self_attn.v_proj.bias",
    "attn.o_bias": "self_attn.o_proj.bias",
    "attn.q_norm": "self_attn.q_norm.weight",
    "attn.k_norm": "self_attn.k_norm.weight",
    "attn_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "mlp.gate": "mlp.gate_proj.weight",
    "mlp.up": "mlp.up_proj.weight",
    "mlp.down": "mlp.down_proj.weight",
}
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# family → architecture, its own fields, the channel's fields
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "llama31": ("LlamaForCausalLM", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False}, {}),
    "llama-deep": (
        "LlamaForCausalLM",
        {"num_hidden_layers": 4, "attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 1},
        {"head_layers": 3, "rate": 2},
    ),
    "mistral": ("MistralForCausalLM", {"sliding_window": 5, "tie_word_embeddings": False}, {}),
    "qwen2": (
        "Qwen2ForCausalLM",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        {"head_layers": 2},
    ),
    "qwen2-sliding": (
        "Qwen2ForCausalLM",
        {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "tie_word_embeddings": False,
        },
        {"outputs": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 16, "tie_word_embeddings": False}, {"head_layers": 2}),
}
CHANNEL_WIDTH = 12


class Family(NamedTuple):
    """One family: PyTorch's model and channel weights, our config and (stacked) policy."""

    model: Any
    channel: torch_reference.Weights
    config: configs.ModelConfig
    policy: Any


@functools.cache
def family(name: str) -> Family:
    """The pair of models of a family, random but always the same."""
    architecture, fields, head = FAMILIES[name]
    model = torch_reference.tiny_model(architecture, 7, **(SIZES | fields))
    channel = torch_reference.random_channel(model, CHANNEL_WIDTH, 8, **head)
    config = configs.from_hf(raw_config(model, channel))
    params = {name: jnp.asarray(array) for name, array in flat_params(model, channel).items()}
    return Family(model, channel, config, policies.policy_from_params(config, params))


def raw_config(model: Any, channel: torch_reference.Weights) -> dict[str, Any]:
    """What `config.json` would say, with the channel's public keys read off its weights' shapes."""
    heads = [weight for name, weight in sorted(channel.items()) if name.startswith("sr_head.")]
    raw: dict[str, Any] = model.config.to_dict() | {
        "tt_hidden_size": channel["tt_layers.0.tt_linear.weight"].shape[0],
        "sr_head_layer": len(heads),
        "sr_out_dim": heads[-1].shape[0],
        "sr_hidden_size_rate": heads[0].shape[0] // model.config.hidden_size if len(heads) > 1 else 1,
    }
    return raw


def flat_params(model: Any, channel: torch_reference.Weights) -> dict[str, np.ndarray]:
    """Our flat names → arrays in our layout: matrices [in, out], blocks stacked over layers."""
    state = {name: weight.detach() for name, weight in model.state_dict().items()}
    layers = range(model.config.num_hidden_layers)
    params = {"embed": state["model.embed_tokens.weight"].numpy(), "norm": state["model.norm.weight"].numpy()}
    if not model.config.tie_word_embeddings:
        params["head"] = ours(state["lm_head.weight"])
    for name, theirs in BLOCK_NAMES.items():
        if f"model.layers.0.{theirs}" in state:
            params[f"blocks.{name}"] = np.stack([ours(state[f"model.layers.{i}.{theirs}"]) for i in layers])
    return params | channel_params(channel, len(layers))


def channel_params(channel: torch_reference.Weights, layers: int) -> dict[str, np.ndarray]:
    """The channel's flat names → arrays."""
    deep = range(1, layers)
    params = {
        "channel.first_norm": ours(channel["tt_layers.0.tt_layernorm.weight"]),
        "channel.first": ours(channel["tt_layers.0.tt_linear.weight"]),
        "channel.norm": np.stack([ours(channel[f"tt_layers.{i}.tt_layernorm.weight"]) for i in deep]),
        "channel.linear": np.stack([ours(channel[f"tt_layers.{i}.tt_linear.weight"]) for i in deep]),
    }
    if "sr_head.weight" in channel:
        return params | {"channel.head.0": ours(channel["sr_head.weight"])}
    heads = [name for name in channel if name.startswith("sr_head.")]
    return params | {f"channel.head.{i}": ours(channel[f"sr_head.{2 * i}.weight"]) for i in range(len(heads))}


def ours(weight: torch.Tensor) -> np.ndarray:
    """[out, in] → [in, out]; vectors as they are."""
    array: np.ndarray = np.ascontiguousarray(weight.numpy().T)
    return array
