"""A channel on its own: saved, loaded, attached; refused where it does not fit."""

import dataclasses
import hashlib
import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sla_jax.checkpoint import import_checkpoint, info, load, load_channel, save_channel
from sla_jax.checkpoint.channel_file import KEY
from sla_jax.errors import UserError
from sla_jax.model.channel import init_channel
from sla_jax.model.config import ChannelConfig
from sla_jax.model.policy import param_paths
from tests.checkpoint import models
from tests.tiny import tiny_config

CHANNELS = (
    ChannelConfig(width=6),
    ChannelConfig(width=4, head_layers=3, head_outputs=1, head_hidden_rate=0.5),
)


def saved(path, channel=CHANNELS[0], **changes):
    config = tiny_config(channel=channel, **changes)
    made = init_channel(config, jax.random.key(3))
    save_channel(path, made, config, {"data": "made up"})
    return made, config


@pytest.mark.parametrize("described", CHANNELS)
def test_save_then_load(described, tmp_path):
    made, config = saved(tmp_path / "new" / "c.safetensors", described)
    found, channel = load_channel(tmp_path / "new" / "c.safetensors", dataclasses.replace(config, channel=None))
    assert channel == described
    assert jax.tree.structure(found) == jax.tree.structure(made)
    for name, leaf in param_paths(made).items():
        assert np.array_equal(leaf, param_paths(found)[name]), name
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.safetensors"]


def test_names_are_public_and_the_file_says_what_it_is(tmp_path):
    made, _ = saved(tmp_path / "c.safetensors")
    arrays = load_file(tmp_path / "c.safetensors")
    assert sorted(arrays) == sorted(models.channel_tensors(32, 2, 6, (2,)))
    assert np.array_equal(arrays["tt_layers.1.tt_linear.weight"].T, made.linear[0])
    with safe_open(tmp_path / "c.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["data"] == "made up"
    described = json.loads(metadata["sla_jax_channel"])
    assert described["channel"]["width"] == 6 and described["policy"]["hidden_size"] == 32


def test_import_attaches_it(tmp_path):
    made, _ = saved(tmp_path / "c.safetensors", CHANNELS[1])
    src = models.hf_dir(tmp_path / "src", "llama")
    import_checkpoint(str(src), tmp_path / "ours", channel=tmp_path / "c.safetensors")
    found = load(tmp_path / "ours")
    assert found.config.channel == CHANNELS[1]
    assert found.raw_config["architectures"] == ["LlamaForCausalLMRewardTransformer"]
    digest = hashlib.sha256((tmp_path / "c.safetensors").read_bytes()).hexdigest()[:16]
    assert info(tmp_path / "ours").channel == f"{tmp_path.name}/c.safetensors (sha256 {digest})"
    for name, leaf in param_paths(made).items():
        assert np.array_equal(leaf, param_paths(found.policy)[f"channel.{name}"]), name


def test_a_checkpoint_says_whose_channel_it_has(tmp_path):
    saved(tmp_path / "c.safetensors")
    import_checkpoint(str(models.hf_dir(tmp_path / "src", "llama")), tmp_path / "bare")
    bare = info(tmp_path / "bare")
    assert bare.channel == "none"
    with_one = dataclasses.replace(bare, config=tiny_config(channel=CHANNELS[0]))
    assert with_one.channel == f"that of {bare.provenance['source']}"
    trained = dataclasses.replace(with_one, provenance={"training": {"steps": 7}})
    assert trained.channel == "trained with it (7 steps)"


def test_the_policy_keeps_its_type(tmp_path):
    saved(tmp_path / "c.safetensors")
    src = models.hf_dir(tmp_path / "src", "llama", dtype=models.torch.bfloat16)
    import_checkpoint(str(src), tmp_path / "ours", channel=tmp_path / "c.safetensors")
    assert {str(param.dtype) for param in info(tmp_path / "ours").params.values()} == {"bfloat16"}


def test_a_channel_for_another_policy_is_refused_with_both_sizes(tmp_path):
    saved(tmp_path / "c.safetensors", width=48, layers=3)
    with pytest.raises(UserError, match="hidden_size 48, num_hidden_layers 3; this policy has hidden_size 32, num_hid"):
        load_channel(tmp_path / "c.safetensors", tiny_config())
    src = models.hf_dir(tmp_path / "src", "llama")
    with pytest.raises(UserError, match="does not fit this policy"):
        import_checkpoint(str(src), tmp_path / "ours", channel=tmp_path / "c.safetensors")
    assert not (tmp_path / "ours").exists()


def test_a_second_channel_is_refused(tmp_path):
    saved(tmp_path / "c.safetensors")
    models.sla_dir(tmp_path / "src")
    with pytest.raises(UserError, match="already has a reward channel"):
        import_checkpoint(str(tmp_path / "src"), tmp_path / "ours", channel=tmp_path / "c.safetensors")


def test_other_files_are_refused_by_what_is_wrong(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(UserError, match="there is no channel file"):
        load_channel(path, tiny_config())
    arrays = models.channel_tensors(32, 2, 6, (2,))
    save_file(arrays, path)
    with pytest.raises(UserError, match="does not say what it is"):
        load_channel(path, tiny_config())
    saved(path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    save_file({**arrays, "sr_head.bias": np.ones(2, np.float32)}, path, metadata)
    with pytest.raises(UserError, match=r"c\.safetensors is damaged: its SHA-256 is not the one that it holds"):
        load_channel(path, tiny_config())
    metadata = described(metadata)
    save_file({**arrays, "sr_head.bias": np.ones(2, np.float32)}, path, metadata)
    with pytest.raises(UserError, match=r"holds the tensor 'sr_head.bias'.*Did you mean 'sr_head.weight'"):
        load_channel(path, tiny_config())
    del arrays["sr_head.weight"]
    save_file(arrays, path, metadata)
    with pytest.raises(UserError, match=r"lacks the tensor 'sr_head.weight'"):
        load_channel(path, tiny_config())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged or truncated"):
        load_channel(path, tiny_config())


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ('{"a":' * 10**5, "does not say what it is"),
        ("[]", "does not say what it is"),
        ('{"channel": 5, "policy": {}}', "does not say what it is"),
        ('{"channel": {"width": 0}, "policy": {}}', "tt_hidden_size=0; expected a whole number from 1"),
        ('{"channel": {"width": 1e400}, "policy": {}}', "tt_hidden_size=inf; expected a whole number"),
        ('{"channel": {"width": 6, "head_layers": 1000000000}, "policy": {}}', "sr_head_layer=1000000000; expected"),
        ('{"channel": {"width": 6, "head_hidden_rate": NaN}, "policy": {}}', "sr_hidden_size_rate=nan; expected"),
    ],
)
def test_sizes_that_no_channel_has_are_told(tmp_path, described, said):
    path = tmp_path / "c.safetensors"
    save_file(models.channel_tensors(32, 2, 6, (2,)), path, {"sla_jax_channel": described})
    with pytest.raises(UserError, match=said):
        load_channel(path, tiny_config())


def described(metadata, **channel):
    """Another's metadata: without our digest, and with other sizes."""
    found = {name: value for name, value in json.loads(metadata[KEY]).items() if name != "sha256"}
    return metadata | {KEY: json.dumps(found | {"channel": found["channel"] | channel})}


@pytest.mark.parametrize(
    ("channel", "said"),
    [
        ({"width": True}, "tt_hidden_size=True; expected a whole number"),
        ({"head_outputs": "2"}, "sr_out_dim='2'; expected a whole number"),
        ({"depth": 2}, "does not say what it is"),
        ({"head_layers": 9}, "says that its head has 9 layers; it holds 5 tensors"),
    ],
)
def test_sizes_that_are_none_are_refused(tmp_path, channel, said):
    path = tmp_path / "c.safetensors"
    saved(path)
    with safe_open(path, "np") as file:
        metadata = described(file.metadata(), **channel)
    save_file(models.channel_tensors(32, 2, 6, (2,)), path, metadata)
    with pytest.raises(UserError, match=said):
        load_channel(path, tiny_config())
