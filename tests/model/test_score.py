"""The score head: its numbers, what a policy with one has and lacks, and what config.json says of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from sla_jax import sharding
from sla_jax.errors import UserError
from sla_jax.model import axes, forward, policy
from sla_jax.model.config import ChannelConfig, ModelConfig, ScoreConfig, from_hf
from sla_jax.model.score import init_score, last_values, score_values
from tests import families
from tests.tiny import tiny_config, tiny_hf

BEFORE = (  # what a config printed before it could have a score head; feature caches are named by it
    "ModelConfig(vocab_size=97, width=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8, eps=1e-05, "
    "rope=Rope(theta=10000.0, kind='default', factor=1.0, low_freq_factor=1.0, high_freq_factor=4.0, "
    "original_max_position=0), max_positions=256, activation='silu', tied=False, qkv_bias=False, out_bias=False, "
    "qk_norm=False, windows=(None, None), channel=None)"
)
ARCHITECTURES = [
    family + head
    for family in ("Llama", "Mistral", "Qwen2", "Qwen3")
    for head in ("ForSequenceClassification", "ForTokenClassification")
]


def scored(config: ModelConfig, outputs: int, bias: bool) -> ModelConfig:
    """The same model with a score head instead of a channel."""
    return dataclasses.replace(config, channel=None, score=ScoreConfig(outputs=outputs, bias=bias))


@pytest.mark.parametrize(("outputs", "bias"), [(1, False), (2, True)], ids=["reward model", "process rewards"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_scores_are_float32_sums_of_the_stored_numbers(outputs: int, bias: bool, dtype: Any) -> None:
    drawn = np.random.default_rng(0)
    head = init_score(scored(tiny_config(), outputs, bias), jax.random.key(0))
    head = jax.tree.map(lambda leaf: jnp.asarray(drawn.standard_normal(leaf.shape), dtype), head)
    hidden = jnp.asarray(drawn.standard_normal((3, 5, 32)), dtype)
    values = score_values(head, hidden)
    wide = np.asarray(hidden, np.float64) @ np.asarray(head.weight[...], np.float64)
    want = wide if head.bias is None else wide + np.asarray(head.bias[...], np.float64)
    assert values.dtype == jnp.float32 and (head.bias is not None) == bias
    np.testing.assert_allclose(values, want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(last_values(values, jnp.asarray([5, 1, 3])), values[np.arange(3), [4, 0, 2]])


def test_a_hidden_layer_stands_before_the_outputs() -> None:
    """Qwen2.5-Math-PRM's head: a layer of the model's own width, ReLU, a layer."""
    raw = tiny_hf("qwen2", architectures=["Qwen2ForProcessRewardModel"])
    config = from_hf(raw)
    assert config.score == ScoreConfig(outputs=2, bias=True, kind="mlp")
    assert dataclasses.replace(config, score=None) == from_hf(tiny_hf("qwen2"))
    drawn = np.random.default_rng(0)
    head = init_score(config, jax.random.key(0))
    head = jax.tree.map(lambda leaf: jnp.asarray(drawn.standard_normal(leaf.shape), jnp.float32), head)
    assert head.hidden is not None and head.hidden_bias is not None and head.bias is not None
    hidden = drawn.standard_normal((3, 5, 32))
    inner = np.maximum(hidden @ np.asarray(head.hidden[...]) + np.asarray(head.hidden_bias[...]), 0)
    want = inner @ np.asarray(head.weight[...]) + np.asarray(head.bias[...])
    np.testing.assert_allclose(score_values(head, jnp.asarray(hidden, jnp.float32)), want, rtol=1e-5, atol=1e-4)
    model = policy.init_policy(config, jax.random.key(0))
    assert model.head is None and policy.param_paths(model)["score.hidden"].shape == (32, 32)


def test_a_value_head_is_a_linear_one_with_a_bias() -> None:
    config = from_hf(tiny_hf("qwen2", architectures=["Qwen2ForPrmModel"]))
    assert config.score == ScoreConfig(outputs=1, bias=True, kind="value")
    shapes = policy.param_shapes(config)
    assert (shapes["score.weight"].shape, shapes["score.bias"].shape) == ((32, 1), (1,))
    assert "score.hidden" not in shapes and "head" not in shapes


@pytest.mark.parametrize("name", ["llama31", "llama-deep"], ids=["untied", "tied"])
def test_a_score_takes_the_place_of_lm_head_and_channel(name: str) -> None:
    one = families.family(name)
    config = scored(one.config, 1, False)
    model = policy.with_score(one.policy, config, init_score(config, jax.random.key(1)))
    before, params = policy.param_paths(one.policy), policy.param_paths(model)
    assert model.head is None and model.channel is None
    assert before.keys() - params.keys() == {n for n in before if n == "head" or n.startswith("channel.")}
    assert {n: leaf.shape for n, leaf in params.items() if n not in before} == {"score.weight": (32, 1)}
    assert all(leaf is before[n] for n, leaf in params.items() if n in before)
    assert list(params) == list(policy.param_shapes(config))
    assert policy.unstack(model).score is not None
    other = scored(one.config, 3, True)
    again = policy.param_paths(policy.with_score(model, other, init_score(other, jax.random.key(2))))
    assert again["score.weight"].shape == (32, 3) and again["score.bias"].shape == (3,)


def test_without_its_score_only_a_tied_policy_is_whole() -> None:
    for name, tied in (("llama-deep", True), ("llama31", False)):
        bare = policy.without_channel(families.family(name).config)
        config = scored(bare, 2, True)
        model = policy.init_policy(config, jax.random.key(0))
        if tied:
            assert list(policy.param_paths(policy.with_score(model, bare, None))) == list(policy.param_shapes(bare))
        else:
            with pytest.raises(UserError, match="'head'.*missing"):
                policy.with_score(model, bare, None)


def test_a_fresh_head_is_transformers_start() -> None:
    config = scored(tiny_config(width=512, head_dim=8), 8, True)
    head, same, other = (init_score(config, jax.random.key(seed)) for seed in (0, 0, 1))
    theirs = transformers.LlamaConfig(num_labels=8, **tiny_hf(hidden_size=512, num_hidden_layers=1))
    torch.manual_seed(0)
    reference = transformers.LlamaForTokenClassification(theirs).score
    assert head.weight[...].T.shape == tuple(reference.weight.shape)
    np.testing.assert_allclose(head.weight[...].std(), reference.weight.detach().std(), rtol=0.1)
    assert head.bias is not None and not head.bias[...].any() and not reference.bias.any()
    np.testing.assert_array_equal(head.weight[...], same.weight[...])
    assert (head.weight[...] != other.weight[...]).any()


def test_the_head_is_split_like_the_residual_stream() -> None:
    assert axes.param_axes("score.weight", 2) == ("embed", None) and axes.param_axes("score.bias", 1) == (None,)
    assert sharding.spec(*axes.param_axes("score.weight", 2), rules=sharding.TRAIN)[0] is not None


def test_a_reward_model_has_no_logits() -> None:
    config = scored(tiny_config(tied=True), 1, False)
    model = policy.init_policy(config, jax.random.key(0))
    with pytest.raises(AssertionError, match="no LM head"):
        forward.logits(model, jnp.ones((1, 32)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("said", [{}, {"num_labels": 1}, {"id2label": {"0": "a", "1": "b", "2": "c"}}], ids=repr)
def test_outputs_and_bias_are_transformers(architecture: str, said: dict[str, Any]) -> None:
    family = architecture.partition("For")[0]
    raw = tiny_hf(family.lower(), architectures=[architecture], **said)
    theirs = getattr(transformers, f"{family}Config")(**raw)
    with torch.device("meta"):
        head = getattr(transformers, architecture)(theirs).score
    assert from_hf(raw).score == ScoreConfig(outputs=head.out_features, bias=head.bias is not None)
    bare = from_hf(tiny_hf(family.lower()))
    assert dataclasses.replace(from_hf(raw), score=None) == bare  # biases, norms and windows are the family's


def test_a_token_head_may_say_that_it_has_no_bias() -> None:
    raw = tiny_hf(architectures=["LlamaForTokenClassification"], token_classification_bias=False)
    assert from_hf(raw).score == ScoreConfig(outputs=2, bias=False)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"num_labels": 3, "id2label": {"0": "a", "1": "b"}}, "num_labels=3 and id2label=.*do not agree"),
        ({"id2label": ["a"]}, "id2label=.*do not agree"),
        ({"id2label": {}}, "0 labels"),
        ({"num_labels": 0}, "0 labels"),
        ({"num_labels": "many"}, "num_labels='many'; expected a whole number"),
        ({"tt_hidden_size": 8}, "both a reward channel and a score head"),
        ({"architectures": ["LlamaForSequenceClasification"]}, "Did you mean 'LlamaForSequenceClassification'"),
    ],
    ids=repr,
)
def test_what_is_wrong_is_said(said: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_hf(tiny_hf(architectures=["LlamaForSequenceClassification"]) | said)


def test_a_config_without_a_score_prints_as_it_always_did() -> None:
    assert repr(tiny_config()) == str(tiny_config()) == BEFORE
    with_one = scored(tiny_config(), 2, True)
    assert repr(with_one) == BEFORE.removesuffix(")") + ", score=ScoreConfig(outputs=2, bias=True))"
    other = dataclasses.replace(with_one, score=ScoreConfig(outputs=2, bias=True, kind="mlp"))
    assert repr(other).endswith("score=ScoreConfig(outputs=2, bias=True, kind='mlp'))") and other != with_one
    assert with_one != tiny_config() and hash(with_one) == hash(scored(tiny_config(), 2, True))
    with pytest.raises(UserError, match="one or the other"):
        dataclasses.replace(with_one, channel=ChannelConfig(width=4))
