"""Which tokens come next: bias, penalties, temperature, filters and seeded Gumbel noise, for every lane at once.

Everything is per request (`Choice`), so that any mixture of requests shares one program; and behind `lax.cond`, so that
greedy requests alone pay for none of it. A draw is an argmax over logits/temperature + Gumbel noise; the n best of that
are n draws without replacement (Kool et al., arXiv 1903.06059), which is how a search samples its branches.

The noise of a draw is a function of the request's seed and of the text before it, not of the lane that reads it: a
request's answer does not depend on slots, on pruning, or on what else is being served.

Top-k and top-p need no sort: the threshold is found by 32 halvings of the float's ordered bits, exactly.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from sla_jax.decode.sampling import MAX_BIASES, Sampling

IMPOSSIBLE = -jnp.inf


class Choice(NamedTuple):
    """`Sampling` of R requests, traced. K is the room for biases."""

    temperature: Float[Array, "R"]
    top_k: Int[Array, "R"]
    top_p: Float[Array, "R"]
    min_p: Float[Array, "R"]
    seed: UInt32[Array, "R 2"]
    repetition: Float[Array, "R"]
    presence: Float[Array, "R"]
    frequency: Float[Array, "R"]
    min_tokens: Int[Array, "R"]
    bias_ids: Int[Array, "R K"]  # padded with -1
    bias: Float[Array, "R K"]
    tops: Int[Array, "R"]  # alternatives wanted beside each token; 0 for none


class Text(NamedTuple):
    """What penalties and noise depend on: the response so far, in every lane."""

    seen: Int[Array, "R V"]  # 2 × how often the committed response has the token, + 1 if the prompt has it
    recent: Int[Array, "R W T"]  # uncommitted tokens of each lane, -1 where there is none
    length: Int[Array, "R W"]
    path: UInt32[Array, "R W"]  # a hash of the response
    ends: Int[Array, "R E"]


def choices(samplings: Sequence[Sampling], tops: Sequence[int] | None = None) -> Choice:
    """Host values → arrays on the device, in one transfer."""

    def column(name: str, kind: type) -> np.ndarray:
        return np.array([getattr(s, name) for s in samplings], kind)

    words = [divmod(s.seed % 2**64, 2**32) for s in samplings]
    biases = [dict(s.logit_bias) for s in samplings]
    ids = np.full((len(samplings), MAX_BIASES), -1, np.int32)
    values = np.zeros((len(samplings), MAX_BIASES), np.float32)
    for row, bias in enumerate(biases):
        ids[row, : len(bias)] = list(bias)
        values[row, : len(bias)] = list(bias.values())
    arrays = {
        "temperature": column("temperature", np.float32),
        "top_k": column("top_k", np.int32),
        "top_p": column("top_p", np.float32),
        "min_p": column("min_p", np.float32),
        "seed": np.array(words, np.uint32).reshape(-1, 2),
        "repetition": column("repetition_penalty", np.float32),
        "presence": column("presence_penalty", np.float32),
        "frequency": column("frequency_penalty", np.float32),
        "min_tokens": column("min_tokens", np.int32),
        "bias_ids": ids,
        "bias": values,
        "tops": np.array([0] * len(samplings) if tops is None else tops, np.int32),
    }
    return Choice(**jax.device_put(arrays))


def quiet(choice: Choice, done: Bool[Array, "R"]) -> Choice:
    """The same, but requests that are done want nothing: an empty slot never costs what its last request did."""
    return choice._replace(
        temperature=jnp.where(done, 0.0, choice.temperature),
        repetition=jnp.where(done, 1.0, choice.repetition),
        presence=jnp.where(done, 0.0, choice.presence),
        frequency=jnp.where(done, 0.0, choice.frequency),
        min_tokens=jnp.where(done, 0, choice.min_tokens),
        bias_ids=jnp.where(done[:, None], -1, choice.bias_ids),
        tops=jnp.where(done, 0, choice.tops),
    )


def ranking(choice: Choice, logits: Float[Array, "R W V"], text: Text) -> Float[Array, "R W V"]:
    """Numbers whose largest is the next token (and whose n largest are n branches); IMPOSSIBLE for forbidden tokens."""
    logits = _if_any(_changes(choice), lambda x: adjusted(choice, x, text), logits)
    return _if_any(choice.temperature > 0, lambda x: drawn(choice, x, text), logits)


def adjusted(choice: Choice, logits: Float[Array, "R W V"], text: Text) -> Float[Array, "R W V"]:
    """Bias, then repetition, frequency and presence penalties, then no end token before min_tokens."""
    slots, lanes, size = logits.shape
    row, lane = jnp.arange(slots), jnp.arange(lanes)[None, :, None]
    bias = jnp.zeros((slots, size), jnp.float32).at[row[:, None], _or_drop(choice.bias_ids, size)].add(choice.bias)
    where = (row[:, None, None], lane, _or_drop(text.recent, size))
    seen = jnp.broadcast_to(text.seen[:, None], logits.shape).at[where].add(2)
    count = (seen // 2).astype(jnp.float32)

    def each(x: Array) -> Array:
        return x[:, None, None]

    x = logits + bias[:, None]
    times = each(choice.repetition)
    x = jnp.where(seen > 0, jnp.where(x > 0, x / times, x * times), x)
    x = x - each(choice.frequency) * count - each(choice.presence) * (count > 0).astype(jnp.float32)
    early = text.length < choice.min_tokens[:, None]
    ends = jnp.zeros((slots, size), bool).at[row[:, None], _or_drop(text.ends, size)].set(True)
    x = jnp.where(ends[:, None] & early[..., None], IMPOSSIBLE, x)
    return jnp.where(each(_changes(choice)), x, logits)


def drawn(choice: Choice, logits: Float[Array, "R W V"], text: Text) -> Float[Array, "R W V"]:
    """Gumbel-perturbed logits/temperature of the tokens that the filters keep; greedy requests as they were."""
    hot = choice.temperature[:, None, None] > 0
    scaled = logits / jnp.where(hot, choice.temperature[:, None, None], 1.0)
    filtered = (choice.top_k > 0) | (choice.top_p < 1) | (choice.min_p > 0)
    scaled = _if_any(filtered & hot[:, 0, 0], lambda x: jnp.where(kept(choice, x), x, IMPOSSIBLE), scaled)
    return jnp.where(hot, scaled + noise(choice.seed, text.length, text.path, logits.shape[-1]), logits)


def kept(choice: Choice, scaled: Float[Array, "R W V"]) -> Bool[Array, "R W V"]:
    """Tokens that top-k, then top-p, then min-p leave. Tokens that tie with the last one kept stay."""

    def each(x: Array) -> Array:
        return x[:, None, None]

    order = _ordered(scaled)
    best = scaled.max(axis=-1, keepdims=True)
    top_k = jnp.where(choice.top_k > 0, choice.top_k, scaled.shape[-1]).astype(jnp.float32)
    keep = order >= _threshold(order, jnp.ones_like(scaled), each(top_k))
    weight = jnp.where(keep, jnp.exp(scaled - best), 0.0)
    nucleus = order >= _threshold(order, weight, each(choice.top_p) * weight.sum(axis=-1, keepdims=True))
    keep &= nucleus | (each(choice.top_p) >= 1)
    return keep & ((scaled >= best + jnp.log(each(choice.min_p))) | (each(choice.min_p) <= 0))


def noise(
    seed: UInt32[Array, "R 2"], length: Int[Array, "R W"], path: UInt32[Array, "R W"], size: int
) -> Float[Array, "R W V"]:
    """Gumbel noise from the seed, the position and the text before it."""

    def one(seed: Array, length: Array, path: Array) -> Array:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, length), path), (size,))

    return jax.vmap(jax.vmap(one, (None, 0, 0)))(seed, length, path)


def follow(path: UInt32[Array, "*B"], token: Int[Array, "*B"]) -> UInt32[Array, "*B"]:
    """The hash of a text that goes on with `token` (FNV-1a over whole tokens)."""
    return (path ^ token.astype(jnp.uint32)) * jnp.uint32(16777619)


def _changes(choice: Choice) -> Bool[Array, "R"]:
    """Which requests have a bias, a penalty or min_tokens."""
    penalties = (choice.repetition != 1) | (choice.presence != 0) | (choice.frequency != 0)
    return penalties | (choice.min_tokens > 0) | (choice.bias_ids[:, 0] >= 0)


def _if_any(asked: Array, change: Callable[[Array], Array], x: Array) -> Array:
    return jax.lax.cond(jnp.any(asked), change, lambda x: x, x)


def _or_drop(tokens: Array, size: int) -> Array:
    """-1 becomes an index out of range, which a scatter drops."""
    return jnp.where(tokens < 0, size, tokens)


def _ordered(x: Float[Array, "*B"]) -> UInt32[Array, "*B"]:
    """Integers in the order of the floats."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(order: UInt32[Array, "R W V"], weight: Float[Array, "R W V"], target: Array) -> UInt32[Array, "R W 1"]:
    """The largest t for which the weight of all tokens at or above t reaches the target."""

    def halve(i: Array, t: Array) -> Array:
        higher = t | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        reached = jnp.where(order >= higher, weight, 0.0).sum(axis=-1, keepdims=True) >= target
        return jnp.where(reached, higher, t)

    return jax.lax.fori_loop(0, 32, halve, jnp.zeros((*order.shape[:-1], 1), jnp.uint32))
