"""config.json of strangers: sizes that no model has are told before anything is made of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.errors import UserError
from sla_jax.model.config import LARGEST, ModelConfig, from_hf
from tests.tiny import HF_FAMILIES, tiny_hf

NASTY: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(-1, 0, 1.5, True, "8", [], {}, [8], 10**400, 2**63, 1e308, 1e-308, float("nan"), float("inf"), None, 7, 97),
        *(
            "x" * 10**5,
            ["LlamaForCausalLM"] * 2,
            [["LlamaForCausalLM"]],
            {"rope_type": []},
            {"factor": -1, "type": "linear"},
        ),
    ]
)
FIELDS = [
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings", "hidden_act", "architectures"),
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "rope_scaling", "rope_parameters", "sliding_window"),
    *("use_sliding_window", "max_window_layers", "layer_types", "tt_hidden_size", "sr_head_layer", "sr_out_dim"),
    *("sr_hidden_size_rate", "num_labels", "id2label", "token_classification_bias"),
]


@given(
    st.sampled_from(list(HF_FAMILIES)),
    st.dictionaries(st.sampled_from(FIELDS), NASTY, min_size=1, max_size=3),
    st.booleans(),
)
def test_a_config_is_told_or_has_sizes_of_models(family: str, fields: dict[str, Any], labels: bool) -> None:
    raw = tiny_hf(family)
    if labels:
        raw["architectures"] = [raw["architectures"][0].replace("CausalLM", "TokenClassification")]
    try:
        config = from_hf(raw | fields)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 4100
        return
    sizes = {"hidden_size": config.width, "num_hidden_layers": config.layers, "head_dim": config.head_dim}
    assert isinstance(config, ModelConfig) and len(config.windows) == config.layers
    for name, size in sizes.items():
        assert type(size) is int and 0 < size <= LARGEST[name]
    assert 0 < config.eps < float("inf") and 0 < config.rope.theta < float("inf") and type(config.tied) is bool


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_hidden_layers": 10**12}, "num_hidden_layers=1000000000000; expected a whole number from 1 to 1024"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5; expected a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"head_dim": 7}, "heads of size 7"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan; expected a number above 0"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false'; expected true or false"),
        ({"sliding_window": 5, "layer_types": ["full_attention"]}, "layer_types=.*for each of 2 layers"),
        ({"sliding_window": 5, "layer_types": ["chunked"] * 2}, "layer_types=.*one of full_attention"),
        ({"sliding_window": -5}, "sliding_window=-5"),
        (
            {"tt_hidden_size": 8, "sr_head_layer": 10**9},
            "sr_head_layer=1000000000; expected a whole number from 1 to 16",
        ),
        ({"architectures": "LlamaForCausalLM"}, "architectures='LlamaForCausalLM'; expected a list"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}},
            "high_freq_factor=4 is not above low_freq_factor=4",
        ),
    ],
    ids=repr,
)
def test_sizes_that_no_model_has_are_told(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        from_hf(tiny_hf("llama") | fields)


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert from_hf(tiny_hf("llama", max_position_embeddings=256.0)) == from_hf(tiny_hf("llama"))
