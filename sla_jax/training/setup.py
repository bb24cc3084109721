"""From a config to what a run works on: the frozen policy, its tokenizer, tokens and the source of batches."""

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sla_jax.checkpoint import store
from sla_jax.checkpoint.channel_file import load_channel
from sla_jax.errors import UserError
from sla_jax.model.axes import param_shardings
from sla_jax.model.channel import Channel, init_channel
from sla_jax.model.config import ChannelConfig, ModelConfig
from sla_jax.model.policy import Policy, with_channel, without_channel
from sla_jax.sharding import TRAIN
from sla_jax.text import load_tokenizer
from sla_jax.training import tiny
from sla_jax.training.batches import TokenPairs, tokenize
from sla_jax.training.cache import cached_source
from sla_jax.training.config import TINY, DataConfig, FeaturesConfig, TrainConfig
from sla_jax.training.data import Pair, Rows, held_out, read_dataset, read_files
from sla_jax.training.display import bar, say
from sla_jax.training.features import Source, Subset, TokenSource


class Base(NamedTuple):
    """The frozen policy without any channel, and what belongs to it."""

    policy: Policy
    config: ModelConfig
    raw_config: dict[str, Any]
    directory: Path
    tokenizer: Any
    provenance: dict[str, Any]


class Data(NamedTuple):
    """Tokens of one set of pairs and where its batches come from."""

    tokens: TokenPairs
    source: Source


def load_base(config: TrainConfig, out: Path, mesh: Mesh) -> Base:
    """The policy of `config.model` in the training layout on `mesh`; the tiny preset is made in OUT/base first."""
    directory = Path(config.model)
    if config.model == TINY:
        directory = out / "base"
        tiny.make_checkpoint(directory, config.seed)
    found = store.info(directory)
    shardings = param_shardings(found.config, mesh, TRAIN)
    loaded = store.load(directory, dtype=config.dtype, shardings=shardings)
    bare = without_channel(loaded.config)
    policy = with_channel(loaded.policy, bare, None)
    return Base(policy, bare, loaded.raw_config, directory, load_tokenizer(directory), loaded.provenance)


def read_pairs(data: DataConfig, seed: int) -> list[Pair]:
    """All pairs of the one source that `data` names. Raises UserError when it names none."""
    if data.generated:
        rows = Rows(tiny.generated_pairs(data.generated, seed), 0, Counter())
    elif data.dataset:
        rows = read_dataset(data.dataset, data.subset, data.split, data.on_bad_row)
    elif data.files:
        rows = read_files(data.files, data.split, data.on_bad_row)
    else:
        raise UserError("there is no training data; give --data.files FILE … or --data.dataset NAME.")
    for reason, count in sorted(rows.bad.items()):
        say(f"skipped {count} bad rows: {reason}")
    if rows.other_split:
        say(f"left out {rows.other_split} rows of other splits than {data.split!r}")
    return rows.pairs


def to_tokens(base: Base, pairs: list[Pair], max_length: int, max_prompt_length: int) -> TokenPairs:
    """Tokenize and say what was shortened. Raises UserError when max_length is beyond the policy's context."""
    if max_length > base.config.max_positions:
        raise UserError(
            f"max_length={max_length} is beyond the {base.config.max_positions} positions of the policy in "
            f"{base.directory}; lower it."
        )
    tokens = tokenize(base.tokenizer, pairs, max_length, max_prompt_length)
    if tokens.cut_prompts or tokens.cut_responses:
        say(f"shortened {tokens.cut_prompts} prompts (on the left) and {tokens.cut_responses} responses (at the end)")
    return tokens


def make_source(base: Base, features: FeaturesConfig, devices: int, tokens: TokenPairs) -> Source:
    """Where the batches of all pairs come from; with `cache` the cache is filled first."""
    if features.mode == "recompute":
        return TokenSource(tokens)
    if jax.process_count() > 1:
        raise UserError("the feature cache serves one process; on several hosts pass --features.mode recompute.")
    with bar("features") as tell:
        return cached_source(
            tokens,
            base.policy,
            base.config,
            folder=Path(features.dir),
            dtype=features.dtype,
            batch_tokens=features.batch_tokens,
            devices=devices,
            progress=lambda done, total: tell(done, total, "response tokens"),
        )


def split_off(pairs: list[Pair], tokens: TokenPairs, source: Source, one_in: int) -> tuple[Data, Data]:
    """(training part, held-out part). Both read one source, so the cache does not depend on what is held out."""
    held = np.asarray([held_out(pair, one_in) for pair in pairs])
    train, heldout = (
        Data(tokens._replace(pairs=[tokens.pairs[i] for i in chosen]), Subset(source, chosen))
        for chosen in (np.flatnonzero(~held), np.flatnonzero(held))
    )
    if not train.tokens.pairs:
        raise UserError(
            f"none of the {len(pairs)} pairs is left to train on; data.heldout={one_in} holds out all of them."
        )
    say(f"{len(train.tokens.pairs)} pairs to train on, {len(heldout.tokens.pairs)} held out")
    return train, heldout


def start_channel(base: Base, config: TrainConfig, mesh: Mesh) -> tuple[Channel, ModelConfig]:
    """The channel before training, float32 and on every device, and the policy's config with it."""
    options = config.channel
    if options.start is not None:
        channel, described = load_channel(Path(options.start), base.config)
        wanted = (options.width, options.head_layers, options.head_outputs)
        if (described.width, described.head_layers, described.head_outputs) != wanted:
            found = (described.width, described.head_layers, described.head_outputs)
            raise UserError(
                f"{options.start} has (width, head layers, head outputs) = {found} and the config says {wanted}; set "
                "channel.width, channel.head_layers and channel.head_outputs to the file's."
            )
    else:
        described = ChannelConfig(
            width=options.width, head_layers=options.head_layers, head_outputs=options.head_outputs
        )
    full = dataclasses.replace(base.config, channel=described)
    if options.start is None:
        channel = init_channel(full, jax.random.key(config.seed))
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.device_put(jnp.asarray(leaf, jnp.float32), replicated), channel), full


def fingerprints(config: TrainConfig, tokens: TokenPairs) -> dict[str, str]:
    """What a run reads, by name, so that a resume can tell whether it changed."""
    found = {"training data": tokens.fingerprint()}
    if config.channel.start is not None:
        found["starting channel"] = hashlib.sha256(Path(config.channel.start).read_bytes()).hexdigest()
    return found
