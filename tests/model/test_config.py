"""config.json read: every family as transformers reads it, and nothing guessed."""

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.errors import UserError
from sla_jax.model.config import LIBRARY, from_hf, left_out
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
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "has no 'low_freq_factor'"),
        ({"rope_scaling": ["linear"]}, "expected one rotation for all layers"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "rope_parameters=.*expected one rotation for all",
        ),
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


@pytest.mark.parametrize("absent", [True, False], ids=["absent", "null"])
@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_sizes_have_no_defaults(name: str, absent: bool) -> None:
    raw = {field: value for field, value in LLAMA.items() if field != name} | ({} if absent else {name: None})
    said = f"has no '{name}'" if absent else f"says null for '{name}'"
    with pytest.raises(UserError, match=f"{said}; it changes the numbers, so it has no default.$"):
        from_hf(raw)


def test_a_hint_is_a_misspelled_name_and_never_one_that_is_read() -> None:
    raw = {field: value for field, value in LLAMA.items() if field != "num_hidden_layers"}
    with pytest.raises(UserError, match="Did you mean 'num_hiden_layers'"):
        from_hf(raw | {"num_hiden_layers": 2})
    with pytest.raises(UserError, match=r"low_freq_factor'; it changes the numbers, so it has no default\.$"):
        from_hf(LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}})


# ---- what older releases leave out ----

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@pytest.mark.parametrize("model_type", list(LIBRARY))
def test_the_table_is_transformers_own(model_type: str) -> None:
    make_config, _ = CLASSES[f"{FAMILIES[model_type]}ForCausalLM"]
    theirs = {name: field.default for name, field in inspect.signature(make_config).parameters.items()}
    theirs["rope_theta"] = make_config().rope_parameters["rope_theta"]
    assert {name: theirs[name] for name in LIBRARY[model_type]} == LIBRARY[model_type]


@given(st.sampled_from(list(FAMILIES)), st.data())
def test_whatever_is_left_out_is_read_as_transformers_reads_it(model_type: str, data: st.DataObject) -> None:
    architecture = f"{FAMILIES[model_type]}ForCausalLM"
    said = {name: families.SIZES[name] for name in SIZES} | {"num_attention_heads": 32, "hidden_size": 64}
    said |= {"num_key_value_heads": 8, "head_dim": 4, "rope_theta": 5e5, "rms_norm_eps": 1e-5, "hidden_act": "silu"}
    said |= {"max_position_embeddings": 512, "tie_word_embeddings": True, "num_hidden_layers": 30}
    said |= {"sliding_window": 7, "max_window_layers": 3, "use_sliding_window": True}
    if model_type == "llama":  # which has no windows
        said = {name: value for name, value in said.items() if "window" not in name}
    absent = data.draw(st.sets(st.sampled_from(sorted(said.keys() - {*SIZES}))))
    if model_type == "mistral":  # which has no such switch
        absent |= {"use_sliding_window", "max_window_layers"}
    raw = {name: value for name, value in said.items() if name not in absent} | {"architectures": [architecture]}
    make_config, _ = CLASSES[architecture]
    theirs, ours = make_config(**raw), from_hf(raw)
    assert set(left_out(raw)) == LIBRARY[model_type].keys() - raw.keys()
    assert (ours.rope.theta, ours.eps) == (theirs.rope_parameters["rope_theta"], theirs.rms_norm_eps)
    assert (ours.tied, ours.activation) == (theirs.tie_word_embeddings, theirs.hidden_act)
    assert (ours.max_positions, ours.kv_heads) == (theirs.max_position_embeddings, theirs.num_key_value_heads)
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    window = getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    assert list(ours.windows) == [window if kind == "sliding_attention" else None for kind in kinds]


@pytest.mark.parametrize("scaling", [{}, {"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}])
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_rope_theta_is_left_out_beside_any_scaling_that_does_not_say_it(scaling: dict[str, Any], place: str) -> None:
    bare = {name: value for name, value in LLAMA.items() if name != "rope_theta"}
    assert from_hf(bare | {place: scaling}).rope.theta == left_out(bare | {place: scaling})["rope_theta"] == 10000.0
    said = bare | {place: scaling | {"rope_theta": 5e5}}
    assert from_hf(said).rope.theta == 5e5 and "rope_theta" not in left_out(said)


def test_null_is_a_value_and_none_of_the_librarys() -> None:
    mistral = LLAMA | {"architectures": ["MistralForCausalLM"]}
    assert set(from_hf(mistral).windows) == {4096} and left_out(mistral)["sliding_window"] == 4096
    assert set(from_hf(mistral | {"sliding_window": None}).windows) == {None}
    for name in ("rope_theta", "rms_norm_eps", "hidden_act", "max_position_embeddings"):
        with pytest.raises(UserError, match=f"says null for '{name}'"):
            from_hf(LLAMA | {name: None})
