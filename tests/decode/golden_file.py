"""The golden replay: toy worlds and, round by round, what look-ahead answered in them when the file was written.

`python -m tests.decode.golden_file` writes it anew from the oracle; do so only when the algorithm itself has changed.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from tests import oracles, toys

PATH = pathlib.Path(__file__).parent / "golden" / "toys.json"
SETTINGS = ((2, 3, 2, False), (3, 2, 1, True), (1, 4, 0, False))


def write() -> None:
    """Three settings, four worlds each."""
    cases = [_case(*settings, seed) for settings in SETTINGS for seed in range(4)]
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


def read() -> list[tuple[oracles.Settings, toys.Row, oracles.Answer]]:
    """Settings, world and answer of every case."""
    return [_parse(case) for case in json.loads(PATH.read_text())]


def _case(width: int, chunk: int, depth: int, branch_first: bool, seed: int) -> dict[str, Any]:
    tables = toys.random_tables(seed, states=5, vocab=4)
    settings = oracles.Settings(
        width=width,
        chunk=chunk,
        depth=depth,
        branch_first=branch_first,
        max_tokens=13 + seed,
        end_tokens=frozenset({seed % 3}),
    )
    answer = oracles.sla(toys.plain(tables, seed), settings)
    shown = dataclasses.asdict(settings) | {"end_tokens": sorted(settings.end_tokens)}
    world = {name: array.tolist() for name, array in tables._asdict().items()}
    rounds = [round_._asdict() for round_ in answer.rounds]
    return {"settings": shown, "start": seed, "world": world, "answer": answer._asdict() | {"rounds": rounds}}


def _parse(case: dict[str, Any]) -> tuple[oracles.Settings, toys.Row, oracles.Answer]:
    shown, world, answer = case["settings"], case["world"], case["answer"]
    settings = oracles.Settings(**shown | {"end_tokens": frozenset(shown["end_tokens"])})
    tables = toys.Tables(
        np.array(world["logits"], np.float32),
        np.array(world["rewards"], np.float32),
        np.array(world["next_state"], np.int32),
    )
    row = toys.Row(tables, case["start"], settings.max_tokens, tuple(sorted(settings.end_tokens)))
    rounds = [
        oracles.Round(**round_ | {"tokens": tuple(round_["tokens"]), "rewards": tuple(round_["rewards"])})
        for round_ in answer["rounds"]
    ]
    return settings, row, oracles.Answer(tuple(answer["tokens"]), rounds, answer["finish"], answer["explored"])


if __name__ == "__main__":
    write()
