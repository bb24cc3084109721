"""GGUF: weights equal to dequantized ones in Hugging Face order, config and tokenizer equal to their originals."""

import json

import gguf
import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from sla_jax.checkpoint import export_checkpoint, import_checkpoint, load
from sla_jax.checkpoint.gguf import GgufSource, llama3_factors
from sla_jax.checkpoint.gguf_tokenizer import PRE_TOKENIZERS, WORDS
from sla_jax.errors import UserError
from sla_jax.text import load_tokenizer
from tests.checkpoint import gguf_files, models
from tests.tiny import byte_level_tokenizer

TEXTS = ("a  7 and   42", "Grüße 2026!\n\n  x = 10_000", "<|im_start|>user\nhi<|im_end|>", " it's\tI'LL 東京 👍🏽")


def test_import_gives_the_dequantized_weights(tmp_path):
    expected = gguf_files.write(tmp_path / "m.gguf")
    import_checkpoint(str(tmp_path / "m.gguf"), tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "hf")
    found = models.tensors(tmp_path / "hf")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32 and np.array_equal(found[name], array), name
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "Q8_1"])
def test_other_quantizations_are_those_of_the_gguf_package(tmp_path, kind):
    qtype = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    data = np.random.default_rng(0).integers(0, 60, (3, 256 // block * size), np.uint8)
    gguf_files.write(tmp_path / "m.gguf", raw={"probe": (data, qtype)})
    source = GgufSource(tmp_path / "m.gguf")
    assert source.shapes()["probe"] == (3, 256)
    if kind == "Q8_1":
        with pytest.raises(UserError, match="'probe' has the type Q8_1, which the gguf package cannot dequantize"):
            source.read("probe")
    else:
        assert np.array_equal(source.read("probe"), gguf.quants.dequantize(data, qtype), equal_nan=True)


def test_untied_with_biases(tmp_path):
    expected = gguf_files.write(tmp_path / "m.gguf", tied=False, bias=True)
    source = GgufSource(tmp_path / "m.gguf")
    assert source.config["attention_bias"] and not source.config["tie_word_embeddings"]
    assert source.shapes() == {name: array.shape for name, array in expected.items()}
    for name, array in expected.items():
        assert np.array_equal(source.read(name), array), name


def test_config_is_read_in_the_shortest_decimals(tmp_path):
    ends = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 7}
    gguf_files.write(tmp_path / "m.gguf", **ends)
    import_checkpoint(str(tmp_path / "m.gguf"), tmp_path / "ours")
    found = load(tmp_path / "ours")
    assert (found.config.eps, found.config.rope.theta, found.config.head_dim, found.config.tied) == (
        1e-5,
        1e4,
        16,
        True,
    )
    assert found.raw_config["rms_norm_eps"] == 1e-05
    generation = json.loads((tmp_path / "ours" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 0, 7]}


def test_tokenizer_gives_the_ids_of_the_original(tmp_path):
    gguf_files.write(tmp_path / "m.gguf")
    import_checkpoint(str(tmp_path / "m.gguf"), tmp_path / "ours")
    original, found = byte_level_tokenizer(), load_tokenizer(tmp_path / "ours")
    for text in TEXTS:
        assert found.encode(text) == original.encode(text), text
        assert found.decode(found.encode(text)) == text
    assert (found.bos_token, found.eos_token) == (original.bos_token, original.eos_token)
    assert found.chat_template == "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert found.decode(found.encode("hi<|im_end|>"), skip_special_tokens=True) == "hi"


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["x", "Ġ", "Ġ1234", "'s", "Ġ!!", "Ċ", "Ċ", "y"]),
        ("smollm", ["x", "ĠĠ", "1", "2", "3", "4", "'s", "Ġ!!", "Ċ", "Ċ", "y"]),
        ("llama-bpe", ["x", "Ġ", "Ġ", "123", "4", "'s", "Ġ!!ĊĊ", "y"]),
        ("qwen2", ["x", "Ġ", "Ġ", "1", "2", "3", "4", "'s", "Ġ!!ĊĊ", "y"]),
    ],
)
def test_pre_tokenizers_split_as_their_originals(pre, pieces):
    found = PRE_TOKENIZERS[pre]().pre_tokenize_str("x  1234's !!\n\ny")
    assert [piece for piece, _ in found] == pieces


@given(st.text(" \n\r\t\u3000a1.", max_size=16))
def test_spaces_are_split_as_by_llama_3s_own_expression(text):
    """Ours is another one, because theirs makes `tokenizers` panic on some millions of spaces."""
    theirs = WORDS + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split, joined = pre_tokenizers.Split(Regex(theirs), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    original = pre_tokenizers.Sequence([split, joined])
    assert PRE_TOKENIZERS["llama-bpe"]().pre_tokenize_str(text) == original.pre_tokenize_str(text)


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_a_body_full_of_spaces_before_a_word_is_split(pre):
    assert len(PRE_TOKENIZERS[pre]().pre_tokenize_str(" " * 4 * 2**20 + "a")) == 2


def test_bos_is_added_where_the_file_says_so(tmp_path):
    gguf_files.write(tmp_path / "m.gguf", **{"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.pre": "llama-bpe"})
    import_checkpoint(str(tmp_path / "m.gguf"), tmp_path / "ours")
    found = load_tokenizer(tmp_path / "ours")
    assert found.encode("hi") == [1, *found.encode("hi", add_special_tokens=False)]


def test_llama3_rope_scaling_is_recognized_by_value(tmp_path):
    scaling = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors = llama3_factors(scaling, 500000.0, gguf_files.H).astype(np.float32)
    theta = {"llama.rope.freq_base": 500000.0}
    gguf_files.write(tmp_path / "m.gguf", extra={"rope_freqs.weight": factors}, **theta)
    assert GgufSource(tmp_path / "m.gguf").config["rope_scaling"] == {"rope_type": "llama3", **scaling}
    gguf_files.write(tmp_path / "n.gguf", extra={"rope_freqs.weight": factors + 1}, **theta)
    with pytest.raises(UserError, match="is not Llama 3's rope scaling"):
        GgufSource(tmp_path / "n.gguf")


def test_llama3_factors_are_those_of_transformers():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, **scaling}
    config = transformers.LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(plain / llama3_factors(scaling, 500000.0, 128), theirs.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "gemma"}, "architecture 'gemma'; supported in GGUF files: llama"),
        ({"llama.context_length": None}, "has no 'llama.context_length'"),
        ({"llama.logit_scale": 2.0}, r"says llama.logit_scale=2.0"),
        ({"llama.expert_count": 8}, "says llama.expert_count=8"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count=8 with heads of size 16"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}, "'yarn'"),
        (
            {"tokenizer.ggml.pre": "smolm"},
            "'smolm'; supported are gpt-2, smollm, llama-bpe, qwen2. Did you mean 'smollm'",
        ),
        ({"tokenizer.ggml.merges": ["no such"]}, "a vocabulary that is not a whole BPE .*out of vocabulary"),
        ({"tokenizer.ggml.bos_token_id": 9999}, "a vocabulary that is not a whole BPE"),
        ({"llama.attention.head_count_kv": [2, 2]}, "gives llama.attention.head_count_kv layer by layer"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer of kind 'llama'; supported is 'gpt2'"),
        (
            {"llama.feed_forward_length": 128},
            r"mlp.gate_proj.weight' has shape \(96, 64\); config.json says \(128, 64\)",
        ),
        ({"extra": {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}}, "the tensor 'blk.0.attn_sinks.weight'"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, changes, message):
    gguf_files.write(tmp_path / "m.gguf", **changes)
    with pytest.raises(UserError, match=message):
        import_checkpoint(str(tmp_path / "m.gguf"), tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("keep", [0, 3, 20, 700, 6000, -40])
def test_truncated(tmp_path, keep):
    gguf_files.write(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[:keep])
    with pytest.raises(UserError, match="is truncated|is not a whole GGUF file"):
        import_checkpoint(str(tmp_path / "m.gguf"), tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
