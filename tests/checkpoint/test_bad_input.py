"""Every way in which a source can be wrong is one paragraph by name, and writes nothing."""

import builtins
import codecs
import json
import re

import numpy as np
import pytest
import torch

from sla_jax.checkpoint import import_checkpoint
from sla_jax.checkpoint.store import EXTRAS
from sla_jax.errors import UserError
from tests import tiny
from tests.checkpoint import models

LAYER0 = "model.layers.0.self_attn"


def refused(src, tmp_path, **options):
    """The error's text; and nothing may be left behind."""
    with pytest.raises(UserError) as caught:
        import_checkpoint(str(src), tmp_path / "ours", **options)
    assert not [path.name for path in tmp_path.iterdir() if "ours" in path.name]
    return str(caught.value)


@pytest.fixture
def src(tmp_path):
    return models.hf_dir(tmp_path / "src", "llama")


def test_unknown_tensor_is_named_with_the_nearest(src, tmp_path):
    found = models.tensors(src)
    models.rewrite(src, {f"{LAYER0}.q_prj.weight": found[f"{LAYER0}.q_proj.weight"], f"{LAYER0}.q_proj.weight": None})
    message = refused(src, tmp_path)
    assert f"{LAYER0}.q_prj.weight" in message and f"Did you mean '{LAYER0}.q_proj.weight'" in message


def test_many_unknown_tensors_are_counted(src, tmp_path):
    models.rewrite(src, dict(models.channel_tensors(32, 2, 4, (2,))))
    message = refused(src, tmp_path)
    assert "5 tensors ('sr_head.weight', 'tt_layers.0.tt_layernorm.weight'" in message and "tt_hidden_size" in message


def test_missing_tensors_are_named(src, tmp_path):
    models.rewrite(src, {f"{LAYER0}.k_proj.weight": None, "model.norm.weight": None})
    message = refused(src, tmp_path)
    assert "lacks 2 tensors" in message and f"{LAYER0}.k_proj.weight" in message and "model.norm.weight" in message


def test_a_missing_head_points_to_tying(src, tmp_path):
    models.rewrite(src, {"lm_head.weight": None})
    assert "tie_word_embeddings" in refused(src, tmp_path)


def test_wrong_shape_says_both_shapes(src, tmp_path):
    models.rewrite(src, {f"{LAYER0}.k_proj.weight": np.zeros((32, 32), np.float32)})
    message = refused(src, tmp_path)
    assert f"{LAYER0}.k_proj.weight" in message and "(32, 32)" in message and "(16, 32)" in message


def test_a_tied_head_that_differs_is_refused(src, tmp_path):
    models.rewrite(src, {}, tie_word_embeddings=True)
    message = refused(src, tmp_path)
    assert "'lm_head.weight' differs from 'model.embed_tokens.weight'" in message


def test_unsupported_architecture_lists_the_supported(src, tmp_path):
    models.rewrite(src, {}, architectures=["GemmaForCausalLM"])
    message = refused(src, tmp_path)
    assert "GemmaForCausalLM" in message and "MistralForCausalLM" in message and "Qwen3ForCausalLM" in message


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_safetensors(src, tmp_path, keep):
    whole = (src / "model.safetensors").read_bytes()
    (src / "model.safetensors").write_bytes(whole[:keep])
    message = refused(src, tmp_path)
    assert "model.safetensors is damaged or truncated" in message


def test_garbage_instead_of_safetensors(src, tmp_path):
    (src / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"<html>no</html>." + bytes(40))
    assert "header cannot be read" in refused(src, tmp_path)


def test_integer_tensors_are_refused_by_type(src, tmp_path):
    models.rewrite(src, {f"{LAYER0}.k_proj.weight": np.zeros((16, 32), np.int8)})
    message = refused(src, tmp_path)
    assert "has type I8; supported are F64, F32, F16, BF16" in message


def test_quantized_config_is_refused(src, tmp_path):
    models.rewrite(src, {}, quantization_config={"quant_method": "gptq"})
    assert "quantization_config" in refused(src, tmp_path)


def test_a_shard_that_is_missing_or_doubled(src, tmp_path):
    whole = (src / "model.safetensors").read_bytes()
    (src / "a.safetensors").write_bytes(whole)
    index = src / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    assert "names 'b.safetensors', which is no file" in refused(src, tmp_path)
    (src / "b.safetensors").write_bytes(whole)
    message = refused(src, tmp_path)
    assert "is there twice" in message and "b.safetensors" in message


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_config_that_is_not_json(src, tmp_path, text):
    if text is None:
        (src / "config.json").unlink()
    else:
        (src / "config.json").write_text(text)
    assert "config.json" in refused(src, tmp_path)


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("tokenizer_config.json", b'{"a": ', "line 1: not JSON"),
        ("tokenizer.json", b"[]", r"holds \[\]; expected a JSON object"),
        ("tokenizer.json", "{}".encode("utf-16"), "is UTF-16 text"),
        ("chat_template.jinja", b"\n\xff", "line 2: not UTF-8 text"),
    ],
)
def test_files_beside_the_weights_that_nobody_could_read(src, tmp_path, name, raw, said):
    (src / name).write_bytes(raw)
    assert re.search(rf"{re.escape(name)}.* {said}", refused(src, tmp_path))


def test_byte_order_marks_are_left_behind(src, tmp_path):
    tiny.byte_level_tokenizer().save_pretrained(src)
    (src / "tokenizer.model").write_bytes(b"\n\xff")
    before = {path.name: path.read_bytes() for path in src.iterdir() if path.name in EXTRAS}
    for name in (*before.keys() - {"tokenizer.model"}, "config.json"):
        (src / name).write_bytes(codecs.BOM_UTF8 + (src / name).read_bytes())
    import_checkpoint(str(src), tmp_path / "ours")
    assert "chat_template.jinja" in before
    assert {name: (tmp_path / "ours" / name).read_bytes() for name in before} == before


def test_no_weights(src, tmp_path):
    (src / "model.safetensors").unlink()
    assert "holds no weights; looked for model.safetensors.index.json" in refused(src, tmp_path)


def test_a_directory_with_a_gguf_says_to_give_the_file(src, tmp_path):
    (src / "model.safetensors").rename(src / "m.gguf")
    assert "It holds m.gguf: give that file" in refused(src, tmp_path)


def test_damaged_bin(src, tmp_path):
    (src / "model.safetensors").unlink()
    (src / "pytorch_model.bin").write_bytes(b"PK\x03\x04 no")
    assert "cannot be read by torch.load" in refused(src, tmp_path)


def test_bin_without_torch(src, tmp_path, monkeypatch):
    (src / "model.safetensors").unlink()
    torch.save({}, src / "pytorch_model.bin")
    real = builtins.__import__

    def no_torch(name, *rest):
        if name == "torch":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_torch)
    assert "torch is not installed" in refused(src, tmp_path)


def test_a_value_too_large_for_float16(src, tmp_path):
    models.rewrite(src, {"model.norm.weight": np.full(32, 1e6, np.float32)})
    message = refused(src, tmp_path, dtype="float16")
    assert "'model.norm.weight' holds 1e+06, too large for float16" in message


def test_no_such_type(src, tmp_path):
    assert "Did you mean 'bfloat16'" in refused(src, tmp_path, dtype="bfloat")


def test_no_such_source(tmp_path):
    assert "there is no nothing.gguf" in refused("nothing.gguf", tmp_path)


def test_a_hub_name_without_a_connection(tmp_path):
    message = refused("no-such-org/no-such-model", tmp_path)
    assert "the hub model 'no-such-org/no-such-model' could not be fetched" in message
