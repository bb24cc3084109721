"""A run small enough to check by hand: two sets, three methods, three judges."""

import json
from pathlib import Path
from typing import Any

from sla_jax.evaluation.rows import Answer, Judgement, Turn, as_line, judgement_line, seconds_line, seconds_path

SETTINGS = {
    "model": {"name": "toy", "fingerprint": "0123"},
    "max_tokens": 16,
    "seed": 7,
    "benchmarks": {"mt_bench": {"layout": "mt_bench"}, "gsm8k": {"layout": "gsm8k"}},
    "methods": {"greedy": {}, "best": {"options": {"n": 4, "score": "reward"}}, "steps": {}, "sla": {}},
}
# benchmark → method → scores of every prompt's turns
PROXY: dict[str, dict[str, list[Any]]] = {
    "mt_bench": {"greedy": [(0.1, 0.1), (0.4, 0.3)], "sla": [(0.2, 0.1), (0.3, 0.3)], "best": [(0.5, 0.2), (0.6, 0.7)]},
    "gsm8k": {"greedy": [(0.0,), (1.0,), (2.0,)], "sla": [(1.0,), (1.0,), (3.0,)], "best": [(2.0,), (2.0,), (4.0,)]},
}
GOLD: dict[str, dict[str, list[Any]]] = {
    "mt_bench": {"greedy": [(1.0, 2.0), (3.0, 4.0)], "sla": [(2.0, 3.0), (4.0, 5.0)], "best": [(0.0, 1.0), (2.0, 3.0)]},
    "gsm8k": {"greedy": [(0.0,), (0.0,), (1.0,)], "sla": [(1.0,), (0.0,), (0.0,)], "best": [(1.0,), (1.0,), (0.0,)]},
}
NUMBERS = (("4", "4", "5", "6"), ("7", "8", "8", "8"), ("1", "2", "3", "9"))  # four candidates a problem
REFERENCES, LEVELS = ("#### 4", "#### 7", "#### 0"), ("1", "1", "2")


def turn(text: str, scale: int, candidates: list[dict] | None = None) -> Turn:
    cost = {"lane_steps": 10 * scale, "steps": 10, "committed_tokens": 3, "seconds": 0.5 * scale}
    return Turn("What?", text, [5, 6, 7], "stop", [0.1 * scale, 0.2, 0.3], cost, candidates)


def answers(benchmark: str, method: str) -> list[Answer]:
    scale, found = {"greedy": 1, "sla": 8, "best": 4}[method], []
    for number, scores in enumerate(PROXY[benchmark][method]):
        sampled = None
        if benchmark == "gsm8k" and method == "best":
            made = zip(NUMBERS[number], (0.4, 0.3, 0.2, 0.1), strict=True)
            some = [{"text": f"It is {n}.", "score": s, "step_scores": [], "n_tokens": 3} for n, s in made]
            sampled = [one | {"finish": "stop"} for one in some]
        math = benchmark == "gsm8k"
        turns = tuple(turn(f"It is {scale}." + "!" * number, scale, sampled) for _ in scores)
        level, reference = (LEVELS[number], REFERENCES[number]) if math else (None, None)
        found.append(Answer(f"q{number}", benchmark, method, None, level, reference, turns))
    return found


def write_run(folder: Path) -> Path:
    """The run's folder."""
    _write(folder / "settings.json", json.dumps(SETTINGS))
    for benchmark, by_method in PROXY.items():
        for method in by_method:
            path = folder / "answers" / benchmark / f"{method}.jsonl"
            made = answers(benchmark, method)
            _write(path, "".join(map(as_line, made)))
            _write(seconds_path(path), "".join(map(seconds_line, made)))
    where = {"since": "2026-11-29", "cpu": "abacus", "cores": 2, "device": "cpu", "python": "3.11", "jax": "0.10"}
    _write(folder / "seconds" / "machines.jsonl", json.dumps(where) + "\n")
    for name, label, scores in (("channel", "teacher's proxy", PROXY), ("other", "independent", GOLD)):
        _write(folder / "judgements" / name / "judge.json", json.dumps({"kind": name, "label": label}))
        for benchmark, by_method in scores.items():
            for method, rows in by_method.items():
                lines = [Judgement(f"q{i}", row, sum(row) / len(row), {}) for i, row in enumerate(rows)]
                path = folder / "judgements" / name / benchmark / f"{method}.jsonl"
                _write(path, "".join(map(judgement_line, lines)))
    _write(folder / "judgements" / "llm" / "judge.json", json.dumps({"kind": "llm", "label": "language model"}))
    for method, winners in (("sla", ("method", "tie")), ("best", ("baseline", "baseline"))):
        path = folder / "judgements" / "llm" / "mt_bench" / f"{method}.vs.greedy.jsonl"
        found = [{"id": f"q{i}", "baseline": "greedy", "winner": one, "details": {}} for i, one in enumerate(winners)]
        _write(path, "".join(json.dumps(row) + "\n" for row in found))
    return folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
