"""Answers of no model, and the folder of a run that holds them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sla_jax.evaluation import rows
from sla_jax.evaluation.rows import Answer, Turn
from sla_jax.files import write_text

SETTINGS = {"format": 1, "model": {"name": "none"}, "seed": 1, "benchmarks": {}, "methods": {}}


def answer(name: str, *texts: str, **changes: Any) -> Answer:
    """An answer of one turn a text, all of which ended by themselves."""
    turns = tuple(Turn(f"Question {i} of {name}?", text, [], "stop", [], {}, None) for i, text in enumerate(texts))
    return Answer(name, "bench", "greedy", None, None, None, turns)._replace(**changes)


def write_run(out: Path, *answers: Answer, **settings: Any) -> Path:
    """OUT with these answers; those of a benchmark and a method stand in one file, in the order given."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "settings.json").write_text(json.dumps(SETTINGS | settings), encoding="utf-8")
    for path in {path_of(out, one) for one in answers}:
        lines = [rows.as_line(one) for one in answers if path_of(out, one) == path]
        write_text(path, "".join(lines))
    return out


def path_of(out: Path, one: Answer) -> Path:
    """Where an answer stands."""
    return out / "answers" / one.benchmark / f"{one.method}.jsonl"


def judged(out: Path, judge: str, name: str = "greedy", benchmark: str = "bench") -> Path:
    """Where a judge's word stands."""
    return out / "judgements" / judge / benchmark / f"{name}.jsonl"


def read(path: Path) -> Sequence[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
