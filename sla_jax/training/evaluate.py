"""`eval.py channel`: how well a checkpoint's reward channel ranks the pairs of a file, with standard errors."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp

from sla_jax.checkpoint import store
from sla_jax.checkpoint.channel_file import load_channel
from sla_jax.errors import UserError
from sla_jax.model.axes import param_shardings
from sla_jax.model.channel import Channel
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import with_channel, without_channel
from sla_jax.sharding import TRAIN, make_mesh
from sla_jax.text import load_tokenizer
from sla_jax.training import metrics
from sla_jax.training.config import EvalConfig
from sla_jax.training.data import read_files
from sla_jax.training.display import bar, say
from sla_jax.training.features import TokenSource
from sla_jax.training.rank import jit_rewards, rank
from sla_jax.training.resume import write_text
from sla_jax.training.setup import Base, to_tokens


def evaluate_channel(config: EvalConfig) -> dict[str, metrics.Figure]:
    """Rank the pairs and return the figures; with `config.json` they are written there too. Raises UserError."""
    if not config.checkpoint or not config.data:
        raise UserError("eval.py channel needs a checkpoint directory and --data FILE …; see --help.")
    mesh = make_mesh(data=jax.device_count())
    rows = read_files(config.data, config.split, config.on_bad_row)
    for reason, count in sorted(rows.bad.items()):
        say(f"skipped {count} bad rows: {reason}")
    with jax.set_mesh(mesh):
        base, channel, model = _load(config, mesh)
        longest = config.max_length or min(base.config.max_positions, 1024)
        tokens = to_tokens(base, rows.pairs, longest, config.max_prompt_length or longest * 3 // 4)
        with bar("ranking") as tell:
            pairs = rank(
                jit_rewards(model),
                channel,
                base.policy,
                tokens,
                TokenSource(tokens),
                mesh,
                batch_tokens=config.batch_tokens,
                progress=lambda done, total: tell(done, total, "pairs"),
            )
    figures = metrics.summarize(pairs)
    if config.json is not None:
        described = {"config": dataclasses.asdict(config), "pairs": len(pairs), "figures": metrics.as_json(figures)}
        write_text(Path(config.json), json.dumps(described, indent=2) + "\n")
    return figures


def _load(config: EvalConfig, mesh: jax.sharding.Mesh) -> tuple[Base, Channel, ModelConfig]:
    directory = Path(config.checkpoint)
    found = store.info(directory)
    bare = without_channel(found.config)
    if config.channel is None and found.config.channel is None:
        raise UserError(f"the checkpoint {directory} has no reward channel; train one, or pass --channel FILE.")
    loaded = store.load(directory, dtype=config.dtype, shardings=param_shardings(found.config, mesh, TRAIN))
    if config.channel is None:
        channel, described = loaded.policy.channel, found.config.channel
    else:
        channel, described = load_channel(Path(config.channel), bare)
    channel = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), channel)
    assert channel is not None
    policy = with_channel(loaded.policy, bare, None)
    base = Base(policy, bare, loaded.raw_config, directory, load_tokenizer(directory), loaded.provenance)
    return base, channel, dataclasses.replace(bare, channel=described)
