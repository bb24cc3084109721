"""A reward channel on its own: a safetensors file with the public names and a description of what it fits.

Names are those of the SLA release (`tt_layers.{i}.tt_layernorm.weight`, `tt_layers.{i}.tt_linear.weight`,
`sr_head…`), so the file is also readable by others. Its metadata holds, as JSON under `sla_jax_channel`, the
channel's sizes and the policy's, and the SHA-256 of the file, taken while 64 zeros stood in its place. A file without
one is of an older release, or was written by others, and is taken as it is.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sla_jax.checkpoint import safetensors_file as st
from sla_jax.checkpoint.mapping import CHANNEL_PREFIXES, Slot, check, slots
from sla_jax.checkpoint.sources import SafetensorsSource
from sla_jax.errors import UserError
from sla_jax.files import replacing
from sla_jax.model.channel import Channel, init_channel
from sla_jax.model.config import ChannelConfig, ModelConfig, channel_config
from sla_jax.model.policy import param_paths

KEY = "sla_jax_channel"
FIELDS = {  # of ChannelConfig → config.json's
    "width": "tt_hidden_size",
    "head_layers": "sr_head_layer",
    "head_outputs": "sr_out_dim",
    "head_hidden_rate": "sr_hidden_size_rate",
}
PARTS = {"channel", "policy", "sha256"}  # of what stands there; older files have no sha256
NO_SUM = "0" * 64


def save_channel(path: Path, channel: Channel, config: ModelConfig, metadata: Mapping[str, str] | None = None) -> None:
    """Write a channel. `config` is its policy's (with `channel` set); `metadata` is free text, by name."""
    assert config.channel is not None, "config.channel describes the channel that is saved"
    arrays = {f"channel.{name}": np.asarray(leaf) for name, leaf in param_paths(channel).items()}
    chosen = _slots(config)
    specs = [st.Spec(slot.public, slot.shape, arrays[slot.ours].dtype) for slot in chosen]
    described = {"channel": dataclasses.asdict(config.channel), "policy": _policy(config), "sha256": NO_SUM}
    tensors = (public_array(arrays[slot.ours], slot) for slot in chosen)
    with replacing(Path(path)) as part:
        st.write(part, specs, tensors, {**(metadata or {}), KEY: json.dumps(described)})
        with part.open("r+b") as file:
            raw = file.read()
            file.seek(raw.index(NO_SUM.encode()))
            file.write(hashlib.sha256(raw).hexdigest().encode())


def load_channel(path: Path, config: ModelConfig) -> tuple[Channel, ChannelConfig]:
    """Read a channel for the policy that `config` describes. UserError: one that does not fit (with both sizes) or
    is damaged."""
    source, channel = read_channel(path, config)
    full = dataclasses.replace(config, channel=channel)
    parts: dict[str, list[np.ndarray]] = {}
    for slot in _slots(full):
        array = source.read(slot.public)
        parts.setdefault(slot.ours, []).append(array.T if slot.transpose else array)
    abstract = jax.eval_shape(lambda key: init_channel(full, key), jax.random.key(0))
    shapes = {f"channel.{name}": leaf.shape for name, leaf in param_paths(abstract).items()}
    leaves = [jnp.asarray(np.stack(parts[name]).reshape(shape)) for name, shape in shapes.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves), channel


def read_channel(path: Path, config: ModelConfig) -> tuple[SafetensorsSource, ChannelConfig]:
    """Open a channel file and check it against its policy, names and shapes included, and against its own sum."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no channel file {path}.")
    source = SafetensorsSource([path])
    channel, policy, digest = _described(path, source.metadata)
    if digest is not None:
        _check_sum(path, digest)
    mine = _policy(config)
    if wrong := [name for name in mine if policy.get(name) != mine[name]]:
        theirs, ours = (", ".join(f"{name} {side.get(name)}" for name in wrong) for side in (policy, mine))
        raise UserError(
            f"the channel {path} does not fit this policy: it was made for {theirs}; this policy has {ours}. Use the "
            "policy it was trained on, or train another channel."
        )
    tensors = source.shapes()
    if channel.head_layers > len(tensors):
        raise UserError(f"{path} says that its head has {channel.head_layers} layers; it holds {len(tensors)} tensors.")
    full = dataclasses.replace(config, channel=channel)
    policy_names = {slot.public: slot.shape for slot in slots(full) if not slot.public.startswith(CHANNEL_PREFIXES)}
    check(full, {**policy_names, **tensors}, str(path))
    return source, channel


def public_array(array: np.ndarray, slot: Slot) -> np.ndarray:
    """The public tensor of one slot, from our (possibly stacked) parameter."""
    one = array if slot.layer is None else array[slot.layer]
    return one.T if slot.transpose else one


def _check_sum(path: Path, digest: str) -> None:
    raw = path.read_bytes().replace(digest.encode(), NO_SUM.encode(), 1)
    if hashlib.sha256(raw).hexdigest() != digest:
        raise UserError(
            f"{path} is damaged: its SHA-256 is not the one that it holds. Take it from a copy, or run the training "
            "that wrote it once more: it writes its result again."
        )


def _described(path: Path, metadata: Mapping[str, str]) -> tuple[ChannelConfig, dict[str, Any], str | None]:
    """The channel's sizes, the policy's, and the file's digest if it has one."""
    try:
        described = json.loads(metadata[KEY])
        if unknown := described.keys() - PARTS:
            raise KeyError(*unknown)
        fields, policy = dict(described["channel"]), dict(described["policy"])
        if unknown := fields.keys() - FIELDS.keys():
            raise KeyError(*unknown)
        digest = str(described["sha256"]) if "sha256" in described else None
        return (
            channel_config({public: fields[name] for name, public in FIELDS.items() if name in fields}),
            policy,
            digest,
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise UserError(
            f"{path} does not say what it is (no readable {KEY} in its metadata). A channel file is written by "
            "train.py; a whole public checkpoint with a channel is imported with `convert.py import`."
        ) from None
    except UserError as error:
        raise UserError(f"{path} describes a channel that there is not: {error}") from None


def _policy(config: ModelConfig) -> dict[str, Any]:
    """What a policy must share with the one a channel was trained on, in config.json's words."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.eps,
    }


def _slots(config: ModelConfig) -> list[Slot]:
    return [slot for slot in slots(config) if slot.public.startswith(CHANNEL_PREFIXES)]
