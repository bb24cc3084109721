"""The store: whole or not at all, any sharding, any type, self-sufficient."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax.checkpoint import import_checkpoint, info, load, raw_with_channel, save
from sla_jax.checkpoint.staging import partial_path
from sla_jax.errors import UserError
from sla_jax.model.config import ChannelConfig, from_hf
from sla_jax.model.policy import init_policy, param_paths, param_shapes
from tests.checkpoint import models
from tests.tiny import tiny_hf

ROOT = Path(__file__).resolve().parents[2]
# imports argv[1] to argv[2] and dies by SIGKILL at report number argv[3]
KILLED = """
import os, signal, sys, itertools
from pathlib import Path
from sla_jax.checkpoint import import_checkpoint
calls = itertools.count()
def report(what, done, total):
    if next(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
import_checkpoint(sys.argv[1], Path(sys.argv[2]), report=report, overwrite=True)
"""


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for name, leaf in param_paths(one).items():
        assert np.array_equal(np.asarray(leaf), np.asarray(param_paths(other)[name])), name


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A checkpoint with a channel, not to be changed."""
    folder = tmp_path_factory.mktemp("store")
    models.sla_dir(folder / "src", head=(32, 2))
    import_checkpoint(str(folder / "src"), folder / "ours")
    return folder / "ours"


def test_save_then_load_is_the_same_policy(tmp_path):
    raw = raw_with_channel(tiny_hf("qwen3"), ChannelConfig(width=4))
    policy = init_policy(from_hf(raw), jax.random.key(0))
    extras = {"tokenizer.json": "{}", "chat_template.jinja": "grüße".encode()}
    save(tmp_path / "a", policy, raw, extras=extras, provenance={"made": "here"}, train_config="steps: 1\n")
    found = load(tmp_path / "a")
    assert_equal(policy, found.policy)
    assert found.raw_config == raw and found.config == from_hf(raw) and found.provenance == {"made": "here"}
    assert raw["architectures"] == ["Qwen3ForCausalLM"] and raw["tt_hidden_size"] == 4
    assert (tmp_path / "a" / "train.yaml").read_text() == "steps: 1\n"
    assert (tmp_path / "a" / "chat_template.jinja").read_text(encoding="utf-8") == "grüße"
    save(tmp_path / "b", policy, raw, extras=tmp_path / "a", provenance={})
    assert (tmp_path / "b" / "tokenizer.json").read_text() == "{}" and not (tmp_path / "b" / "train.yaml").exists()


def test_save_takes_the_channel_from_the_caller_and_refuses_to_lose_it(tmp_path):
    raw = tiny_hf("llama")
    channel = ChannelConfig(width=4, head_layers=2, head_outputs=1, head_hidden_rate=0.5)
    policy = init_policy(from_hf(raw_with_channel(raw, channel)), jax.random.key(0))
    with pytest.raises(UserError, match=r"'channel\.first' .* does not fit its config\.json"):
        save(tmp_path / "a", policy, raw, extras={}, provenance={})
    assert not list(tmp_path.iterdir())
    save(tmp_path / "a", policy, raw, extras={}, provenance={}, channel=channel)
    assert load(tmp_path / "a").config.channel == channel


def test_stored_types_are_kept_and_can_be_changed(tmp_path):
    raw = tiny_hf("smollm2")
    policy = init_policy(from_hf(raw), jax.random.key(0), jnp.dtype(jnp.bfloat16))
    save(tmp_path / "a", policy, raw, extras={}, provenance={})
    assert info(tmp_path / "a").dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(load(tmp_path / "a").policy)} == {jnp.dtype(jnp.bfloat16)}
    wide = load(tmp_path / "a", dtype="float32").policy
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype(jnp.float32)}
    assert_equal(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), policy), wide)


@pytest.mark.parametrize("as_function", [False, True])
def test_restores_into_a_sharding(ours, as_function):
    mesh = jax.make_mesh((4,), ("model",))

    def shard(name, shape):
        fits = [axis for axis, size in enumerate(shape.shape) if size % 4 == 0]
        names = [None] * len(shape.shape)
        if fits:
            names[fits[-1]] = "model"
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*names))

    plain = load(ours)
    shapes = param_shapes(plain.config)
    table = {name: shard(name, shape) for name, shape in shapes.items()}
    sharded = load(ours, shardings=shard if as_function else table)
    for name, leaf in param_paths(sharded.policy).items():
        assert leaf.sharding == table[name], name
    assert len(param_paths(sharded.policy)["blocks.attn.q"].sharding.device_set) == 4
    assert_equal(plain.policy, sharded.policy)
    assert param_paths(plain.policy)["embed"].sharding.device_set == {jax.devices()[0]}


def test_a_sharded_policy_saves_what_it_is(ours, tmp_path):
    mesh = jax.make_mesh((4,), ("model",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    kinds = {"blocks.attn.q": split, "blocks.mlp.up": split}
    found = load(ours, shardings=lambda name, shape: kinds.get(name, whole))
    save(tmp_path / "a", found.policy, found.raw_config, extras=ours, provenance={})
    assert_equal(load(ours).policy, load(tmp_path / "a").policy)


def test_the_destination_is_never_silently_replaced(ours, tmp_path):
    found = load(ours)

    def again(path, overwrite=False):
        save(path, found.policy, found.raw_config, extras=ours, provenance={}, overwrite=overwrite)

    (tmp_path / "empty").mkdir()
    again(tmp_path / "empty")
    with pytest.raises(UserError, match="pass --overwrite"):
        again(tmp_path / "empty")
    again(tmp_path / "empty", overwrite=True)
    assert load(tmp_path / "empty").config == found.config
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("ten years")
    with pytest.raises(UserError, match="not a sla-jax checkpoint"):
        again(tmp_path / "theirs", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        again(tmp_path / "file", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "theirs"]


@pytest.mark.parametrize("at", [0, 9, 20])
def test_a_killed_import_leaves_nothing_that_loads(ours, tmp_path, at):
    src = ours.parent / "src"
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(src), str(tmp_path / "ours"), str(at)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "ours").exists()
    left = partial_path(tmp_path / "ours")
    assert list(tmp_path.iterdir()) == [left]
    with pytest.raises(UserError, match="not a complete sla-jax checkpoint"):
        load(left)
    import_checkpoint(str(src), tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    assert_equal(load(ours).policy, load(tmp_path / "ours").policy)


def test_what_is_not_a_checkpoint_says_what_to_do(ours, tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint at .*convert.py import"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match="If it is a Hugging Face directory, import it"):
        load(ours.parent / "src")
    with pytest.raises(UserError, match="already a sla-jax checkpoint"):
        import_checkpoint(str(ours), tmp_path / "again")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda at: (at / "sla_jax.json").write_text('{"format": 9}'), "has format 9; this version reads 1"),
        (lambda at: (at / "sla_jax.json").write_text('{"format": 1}'), "is damaged"),
        (lambda at: (at / "sla_jax.json").write_text("{"), "not JSON"),
        (lambda at: edit_config(at, num_hidden_layers=3), "config.json does not describe the stored parameters"),
        (lambda at: (at / "params" / "embed" / "_METADATA").unlink(), "'embed' cannot be restored"),
        (lambda at: (at / "params" / "norm").rename(at / "params" / "nrm"), "'norm' cannot be restored"),
    ],
)
def test_damage_is_named(ours, tmp_path, damage, message):
    found = load(ours)
    save(tmp_path / "a", found.policy, found.raw_config, extras=ours, provenance={})
    damage(tmp_path / "a")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a")


def edit_config(path, **fields):
    raw = {**models.config(path), **fields}
    (path / "config.json").write_text(json.dumps(raw))
