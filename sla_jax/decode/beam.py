"""Beam search for the most probable answer, with the rules of transformers' `generate(num_beams=…)`.

Each step looks at the (1 + end tokens)·W best continuations of W beams. The W best that have not ended go on; those of
the first W that have ended are kept if they are among the W best ended, by log-probability / length^length_penalty. The
search is over when no running beam can beat the worst of those any more (`early_stopping` says how hopeful that is).
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sla_jax.decode.lanes import Prompts
from sla_jax.decode.pool import Phase
from sla_jax.decode.steps import Cache, Steps
from sla_jax.errors import UserError

NEVER = -1e9  # the score of a beam that is not there


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """`beams` running answers; no rewards are needed."""

    beams: int = 4
    length_penalty: float = 1.0
    """Log-probabilities are divided by length to this power; above 0 prefers longer answers."""
    early_stopping: bool | Literal["never"] = False
    """True: stop at the first W ended. False: when the best running beam, were it to end now, is worse than all W.
    never: as False, but at the length that serves it best."""
    chunk: int = 16
    """Tokens between two reports of progress; it changes no answer."""

    def __post_init__(self) -> None:
        for name, value, high in (("beams", self.beams, 256), ("chunk", self.chunk, 512)):
            if not 1 <= value <= high:
                raise UserError(f"{name}={value} is out of range; it has to be 1 to {high}.")


class Beams(NamedTuple):
    """R requests × W beams; T is the most tokens that an answer can have."""

    cache: Cache
    logits: Float[Array, "R W V"]  # that follow each running beam
    tokens: Int[Array, "R W T"]
    logprobs: Float[Array, "R W T"]
    score: Float[Array, "R W"]  # Σ log-probabilities
    ended_tokens: Int[Array, "R W T"]  # best first
    ended_logprobs: Float[Array, "R W T"]
    ended_score: Float[Array, "R W"]  # with the length penalty; NEVER where there is none
    ended_length: Int[Array, "R W"]
    length: Int[Array, "R"]  # of the running beams
    hopeful: Bool[Array, "R"]  # a running beam can still get among the ended
    done: Bool[Array, "R"]
    limit: Int[Array, "R"]
    ends: Int[Array, "R E"]
    steps: Int[Array, "R"]


def plant(cache: Cache, logits: Float[Array, "R V"], prompts: Prompts, phase: Phase) -> Beams:
    """The state after prefill: one real beam; the others are copies of it that cannot win."""
    slots, width = len(prompts.limit), phase.lanes
    zeros = jnp.zeros((slots,), jnp.int32)
    texts = jnp.zeros((slots, width, phase.tokens), jnp.int32)
    nothing = jnp.full((slots, width), NEVER, jnp.float32)
    return Beams(
        cache=cache,
        logits=jnp.broadcast_to(logits[:, None], (slots, width, logits.shape[-1])),
        tokens=texts,
        logprobs=texts.astype(jnp.float32),
        score=nothing.at[:, 0].set(0.0),
        ended_tokens=texts,
        ended_logprobs=texts.astype(jnp.float32),
        ended_score=nothing,
        ended_length=texts[..., 0],
        length=zeros,
        hopeful=zeros == 0,
        done=zeros > 0,
        limit=prompts.limit,
        ends=prompts.ends,
        steps=zeros,
    )


def advance(steps: Steps, beams: Beams, decoder: BeamSearch) -> Beams:
    """One token more in every beam of every request that is not done."""
    width, size = decoder.beams, beams.logits.shape[-1]
    logprobs = jax.nn.log_softmax(beams.logits)
    sums = (logprobs + beams.score[..., None]).reshape(len(beams.done), -1)
    score, flat = jax.lax.top_k(sums, min(max(2, beams.ends.shape[1]) * width, width * size))
    parent, token = flat // size, (flat % size).astype(jnp.int32)
    logprob = jnp.take_along_axis(logprobs.reshape(sums.shape), flat, axis=1)
    texts = _appended(beams.tokens, parent, token, beams.length)
    own = _appended(beams.logprobs, parent, logprob, beams.length)
    length = beams.length + 1
    over = jnp.any(token[..., None] == beams.ends[:, None, :], axis=-1) | (length >= beams.limit)[:, None]
    ended = _merge(beams, decoder, over, score, texts, own, length)

    going = jax.lax.top_k(jnp.where(over, NEVER, score), width)[1]
    run = _rows(going, tokens=texts, logprobs=own, score=score, parent=parent, last=token)
    full = jnp.all(ended["ended_score"] > NEVER, axis=-1) & (decoder.early_stopping is True)
    hopeful = beams.hopeful & (_best_possible(run["score"][:, 0], length, beams, decoder) > ended["ended_score"][:, -1])
    done = beams.done | ~hopeful | full | jnp.all(over, axis=-1)

    parent = run.pop("parent")
    held = jnp.broadcast_to(beams.length[:, None], parent.shape)
    cache = steps.fork(beams.cache, parent, held, jnp.minimum(held, 1))
    logits, _, cache = steps.step(run.pop("last"), jnp.int32(0), cache)
    moved = {**run, **ended, "logits": logits, "length": length, "hopeful": hopeful, "steps": beams.steps + 1}
    kept = {name: _where(beams.done, getattr(beams, name), new) for name, new in moved.items()}
    return beams._replace(cache=cache, done=done, **kept)


def _merge(
    beams: Beams, decoder: BeamSearch, over: Array, score: Array, texts: Array, own: Array, length: Array
) -> dict[str, Array]:
    """The W best of those that had ended and those of the first W continuations that just have."""
    just = over & (jnp.arange(over.shape[1]) < decoder.beams)[None, :] & beams.hopeful[:, None]
    value = score / (length.astype(jnp.float32) ** decoder.length_penalty)[:, None]
    scores = jnp.concatenate([beams.ended_score, jnp.where(just, value, NEVER)], axis=1)
    best, index = jax.lax.top_k(scores, decoder.beams)
    lengths = jnp.concatenate([beams.ended_length, jnp.broadcast_to(length[:, None], over.shape)], axis=1)
    every = {
        "ended_tokens": jnp.concatenate([beams.ended_tokens, texts], axis=1),
        "ended_logprobs": jnp.concatenate([beams.ended_logprobs, own], axis=1),
        "ended_length": lengths,
    }
    return {**_rows(index, **every), "ended_score": best}


def _best_possible(score: Array, length: Array, beams: Beams, decoder: BeamSearch) -> Float[Array, "R"]:
    late = decoder.early_stopping == "never" and decoder.length_penalty > 0
    return score / (beams.limit if late else length).astype(jnp.float32) ** decoder.length_penalty


def _appended(buffer: Array, parent: Array, last: Array, place: Array) -> Array:
    """The texts of the parents with `last` at `place`."""
    rows = jnp.take_along_axis(buffer, parent[..., None], axis=1)
    return jnp.where(jnp.arange(buffer.shape[-1])[None, None, :] == place[:, None, None], last[..., None], rows)


def _rows(index: Array, **arrays: Array) -> dict[str, Array]:
    return {
        name: jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)
        for name, x in arrays.items()
    }


def _where(mask: Array, old: Array, new: Array) -> Array:
    return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), old, new)
