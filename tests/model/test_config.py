"""config.json read: every family as transformers reads it, and nothing guessed."""

from typing import Any

import pytest

from sla_jax.errors import UserError
from sla_jax.model.config import from_hf
from tests import families
from tests.torch_reference import CLASSES

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    **families.SIZES,
}


def theirs(raw: dict[str, Any]) -> Any:
    """The same file as transformers reads it."""
    make_config, _ = CLASSES[raw["architectures"][0]]
    return make_config(**raw)


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_windows_are_transformers(name: str) -> None:
    one = families.family(name)
    kinds = (
        getattr(one.model.config, "layer_types", None)
        or ["sliding_attention" if one.model.config.to_dict().get("sliding_window") else "full_attention"]
        * one.config.layers
    )
    slides = [one.model.config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    assert list(one.config.windows) == slides


@pytest.mark.parametrize(
    "fields",
    [
        {"sliding_window": 7, "use_sliding_window": False},
        {"sliding_window": 7},  # Qwen switches it on explicitly or not at all
        {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1},
        {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 2},
    ],
    ids=repr,
)
@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_qwens_windows_need_their_switch(architecture: str, fields: dict[str, Any]) -> None:
    raw = LLAMA | fields | {"architectures": [architecture], "head_dim": 8}
    config = theirs(raw)
    slides = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
    assert list(from_hf(raw).windows) == slides


@pytest.mark.parametrize("old", [True, False], ids=["rope_scaling", "rope_parameters"])
def test_rope_in_both_spellings(old: bool) -> None:
    scaling = {name: value for name, value in families.LLAMA3_ROPE.items() if name != "rope_theta"}
    bare = {name: value for name, value in LLAMA.items() if name != "rope_theta"}
    spelled = {"rope_theta": 500.0, "rope_scaling": scaling} if old else {"rope_parameters": families.LLAMA3_ROPE}
    assert from_hf(bare | spelled).rope == families.family("llama31").config.rope


def test_sizes_and_what_they_imply() -> None:
    config = from_hf(LLAMA)
    assert (config.head_dim, config.groups, config.channel, config.tied) == (8, 2, None, False)
    assert from_hf({**LLAMA, "architectures": ["LlamaForCausalLMRewardTransformer"]}).channel is not None
    bias = {"attention_bias": True}
    assert (from_hf(LLAMA | bias).qkv_bias, from_hf(LLAMA | bias).out_bias) == (True, True)
    qwen = from_hf(LLAMA | {"architectures": ["Qwen2ForCausalLM"]})
    assert (qwen.qkv_bias, qwen.out_bias, qwen.qk_norm) == (True, False, False)
    assert from_hf(LLAMA | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 8}).qk_norm


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["LlamaForCausalLn"]}, "LlamaForCausalLn.*supported.*Did you mean 'LlamaForCausalLM'"),
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*supported are LlamaForCausalLM"),
        ({"architectures": []}, "nothing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn.*llama3"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_size": "many"}, "hidden_size.*many"),
    ],
    ids=repr,
)
def test_what_is_wrong_is_said(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"(?s){said}"):
        from_hf(LLAMA | change)


@pytest.mark.parametrize("name", ["rope_theta", "rms_norm_eps", "hidden_size", "vocab_size", "hidden_act"])
def test_numbers_have_no_defaults(name: str) -> None:
    with pytest.raises(UserError, match=name):
        from_hf({field: value for field, value in LLAMA.items() if field != name})
