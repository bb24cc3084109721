"""Random batches for the loss tests: examples as plain lists, and the same ones packed into padded microbatches."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from sla_jax.training import losses
from sla_jax.training.losses import Counts, Scored
from tests.training.slow_losses import Slow, Token

ROWS, LENGTH = 4, 6  # of every microbatch: one compiled program a loss


def examples(seed: int, lengths: list[tuple[int, ...]], weights: list[float], spread: float) -> list[Slow]:
    """Multiples of 1/64, so that sums are exact and ties are ties in float32 too."""
    random = np.random.default_rng(seed)

    def numbers(n: int, scale: float = spread) -> list[float]:
        return [float(x) for x in np.round(random.normal(size=n) * scale * 64).clip(-512 * 64, 512 * 64) / 64]

    def answer(n: int) -> list[Token]:
        labels = [int(x) for x in random.integers(0, 2, n)]
        columns = numbers(n), [-abs(x) for x in numbers(n)], numbers(n), numbers(n), labels
        return [Token(*values) for values in zip(*columns, strict=True)]

    return [
        Slow(weight, [answer(n) for n in sides], numbers(len(sides), spread * 2))
        for sides, weight in zip(lengths, weights, strict=True)
    ]


@st.composite
def batches(draw: Any, answers: int = 2) -> list[Slow]:
    """1 to 8 examples; lengths, weights and the size of the numbers (up to 512) vary."""
    sizes = st.tuples(*[st.integers(1, LENGTH)] * answers)
    lengths = draw(st.lists(sizes, min_size=1, max_size=2 * ROWS))
    weights = draw(st.lists(st.sampled_from([1.0, 0.375, 2.5]), min_size=len(lengths), max_size=len(lengths)))
    return examples(draw(st.integers(0, 2**31)), lengths, weights, draw(st.sampled_from([0.05, 1.0, 200.0])))


@st.composite
def split_batches(draw: Any, answers: int = 2) -> tuple[list[Slow], list[list[int | None]]]:
    """A batch and its microbatches: each a list of ROWS numbers of examples, None for an empty padding one."""
    batch = draw(batches(answers))
    empty = [None] * (3 * ROWS - len(batch))
    rows = draw(st.permutations([*range(len(batch)), *empty]))
    return batch, [list(rows[i : i + ROWS]) for i in range(0, 3 * ROWS, ROWS)]


def packed(batch: list[Slow], rows: list[int | None], *, classes: bool = False) -> Any:
    """One microbatch; everything behind an answer's end, and all of an empty example, is NaN."""
    answers = len(batch[0].answers)
    shape = (ROWS, answers, LENGTH)
    values = np.full((4, *shape), np.nan, np.float32)
    marks, weights = np.full(shape, -1, np.int8), np.zeros(ROWS, np.float32)
    reference = np.full((ROWS, answers), np.nan, np.float32)
    for row, number in enumerate(rows):
        if number is None:
            continue
        weights[row], reference[row] = batch[number].weight, batch[number].reference
        for side, tokens in enumerate(batch[number].answers):
            for t, token in enumerate(tokens):
                values[:, row, side, t] = token[:4]
                marks[row, side, t] = token.label
    pair = jnp.asarray(np.moveaxis(values[2:], 0, -1)) if classes else None
    fields = (jnp.asarray(values[0]), jnp.asarray(values[1]), jnp.asarray(reference), pair)
    return Scored(*fields, jnp.asarray(marks), jnp.asarray(weights))


@functools.cache
def program(loss: Callable[..., Any], field: str, *config: Any) -> Callable[..., Any]:
    """The compiled loss of (one field of Scored, Scored, Counts): ((loss, metrics), the gradient to that field)."""

    def run(values: jax.Array, scored: Scored, counts: Counts) -> Any:
        return loss(*config, scored._replace(**{field: values}), counts)

    return jax.jit(jax.value_and_grad(run, has_aux=True))


def accumulated(
    loss: Callable[..., Any], field: str, *config: Any, batch: list[Slow], microbatches: list[list[int | None]]
) -> tuple[dict[str, float], dict[tuple[int, int, int], Any]]:
    """Contributions summed over microbatches, and the gradient by (example, answer, token)."""
    scored = [packed(batch, rows, classes=field == "classes") for rows in microbatches]
    counts = counted(jnp.stack([s.marks for s in scored]), jnp.stack([s.weights for s in scored]))
    total: dict[str, float] = {}
    gradient: dict[tuple[int, int, int], Any] = {}
    for rows, each in zip(microbatches, scored, strict=True):
        (value, metrics), slope = program(loss, field, *config)(getattr(each, field), each, counts)
        for name, part in {**metrics, "loss": value}.items():
            total[name] = total.get(name, 0.0) + float(part)
        slope = np.asarray(slope)
        real = np.asarray(each.marks) >= 0
        assert not np.any(slope[~real]), "padding has a gradient"
        for row, side, t in zip(*np.nonzero(real), strict=True):
            gradient[rows[row], int(side), int(t)] = slope[row, side, t]
    return total, gradient


@jax.jit
def counted(marks: jax.Array, weights: jax.Array) -> Counts:
    return losses.count(marks, weights)


def whole(batch: list[Slow]) -> list[list[int | None]]:
    """The batch in order, over three microbatches."""
    rows: list[int | None] = [*range(len(batch)), *[None] * (3 * ROWS - len(batch))]
    return [rows[i : i + ROWS] for i in range(0, 3 * ROWS, ROWS)]


def size(batch: list[Slow]) -> float:
    """The largest number, at least 1: what a float32's relative precision is relative to."""
    return max(1.0, *(abs(x) for e in batch for answer in e.answers for token in answer for x in token))


def slopes(batch: list[Slow], field: int, value: Callable[[list[Slow]], float]) -> dict[tuple[int, int, int], float]:
    """Central differences of `value` in float64 by one number (`field`) of every token."""
    found = {}
    for i, example in enumerate(batch):
        for side, answer in enumerate(example.answers):
            for t, token in enumerate(answer):
                values = [*token[:field], token[field] + 1e-5, *token[field + 1 :]], [*token]
                values[1][field] -= 1e-5
                ends = [value(_changed(batch, i, side, t, Token(*moved))) for moved in values]
                found[i, side, t] = (ends[0] - ends[1]) / 2e-5
    return found


def _changed(batch: list[Slow], i: int, side: int, t: int, token: Token) -> list[Slow]:
    answers = [list(answer) for answer in batch[i].answers]
    answers[side][t] = token
    return [*batch[:i], batch[i]._replace(answers=answers), *batch[i + 1 :]]
