"""Reward and step losses against loops (slow_losses.py): values, gradients, splits into microbatches, bad configs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sla_jax.errors import UserError
from sla_jax.training import losses
from sla_jax.training.loss_config import PolicyLoss, RewardLoss
from sla_jax.training.losses import Counts, Scored
from tests.training import slow_losses
from tests.training.loss_cases import (
    LENGTH,
    ROWS,
    accumulated,
    examples,
    packed,
    program,
    size,
    slopes,
    split_batches,
    whole,
)

CONFIGS = [
    RewardLoss(name="seqwise_bt"),
    RewardLoss(name="tokenwise_bt", scale=1.5, shift=0.25),
    RewardLoss(name="tokenwise_ce"),
    RewardLoss(name="seqwise_ce"),
    RewardLoss(name="last_bt", coherence_mc=0.5, coherence_td=0.125),
    RewardLoss(name="seqwise_bt", coherence_td=2.0),
]
FEW = settings(max_examples=40)
names = [f"{c.name}-{c.coherence_mc}-{c.coherence_td}" for c in CONFIGS]
every_loss = pytest.mark.parametrize("config", CONFIGS, ids=names)
BATCH = examples(3, [(3, 5), (6, 1), (2, 2), (1, 4), (4, 3)], [1.0, 0.5, 2.0, 1.0, 1.5], 1.0)


def slow_reward(config: RewardLoss, batch, fixed=None) -> dict[str, float]:
    numbers = config.scale, config.shift, config.coherence_mc, config.coherence_td
    return slow_losses.reward_loss(config.name, batch, *numbers, fixed)


def rounding_ranks(config: RewardLoss, batch) -> bool:
    """Whether float32's rounding of σ may rank a pair; what the other losses compare is exact (loss_cases.examples)."""
    ranked = [slow_losses.compared(config.name, e) for e in batch]
    return config.name == "seqwise_ce" and any(abs(a - b) < 1e-5 for a, b in ranked)


def assert_same(found: dict[str, float], expected: dict[str, float], scale: float) -> None:
    """To 1e-6 of the value, or of the numbers that it is a difference of."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6 * scale, err_msg=name)


@every_loss
@FEW
@given(case=split_batches())
@example(case=(BATCH, whole(BATCH)))
def test_rewards_are_the_slow_ones_however_the_batch_is_split(config: RewardLoss, case) -> None:
    batch, microbatches = case
    found, _ = accumulated(losses.reward_loss, "rewards", config, batch=batch, microbatches=microbatches)
    expected = slow_reward(config, batch)
    if rounding_ranks(config, batch):
        found["accuracy"] = expected["accuracy"]
    assert_same(found, expected, size(batch))


@every_loss
def test_reward_gradients_are_finite_differences(config: RewardLoss) -> None:
    found, gradient = accumulated(losses.reward_loss, "rewards", config, batch=BATCH, microbatches=whole(BATCH))
    expected = slopes(BATCH, 0, lambda batch: slow_reward(config, batch, fixed=BATCH)["loss"])
    assert gradient.keys() == expected.keys() and len(expected) == 31
    for place, slope in expected.items():
        np.testing.assert_allclose(gradient[place], slope, rtol=1e-4, atol=1e-7, err_msg=str(place))


def test_coherence_moves_early_tokens_to_their_targets_and_never_the_targets() -> None:
    rewards, mask = jnp.array([[1.0, 3.0, 2.0, 9.0]]), jnp.array([[True, True, True, False]])
    towards_last = jax.grad(lambda r: losses.coherence_mc(r, mask).sum())(rewards)
    np.testing.assert_allclose(towards_last, [[2 * (1 - 2) / 3, 2 * (3 - 2) / 3, 0.0, 0.0]], rtol=1e-6)
    towards_next = jax.grad(lambda r: losses.coherence_td(r, mask).sum())(rewards)
    np.testing.assert_allclose(towards_next, [[2 * (1 - 3) / 2, 2 * (3 - 2) / 2, 0.0, 0.0]], rtol=1e-6)
    moving = slopes(BATCH, 0, lambda batch: slow_reward(CONFIGS[4], batch)["loss"])
    stopped = slopes(BATCH, 0, lambda batch: slow_reward(CONFIGS[4], batch, fixed=BATCH)["loss"])
    assert max(abs(moving[place] - stopped[place]) for place in moving) > 0.01, "the test of gradients would not see it"


@every_loss
def test_nothing_to_count_is_zero_and_has_no_gradient(config: RewardLoss) -> None:
    nothing = packed(BATCH, [None] * ROWS)
    for counts in (losses.count(nothing.marks, nothing.weights), Counts(*map(jnp.ones, ((), 2, 2)))):
        (loss, metrics), slope = program(losses.reward_loss, "rewards", config)(nothing.rewards, nothing, counts)
        assert {float(value) for value in (loss, *metrics.values())} == {0.0}
        assert not np.any(np.asarray(slope))


@every_loss
def test_an_answer_without_tokens_takes_its_example_out(config: RewardLoss) -> None:
    scored = packed(BATCH, [0, 1, None, None])
    cut = scored._replace(marks=scored.marks.at[1, 0].set(-1))
    counts = losses.count(cut.marks, cut.weights)
    (loss, _), slope = program(losses.reward_loss, "rewards", config)(cut.rewards, cut, counts)
    np.testing.assert_allclose(loss, slow_reward(config, BATCH[:1])["loss"], rtol=1e-6)
    assert np.all(np.isfinite(slope)) and not np.any(np.asarray(slope)[1])


def test_ties_count_half() -> None:
    scored = packed(BATCH, [0, 1, 2, 3])
    same = scored._replace(rewards=jnp.zeros_like(scored.rewards))
    (loss, metrics), _ = program(losses.reward_loss, "rewards", CONFIGS[0])(
        same.rewards, same, losses.count(same.marks, same.weights)
    )
    assert metrics["accuracy"] == 0.5
    np.testing.assert_allclose(loss, np.log(2.0), rtol=1e-6)


def test_counts_over_any_leading_axes() -> None:
    marks = jnp.array([[[[1, 0, -1]], [[1, 1, 1]]], [[[0, -1, -1]], [[-1, -1, -1]]]], jnp.int8)
    counts = losses.count(marks, jnp.array([[2.0, 1.0], [0.5, 4.0]]))
    assert float(counts.weight) == 3.5
    assert counts.tokens.tolist() == [2 * 2 + 3 + 0.5] and counts.labels.tolist() == [2 + 0.5, 2 + 3]
    flat = losses.count(marks.reshape(4, 1, 3), jnp.array([2.0, 1.0, 0.5, 4.0]))
    assert all(np.array_equal(a, b) for a, b in zip(counts, flat, strict=True))


# ---- steps ----


@pytest.mark.parametrize("field", ["rewards", "classes"])
@FEW
@given(case=split_batches(answers=1))
def test_steps_are_the_slow_ones_however_the_batch_is_split(field: str, case) -> None:
    batch, microbatches = case
    found, _ = accumulated(losses.step_loss, field, batch=batch, microbatches=microbatches)
    assert_same(found, slow_losses.step_loss(batch, field == "classes"), size(batch))


def test_step_gradients_are_finite_differences() -> None:
    batch = examples(8, [(3,), (6,), (1,), (4,), (2,)], [1.0, 0.5, 2.0, 1.0, 1.5], 1.0)
    _, rewards = accumulated(losses.step_loss, "rewards", batch=batch, microbatches=whole(batch))
    _, classes = accumulated(losses.step_loss, "classes", batch=batch, microbatches=whole(batch))
    expected = [slopes(batch, 0, lambda b: slow_losses.step_loss(b, False)["loss"])]
    expected += [slopes(batch, field, lambda b: slow_losses.step_loss(b, True)["loss"]) for field in (2, 3)]
    assert rewards.keys() == expected[0].keys() and len(rewards) == 16
    for place in rewards:
        np.testing.assert_allclose(rewards[place], expected[0][place], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(classes[place], [e[place] for e in expected[1:]], rtol=1e-4, atol=1e-7)


def test_step_classes_are_torch_cross_entropy() -> None:
    torch = pytest.importorskip("torch")
    scored = packed(examples(8, [(3,), (6,), (1,), (4,)], [1.0] * 4, 1.0), [0, 1, 2, 3], classes=True)
    counts = losses.count(scored.marks, scored.weights)
    (loss, metrics), slope = program(losses.step_loss, "classes")(scored.classes, scored, counts)
    real = np.asarray(scored.marks) >= 0
    logits = torch.tensor(np.asarray(scored.classes)[real], requires_grad=True)
    labels = torch.tensor(np.asarray(scored.marks)[real].astype(np.int64))
    expected = torch.nn.functional.cross_entropy(logits, labels)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(slope)[real], logits.grad.numpy(), rtol=1e-4, atol=1e-7)
    assert float(metrics["step_accuracy"]) == pytest.approx((logits.argmax(-1) == labels).float().mean().item())


def test_a_label_that_no_token_has_makes_no_nan() -> None:
    shape = (ROWS, 1, LENGTH)
    marks = jnp.ones(shape, jnp.int8)
    scored = Scored(jnp.ones(shape), None, None, None, marks, jnp.ones(ROWS))
    _, metrics = losses.step_loss(scored, losses.count(marks, scored.weights))
    assert (float(metrics["step_accuracy_bad"]), float(metrics["step_accuracy_good"])) == (0.0, 1.0)


# ---- configs ----


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (
            RewardLoss,
            {"scale": 2.0},
            "scale=2.0 and shift=0.0 .* seqwise_bt, which has neither; they belong to tokenwise",
        ),
        (RewardLoss, {"name": "tokenwise_bt", "scale": 0.0}, "scale=0.0 of the reward loss must be above 0"),
        (RewardLoss, {"name": "tokenwise_bt", "shift": float("nan")}, "shift=nan .* must be a finite number"),
        (RewardLoss, {"coherence_mc": -0.1}, "coherence_mc=-0.1 of the reward loss must be at least 0"),
        (RewardLoss, {"coherence_td": float("inf")}, "coherence_td=inf of the reward loss must be at least 0"),
        (PolicyLoss, {"beta": 0.1}, "beta=0.1 was given to the policy loss sft, which has none"),
        (PolicyLoss, {"kind": "hinge"}, "kind=hinge was given to the policy loss sft"),
        (PolicyLoss, {"sft_weight": 1.0}, "sft_weight=1.0 was given to the policy loss sft"),
        (PolicyLoss, {"name": "dpo", "gamma_ratio": 0.0}, "gamma_ratio=0.0 was given to the policy loss dpo"),
        (PolicyLoss, {"name": "dpo", "beta": 0.0}, "beta=0.0 of the policy loss must be above 0"),
        (PolicyLoss, {"name": "simpo", "gamma_ratio": -1.0}, "gamma_ratio=-1.0 .* must be at least 0"),
        (PolicyLoss, {"name": "dpo", "label_smoothing": 0.5}, "label_smoothing=0.5 .* at least 0 and below 0.5"),
        (
            PolicyLoss,
            {"name": "dpo", "kind": "hinge", "label_smoothing": 0.1},
            "policy loss dpo with kind=hinge, which",
        ),
        (PolicyLoss, {"name": "simpo", "sft_weight": -1.0}, "sft_weight=-1.0 .* must be at least 0"),
    ],
)
def test_losses_refuse_what_makes_no_sense(kind, options, said: str) -> None:
    with pytest.raises(UserError, match=said):
        kind(**options)


@given(st.sampled_from(["simpo", "dpo"]), st.floats(0.01, 10.0))
def test_defaults_follow_the_name(name, beta: float) -> None:
    default = {"simpo": (2.5, 0.55), "dpo": (0.1, 0.0)}[name]
    assert (PolicyLoss(name=name).strength, PolicyLoss(name=name).margin) == default
    assert PolicyLoss(name=name, beta=beta).strength == beta
