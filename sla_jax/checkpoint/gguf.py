"""GGUF files of the Llama architecture: weights as a source of public names, metadata as a Hugging Face config.

Three things differ from a Hugging Face checkpoint. The rows of q and k are interleaved for llama.cpp's rotary layout
and are put back (`_uninterleave`). The config lives in `llama.*` metadata: a key that we do not know is an error,
since each of them changes the numbers. Llama 3's rope scaling is a tensor (`rope_freqs.weight`) rather than metadata:
it is recognized by value. Quantized blocks of every type that the `gguf` package can read are dequantized to float32.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sla_jax.checkpoint import gguf_file
from sla_jax.checkpoint.gguf_tokenizer import tokenizer_files
from sla_jax.checkpoint.mapping import TABLE
from sla_jax.errors import UserError, nearest


def shortest(value: Any) -> float:
    """The shortest decimal that is this float32: 1e-05 instead of 9.999999747378752e-06. Raises ValueError."""
    if type(value) not in (int, float):
        raise ValueError(value)
    return float(str(np.float32(value)))


def whole(value: Any) -> int:
    """A whole number from 1. Raises ValueError."""
    if type(value) is not int or value < 1:
        raise ValueError(value)
    return value


ARCHITECTURES = ("llama",)
ENDS = ("eos", "eot", "eom")  # the tokens that end a text, a turn and a message
ROPE_FREQS = "rope_freqs.weight"
# metadata → config.json; what else is read is in KNOWN. A file may leave out rope.freq_base, for which llama.cpp takes
# 10000 as transformers does, so that config.json leaves it out too
FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "embedding_length": ("hidden_size", whole),
    "feed_forward_length": ("intermediate_size", whole),
    "block_count": ("num_hidden_layers", whole),
    "attention.head_count": ("num_attention_heads", whole),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", shortest),
    "rope.freq_base": ("rope_theta", shortest),
    "context_length": ("max_position_embeddings", whole),
}
KNOWN = {
    *FIELDS,
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
}
OPTIONAL = "rope.freq_base"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class GgufSource:
    """One GGUF file. Beside the tensors it gives `config` (as config.json) and `files_to_write` (the tokenizer)."""

    def __init__(self, path: Path):
        self.files = [path]
        self.path = path
        tensors, self.metadata = gguf_file.read_header(path)
        self._rope_freqs = tensors.pop(ROPE_FREQS, None)
        self._tensors, self._rotary = _public(tensors, path)
        self.config = self._config()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See sources.Source."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def dtype(self, name: str) -> np.dtype[Any]:
        """Everything is dequantized to float32."""
        return np.dtype(np.float32)

    def read(self, name: str) -> np.ndarray:
        """See sources.Source."""
        array = gguf_file.read_tensor(self.path, name, self._tensors[name])
        heads = self._rotary.get(name)
        return array if heads is None else _uninterleave(array, int(self.config[heads]))

    def tokenizer_files(self) -> dict[str, str]:
        """tokenizer.json and what goes with it, by file name."""
        return tokenizer_files(self.metadata, self.path)

    def _config(self) -> dict[str, Any]:
        """A Hugging Face config.json for this file."""
        arch = self._need("general.architecture")
        if arch not in ARCHITECTURES:
            raise UserError(
                f"{self.path} has the architecture {arch!r}; supported in GGUF files: {', '.join(ARCHITECTURES)}. "
                f"Import the Hugging Face checkpoint of this model instead.{nearest(str(arch), ARCHITECTURES)}"
            )
        self._refuse_unknown()
        shapes = self.shapes()
        config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
        fields = {name: field for name, field in FIELDS.items() if name != OPTIONAL or f"llama.{name}" in self.metadata}
        config |= {public: self._number(f"llama.{name}", kind) for name, (public, kind) in fields.items()}
        heads = config["num_attention_heads"]
        config |= {
            "num_key_value_heads": self._number("llama.attention.head_count_kv", whole, heads),
            "head_dim": self._number("llama.attention.key_length", whole, config["hidden_size"] // heads),
            "vocab_size": shapes.get("model.embed_tokens.weight", (len(self._list("tokenizer.ggml.tokens")),))[0],
            "tie_word_embeddings": "lm_head.weight" not in shapes,
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
            "mlp_bias": False,
            "dtype": "float32",
        }
        self._check_rotary(config["head_dim"])
        config["rope_scaling"] = self._rope_scaling(config)
        return config | generation(self.metadata, self.path)

    def _need(self, key: str) -> Any:
        if key not in self.metadata:
            raise UserError(f"{self.path} has no {key!r}; it changes the numbers, so it has no default.")
        return self.metadata[key]

    def _number(self, key: str, kind: Callable[[Any], Any], otherwise: int | None = None) -> Any:
        value = self._need(key) if otherwise is None else self.metadata.get(key, otherwise)
        try:
            return kind(value)
        except ValueError:
            wanted = "a whole number from 1" if kind is whole else "a number"
            raise UserError(f"{self.path} says {key}={value!r:.80}; expected {wanted}.") from None

    def _list(self, key: str) -> list[Any]:
        value = self._need(key)
        if not isinstance(value, list):
            raise UserError(f"{self.path} says {key}={value!r:.80}; expected a list.")
        return value

    def _refuse_unknown(self) -> None:
        for key in self.metadata:
            name = key.removeprefix("llama.")
            if key != name and isinstance(self.metadata[key], list):
                raise UserError(f"{self.path} gives {key} layer by layer; one value for all layers is supported.")
            if key != name and name not in KNOWN and self.metadata[key]:
                raise UserError(
                    f"{self.path} says {key}={self.metadata[key]!r}, which this model family does not have, so the "
                    f"import would compute something else.{nearest(name, KNOWN)} Import the Hugging Face checkpoint "
                    "instead."
                )

    def _check_rotary(self, head_dim: int) -> None:
        for key in ("rope.dimension_count", "attention.value_length"):
            value = self.metadata.get(f"llama.{key}", head_dim)
            if value != head_dim:
                raise UserError(
                    f"{self.path} says llama.{key}={value} with heads of size {head_dim}; these must be equal."
                )

    def _rope_scaling(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """From metadata (linear), or from the frequency factors that llama.cpp stores for Llama 3."""
        kind = self.metadata.get("llama.rope.scaling.type", "none")
        if kind != "none" and self._rope_freqs is not None:
            raise UserError(f"{self.path} has both {kind!r} rope scaling and {ROPE_FREQS}; only one is supported.")
        if kind != "none":
            return {"rope_type": kind, "factor": self._number("llama.rope.scaling.factor", shortest)}
        if self._rope_freqs is None:
            return None
        factors = gguf_file.read_tensor(self.path, ROPE_FREQS, self._rope_freqs)
        scaling: dict[str, Any] = {"rope_type": "llama3", "factor": shortest(float(factors.max())), **LLAMA3}
        theta = self._number(f"llama.{OPTIONAL}", shortest)
        expected = llama3_factors(scaling, theta, config["head_dim"])
        if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-4):
            raise UserError(
                f"{self.path}: {ROPE_FREQS} is not Llama 3's rope scaling (factors 1 and 4 around 8192 positions), "
                "the only one that can be recognized. Import the Hugging Face checkpoint instead."
            )
        return scaling


def generation(metadata: dict[str, Any], path: Path) -> dict[str, Any]:
    """bos, eos (a list when a turn or a message ends with another token) and pad ids, as in generation_config.json."""
    ids = {key: metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", *ENDS, "padding")}
    for key, token in ids.items():
        if token is not None and type(token) is not int:
            raise UserError(f"{path} says tokenizer.ggml.{key}_token_id={token!r:.80}; expected the id of a token.")
    ends = list(dict.fromkeys(ids[key] for key in ENDS if ids[key] is not None))
    found = {"bos_token_id": ids["bos"], "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    found["pad_token_id"] = ids["padding"]
    return {name: value for name, value in found.items() if value is not None}


def extra_files(source: GgufSource) -> dict[str, str]:
    """What a checkpoint keeps beside its weights, by file name."""
    return {
        **source.tokenizer_files(),
        "generation_config.json": json.dumps(generation(source.metadata, source.path), indent=2) + "\n",
    }


def llama3_factors(scaling: dict[str, Any], theta: float, head_dim: int) -> np.ndarray:
    """How much each rotary frequency is divided by [H/2], as llama.cpp stores it (convert_hf_to_gguf.py)."""
    low, high, old = (float(scaling[key]) for key in LLAMA3)
    with np.errstate(all="ignore"):  # of numbers that are none the factors are none either
        wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        smooth = np.clip((old / wavelength - low) / (high - low), 0, 1)
        return np.asarray(1 / ((1 - smooth) / scaling["factor"] + smooth))


def _public(
    tensors: dict[str, gguf_file.GgufTensor], path: Path
) -> tuple[dict[str, gguf_file.GgufTensor], dict[str, str]]:
    """Tensors by public name, and which config field counts the heads of those that are interleaved.

    A name that the table does not have is kept as it came, so that the check of names reports it."""
    public: dict[str, gguf_file.GgufTensor] = {}
    rotary: dict[str, str] = {}
    rows = {entry.gguf: entry for entry in TABLE if entry.gguf}
    for name, tensor in tensors.items():
        word, _, rest = name.removeprefix("blk.").partition(".")
        layered = name.startswith("blk.") and word.isdecimal()
        entry = rows.get(f"blk.{{i}}.{rest}" if layered else name)
        key = name if entry is None else entry.public.format(i=word)
        if key in public:
            raise UserError(f"{path} holds {key!r:.200} under its name and under {name!r:.200}. Which one is it?")
        public[key] = tensor
        if entry is not None and entry.rotary:
            rotary[key] = {"heads": "num_attention_heads", "kv_heads": "num_key_value_heads"}[entry.rotary]
    return public, rotary


def _uninterleave(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows (r0, r_half, r1, r_half+1, …) of each head back to (r0, r1, …, r_half, …); [out, in] or a bias [out]."""
    rows = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return rows.swapaxes(1, 2).reshape(array.shape)
