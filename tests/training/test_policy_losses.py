"""SFT, SimPO and DPO against loops, and against the formulas of SimPO's release and TRL written in PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from sla_jax.training import losses
from sla_jax.training.loss_config import PolicyLoss
from tests.training import slow_losses
from tests.training.loss_cases import ROWS, accumulated, examples, packed, program, size, slopes, split_batches, whole

CONFIGS = [
    PolicyLoss(name="sft"),
    PolicyLoss(name="simpo", sft_weight=0.25),
    PolicyLoss(name="simpo", beta=2.0, gamma_ratio=0.5, kind="hinge"),
    PolicyLoss(name="dpo"),
    PolicyLoss(name="dpo", beta=0.5, label_smoothing=0.125, sft_weight=1.0),
    PolicyLoss(name="dpo", beta=0.25, kind="hinge"),
    PolicyLoss(name="simpo", label_smoothing=0.25),
]
every_loss = pytest.mark.parametrize("config", CONFIGS, ids=[f"{i}-{c.name}-{c.kind}" for i, c in enumerate(CONFIGS)])
BATCH = examples(5, [(3, 5), (6, 1), (2, 2), (1, 4), (4, 3)], [1.0, 0.5, 2.0, 1.0, 1.5], 1.0)


def slow_policy(config: PolicyLoss, batch) -> dict[str, float]:
    beta = config.beta or {"sft": 1.0, "simpo": 2.5, "dpo": 0.1}[config.name]
    ratio = 0.55 if config.gamma_ratio is None else config.gamma_ratio
    return slow_losses.policy_loss(
        config.name, batch, beta, ratio, config.kind, config.label_smoothing, config.sft_weight
    )


@every_loss
@settings(max_examples=40)
@given(case=split_batches())
def test_policy_losses_are_the_slow_ones_however_the_batch_is_split(config: PolicyLoss, case) -> None:
    batch, microbatches = case
    found, _ = accumulated(losses.policy_loss, "logps", config, batch=batch, microbatches=microbatches)
    expected = slow_policy(config, batch)
    assert found.keys() == expected.keys()
    # a sum of logps is a difference of numbers this large
    scale = size(batch) * max(len(answer) for e in batch for answer in e.answers)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6 * scale, err_msg=name)


@every_loss
def test_policy_gradients_are_finite_differences(config: PolicyLoss) -> None:
    _, gradient = accumulated(losses.policy_loss, "logps", config, batch=BATCH, microbatches=whole(BATCH))
    expected = slopes(BATCH, 1, lambda batch: slow_policy(config, batch)["loss"])
    assert gradient.keys() == expected.keys() and any(expected.values())
    for place, slope in expected.items():
        np.testing.assert_allclose(gradient[place], slope, rtol=1e-4, atol=1e-7, err_msg=str(place))


def torch_loss(torch, config: PolicyLoss, logps, mask, reference):
    """As the releases write it: F.logsigmoid, averages over masks, means over the batch; logps and mask [B, 2, T]."""
    functional = torch.nn.functional
    sums = (logps * mask).sum(-1)
    nll = -(logps * mask)[:, 0].sum() / mask[:, 0].sum()
    if config.name == "sft":
        return nll
    if config.name == "simpo":
        average = sums / mask.sum(-1)
        logits = average[:, 0] - average[:, 1] - (0.55 if config.gamma_ratio is None else config.gamma_ratio)
        beta = config.beta or 2.5
    else:
        ratios = sums - reference
        logits, beta = ratios[:, 0] - ratios[:, 1], config.beta or 0.1
    if config.kind == "hinge":
        each = torch.relu(1 - beta * logits)
    else:
        smooth = config.label_smoothing
        each = -functional.logsigmoid(beta * logits) * (1 - smooth) - functional.logsigmoid(-beta * logits) * smooth
    return each.mean() + config.sft_weight * nll


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_policy_losses_and_gradients_are_torchs(config: PolicyLoss, seed: int) -> None:
    torch = pytest.importorskip("torch")
    scored = packed(examples(seed, [(3, 5), (6, 1), (2, 2), (1, 4)], [1.0] * 4, 1.0), [0, 1, 2, 3])
    counts = losses.count(scored.marks, scored.weights)
    (loss, _), slope = program(losses.policy_loss, "logps", config)(scored.logps, scored, counts)
    mask = np.asarray(scored.marks) >= 0
    logps = torch.tensor(np.where(mask, scored.logps, 0.0), dtype=torch.float32, requires_grad=True)
    expected = torch_loss(torch, config, logps, torch.tensor(mask), torch.tensor(np.asarray(scored.reference)))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, logps.grad.numpy(), rtol=1e-4, atol=1e-7)


@every_loss
def test_nothing_to_count_is_zero_and_has_no_gradient(config: PolicyLoss) -> None:
    nothing = packed(BATCH, [None] * ROWS)
    counts = losses.count(nothing.marks, nothing.weights)
    (loss, metrics), slope = program(losses.policy_loss, "logps", config)(nothing.logps, nothing, counts)
    assert {float(value) for value in (loss, *metrics.values())} == {0.0}
    assert not np.any(np.asarray(slope))


def test_sft_reads_a_single_answer_as_it_reads_the_chosen_one() -> None:
    pair = packed(BATCH, [0, 1, 2, 3])
    single = pair._replace(logps=pair.logps[:, :1], marks=pair.marks[:, :1], reference=None)
    found = [losses.policy_loss(CONFIGS[0], s, losses.count(s.marks, s.weights))[0] for s in (pair, single)]
    np.testing.assert_allclose(found[0], slow_losses.sft(BATCH[:4]), rtol=1e-6)
    assert found[0] == found[1]


def test_a_policy_that_is_its_reference_has_dpo_loss_log_two() -> None:
    pair = packed(BATCH, [0, 1, 2, 3])
    sums = jnp.sum(jnp.where(pair.marks >= 0, pair.logps, 0.0), axis=-1)
    counts = losses.count(pair.marks, pair.weights)
    loss, metrics = losses.policy_loss(PolicyLoss(name="dpo"), pair._replace(reference=sums), counts)
    np.testing.assert_allclose(loss, np.log(2.0), rtol=1e-6)
    assert (float(metrics["rewards/accuracies"]), float(metrics["rewards/margins"])) == (0.5, 0.0)
