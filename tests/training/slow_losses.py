"""Every objective as loops over examples and tokens, in Python floats (float64), from ALGORITHMS §1.1 and nothing else.

A batch is a list of examples; an example is its weight and its answers; an answer is a list of what its scored tokens
carry. Nothing is padded. Each function gives the loss of one big batch, and what is shown beside it.
"""

import math
from typing import NamedTuple


class Token(NamedTuple):
    """One scored token."""

    reward: float
    logp: float
    bad: float  # logits of the two-class head
    good: float
    label: int


class Slow(NamedTuple):
    """One example: its weight, its answers' tokens, and the reference policy's log p of each answer."""

    weight: float
    answers: list[list[Token]]
    reference: list[float]


def softplus(x: float) -> float:
    """log(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return math.exp(-softplus(-x))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def over_examples(batch: list[Slow], values: list[float]) -> float:
    """The mean weighted by the examples' weights."""
    total = math.fsum(example.weight for example in batch)
    return math.fsum(example.weight * value for example, value in zip(batch, values, strict=True)) / total


def over_tokens(pairs: list[tuple[float, float]]) -> float:
    """The mean of (weight, value) a token; 0 of none."""
    total = math.fsum(weight for weight, _ in pairs)
    return math.fsum(weight * value for weight, value in pairs) / total if total else 0.0


def rewards(example: Slow, side: int) -> list[float]:
    return [token.reward for token in example.answers[side]]


def win(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0


def aligned(example: Slow) -> tuple[list[float], list[float]]:
    chosen, rejected = rewards(example, 0), rewards(example, 1)
    while len(chosen) < len(rejected):
        chosen.append(chosen[-1])
    while len(rejected) < len(chosen):
        rejected.append(rejected[-1])
    return chosen, rejected


def compared(name: str, example: Slow) -> tuple[float, float]:
    """What the loss ranks the two answers by."""
    chosen, rejected = rewards(example, 0), rewards(example, 1)
    if name == "last_bt":
        return chosen[-1], rejected[-1]
    if name == "tokenwise_bt":
        chosen, rejected = aligned(example)
    if name == "seqwise_ce":
        chosen, rejected = [sigmoid(r) for r in chosen], [sigmoid(r) for r in rejected]
    return mean(chosen), mean(rejected)


def log_mean_sigmoid(values: list[float]) -> float:
    """log of the mean of σ, factoring out the largest one, which may be below what a float can hold."""
    logs = [-softplus(-value) for value in values]
    return max(logs) + math.log(mean([math.exp(log - max(logs)) for log in logs]))


def pair_reward(name: str, example: Slow, a: float, b: float) -> float:
    """The per-pair losses (all but tokenwise_ce)."""
    if name == "tokenwise_bt":
        return mean([softplus(-a * (x - y - b)) for x, y in zip(*aligned(example), strict=True)])
    if name == "seqwise_ce":
        chosen, rejected = rewards(example, 0), rewards(example, 1)
        return -0.5 * (log_mean_sigmoid(chosen) + log_mean_sigmoid([-r for r in rejected]))
    ranked = compared(name, example)
    return softplus(ranked[1] - ranked[0])


def tokenwise_ce(batch: list[Slow]) -> float:
    sides = []
    for side, sign in ((0, 1.0), (1, -1.0)):
        sides.append(over_tokens([(e.weight, softplus(-sign * r)) for e in batch for r in rewards(e, side)]))
    return 0.5 * (sides[0] + sides[1])


def coherence_mc(values: list[float], targets: list[float]) -> float:
    """`targets` are the rewards that the gradient does not reach: pass `values` but when differentiating."""
    return mean([(value - targets[-1]) ** 2 for value in values])


def coherence_td(values: list[float], targets: list[float]) -> float:
    return mean([(values[t] - targets[t + 1]) ** 2 for t in range(len(values) - 1)] or [0.0])


def reward_loss(
    name: str, batch: list[Slow], a: float, b: float, mc: float, td: float, fixed: list[Slow] | None = None
) -> dict[str, float]:
    """`fixed` holds the rewards behind stop-gradient; they are the batch's own unless a derivative is taken."""
    fixed = batch if fixed is None else fixed
    if name == "tokenwise_ce":
        main = tokenwise_ce(batch)
    else:
        main = over_examples(batch, [pair_reward(name, example, a, b) for example in batch])
    shown = {name: main}
    for part, function, weight in (("coherence_mc", coherence_mc, mc), ("coherence_td", coherence_td, td)):
        if weight:
            each = [
                mean([function(rewards(e, side), rewards(f, side)) for side in (0, 1)])
                for e, f in zip(batch, fixed, strict=True)
            ]
            shown[part] = over_examples(batch, each)
    means = [(mean(rewards(e, 0)), mean(rewards(e, 1))) for e in batch]
    return shown | {
        "loss": main + mc * shown.get("coherence_mc", 0.0) + td * shown.get("coherence_td", 0.0),
        "accuracy": over_examples(batch, [win(*compared(name, e)) for e in batch]),
        "reward_chosen": over_examples(batch, [x for x, _ in means]),
        "reward_rejected": over_examples(batch, [y for _, y in means]),
        "margin": over_examples(batch, [x - y for x, y in means]),
    }


def sft(batch: list[Slow]) -> float:
    return over_tokens([(e.weight, -token.logp) for e in batch for token in e.answers[0]])


def policy_loss(
    name: str, batch: list[Slow], beta: float, ratio: float, kind: str, smoothing: float, sft_weight: float
) -> dict[str, float]:
    if name == "sft":
        return {"loss": sft(batch), "sft": sft(batch)}
    values, shown, losses = [], [], []
    for example in batch:
        logps = [[token.logp for token in answer] for answer in example.answers]
        of = mean if name == "simpo" else math.fsum
        shown.append([of(each) for each in logps])
        subtract = [0.0, 0.0] if name == "simpo" else example.reference
        values.append([beta * (x - r) for x, r in zip(shown[-1], subtract, strict=True)])
        logit = values[-1][0] - values[-1][1] - (beta * ratio if name == "simpo" else 0.0)
        smooth = (1 - smoothing) * softplus(-logit) + smoothing * softplus(logit)
        losses.append(max(0.0, 1.0 - logit) if kind == "hinge" else smooth)
    main = over_examples(batch, losses)
    return {
        "loss": main + sft_weight * sft(batch),
        name: main,
        **({"sft": sft(batch)} if sft_weight else {}),
        "logps/chosen": over_examples(batch, [x for x, _ in shown]),
        "logps/rejected": over_examples(batch, [x for _, x in shown]),
        "rewards/chosen": over_examples(batch, [x for x, _ in values]),
        "rewards/rejected": over_examples(batch, [x for _, x in values]),
        "rewards/accuracies": over_examples(batch, [win(x, y) for x, y in values]),
        "rewards/margins": over_examples(batch, [x - y for x, y in values]),
    }


def step_loss(batch: list[Slow], classes: bool) -> dict[str, float]:
    losses, right = [], []
    for example in batch:
        for token in example.answers[0]:
            logits = (token.bad, token.good) if classes else (0.0, token.reward)
            top = max(logits)
            normalizer = top + math.log(sum(math.exp(x - top) for x in logits))
            losses.append((example.weight, normalizer - logits[token.label]))
            right.append((token.label, example.weight, win(logits[token.label], logits[1 - token.label])))
    return {
        "loss": over_tokens(losses),
        "step_loss": over_tokens(losses),
        "step_accuracy": over_tokens([(w, x) for _, w, x in right]),
        "step_accuracy_good": over_tokens([(w, x) for label, w, x in right if label == 1]),
        "step_accuracy_bad": over_tokens([(w, x) for label, w, x in right if label == 0]),
        "step_good": over_tokens([(w, float(label)) for label, w, _ in right]),
    }
