"""Correlations of entropy, and the other figures of a file of rows.

Tokens of one text are not independent, so beside the correlation over all tokens stands its mean over texts with the
standard error over texts; that one is also free of what only sets texts apart from each other.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sla_jax.evaluation.correlation import pearson, spearman
from sla_jax.evaluation.entropy.rows import Counted

LEAST = 3  # tokens of a text that a correlation within it is taken of


class Correlation(NamedTuple):
    """Of entropy with something else; NaN where there is none (one of them does not vary)."""

    pearson: float
    spearman: float
    within: float  # mean over texts of Spearman's within the text
    error: float  # standard error of `within`
    texts: int  # that `within` is a mean of
    tokens: int


class Figures(NamedTuple):
    """Of a file of rows. Means are over tokens; bits a byte are of all tokens over all bytes."""

    texts: int
    tokens: int
    bytes: int
    entropy: float
    loss: float
    correct: float
    entropy_bits: float  # a byte
    loss_bits: float  # a byte
    correlations: dict[str, Correlation]


def figures(rows: Iterable[Counted]) -> Figures:
    """All figures; holds 8 bytes a token and column."""
    every = list(rows)
    columns = {name: _joined([getattr(one, name) for one in every]) for name in ("entropy", "loss", "correct")}
    size, count = sum(one.bytes for one in every), columns["entropy"].size
    rewards = bool(every) and all(one.reward is not None for one in every)
    others = {"position": "position", "correctness": "correct"} | ({"reward": "reward"} if rewards else {})
    return Figures(
        texts=len(every),
        tokens=count,
        bytes=size,
        **{name: float(values.mean()) if count else math.nan for name, values in columns.items()},
        **{f"{name}_bits": _bits(columns[name], size) for name in ("entropy", "loss")},
        correlations={
            name: correlation([one.entropy for one in every], [getattr(one, column) for one in every])
            for name, column in others.items()
        },
    )


def correlation(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> Correlation:
    """Of two columns, given text by text."""
    x, y = _joined(xs), _joined(ys)
    each = [spearman(a, b) for a, b in zip(xs, ys, strict=True) if a.size >= LEAST]
    within = np.array([one for one in each if not math.isnan(one)])
    return Correlation(
        pearson=pearson(x, y),
        spearman=spearman(x, y),
        within=float(within.mean()) if within.size else math.nan,
        error=float(within.std(ddof=1) / math.sqrt(within.size)) if within.size > 1 else math.nan,
        texts=int(within.size),
        tokens=int(x.size),
    )


def table(found: Figures) -> str:
    """The figures as aligned text."""
    lines = [
        f"{found.texts:,} texts, {found.tokens:,} tokens, {found.bytes:,} bytes",
        f"entropy {found.entropy:10.4f} nats a token {found.entropy_bits:10.4f} bits a byte",
        f"loss    {found.loss:10.4f} nats a token {found.loss_bits:10.4f} bits a byte",
        f"greedy prediction right {found.correct:.4f}",
        "",
        f"{'entropy with':<14}{'Pearson':>9}{'Spearman':>10}   within a text (Spearman)",
    ]
    for name, one in found.correlations.items():
        within = (
            f"{_signed(one.within)} ± {'—' if math.isnan(one.error) else f'{one.error:.4f}'} of {one.texts:,} texts"
        )
        lines.append(f"{name:<14}{_signed(one.pearson):>9}{_signed(one.spearman):>10}   {within}")
    return "\n".join(lines)


def as_json(found: Figures) -> dict[str, Any]:
    """The figures for JSON; one that does not exist is null."""
    plain = found._asdict() | {"correlations": {name: one._asdict() for name, one in found.correlations.items()}}
    return {name: _nullable(value) for name, value in plain.items()}


def _nullable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _nullable(one) for name, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _signed(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:+.4f}"


def _joined(columns: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(columns) if columns else np.zeros(0)


def _bits(nats: np.ndarray, size: int) -> float:
    return float(nats.sum()) / math.log(2) / size if size else math.nan
