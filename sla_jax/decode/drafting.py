"""What a lane may say next, looked up in what its request has read: free guesses, for `speculation.py` to verify.

A request's history is its text (the prompt and what is committed) and the latest branches of its tree as they were
read, those included that were discarded later. A lane's last tokens, the one that it reads next included, are looked
for in there and in the lane's own text; the longest match wins, then the latest, text before branches. What followed it
is the guess. One that runs into the lane's end goes on from its own beginning, so that a loop is guessed whole.

Histories are right-aligned, the newest at the end, and of a fixed size; -1 stands where there is nothing and between
branches, so that no match and no guess runs across.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

LONGEST, SHORTEST = 3, 2  # tokens that a match has at most, and at least
SAID = 2048  # tokens of text that are remembered
TRIED = 1024  # tokens of branches that are, or those of one round where they are more
NOTHING = -1


class History(NamedTuple):
    """What R requests have read; both are of size 0 where nothing is guessed."""

    said: Int[Array, "R H"]  # the end of the prompt and the committed text
    tried: Int[Array, "R B C"]  # the ends of leaves at the end of a round, B of them


def begun(prompt: Int[Array, "R P"], lengths: Int[Array, "R"], *, lanes: int, held: int, draft: int) -> History:
    """The history after the prompt, of searches that hold so many uncommitted tokens in each of their lanes."""
    slots, size = len(lengths), SAID if draft else 0
    places = LONGEST + held + 1  # what comes before the first token, all that is held, what is read next, the end
    rounds = max(TRIED // (lanes * places), 1) if draft and lanes > 1 else 0
    index = jnp.arange(size)[None, :] - size + lengths[:, None]
    said = jnp.take_along_axis(prompt, jnp.maximum(index, 0), axis=1)
    tried = jnp.full((slots, rounds * lanes, places if rounds else 0), NOTHING, jnp.int32)
    return History(jnp.where(index >= 0, said, NOTHING), tried)


def told(history: History, tokens: Int[Array, "R P"], size: Int[Array, "R"]) -> History:
    """The first size[r] of these tokens have become text."""
    count = history.said.shape[1]
    if not count:
        return history
    index = jnp.arange(count)[None, :] + size[:, None]
    longer = jnp.concatenate([history.said, tokens], axis=1)
    return history._replace(said=jnp.take_along_axis(longer, index, axis=1))


def noted(history: History, texts: Int[Array, "R W N"], read: Bool[Array, "R W"]) -> History:
    """The lanes that have `read` something keep what their texts end with, in place of the oldest branches."""
    branches, places = history.tried.shape[1:]
    if not branches:
        return history
    lanes = texts.shape[1]
    rows = jnp.where(read[..., None], texts[..., texts.shape[2] - places + 1 :], NOTHING)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, 1)), constant_values=NOTHING)
    return history._replace(tried=jnp.concatenate([history.tried[:, lanes:], rows], axis=1))


def texts(
    history: History,
    tokens: Int[Array, "R W T"],
    start: Int[Array, "R W"],
    held: Int[Array, "R W"],
    following: Int[Array, "R W"],
) -> Int[Array, "R W N"]:
    """Every lane's text, right-aligned: what is committed, `held` tokens from place `start` on, what it reads next."""
    size, places = history.said.shape[1], tokens.shape[2]
    said = jnp.broadcast_to(history.said[:, None], (*tokens.shape[:2], size))
    index = jnp.arange(size + places)[None, None, :] - places + held[..., None]
    place = jnp.where(index < size, index, index + start[..., None])
    joined = jnp.take_along_axis(jnp.concatenate([said, tokens], axis=2), jnp.maximum(place, 0), axis=2)
    return jnp.concatenate([jnp.where(index >= 0, joined, NOTHING), following[..., None]], axis=2)


def guess(history: History, texts: Int[Array, "R W N"], count: int) -> tuple[Int[Array, "R W m"], Bool[Array, "R W m"]]:
    """`count` tokens that may follow each text, and which of them there are; where there is none the token is 0."""
    slots, lanes, _ = texts.shape
    tried = jnp.broadcast_to(history.tried.reshape(slots, 1, -1), (slots, lanes, history.tried[0].size))
    read = jnp.concatenate([tried, texts], axis=2)
    size = read.shape[2]
    place = jnp.arange(size)[None, None, :]
    alike, length = jnp.ones_like(read, bool), jnp.zeros_like(read)
    for back in range(LONGEST):
        token = read[..., size - 1 - back, None]
        before = jnp.pad(read, ((0, 0), (0, 0), (back, 0)), constant_values=NOTHING)[..., :size]
        alike &= (before == token) & (token != NOTHING)
        length += alike.astype(jnp.int32)
    rank = jnp.where((length >= SHORTEST) & (place < size - 1), length * size + place, NOTHING)
    best = jnp.argmax(rank, axis=2)[..., None]
    period = size - 1 - best
    index = best + 1 + jnp.arange(count)[None, None, :] % period
    guessed = jnp.take_along_axis(read, index, axis=2)
    there = jnp.take_along_axis(rank, best, axis=2) != NOTHING
    there &= jnp.cumsum(guessed == NOTHING, axis=2) == 0
    return jnp.where(there, guessed, 0), there
