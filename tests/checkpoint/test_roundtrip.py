"""What comes in goes out: Hugging Face → ours → Hugging Face, and the public SLA layout, bit for bit."""

import json
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from sla_jax.checkpoint import export_checkpoint, import_checkpoint, info, load
from sla_jax.checkpoint.importer import parameters
from sla_jax.checkpoint.mapping import slots
from sla_jax.checkpoint.sources import open_weights
from sla_jax.model.config import from_hf
from sla_jax.model.policy import param_paths
from sla_jax.text import load_tokenizer
from tests import tiny
from tests.checkpoint import models
from tests.tiny import CHATML

FAMILIES = ("llama", "llama3", "smollm2", "mistral", "qwen2", "qwen3")


def there_and_back(src: Path, tmp_path: Path, dtype: str | None = None) -> Path:
    import_checkpoint(str(src), tmp_path / "ours", dtype=dtype)
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    return tmp_path / "back"


def assert_same(one: Path, other: Path) -> None:
    first, second = models.tensors(one), models.tensors(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.dtype == second[name].dtype and array.shape == second[name].shape, name
        assert array.tobytes() == second[name].tobytes(), name
    assert models.config(one) == models.config(other)


@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face_comes_back_bit_for_bit(family, tmp_path):
    src = models.hf_dir(tmp_path / "src", family)
    back = there_and_back(src, tmp_path)
    assert_same(src, back)
    generation = "generation_config.json"
    assert (back / generation).read_text() == (src / generation).read_text()


def test_named_templates_come_along(tmp_path):
    """transformers 5 puts all but the default one into a folder of their own."""
    src, named = models.hf_dir(tmp_path / "src"), {"default": CHATML, "rag": "{{ documents }}"}
    tiny.byte_level_tokenizer(template=named).save_pretrained(src)
    assert (src / "additional_chat_templates" / "rag.jinja").is_file()
    back = there_and_back(src, tmp_path)
    assert load_tokenizer(tmp_path / "ours").chat_template == load_tokenizer(back).chat_template == named


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_kept(dtype, tmp_path):
    src = models.hf_dir(tmp_path / "src", "qwen2", dtype=dtype, tie_word_embeddings=True)
    assert_same(src, there_and_back(src, tmp_path))
    assert info(tmp_path / "ours").dtype == str(dtype).removeprefix("torch.")


def test_attention_biases_of_llama_are_kept(tmp_path):
    src = models.hf_dir(tmp_path / "src", "llama", attention_bias=True)
    assert_same(src, there_and_back(src, tmp_path))


@pytest.mark.parametrize("head", [(2,), (32, 32, 2), (64, 1)])
def test_public_sla_layout_comes_back_bit_for_bit(head, tmp_path):
    src = models.sla_dir(tmp_path / "src", head=head)
    back = there_and_back(src, tmp_path)
    assert_same(src, back)
    assert models.config(back)["architectures"] == ["LlamaForCausalLMRewardTransformer"]


@pytest.mark.parametrize("family", FAMILIES)
def test_export_loads_in_transformers_as_it_is(family, tmp_path):
    src = models.hf_dir(tmp_path / "src", family)
    import_checkpoint(str(src), tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "back", shard_bytes=20_000)
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 2
    model, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, models.hf_model(family)(ids).logits)
    for file in (tmp_path / "back").glob("model-*.safetensors"):
        assert file.stat().st_size < 30_000


def test_sharded_safetensors_and_bin_files_give_the_same_parameters(tmp_path):
    model = models.hf_model("qwen3").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    names = sorted(model.state_dict())
    for folder in ("bin", "bins"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_bytes((tmp_path / "one" / "config.json").read_bytes())
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    halves = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, part in halves.items():
        part_of = {name: model.state_dict()[name] for name in part}
        torch.save(part_of, tmp_path / "bins" / file, _use_new_zipfile_serialization=file == "a.bin")
    weight_map = {name: file for file, part in halves.items() for name in part}
    (tmp_path / "bins" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    loaded = {}
    for kind in ("one", "sharded", "bin", "bins"):
        import_checkpoint(str(tmp_path / kind), tmp_path / "ours" / kind)
        loaded[kind] = param_paths(load(tmp_path / "ours" / kind).policy)
    for kind in ("sharded", "bin", "bins"):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), loaded["one"], loaded[kind])), kind


def test_dtype_converts_and_config_says_so(tmp_path):
    src = models.hf_dir(tmp_path / "src", "llama")
    back = there_and_back(src, tmp_path, dtype="bfloat16")
    assert models.config(back) == {**models.config(src), "dtype": "bfloat16"}
    for name, array in models.tensors(back).items():
        assert np.array_equal(array, models.tensors(src)[name].astype(array.dtype)), name
    export_checkpoint(tmp_path / "ours", tmp_path / "half", dtype="float16")
    assert {str(array.dtype) for array in models.tensors(tmp_path / "half").values()} == {"float16"}


def test_unread_copies_are_accepted_only_when_they_hold_nothing_new(tmp_path):
    src = models.hf_dir(tmp_path / "src", "smollm2")
    embed = models.tensors(src)["model.embed_tokens.weight"]
    extra = {"lm_head.weight": embed, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    models.rewrite(src, extra)
    back = there_and_back(src, tmp_path)
    assert models.tensors(src).keys() - models.tensors(back).keys() == extra.keys()


def test_every_parameter_has_exactly_one_row():
    for family in FAMILIES:
        chosen = slots(from_hf({**models.tiny_hf(family), "tt_hidden_size": 8, "sr_head_layer": 3}))
        places = [(slot.ours, slot.layer) for slot in chosen]
        assert len(set(places)) == len(places) == len({slot.public for slot in chosen})


def test_an_import_holds_one_parameter_at_a_time(tmp_path):
    src = models.hf_dir(tmp_path / "src", "llama", num_hidden_layers=6, hidden_size=64, intermediate_size=512)
    config, source = from_hf(models.config(src)), open_weights(src)
    sizes = {slot.ours: 0 for slot in slots(config)}
    for slot in slots(config):
        sizes[slot.ours] += 4 * int(np.prod(slot.shape))
    largest_tensor = 4 * 64 * 512
    seen = []
    tracemalloc.start()
    try:
        stream = parameters(config, source, np.dtype(np.float32), lambda what, done, total: None)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        while (item := next(stream, None)) is not None:
            seen.append(item[0])
            del item
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert seen == list(sizes)
    assert peak < max(sizes.values()) + largest_tensor < sum(sizes.values()) / 2
