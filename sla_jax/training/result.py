"""What a finished run leaves: a self-sufficient checkpoint, and the channel or the adapter on its own."""

from pathlib import Path

import jax
import jax.numpy as jnp

from sla_jax.checkpoint import staging, store
from sla_jax.checkpoint.adapter_file import save_adapter
from sla_jax.checkpoint.channel_file import save_channel
from sla_jax.model.lora import merged
from sla_jax.model.policy import Policy, with_channel, with_score
from sla_jax.progress import say
from sla_jax.training import hosts
from sla_jax.training.config import TrainConfig
from sla_jax.training.objective import Parts, Plan
from sla_jax.training.resume import CONFIG_FILE
from sla_jax.training.setup import Base

TRAINED_BY = {"trained_by": "sla-jax train.py"}


def write_result(config: TrainConfig, plan: Plan, base: Base, parts: Parts, steps: int, out: Path) -> None:
    """OUT/checkpoint, OUT/channel.safetensors and OUT/adapter; a checkpoint that is already there and whole stays."""
    small = hosts.on_host(parts._replace(policy=None))
    if small.channel is not None and hosts.first():
        save_channel(out / "channel.safetensors", small.channel, plan.model, TRAINED_BY)
    separate = config.policy.save == "separate"
    if small.lora is not None and separate and hosts.first():
        save_adapter(out / "adapter", small.lora, config.policy.lora, base.config, base=str(base.directory))
    target = out / "checkpoint"
    if hosts.agreed(int(_is_whole(target) if hosts.first() else 0)):
        return
    policy = _policy(config, base, parts)
    raw = dict(base.raw_config)
    if small.channel is not None:
        policy = with_channel(policy, plan.model, small.channel)
        raw = store.raw_with_channel(raw, plan.model.channel)
    if small.score is not None and plan.model.score is not None:
        policy = with_score(policy, plan.model, small.score)
        raw = store.raw_with_score(raw, plan.model.score)
        if raw.get("pad_token_id") is None:  # transformers' sequence classification reads no batch without one
            raw["pad_token_id"] = base.tokenizer.pad_token_id
    store.save(
        target,
        policy,
        raw,
        extras=base.directory,
        provenance={**base.provenance, "training": {**TRAINED_BY, "steps": steps, "task": config.task}},
        train_config=(out / CONFIG_FILE).read_text(encoding="utf-8"),
        overwrite=True,
    )


def _is_whole(checkpoint: Path) -> bool:
    wrong = staging.damage(checkpoint) if store.is_checkpoint(checkpoint) else None
    if wrong is not None:
        say(f"{checkpoint} is written anew: {wrong}")
    return store.is_checkpoint(checkpoint) and wrong is None


def _policy(config: TrainConfig, base: Base, parts: Parts) -> Policy:
    """The policy that the checkpoint holds, in the type in which the run computed."""
    if parts.policy is not None:
        dtype = jnp.dtype(config.dtype)
        return jax.jit(lambda policy: jax.tree.map(lambda leaf: leaf.astype(dtype), policy))(parts.policy)
    if parts.lora is not None and config.policy.save == "merged":
        return jax.jit(merged, static_argnums=2)(base.policy, parts.lora, config.policy.lora.scale)
    if parts.lora is not None:
        say("OUT/checkpoint holds the policy as it was; OUT/adapter is what was trained")
    return base.policy
