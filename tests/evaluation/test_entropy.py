"""Entropies, losses and predictions: what a slow PyTorch version and plain float64 say, whatever the chunks, the
windows and the model's type.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.errors import UserError
from sla_jax.evaluation.entropy import device
from sla_jax.evaluation.entropy.reader import Reading, TextReader, windows
from sla_jax.loading import Loaded
from sla_jax.model import forward
from sla_jax.model.policy import init_policy
from tests import families, torch_reference

TOKENS = np.random.default_rng(1).integers(0, families.SIZES["vocab_size"], (2, 70)).astype(np.int32)
LOOK = jax.jit(device.look, static_argnames="tops")
LENGTHS = (0, 1, 2, 30, 64, 65, 150)  # of texts that are read in windows of 64


def look(logits: Any, target: int = 0, tops: int = 1) -> device.Looks:
    return LOOK(jnp.asarray(logits, jnp.float32)[None], jnp.array([target]), tops=tops)


def slow(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(entropies, log-probabilities) in float64, by the definition."""
    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    logprobs = wide - top - np.log(np.exp(wide - top).sum(-1, keepdims=True))
    return -(np.exp(logprobs) * np.where(np.isinf(logprobs), 0.0, logprobs)).sum(-1), logprobs


# ---- one row of logits ----


@pytest.mark.parametrize("size", [2, 61, 49152])
def test_uniform_is_ln_v(size: int) -> None:
    found = look(np.full(size, -3.5))
    assert float(found.entropy[0]) == pytest.approx(math.log(size), rel=1e-6)
    assert float(found.loss[0]) == pytest.approx(math.log(size), rel=1e-6)
    assert int(found.ids[0, 0]) == 0, "ties go to the lower id"


@pytest.mark.parametrize("rest", [-1e4, -np.inf])
def test_one_hot_is_zero(rest: float) -> None:
    logits = np.full(61, rest)
    logits[7] = 2.0
    found = look(logits, target=7)
    assert float(found.entropy[0]) == 0.0 and float(found.loss[0]) == 0.0 and int(found.ids[0, 0]) == 7


def test_tokens_that_cannot_come_add_nothing() -> None:
    logits = np.full(61, -np.inf)
    logits[[3, 9, 40, 41]] = 1.0
    found = look(logits, target=9, tops=5)
    assert float(found.entropy[0]) == pytest.approx(math.log(4), rel=1e-6)
    assert float(found.loss[0]) == pytest.approx(math.log(4), rel=1e-6)
    assert found.ids[0, :4].tolist() == [3, 9, 40, 41]
    assert np.exp(found.logprobs[0]).tolist() == pytest.approx([0.25] * 4 + [0.0])


@given(st.lists(st.one_of(st.floats(-80, 80, width=32), st.just(-math.inf)), min_size=8, max_size=8))
def test_equal_to_the_definition(logits: list[float]) -> None:
    if max(logits) == -math.inf:
        logits[0] = 0.0
    entropy, logprobs = slow(np.array(logits))
    found = look(logits, target=int(np.argmax(logits)), tops=3)
    assert float(found.entropy[0]) == pytest.approx(float(entropy), abs=2e-5)
    assert float(found.loss[0]) == pytest.approx(-float(logprobs.max()), abs=2e-5)
    assert found.logprobs[0].tolist() == pytest.approx(np.sort(logprobs)[::-1][:3].tolist(), abs=2e-5)


# ---- a model ----


@pytest.mark.parametrize("family", ["llama31", "qwen2", "mistral"])
def test_equal_to_pytorch(family: str) -> None:
    one = families.family(family)
    found = device.read(one.policy, TOKENS, config=one.config, tops=5, chunk=32)
    raw, rewards = torch_reference.logits_and_rewards(one.model, one.channel, torch.tensor(TOKENS).long())
    logits, targets = torch.tensor(raw[:, :-1]), torch.tensor(TOKENS[:, 1:]).long()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    top = torch.log_softmax(logits, -1).topk(5)
    np.testing.assert_allclose(found.looks.entropy, entropy, rtol=0, atol=2e-4)
    np.testing.assert_allclose(found.looks.loss, loss.reshape(targets.shape), rtol=0, atol=2e-4)
    np.testing.assert_allclose(found.looks.logprobs, top.values, rtol=0, atol=2e-4)
    clear = (top.values[..., :-1] - top.values[..., 1:]).numpy() > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(np.asarray(found.looks.ids)[..., :-1][clear], top.indices.numpy()[..., :-1][clear])
    assert found.reward is not None
    np.testing.assert_allclose(found.reward, rewards, rtol=0, atol=2e-4)


@pytest.mark.parametrize("chunk", [1, 7, 138, 1000])  # 138 positions
def test_the_chunk_changes_nothing(chunk: int) -> None:
    one = families.family("llama31")
    want = device.read(one.policy, TOKENS, config=one.config, tops=3, chunk=32).looks
    found = device.read(one.policy, TOKENS, config=one.config, tops=3, chunk=chunk).looks
    np.testing.assert_array_equal(found.ids, want.ids)
    for name in ("entropy", "loss", "logprobs"):
        np.testing.assert_allclose(getattr(found, name), getattr(want, name), rtol=0, atol=5e-6)


def test_all_logits_are_never_alive() -> None:
    """1,024 positions × 4,096 words would be 17 MB of logits."""
    config = dataclasses.replace(families.family("llama31").config, vocab_size=4096)
    weights = jax.eval_shape(lambda key: init_policy(config, key), jax.random.key(0))
    hidden = jax.ShapeDtypeStruct((1, 1024, config.width), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, 1024), jnp.int32)

    def temporary(chunk: int) -> int:
        looked = jax.jit(functools.partial(device.look_in_chunks, tops=5, chunk=chunk))
        compiled: Any = looked.lower(weights, hidden, targets).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    assert temporary(1024) > 1024 * 4096 * 4 > 5 * temporary(32)


def test_of_a_bfloat16_model_the_numbers_are_float32() -> None:
    one = families.family("qwen2")
    half: Any = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), one.policy)
    found = device.read(half, TOKENS, config=one.config, tops=2, chunk=64)
    hidden = jax.jit(lambda policy, tokens: forward.trunk(policy, one.config, tokens).hidden)(half, TOKENS)
    entropy, logprobs = slow(np.asarray(forward.logits(half, hidden[:, :-1])))
    assert hidden.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in (found.looks.entropy, found.looks.loss, found.looks.logprobs)} == {"float32"}
    np.testing.assert_allclose(found.looks.entropy, entropy, rtol=0, atol=1e-4)
    loss = -np.take_along_axis(logprobs, TOKENS[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(found.looks.loss, loss, rtol=0, atol=1e-4)


# ---- texts of any length ----


@given(st.integers(0, 400), st.integers(2, 40), st.data())
def test_windows_look_at_every_token_once_with_context(count: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, size - 1))
    found = windows(count, size, overlap)
    assert [new for one in found for new in range(one.new, one.end)] == list(range(count))
    for one in found:
        assert 0 <= one.start <= one.new < one.end and one.end - one.start == min(size, count)
        assert one.new == 0 or one.new - one.start >= overlap


def reader(**options: Any) -> TextReader:
    one = families.family("llama31")
    return TextReader(Loaded(one.policy, one.config, None, ()), **options)


def texts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, families.SIZES["vocab_size"], length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def readings() -> list[Reading]:
    return reader(window=64, overlap=16, tops=2, batch_tokens=256).read(texts())


@pytest.mark.parametrize("number", range(len(LENGTHS)))
def test_a_text_is_read_as_its_windows_alone(readings: list[Reading], number: int) -> None:
    one, ids, found = families.family("llama31"), texts()[number], readings[number]
    assert found.rewards is not None and len(found.entropy) == len(found.rewards) == len(ids)
    for window in windows(len(ids), 64, 16):
        padded = np.zeros((4, 64), np.int32)
        padded[2, : window.end - window.start] = ids[window.start : window.end]
        said = device.read(one.policy, padded, config=one.config, tops=2, chunk=256)
        assert said.reward is not None
        for token in range(window.new, window.end):
            here = token - window.start
            assert found.rewards[token] == pytest.approx(float(said.reward[2, here]), abs=1e-5)
            if token == 0:
                assert math.isnan(found.entropy[0]) and math.isnan(found.loss[0]), "nothing says it before it comes"
                continue
            assert found.entropy[token] == pytest.approx(float(said.looks.entropy[2, here - 1]), abs=1e-5)
            assert found.loss[token] == pytest.approx(float(said.looks.loss[2, here - 1]), abs=1e-5)
            assert found.ids[token].tolist() == said.looks.ids[2, here - 1].tolist()


def test_the_same_texts_give_the_same_bits(readings: list[Reading]) -> None:
    again = reader(window=64, overlap=16, tops=2, batch_tokens=256).read(texts())
    for one, two in zip(readings, again, strict=True):
        for left, right in zip(one, two, strict=True):
            assert left is not None and right is not None and left.tobytes() == right.tobytes()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 512}, "window=512 tokens; it has to be 2 or more, and the context holds 256"),
        ({"window": 1}, "window=1 tokens"),
        ({"window": 64, "overlap": 64}, "overlap=64 tokens of a window of 64"),
        ({"overlap": 0}, "overlap=0 tokens of a window of 256"),
    ],
)
def test_windows_that_cannot_be_are_refused(options: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        reader(**options)
