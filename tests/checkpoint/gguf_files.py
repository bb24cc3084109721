"""Tiny GGUF files for tests, written with the gguf package; q and k are interleaved here by llama.cpp's own rule."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.tiny import SPECIALS, byte_level_tokenizer

Q = gguf.GGMLQuantizationType
D, F, L, N, K = 64, 96, 2, 4, 2
H = D // N
# one type for each kind of tensor; embeddings last
TYPES = {
    "attn_q.weight": Q.Q4_0,
    "attn_k.weight": Q.Q8_0,
    "attn_v.weight": Q.Q4_1,
    "attn_output.weight": Q.Q5_0,
    "ffn_gate.weight": Q.Q5_1,
    "ffn_up.weight": Q.F16,
    "ffn_down.weight": Q.BF16,
    "token_embd.weight": Q.Q8_0,
}
HF_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def weights(vocab: int, *, tied: bool = True, bias: bool = False) -> dict[str, np.ndarray]:
    """Random weights by GGUF name, in Hugging Face's order of rows."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, D), "output_norm.weight": (D,)}
    for i in range(L):
        one = {"attn_q": (D, D), "attn_k": (K * H, D), "attn_v": (K * H, D), "attn_output": (D, D)}
        one |= {"ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F)}
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in one.items()}
        shapes |= {f"blk.{i}.{name}.weight": (D,) for name in ("attn_norm", "ffn_norm")}
        if bias:
            shapes |= {f"blk.{i}.{name}.bias": (one[name][0],) for name in HF_NAMES if name in one and "attn" in name}
    if not tied:
        shapes["output.weight"] = (vocab, D)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor."""
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in whole:
        return whole[name]
    _, i, kind, last = name.split(".")
    return f"model.layers.{i}.{HF_NAMES[kind]}.{last}"


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    split = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return split.swapaxes(1, 2).reshape(array.shape)


def metadata(vocab: dict[str, int], merges: list[str], **changes: Any) -> dict[str, Any]:
    """Fields by key; a change to None removes the field."""
    tokens = sorted(vocab, key=vocab.__getitem__)
    fields: dict[str, Any] = {
        "llama.embedding_length": D,
        "llama.feed_forward_length": F,
        "llama.block_count": L,
        "llama.attention.head_count": N,
        "llama.attention.head_count_kv": K,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": H,
        "llama.context_length": 128,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIALS else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Tokens and merges of the tests' byte-level tokenizer."""
    import json

    model = json.loads(byte_level_tokenizer().backend_tokenizer.to_str())["model"]
    return model["vocab"], [" ".join(pair) for pair in model["merges"]]


def write(
    path: Path, arch: str = "llama", extra: dict[str, np.ndarray] | None = None, **options: Any
) -> dict[str, Any]:
    """Write a file; returns what must be read from it: float32 arrays by Hugging Face name."""
    raw: dict[str, Any] = options.pop("raw", {})
    kinds = {key: options.pop(key) for key in ("tied", "bias") if key in options}
    vocab, merges = vocabulary()
    writer = gguf.GGUFWriter(path, arch)
    for name, value in metadata(vocab, merges, **options).items():
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool}
            add[type(value)](name, value)
    expected = {}
    for name, array in weights(len(vocab), **kinds).items():
        heads = {"attn_q": N, "attn_k": K}.get(name.split(".")[2] if name.startswith("blk") else "")
        stored = permuted(array, heads) if heads else array
        kind = TYPES.get(name.split(".", 2)[-1] if name.startswith("blk") else name, Q.F32)
        data = gguf.quants.quantize(stored, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        # quantization works along the last axis, so it commutes with moving rows
        expected[hf_name(name)] = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
    for name, (data, kind) in raw.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected
