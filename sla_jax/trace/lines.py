"""What a trace says, and how it is written: JSON lines, a header, a line a round, an end.

A number that was float32 is written with the fewest digits that give the same float32 back, so a trace is compact and
loses nothing. What JSON has no number for is the string NaN, Infinity or -Infinity.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from sla_jax.config import from_tree
from sla_jax.decode.cost import Cost
from sla_jax.decode.snapshot import Branch
from sla_jax.errors import UserError
from sla_jax.files import read_rows

T = TypeVar("T")
FORMAT = 1
FLOATS = ("anchor", "score", "margin", "logprobs", "rewards", "entropies", "step_scores")  # fields that were float32
SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What was asked, and of which model."""

    kind: Literal["header"] = "header"
    format: int
    sla_jax: str
    """The version that recorded it."""
    jax: str
    checkpoint: str
    """The directory's name."""
    fingerprint: str
    """Of the parameters in the type that they were used in; see `fingerprint`."""
    dtype: str
    backend: str
    method: str
    search: dict[str, Any]
    """The method's options, all of them."""
    sampling: dict[str, Any]
    scorer: str | None
    """What ranked candidates in place of the method's own score."""
    prompt: list[int]
    text: str
    """The prompt's, special tokens by name."""
    max_tokens: int
    end_tokens: list[int]
    anchor: float | None
    """The reward at the prompt's last token, of methods that grow a tree."""
    continues: bool = False
    """Whether the answer's text goes on with the prompt's; a chat's stands alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeRound:
    """A round of a method that grows a tree and commits text as it goes. Counts are of the whole search so far."""

    kind: Literal["round"] = "round"
    round: int
    tokens: list[int]
    """Committed by this round, possibly none."""
    chosen: int | None
    """The branch on the way to which they are; None if nothing was committed."""
    score: float | None
    margin: float | None
    """The score's lead over the best of the other first-level nodes; None where there was none."""
    alive: int
    steps: int
    lane_steps: int
    explored: int
    drafted: int
    accepted: int
    branches: list[Branch]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A whole answer whose fate is known."""

    candidate: int
    tokens: list[int]
    rewards: list[float]
    """None of beam search, which reads no rewards."""
    logprobs: list[float]
    finish: str
    """stop, length, or rejected: given up before it ended."""
    round: int
    """The phase after which its fate was known."""
    score: float
    step_scores: list[float]
    """Of methods that go on step by step: what `score` is made of."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolRound:
    """A round of a method that makes whole answers and chooses one at its end."""

    kind: Literal["round"] = "round"
    round: int
    phase: int
    tokens: list[int]
    """The answer, in the last round."""
    chosen: int | None
    """The candidate that it is."""
    score: float | None
    lanes: int
    alive: int
    steps: int
    lane_steps: int
    explored: int
    candidates: list[Candidate]
    """Those whose fate this round decided."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
    """How it ended."""

    kind: Literal["end"] = "end"
    finish_reason: str
    """stop or length"""
    text: str
    cost: Cost
    pieces: dict[str, str]
    """Token → its text, of every token that is in a round: who draws a trace may have no tokenizer."""


Round = TreeRound | PoolRound
Line = Header | TreeRound | PoolRound | End


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """A whole trace. Its rounds are all of one kind."""

    header: Header
    rounds: list[Round]
    end: End


def tokens_of(line: Round) -> set[int]:
    """Every token that was read in a round, or in the candidates whose fate it decided."""
    texts = line.branches if isinstance(line, TreeRound) else line.candidates
    return {token for one in texts for token in one.tokens}


def as_json(line: Line) -> str:
    """One line, without its line break."""
    return json.dumps(plain(line), ensure_ascii=False, separators=(",", ":"))


def plain(line: Line) -> dict[str, Any]:
    """A line as JSON has it."""
    return _floats(dataclasses.asdict(line), _shortest)


def read(path: Path) -> Trace:
    """Raises UserError for what is no trace, is of another version, was cut off or cannot be read, naming the line."""
    rows = ((place, _checked(row, place)) for place, row in read_rows(path, None))
    first = next(rows, None)
    if first is None:
        raise UserError(f"the trace {path} is empty; record one with `python generate.py … --trace {path}`.")
    begins, header = first
    _check_version(path, header)
    kind: type[Round] = PoolRound if header.get("anchor") is None else TreeRound
    rounds, (last, end) = list[Round](), first
    for place, row in rows:  # a line is known to be the last one when there is no other
        if end is not header:
            rounds.append(line_of(kind, end, last))
        last, end = place, row
    if end.get("kind") != "end":
        raise UserError(
            f"{last}, the last one, is a {str(end.get('kind')):.80} and not the end: the trace was cut off. The search "
            "was stopped, or the file was not copied whole."
        )
    return Trace(header=line_of(Header, header, begins), rounds=rounds, end=line_of(End, end, last))


def line_of(kind: type[T], tree: dict[str, Any], where: str) -> T:
    """A line of a kind, from what JSON has of it. Raises UserError that begins with `where`."""
    return from_tree(kind, _floats(tree, _number), where)


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: no object; a trace has one a line (docs/traces.md).")
    return row


def _check_version(path: Path, header: dict[str, Any]) -> None:
    if header.get("kind") != "header":
        raise UserError(f"{path} is no trace: its first line is not a header (docs/traces.md).")
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {header.get('format')!r} and this version reads {FORMAT}; it was recorded by sla-jax "
            f"{header.get('sla_jax')}. Record it again, or read it with that version."
        )


def _floats(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with every field of FLOATS changed."""
    if isinstance(value, dict):
        return {k: _each(v, change) if k in FLOATS else _floats(v, change) for k, v in value.items()}
    return [_floats(item, change) for item in value] if isinstance(value, list) else value


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    return [change(item) for item in value] if isinstance(value, list) else change(value)


def _shortest(value: Any) -> Any:
    """The float64 with the fewest digits that rounds to this float32; what is no number stays as it is."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return next(name for name, other in SPELLED.items() if repr(other) == repr(float(value)))
    exact = np.float32(value)
    short = float(str(exact))
    return short if np.float32(short) == exact else float(exact)


def _number(value: Any) -> Any:
    """What a float32 was written as → the float32's value."""
    value = SPELLED.get(value, value) if isinstance(value, str) else value
    with np.errstate(over="ignore"):
        return float(np.float32(value)) if isinstance(value, float) else value
