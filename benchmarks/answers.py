"""Figures of single answers, one prompt and one search at a time, kept as they come: what the comparisons are made of.

A file of answers grows line by line, so that a comparison goes on where it was stopped.
"""

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

import sla_jax
from benchmarks.loops import choose
from benchmarks.report import ROOT
from sla_jax.checkpoint import store
from sla_jax.errors import UserError
from sla_jax.evaluation.local import compilations
from sla_jax.files import append_lines, drop_cut_line, read_rows
from sla_jax.terminal import describe

SAMPLED = (sla_jax.BestOfN, sla_jax.SpeculativeRejection, sla_jax.StepBeam, sla_jax.DVTS)  # at temperature 0.8


class Found(NamedTuple):
    """One answer's figures."""

    reward: float  # mean reward of its tokens
    tokens: int
    explored: int  # tokens read by lanes that were alive
    steps: int
    lane_steps: int
    kv_bytes: int
    first_seconds: float  # to its first text
    seconds: float


def compare(options: argparse.Namespace, searches: Sequence[Any]) -> dict[Any, list[Found]]:
    """Every search's figures for every prompt; what is known already is not answered again."""
    sla_jax.use_compilation_cache()
    model = sla_jax.load(options.checkpoint)
    prompts = choose(model, options)
    directory = Path(options.checkpoint)
    about = {"max_tokens": options.max_tokens, "checkpoint": directory.name, "channel": store.info(directory).channel}
    known = Known(options.json, about)
    for search in searches:
        missing = [ids for ids in prompts if known.get(search, ids) is None]
        for ids in track(missing, description=name_of(search)):
            known.put(search, ids, measure(model, ids, search, options.max_tokens))
    return {search: [known.lines[known.key(search, ids)] for ids in prompts] for search in searches}


def measure(model: Any, ids: list[int], search: Any, max_tokens: int) -> Found:
    """One answer; once more if anything was compiled meanwhile."""
    with compilations() as seen:
        found = answered(model, ids, search, max_tokens)
    return answered(model, ids, search, max_tokens) if seen else found


def answered(model: Any, ids: list[int], search: Any, max_tokens: int) -> Found:
    """One answer's figures."""
    sampled = isinstance(search, SAMPLED)
    sampling = sla_jax.Sampling(temperature=0.8 if sampled else 0.0)
    began, first, rewards, last = time.perf_counter(), 0.0, list[float](), None
    for last in model.stream(ids, search=search, max_tokens=max_tokens, sampling=sampling):
        rewards += last.rewards
        first = first or (time.perf_counter() - began if rewards else 0.0)
    assert last is not None, "an answer has at least one chunk"
    cost, seconds = last.cost, time.perf_counter() - began
    spent = (cost.explored_tokens, cost.steps, cost.lane_steps, cost.kv_bytes)
    return Found(float(np.mean(rewards)), len(rewards), *spent, first, seconds)


class Known:
    """Figures by search and prompt."""

    def __init__(self, path: Path, about: Mapping[str, Any]):
        self.path, self.lines = path, dict[str, Found]()
        if path.exists():
            drop_cut_line(path)
            first, *rest = (row for _, row in read_rows(path, None))
            if first != about:
                raise UserError(f"{path} holds answers of another run ({first}); give another --json or delete it.")
            self.lines = {key: Found(*figures) for key, figures in rest}
        else:
            append_lines(path, [json.dumps(about) + "\n"])

    def get(self, search: Any, ids: Sequence[int]) -> Found | None:
        """What is known of an answer."""
        return self.lines.get(self.key(search, ids))

    def put(self, search: Any, ids: Sequence[int], found: Found) -> None:
        """Keep it."""
        self.lines[self.key(search, ids)] = found
        append_lines(self.path, [json.dumps([self.key(search, ids), found]) + "\n"])

    def key(self, search: Any, ids: Sequence[int]) -> str:
        """The search's name and the prompt's hash."""
        return name_of(search) + " " + hashlib.sha256(np.array(ids).tobytes()).hexdigest()[:12]


def titled(what: str, options: argparse.Namespace) -> str:
    """A table's title: what it is of, how long the answers are, and whose rewards they have."""
    rewards = store.info(Path(options.checkpoint)).channel
    return f"{what}, at most {options.max_tokens} tokens, channel {rewards}"


def name_of(search: Any) -> str:
    """`look-ahead 2/10/2, budget 4`: what is not the default stands behind the name."""
    shown = {"width", "chunk", "depth", "n"} if not isinstance(search, sla_jax.Greedy) else {"chunk"}
    plain = {field.name: field.default for field in dataclasses.fields(search)}
    knobs = [f"{k} {v}" for k, v in dataclasses.asdict(search).items() if k not in shown and v != plain[k]]
    return ", ".join([describe(search), *knobs])


def mean(found: Sequence[Found], name: str) -> float:
    """The mean of one figure over all answers."""
    return float(np.mean([getattr(one, name) for one in found]))


def per_token(found: Sequence[Found], name: str) -> float:
    """The sum of one figure over the sum of the answers' tokens."""
    return sum(getattr(one, name) for one in found) / sum(one.tokens for one in found)


def gain(found: Sequence[Found], base: Sequence[Found]) -> tuple[float, float]:
    """How much higher the mean reward is than the base's on the same prompts, and its standard error."""
    gains = np.array([one.reward - other.reward for one, other in zip(found, base, strict=True)])
    return float(gains.mean()), float(gains.std(ddof=1) / len(gains) ** 0.5) if len(gains) > 1 else 0.0


def parser(module: str, doc: str | None, *, limit: int, max_tokens: int) -> argparse.ArgumentParser:
    """The options that all comparisons have."""
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=doc)
    options.add_argument("checkpoint")
    options.add_argument("--prompts", nargs="+", required=True)
    options.add_argument("--field", help="the rows' field that holds the prompt")
    options.add_argument("--exclude", nargs="+", default=(), help="files whose prompts are not used")
    options.add_argument("--limit", type=int, default=limit)
    options.add_argument("--max-tokens", type=int, default=max_tokens)
    options.add_argument("--max-prompt-tokens", type=int, default=192)
    options.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / f"{module}.jsonl")
    options.add_argument("--write-docs", action="store_true", help="replace the table in docs/")
    return options
