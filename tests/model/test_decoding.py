"""The decoding path (prefill, lanes over a shared prefix, forks, commits) gives the training forward's numbers.

A random tree is decoded: every lane reads random tokens, some fewer than a chunk, chunks fork at random, lanes are
committed at random, and at every step each lane's logits and reward are compared with a whole forward pass over its
plain list of tokens.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sla_jax.model import decoding, forward, policy
from tests import families

CHUNK, LEVELS, LANES = 3, 3, 4
PROMPTS = ([5, 9, 60, 3, 3, 17, 22, 8, 1, 40], [7, 2])
CAPACITY, LONGEST = 10 + CHUNK * LEVELS, 40


@functools.partial(jax.jit, static_argnames="config")
def whole(weights: Any, config: Any, tokens: Any) -> Any:
    """The yardstick: logits [B,T,V] and rewards [B,T] of whole rows."""
    out = forward.trunk(weights, config, tokens)
    return forward.logits(weights, out.hidden), out.reward


class Game:
    """The cache under test beside plain lists: each request's committed text, each lane's uncommitted tokens."""

    def __init__(self, name: str, seed: int) -> None:
        one = families.family(name)
        self.config, self.stacked, self.weights = one.config, one.policy, policy.unstack(one.policy)
        self.draw = np.random.default_rng(seed)
        self.text = [list(prompt) for prompt in PROMPTS]
        self.lanes: list[list[list[int]]] = [[[] for _ in range(LANES)] for _ in PROMPTS]
        self.step = jax.jit(functools.partial(decoding.step, config=one.config, chunk=CHUNK), donate_argnames="cache")
        self.ahead = jax.jit(functools.partial(decoding.read, config=one.config, chunk=CHUNK), donate_argnames="cache")
        self.read = np.zeros((len(PROMPTS), LANES), np.int32)
        self.fork = jax.jit(decoding.fork, donate_argnums=0)
        self.commit = jax.jit(functools.partial(decoding.commit, CHUNK), donate_argnums=0)

    def prefill(self) -> None:
        """Read the prompts, padded with junk."""
        padded = np.full((len(PROMPTS), 16), 33, np.int32)
        for row, prompt in zip(padded, PROMPTS, strict=True):
            row[: len(prompt)] = prompt
        lengths = jnp.asarray([len(prompt) for prompt in PROMPTS], jnp.int32)
        sizes: dict[str, Any] = {"lanes": LANES, "capacity": CAPACITY, "held": CHUNK * LEVELS}
        read = functools.partial(decoding.prefill, config=self.config, **sizes)
        logits, reward, self.cache = jax.jit(read)(self.weights, prompts=jnp.asarray(padded), lengths=lengths)
        self.compare(logits[:, None], reward[:, None], np.ones((len(PROMPTS), 1), bool))

    def begin(self) -> None:
        """Fork every lane from a random one; nothing but the committed text is behind the first ones."""
        self.go_on(self.draw.integers(0, LANES, (len(PROMPTS), LANES)))

    def go_on(self, parents: np.ndarray) -> None:
        """The lanes `parents` begin a new chunk."""
        self.lanes = [[list(lanes[p]) for p in row] for lanes, row in zip(self.lanes, parents, strict=True)]
        held = np.array([[len(lane) for lane in lanes] for lanes in self.lanes])
        read = np.take_along_axis(self.read, parents, axis=1)
        self.cache = self.fork(self.cache, *(jnp.asarray(array, jnp.int32) for array in (parents, held, read)))
        self.read[:] = 0

    def chunk(self, longest: Any) -> None:
        """Every lane reads longest[r, w] random tokens, checked one by one; who has them all reads junk along."""
        for t in range(CHUNK):
            tokens = self.draw.integers(0, self.config.vocab_size, (len(PROMPTS), LANES))
            active = np.broadcast_to(longest, self.read.shape) > t
            for row, lane in zip(*np.nonzero(active), strict=True):
                self.lanes[row][lane].append(int(tokens[row, lane]))
            self.read += active
            logits, reward, self.cache = self.step(
                self.weights, tokens=jnp.asarray(tokens, jnp.int32), t=jnp.int32(t), cache=self.cache
            )
            self.compare(logits, reward, active)

    def chunk_ahead(self, longest: np.ndarray, size: int) -> None:
        """The same, `size` tokens at once, of which the first right[r, w] are taken and the others read over."""
        while (self.read < longest).any():
            tokens = self.draw.integers(0, self.config.vocab_size, (*self.read.shape, size))
            right = np.minimum(self.draw.integers(1, size + 1, self.read.shape), longest - self.read)
            arrays = {"tokens": jnp.asarray(tokens, jnp.int32), "done": jnp.asarray(self.read)}
            logits, reward, self.cache = self.ahead(self.weights, **arrays, cache=self.cache)
            for ahead in range(size):
                active = right > ahead
                for row, lane in zip(*np.nonzero(active), strict=True):
                    self.lanes[row][lane].append(int(tokens[row, lane, ahead]))
                self.compare(logits[:, :, ahead], reward[:, :, ahead], active)
            self.read += right

    def accept(self, counts: tuple[int, int]) -> None:
        """Commit the oldest uncommitted tokens of a random lane and keep only the lanes that continue them."""
        lane = self.draw.integers(0, LANES, len(PROMPTS))
        start = [CHUNK * (LEVELS - 1) + self.read[row, one] - len(self.lanes[row][one]) for row, one in enumerate(lane)]
        moves = (jnp.asarray(array, jnp.int32) for array in (lane, start, counts))
        self.cache = self.commit(self.cache, *moves)
        for row, count in enumerate(counts):
            self.text[row] += self.lanes[row][lane[row]][:count]
            self.lanes[row] = [list(self.lanes[row][lane[row]][count:]) for _ in range(LANES)]
        self.go_on(np.broadcast_to(lane[:, None], (len(PROMPTS), LANES)))

    def compare(self, logits: Any, reward: Any, active: np.ndarray) -> None:
        """The last position of each lane that is active against a whole forward pass over its text."""
        rows = [text + lane for text, lanes in zip(self.text, self.lanes, strict=True) for lane in lanes]
        padded = np.zeros((len(rows), LONGEST), np.int32)
        for row, tokens in zip(padded, rows, strict=True):
            row[: len(tokens)] = tokens
        last = np.array([len(tokens) - 1 for tokens in rows])
        want_logits, want_reward = whole(self.stacked, self.config, jnp.asarray(padded))
        shape = (len(PROMPTS), LANES)
        logits_then = np.asarray(want_logits)[np.arange(len(rows)), last].reshape(*shape, -1)[:, : logits.shape[1]]
        reward_then = np.asarray(want_reward)[np.arange(len(rows)), last].reshape(shape)[:, : reward.shape[1]]
        close(np.asarray(logits)[active], logits_then[active])
        close(np.asarray(reward)[active], reward_then[active])


def close(left: Any, right: Any) -> None:
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_a_random_tree_gives_the_training_forwards_numbers(name: str) -> None:
    game = Game(name, seed=1)
    game.prefill()
    for longest in (CHUNK, game.draw.integers(1, CHUNK + 1, game.read.shape), CHUNK):  # the tree grows to its depth
        game.begin()
        game.chunk(longest)
    game.accept((CHUNK, CHUNK))  # its oldest chunk becomes text, and `accept` begins the next chunk
    game.chunk(game.draw.integers(0, CHUNK + 1, game.read.shape))


@pytest.mark.parametrize(("name", "size"), [("llama31", 1), ("qwen2-sliding", 2), ("mistral", 3)])
def test_several_tokens_at_once_are_those_one_by_one(name: str, size: int) -> None:
    """Every lane at its own pace, with wrong tokens behind the right ones, and past the end of the chunk."""
    game = Game(name, seed=3)
    game.prefill()
    for _ in range(LEVELS):
        game.begin()
        game.chunk_ahead(game.draw.integers(1, CHUNK + 1, game.read.shape), size)
    game.accept((CHUNK, CHUNK))
    game.chunk(CHUNK)


def test_a_commit_moves_only_what_it_says() -> None:
    """One request commits fewer tokens than a chunk (it ended there) or none at all; the other is not disturbed."""
    game = Game("mistral", seed=2)
    game.prefill()
    game.begin()
    game.chunk(CHUNK)
    before = np.asarray(game.cache.prefix[0][0]).copy()
    lengths = np.asarray(game.cache.length).copy()
    lane, start = jnp.zeros(2, jnp.int32), jnp.full(2, CHUNK * (LEVELS - 1), jnp.int32)
    after = game.commit(game.cache, lane, start, jnp.asarray([2, 0], jnp.int32))
    assert np.asarray(after.length).tolist() == [lengths[0] + 2, lengths[1]]
    kept = np.asarray(after.prefix[0][0])
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(kept[row, :, :length], before[row, :, :length])
    suffix = np.asarray(after.suffix[0][0])[0, :, 0, -CHUNK : -CHUNK + 2]
    np.testing.assert_array_equal(kept[0, :, lengths[0] : lengths[0] + 2], suffix)
