"""A checkpoint directory → what decoding needs: parameters in the decoding layout, tokenizer, end tokens, and the seam
between models and decoders.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sla_jax.checkpoint import store
from sla_jax.checkpoint.sources import read_json
from sla_jax.decode.program import Engine
from sla_jax.decode.steps import Steps
from sla_jax.errors import UserError, shortened
from sla_jax.model import decoding
from sla_jax.model.axes import param_shardings, policy_shardings
from sla_jax.model.config import ModelConfig, read_size
from sla_jax.model.policy import Policy, unstack
from sla_jax.sharding import SERVE
from sla_jax.text import NO_VARIABLES, load_tokenizer, turn_end, with_template


class Loaded(NamedTuple):
    """A model ready to decode."""

    policy: Any  # unrolled
    config: ModelConfig
    tokenizer: Any
    end_tokens: tuple[int, ...]


def load_model(
    directory: Path,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    generates: bool = True,
    template: Mapping[str, Any] = NO_VARIABLES,
    date: str | None = None,
) -> Loaded:
    """Load a checkpoint for decoding, on the first device or laid out over `mesh` by the SERVE rules.

    Its chats are rendered with the variables `template`, as if on the day `date` (None: today). A reward model raises
    UserError unless `generates` is False: then the policy is only read, to score answers."""
    config = store.info(directory).config
    tokenizer = with_template(load_tokenizer(directory), template, date)
    if generates:
        check_generates(config)
    shardings = param_shardings(config, mesh, SERVE) if mesh is not None else None
    checkpoint = store.load(directory, dtype=dtype or default_dtype(), shardings=shardings)
    layout = None
    if mesh is not None:
        layout = policy_shardings(jax.eval_shape(unstack, checkpoint.policy), mesh, SERVE)
    policy = jax.jit(unstack, out_shardings=layout)(checkpoint.policy)
    return Loaded(policy, config, tokenizer, tuple(end_tokens(directory, tokenizer)))


def check_generates(config: ModelConfig) -> None:
    """Raise UserError for a reward model: it has no LM head."""
    if config.score is not None:
        raise UserError(
            f"this checkpoint is a reward model: it has a score head (outputs: {config.score.outputs}) and no LM head, "
            "so it scores answers and cannot generate them. Give the checkpoint of a language model; docs/training.md "
            "says what a reward model is for."
        )


def default_dtype() -> Any:
    """float32 on CPU and bfloat16 on accelerators."""
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def end_tokens(directory: Path, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: those of generation_config.json and config.json, the tokenizer's own, and the one
    with which the chat template closes an assistant's turn.

    All of them, because each alone misses one: the files of a base model name the end of a text, its fine-tuning ends
    turns. Ids outside the embedding are left out, as no model says them. Raises UserError for an unreadable file."""
    names = [name for name in ("generation_config.json", "config.json") if (directory / name).exists()]
    found = [token for name in names for token in _eos_of(directory / name, tokenizer)]
    found += [token for token in (tokenizer.eos_token_id, turn_end(tokenizer)) if token is not None]
    rows = range(read_size(read_json(directory / "config.json"), "vocab_size"))
    return [token for token in dict.fromkeys(found) if token in rows]


def _eos_of(path: Path, tokenizer: Any) -> Iterator[int]:
    """`eos_token_id` of a file: ids or added tokens by name, one or a list, null for none."""
    said = read_json(path).get("eos_token_id")
    named = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    for one in said if isinstance(said, list) else [said]:
        token = named.get(one) if isinstance(one, str) else one
        if one is not None and (not isinstance(token, int) or isinstance(token, bool)):
            raise UserError(
                f"{path}: eos_token_id is {shortened(json.dumps(said))}; expected the id of a token, a list of ids, or "
                "null. Correct the file."
            )
        if token is not None:
            yield token


def use_compilation_cache() -> None:
    """Keep compiled programs between runs: in $JAX_COMPILATION_CACHE_DIR, $SLA_JAX_CACHE or ~/.cache/sla_jax."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = Path(os.environ.get("SLA_JAX_CACHE") or Path.home() / ".cache" / "sla_jax")
    jax.config.update("jax_compilation_cache_dir", str(home / "programs"))


@functools.cache
def engine(config: ModelConfig) -> Engine:
    """Bind a model to what decoders ask of one. Raises UserError for a reward model.

    Equal configs get the same object, so that their models share what is compiled."""
    check_generates(config)

    def prefill(params: Policy, prompts: jax.Array, lengths: jax.Array, decoder: Any, capacity: int) -> Any:
        sizes = {"lanes": decoder.lanes, "capacity": capacity, "held": decoder.held}
        return decoding.prefill(params, config, prompts, lengths, **sizes)

    def steps(params: Policy, decoder: Any) -> Steps:
        return Steps(
            step=functools.partial(decoding.step, params, config, decoder.chunk),
            read=functools.partial(decoding.read, params, config, decoder.chunk),
            fork=decoding.fork,
            commit=functools.partial(decoding.commit, decoder.chunk),
            regroup=decoding.regroup,
        )

    return Engine(prefill, steps)
