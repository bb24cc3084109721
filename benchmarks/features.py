"""Frozen features: stored once and reused, or recomputed at every step. Prints seconds an epoch; writes JSON.

    python -m benchmarks.features CHECKPOINT --data FILE … [--pairs 128 --json FILE]

Both modes run what train.py runs (`training.loop.train`) on the same pairs, each in its own default order. An epoch's
time is the sum of its steps' `seconds` in metrics.jsonl, the first epoch (compilation) left out.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

from sla_jax.errors import front_door
from sla_jax.training.config import ChannelOptions, DataConfig, FeaturesConfig, OptimizerConfig, TrainConfig
from sla_jax.training.data import read_files
from sla_jax.training.loop import train

EPOCHS = 3


def main(argv: list[str]) -> None:
    """Measure both modes and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--json")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.checkpoint, tuple(options.data), options.split, options.pairs, Path(folder))
    print(table(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(checkpoint: str, files: tuple[str, ...], split: str, count: int, folder: Path) -> dict[str, object]:
    """Seconds an epoch of both modes, and of filling the cache, over the first `count` pairs."""
    pairs = read_files(files, split, "raise").pairs[:count]
    sample = folder / "sample.jsonl"
    sample.write_text("".join(json.dumps(pair._asdict()) + "\n" for pair in pairs), encoding="utf-8")
    result: dict[str, object] = {"pairs": len(pairs), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    for mode in ("cache", "recompute"):
        config = TrainConfig(
            model=checkpoint,
            data=DataConfig(files=(str(sample),), split=None, heldout=0, max_length=768, max_prompt_length=384),
            channel=ChannelOptions(width=64),
            optimizer=OptimizerConfig(epochs=EPOCHS, batch_size=16),
            features=FeaturesConfig(mode="cache" if mode == "cache" else "recompute", dir=str(folder / "cache")),
            out=str(folder / mode),
        )
        began = time.perf_counter()
        train(config)
        total = time.perf_counter() - began
        lines = [json.loads(line) for line in (folder / mode / "metrics.jsonl").read_text().splitlines()]
        steps = [line["seconds"] for line in lines if line["kind"] == "train"]
        later = steps[len(steps) // EPOCHS :]
        result[mode] = {"seconds_per_epoch": sum(later) / (EPOCHS - 1), "whole_run": total, "steps": sum(steps)}
    result["cache_bytes"] = sum(file.stat().st_size for file in (folder / "cache").rglob("states.bin"))
    return result


def table(result: dict[str, object]) -> str:
    """The result as text."""
    rows = [
        f"{result['pairs']} pairs, {result['machine']}",
        f"{'mode':<12}{'s/epoch':>10}{'all steps':>12}{'whole run':>12}",
    ]
    for mode in ("cache", "recompute"):
        figures = result[mode]
        assert isinstance(figures, dict)
        values = (figures["seconds_per_epoch"], figures["steps"], figures["whole_run"])
        rows.append(
            f"{mode:<12}" + "".join(f"{value:>{width}.1f}" for value, width in zip(values, (10, 12, 12), strict=True))
        )
    rows.append(f"cache on disk: {int(str(result['cache_bytes'])) / 1e6:.0f} MB")
    return "\n".join(rows)


if __name__ == "__main__":
    front_door(main)
