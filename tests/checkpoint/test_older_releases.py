"""config.json as earlier releases wrote it: imported with transformers' logits, and with a note of what it lacks."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from sla_jax.checkpoint import export_checkpoint, import_checkpoint, load
from sla_jax.model import forward
from tests.checkpoint import gguf_files, models

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
COMMON = {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02, "use_cache": True, "torch_dtype": "float16"}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "pad_token_id": 0}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu"}
QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "max_window_layers": 21}
LATER = {"attention_bias": False, "mlp_bias": False}  # of Llama: since 4.34 and 4.43
# the release that wrote it → config.json, and what the note says
WRITTEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama 1, 4.27": (
        {**LLAMA, "max_sequence_length": 2048, "rms_norm_eps": 1e-6},
        {"rope_theta": 10000.0, "tie_word_embeddings": False, "max_position_embeddings": 2048, **LATER},
    ),
    "Llama 2, 4.31": (
        {
            **LLAMA,
            "max_position_embeddings": 4096,
            "num_key_value_heads": 2,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "tie_word_embeddings": False,
        },
        {"rope_theta": 10000.0, **LATER},
    ),
    "Mistral 0.1, 4.34": (
        {
            **MISTRAL,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": 5,
            "tie_word_embeddings": False,
        },
        {},
    ),
    "a Mistral that says as little as it may": (
        {**MISTRAL, "num_key_value_heads": 2},
        {
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
    ),
    "Qwen 1.5, 4.37": (
        {
            **QWEN,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
        {},
    ),
    "a Qwen 2 without rope_theta": (
        {**QWEN, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6},
        {"rope_theta": 10000.0, "tie_word_embeddings": False, "sliding_window": 4096, "use_sliding_window": False},
    ),
}


def written(path: Path, raw: dict[str, Any]) -> Any:
    """A random model of transformers' with this config.json in `path`, word for word."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(raw))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    model.to(torch.float32).save_pretrained(path)
    (path / "config.json").write_text(json.dumps(raw))
    return model.eval()


@functools.partial(jax.jit, static_argnames="config")
def logits(policy: Any, config: Any, ids: Any) -> Any:
    return forward.logits(policy, forward.trunk(policy, config, ids).hidden)


def taken(notes: list[str]) -> dict[str, Any]:
    """The fields and values that the notes name."""
    said = [note.partition("that value is taken: ")[2] for note in notes if note.startswith("config.json leaves out")]
    pairs = [pair.split(" = ") for line in said for pair in line.split(", ")]
    return {name: json.loads(value) for name, value in pairs}


@pytest.mark.parametrize("release", list(WRITTEN))
def test_logits_are_transformers_and_the_note_says_what_was_taken(release: str, tmp_path: Path) -> None:
    raw, note = WRITTEN[release]
    raw = {**raw, **SIZES, **COMMON}
    model = written(tmp_path / "src", raw)
    notes = import_checkpoint(str(tmp_path / "src"), tmp_path / "ours")
    assert taken(notes) == note
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (1, 24))
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids)).logits.numpy()
    found = load(tmp_path / "ours")
    ours = logits(found.policy, found.config, jnp.asarray(ids, jnp.int32))
    assert theirs.std() > 0.1  # a parity of zeros would show nothing
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-4)
    assert found.raw_config == raw  # as it came: nothing is written into it


def test_a_config_that_says_all_has_no_note_and_comes_back_as_it_was(tmp_path: Path) -> None:
    src = models.hf_dir(tmp_path / "src", "llama")
    assert taken(import_checkpoint(str(src), tmp_path / "ours")) == {}
    raw, _ = WRITTEN["Llama 2, 4.31"]
    written(tmp_path / "old", {**raw, **SIZES, **COMMON})
    import_checkpoint(str(tmp_path / "old"), tmp_path / "old-ours")
    export_checkpoint(tmp_path / "old-ours", tmp_path / "back")
    assert models.config(tmp_path / "back") == models.config(tmp_path / "old")


def test_a_gguf_file_may_leave_out_the_base_of_its_rotation(tmp_path: Path) -> None:
    """llama.cpp takes 10000 for it, as transformers does."""
    absent: dict[str, Any] = {"llama.rope.freq_base": None}
    gguf_files.write(tmp_path / "m.gguf", **absent)
    notes = import_checkpoint(str(tmp_path / "m.gguf"), tmp_path / "ours")
    assert taken(notes) == {"rope_theta": 10000.0}
    gguf_files.write(tmp_path / "said.gguf")
    assert taken(import_checkpoint(str(tmp_path / "said.gguf"), tmp_path / "theirs")) == {}
    assert load(tmp_path / "ours").config == load(tmp_path / "theirs").config
