"""Toy rows of every kind for the programs under test: pairs, conversations, solutions with step labels."""

import json
import random
from pathlib import Path

from sla_jax.training.tiny import DISMISSIVE, HELPFUL, generated_pairs


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int) -> list[dict]:
    return [pair._asdict() for pair in generated_pairs(count, 0)]


def conversations(count: int) -> list[dict]:
    return [
        {"messages": [*pair.messages, {"role": "assistant", "content": pair.chosen}]}
        for pair in generated_pairs(count, 0)
    ]


def solutions(count: int) -> list[dict]:
    source = random.Random(0)
    rows = []
    for number in range(count):
        labels = [source.random() < 0.5 for _ in range(source.randint(1, 4))]
        steps = [" ".join(source.choices(HELPFUL if good else DISMISSIVE, k=3)) for good in labels]
        rows.append({"prompt": f"solve {number}", "completions": steps, "labels": labels})
    return rows
