"""Reward models in and out: transformers' sequence and token classification, bit for bit and with equal scores."""

import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import convert
import generate
from sla_jax import loading
from sla_jax.checkpoint import export_checkpoint, import_checkpoint, info, load, raw_with_score, save, save_channel
from sla_jax.errors import UserError
from sla_jax.model.config import ChannelConfig, ScoreConfig, from_hf
from sla_jax.model.forward import trunk
from sla_jax.model.policy import init_channel, param_paths, with_score
from sla_jax.model.score import init_score, last_values, score_values
from tests.checkpoint import models
from tests.checkpoint.test_roundtrip import assert_same
from tests.tiny import tiny_hf

Kind = Literal["sequence", "token"]
KINDS = {"sequence": ("ForSequenceClassification", 1), "token": ("ForTokenClassification", 2)}
LENGTHS = (12, 3, 7)  # of three rows; padding is token 0, which stands nowhere else
PAD = 0


def hf_scored(path: Path, family: str, kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model with a head of TRL's size (reward model 1, process rewards 2), saved in several files."""
    raw = tiny_hf(family, pad_token_id=PAD, **changes)
    head, labels = KINDS[kind]
    causal = raw["architectures"][0]
    raw["architectures"] = [causal.replace("ForCausalLM", head)]
    config = models.CONFIGS[causal](**({"num_labels": labels} | raw))
    torch.manual_seed(0)
    model = getattr(transformers, raw["architectures"][0])(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * (1.0 if "norm" in name else 0.2))
    model.to(dtype).save_pretrained(path, max_shard_size="20KB")
    return model


def rows() -> np.ndarray:
    """Three right-padded rows of token ids [3, 12]."""
    tokens = np.random.default_rng(0).integers(1, 97, (3, 12))
    return np.where(np.arange(12) < np.asarray(LENGTHS)[:, None], tokens, PAD).astype(np.int32)


@torch.no_grad()
def theirs(model: Any) -> np.ndarray:
    """transformers' scores [3, …] of the rows."""
    tokens = torch.from_numpy(rows()).long()
    found: np.ndarray = model(input_ids=tokens, attention_mask=(tokens != PAD).long(), use_cache=False).logits.numpy()
    return found


@functools.partial(jax.jit, static_argnames="config")
def values(policy: Any, config: Any, tokens: Any) -> Any:
    """Our scores of every token [3, 12, outputs]."""
    return score_values(policy.score, trunk(policy, config, tokens).hidden)


def assert_scores(directory: Path, model: Any, kind: str) -> None:
    """A checkpoint of ours scores as transformers' model does, padding apart."""
    loaded = load(directory)
    found, want = values(loaded.policy, loaded.config, jnp.asarray(rows())), theirs(model)
    assert want.std() > 0.1  # a parity of zeros would show nothing
    if kind == "sequence":
        np.testing.assert_allclose(last_values(found, jnp.asarray(LENGTHS)), want, rtol=0, atol=1e-5)
        return
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[row, :length], want[row, :length], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_there_and_back_bit_for_bit_and_with_equal_scores(family: str, kind: str, tmp_path: Path) -> None:
    model = hf_scored(tmp_path / "src", family, kind, tie_word_embeddings=family == "qwen3")
    assert len(list((tmp_path / "src").glob("*.safetensors"))) > 2
    import_checkpoint(str(tmp_path / "src"), tmp_path / "ours")
    assert_scores(tmp_path / "ours", model, kind)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", shard_bytes=20_000)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 2
    assert_same(tmp_path / "src", tmp_path / "back")
    again, found = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    np.testing.assert_array_equal(theirs(again), theirs(model))


@pytest.mark.parametrize("kind", KINDS)
def test_half_types_are_kept(kind: str, tmp_path: Path) -> None:
    hf_scored(tmp_path / "src", "llama3", kind, torch.bfloat16)
    import_checkpoint(str(tmp_path / "src"), tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    assert_same(tmp_path / "src", tmp_path / "back")
    assert {str(leaf.dtype) for leaf in info(tmp_path / "ours").params.values()} == {"bfloat16"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_head_put_on_a_language_model_loads_in_transformers(kind: Kind, tied: bool, tmp_path: Path) -> None:
    """What training a reward model saves: the policy of a language model, a new head and raw_with_score."""
    models.hf_dir(tmp_path / "src", "qwen2", pad_token_id=PAD, tie_word_embeddings=tied)
    import_checkpoint(str(tmp_path / "src"), tmp_path / "base")
    base = load(tmp_path / "base")
    head, labels = KINDS[kind]
    raw = raw_with_score(base.raw_config, ScoreConfig(outputs=labels, bias=kind == "token"), kind)
    config = from_hf(raw)
    score = init_score(config, jax.random.key(0))
    score.weight[...] = score.weight[...] * 50  # scores that spread over more than the tolerance
    policy = with_score(base.policy, config, score)
    save(tmp_path / "ours", policy, raw, extras={}, provenance={})
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    auto = getattr(transformers, f"AutoModel{head}")
    model, found = auto.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert type(model).__name__ == f"Qwen2{head}" and model.config.num_labels == labels
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert_scores(tmp_path / "ours", model, kind)


def test_config_json_of_a_new_head() -> None:
    raw = tiny_hf("llama", pad_token_id=7, num_labels=5, tt_hidden_size=4, sr_head_layer=1)
    sequence = raw_with_score(raw, ScoreConfig(outputs=1, bias=False))
    assert sequence == tiny_hf("llama", pad_token_id=7, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}) | {
        "architectures": ["LlamaForSequenceClassification"]
    }
    named = {**raw, "id2label": {"0": "bad", "1": "good"}, "architectures": ["LlamaForCausalLMRewardTransformer"]}
    token = raw_with_score(named, ScoreConfig(outputs=2, bias=False), "token")
    assert token["architectures"] == ["LlamaForTokenClassification"] and token["token_classification_bias"] is False
    assert (token["id2label"], token["label2id"]) == (named["id2label"], {"bad": 0, "good": 1})
    assert from_hf(token).score == ScoreConfig(outputs=2, bias=False)
    back = raw_with_score(token, ScoreConfig(outputs=2, bias=True))
    assert back["architectures"] == token["architectures"] and "token_classification_bias" not in back
    assert from_hf(back).score == ScoreConfig(outputs=2, bias=True)
    with pytest.raises(UserError, match="has no bias"):
        raw_with_score(raw, ScoreConfig(outputs=1, bias=True), "sequence")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lm_head.weight": (97, 32)}, "holds the tensor 'lm_head.weight'"),
        ({"score.bias": (1,)}, "holds the tensor 'score.bias'"),
        ({"score.weight": None}, "lacks the tensor 'score.weight'"),
        ({"score.weight": (2, 32)}, r"'score.weight' has shape \(2, 32\); config.json says \(1, 32\)"),
    ],
    ids=repr,
)
def test_wrong_tensors_are_named(changed: dict[str, Any], message: str, tied: bool, tmp_path: Path) -> None:
    hf_scored(tmp_path / "many", "llama", "sequence", tie_word_embeddings=tied)
    src = tmp_path / "src"
    src.mkdir()
    (src / "config.json").write_bytes((tmp_path / "many" / "config.json").read_bytes())
    arrays = {name: shape and np.zeros(shape, np.float32) for name, shape in changed.items()}
    models.rewrite(src, {**models.tensors(tmp_path / "many"), **arrays})
    with pytest.raises(UserError, match=message):
        import_checkpoint(str(src), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_head_that_config_json_does_not_know(tmp_path: Path) -> None:
    src = models.hf_dir(tmp_path / "src")
    models.rewrite(src, {"score.weight": np.zeros((1, 32), np.float32)})
    with pytest.raises(UserError, match="holds the tensor 'score.weight'.*ForSequenceClassification"):
        import_checkpoint(str(src), tmp_path / "ours")


def test_a_channel_cannot_be_attached(tmp_path: Path) -> None:
    hf_scored(tmp_path / "src", "llama", "sequence")
    config = from_hf(tiny_hf("llama", tt_hidden_size=4))
    assert config.channel == ChannelConfig(width=4)
    save_channel(tmp_path / "channel.safetensors", init_channel(config, jax.random.key(0)), config)
    with pytest.raises(UserError, match="both a reward channel and a score head"):
        import_checkpoint(str(tmp_path / "src"), tmp_path / "ours", channel=tmp_path / "channel.safetensors")


def test_the_front_doors(tmp_path: Path, capsys: Any, tiny_tokenizer_dir: Path) -> None:
    """convert.py takes a reward model; generate.py and everything that decodes says what it is."""
    hf_scored(tmp_path / "src", "qwen3", "token")
    for file in tiny_tokenizer_dir.iterdir():
        (tmp_path / "src" / file.name).write_bytes(file.read_bytes())
    convert.main(["import", str(tmp_path / "src"), str(tmp_path / "ours")])
    capsys.readouterr()
    convert.main(["inspect", str(tmp_path / "ours")])
    printed = capsys.readouterr().out
    assert "66 parameters, ScoreConfig(outputs=2, bias=True)" in printed and "Qwen3ForTokenClassification" in printed
    assert "score.weight" in printed and "lm_head" not in printed
    convert.main(["export", str(tmp_path / "ours"), str(tmp_path / "back")])
    assert models.tensors(tmp_path / "back").keys() == models.tensors(tmp_path / "src").keys()
    message = r"is a reward model: it has a score head \(outputs: 2\) and no LM head"
    with pytest.raises(UserError, match=message):
        generate.main([str(tmp_path / "ours"), "What is the capital of France?"])
    with pytest.raises(UserError, match=message):
        loading.load_model(tmp_path / "ours")
    assert loading.load_model(tmp_path / "ours", generates=False).policy.score is not None
    with pytest.raises(UserError, match=message):
        loading.engine(info(tmp_path / "ours").config)


def test_parameters_of_a_sharded_source_are_those_of_one_file(tmp_path: Path) -> None:
    model = hf_scored(tmp_path / "many", "mistral", "token")
    model.save_pretrained(tmp_path / "one")
    loaded = []
    for name in ("many", "one"):
        import_checkpoint(str(tmp_path / name), tmp_path / "ours" / name)
        loaded.append(param_paths(load(tmp_path / "ours" / name).policy))
    jax.tree.map(np.testing.assert_array_equal, *loaded)
