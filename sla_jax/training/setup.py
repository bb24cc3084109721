"""From a config to what a run works on: the policy, what is trained of it, the examples and the source of batches."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sla_jax.checkpoint import staging, store
from sla_jax.checkpoint.channel_file import load_channel
from sla_jax.errors import UserError
from sla_jax.files import write_array
from sla_jax.model.attention import check_attention, pick_attention
from sla_jax.model.axes import param_shardings
from sla_jax.model.channel import Channel, init_channel
from sla_jax.model.config import ChannelConfig, ModelConfig, ScoreConfig
from sla_jax.model.lora import init_lora
from sla_jax.model.policy import Policy, with_channel, without_channel
from sla_jax.model.score import init_score
from sla_jax.progress import bar, say
from sla_jax.sharding import TRAIN
from sla_jax.text import load_tokenizer
from sla_jax.training import hosts, tiny
from sla_jax.training.batch import Source, TokenSource
from sla_jax.training.cache import cached_source
from sla_jax.training.config import TINY, TrainConfig
from sla_jax.training.data import load_examples
from sla_jax.training.examples import Examples
from sla_jax.training.objective import Frozen, Parts, Plan
from sla_jax.training.rank import reference_sums
from sla_jax.training.state import parts_shardings

LOGPS = "logps.npy"  # sums of log-probabilities, one an answer


class Base(NamedTuple):
    """The policy that the run starts from, without channel or head, and what belongs to it."""

    policy: Policy
    config: ModelConfig
    raw_config: dict[str, Any]
    directory: Path
    tokenizer: Any
    provenance: dict[str, Any]


def load_base(config: TrainConfig, out: Path, mesh: Mesh) -> Base:
    """The policy of `config.model` in the training layout on `mesh`; the tiny preset is made in OUT/base first."""
    directory = Path(config.model)
    if config.model == TINY:
        directory = out / "base"
        tiny.make_checkpoint(directory, config.seed)
    found = store.info(directory)
    if found.config.score is not None:
        raise UserError(
            f"{directory} is a reward model (it has a score head and no LM head); training starts from a language "
            "model. Give the checkpoint that it was made from."
        )
    dtype = "float32" if config.policy.train == "full" else config.dtype
    loaded = store.load(directory, dtype=dtype, shardings=param_shardings(found.config, mesh, TRAIN))
    bare = without_channel(loaded.config)
    policy = with_channel(loaded.policy, bare, None)
    raw = store.raw_with_channel(loaded.raw_config, None)
    return Base(policy, bare, raw, directory, load_tokenizer(directory), loaded.provenance)


def read_examples(config: TrainConfig, base: Base) -> Examples:
    """All examples as tokens; process 0 fills the cache of tokens, then the others read it."""

    def read() -> Examples:
        with bar("tokens") as tell:
            examples = load_examples(
                config.data,
                config.task,
                base.directory,
                max_positions=base.config.max_positions,
                vocabulary=base.config.vocab_size,
                seed=config.seed,
                progress=lambda done, total: tell(done, total, "rows"),
                say=say,
            )
            tell(len(examples), len(examples), "rows")
            return examples

    examples = read() if hosts.first() else None
    hosts.meet("tokens")
    return read() if examples is None else examples


def described(config: TrainConfig, base: ModelConfig) -> ModelConfig:
    """The model that comes out: the policy's config with the channel or head that is trained."""
    options = config.channel
    if config.reader == "channel":
        channel = ChannelConfig(width=options.width, head_layers=options.head_layers, head_outputs=options.head_outputs)
        return dataclasses.replace(base, channel=channel)
    if config.reader == "head":
        steps = config.task == "steps"
        return dataclasses.replace(base, score=ScoreConfig(outputs=2 if steps else 1, bias=steps))
    return base


def make_plan(config: TrainConfig, base: ModelConfig, backend: str) -> Plan:
    """The static choices; `attention: auto` becomes what suits the backend."""
    attention = config.attention
    if attention == "auto":
        attention = pick_attention(
            backend, branches=config.task == "pairs", length=config.data.max_length, head_dim=base.head_dim
        )
    check_attention(attention, backend, config.task == "pairs" and attention != "flash", base.head_dim)
    return Plan(config=config, model=described(config, base), attention=attention)


def start_parts(config: TrainConfig, base: Base, model: ModelConfig, mesh: Mesh) -> Parts:
    """What is trained, before training: float32, laid out over the mesh."""
    keys = dict(zip(("channel", "lora", "score"), jax.random.split(jax.random.key(config.seed), 3), strict=True))
    channel = None
    if config.reader == "channel":
        channel = _start_channel(config, base, model, jax.random.key(config.seed))
    parts = Parts(
        lora=init_lora(base.config, config.policy.lora, keys["lora"]) if config.policy.train == "lora" else None,
        channel=channel,
        score=init_score(model, keys["score"]) if config.reader == "head" else None,
    )
    placed = jax.device_put(jax.device_get(parts), parts_shardings(parts, mesh))
    return placed._replace(policy=base.policy if config.policy.train == "full" else None)


def _start_channel(config: TrainConfig, base: Base, model: ModelConfig, key: jax.Array) -> Channel:
    if config.channel.start is None:
        return init_channel(model, key)
    channel, found = load_channel(Path(config.channel.start), base.config)
    assert model.channel is not None
    sizes = [(c.width, c.head_layers, c.head_outputs) for c in (found, model.channel)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"{config.channel.start} has (width, head layers, head outputs) = {sizes[0]} and the config says "
            f"{sizes[1]}; set channel.width, channel.head_layers and channel.head_outputs to the file's."
        )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), channel)


def stores_features(config: TrainConfig) -> bool:
    """Whether the policy's states come out of a cache, which serves one process."""
    mode = config.features.mode
    if mode == "cache" and jax.process_count() > 1:
        raise UserError("the feature cache serves one process; on several hosts pass --features.mode recompute.")
    return mode == "cache" or (mode == "auto" and config.policy.train == "frozen" and jax.process_count() == 1)


def start_frozen(config: TrainConfig, base: Base, plan: Plan) -> Frozen:
    """What is only read; a policy that is trained as a whole is its own reference only as a copy."""
    if config.policy.train == "full":
        dtype = jnp.dtype(config.dtype)
        copy = jax.tree.map(lambda leaf: jnp.array(leaf, dtype), base.policy) if plan.reference_each_step else None
        return Frozen(reference=copy)
    return Frozen(policy=None if stores_features(config) else base.policy)


def make_source(config: TrainConfig, base: Base, plan: Plan, tokens: TokenSource, mesh: Mesh) -> Source:
    """Where the batches of all examples come from; a feature cache that does not exist is filled first."""
    if not stores_features(config):
        return tokens
    with bar("features") as tell:
        return cached_source(
            tokens, base.policy, plan, mesh, progress=lambda done, total: tell(done, total, "scored tokens")
        )


def cached_reference(
    config: TrainConfig, base: Base, plan: Plan, examples: Examples, out: Path, mesh: Mesh
) -> np.ndarray | None:
    """DPO's reference log-probs [n, A] out of OUT/reference, computed once; None where none are cached."""
    policy, folder = config.policy, out / "reference"
    if not policy.weight or policy.loss.name != "dpo" or policy.reference != "cached":
        return None
    wrong = staging.damage(folder) if hosts.first() and folder.exists() else None
    if wrong is not None:
        say(f"the reference's log-probabilities are computed anew: {wrong}")
    if hosts.agreed(int(folder.exists() and wrong is None)):
        return np.load(folder / LOGPS)
    dtype = jnp.dtype(config.dtype)
    with bar("reference") as tell:
        sums = reference_sums(
            jax.tree.map(lambda leaf: leaf.astype(dtype), base.policy),
            plan,
            TokenSource(examples, shared=plan.shared),
            mesh,
            batch_tokens=config.features.batch_tokens,
            progress=lambda done, total: tell(done, total, "examples"),
        )
    if hosts.first():
        with staging.staged(folder) as part:
            write_array(part / LOGPS, sums)
    return sums


def fingerprints(config: TrainConfig, base: Base, examples: Examples) -> dict[str, str]:
    """What a run reads, by name, so that a resume can tell whether it changed."""
    marker = (base.directory / store.MARKER).read_bytes()
    found = {"training data": examples.fingerprint(), "policy": hashlib.sha256(marker).hexdigest()}
    if config.channel.start is not None:
        found["starting channel"] = hashlib.sha256(Path(config.channel.start).read_bytes()).hexdigest()
    return found
