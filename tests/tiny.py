"""Small things that many tests share: model sizes, the Hugging Face configs of each family, tokenizers, a template.

Everything is made here from nothing; no test reads a hub, somebody else's checkpoint or a file outside the project.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sla_jax.model.config import ModelConfig, Rope

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2, as in SmolLM2
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "system user assistant The quick brown fox jumps over the lazy dog. What is the capital of France? Paris.",
    "How much is 12 + 30? It is 42, and 7 more is 49. Please do not be rude; I can't help with that.",
    "Grüße aus Köln, naïve café. 東京は日本の首都です。 Привет, мир! 👍🏽 👩‍👩‍👧 🇫🇷",
)
HF_BASE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 97,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# what each family's config.json says beyond HF_BASE
HF_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "llama3": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": LLAMA3_ROPE},
    "smollm2": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 5},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "use_sliding_window": False},
}


def tiny_hf(family: str = "llama", **changes: Any) -> dict[str, Any]:
    """A `config.json` of one of `HF_FAMILIES`: 2 layers, D=32, F=64, N=4, K=2, H=8, V=97."""
    return {**HF_BASE, **HF_FAMILIES[family], **changes}


def tiny_config(**changes: Any) -> ModelConfig:
    """A Llama of 2 layers, D=32, F=64, N=4, K=2, H=8, V=97, with any field changed."""
    base = ModelConfig(
        vocab_size=97,
        width=32,
        ffn=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        eps=1e-5,
        rope=Rope(theta=10000.0),
        max_positions=256,
        activation="silu",
        tied=False,
    )
    return dataclasses.replace(base, **changes)


def byte_level_tokenizer(corpus: Iterable[str] = CORPUS, template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE with SmolLM2's pre-tokenizer and special tokens; it encodes any text and splits characters."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return _wrapped(tokenizer, template)


def sentencepiece_tokenizer(corpus: Iterable[str] = CORPUS, template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Llama 2's kind: a visible space in front of the text, unknown characters spelled as <0x..> bytes."""
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    letters = sorted(set("".join(corpus)) & set(map(chr, range(33, 127)))) + ["▁"]
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *byte_tokens, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return _wrapped(tokenizer, template)


def _wrapped(tokenizer: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(list(SPECIALS))
    names = {"bos_token": SPECIALS[1], "eos_token": SPECIALS[2], "pad_token": SPECIALS[2], "unk_token": SPECIALS[0]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)
