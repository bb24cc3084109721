"""Which loss trains the best reader of a frozen policy? Every loss, on two notions of quality, over several seeds.

python -m benchmarks.channels --hh FILE --alpaca FILE [--seeds 42,43,44] [--rows NAME,…] [--write-docs]

Each row is one `train.py` command, printed beside its figures (sla_jax/training/metrics.py, test-split pairs). The
interval is the standard error of the mean over seeds; that of the finite test split (about 0.022 on HH, 0.018 on
AlpacaEval pairs) comes on top and is the same pairs for every row. A complete run in --out is not repeated.
"""

import argparse
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import write_page
from sla_jax.config import parse
from sla_jax.files import read_rows
from sla_jax.loading import use_compilation_cache
from sla_jax.progress import say
from sla_jax.training.config import TrainConfig
from sla_jax.training.loop import train

CONFIGS = {"hh": "configs/train/smollm2-hh.yaml", "alpaca": "configs/train/smollm2-alpaca.yaml"}
TITLES = {"hh": "HH (human, harmless)", "alpaca": "AlpacaEval pairs (GPT-4)"}
ROWS = {
    "linear head, seqwise_bt": "--channel.weight 0 --head.weight 1",
    "linear head, last_bt": "--channel.weight 0 --head.weight 1 --loss.name last_bt",
    "seqwise_bt": "--loss.name seqwise_bt",
    "tokenwise_bt": "--loss.name tokenwise_bt",
    "tokenwise_ce": "--loss.name tokenwise_ce",
    "seqwise_ce": "--loss.name seqwise_ce",
    "last_bt": "--loss.name last_bt",
    "last_bt + coherence (mc 0.1)": "--loss.name last_bt --loss.coherence-mc 0.1",
    "last_bt + coherence (mc 0.1, td 0.1)": "--loss.name last_bt --loss.coherence-mc 0.1 --loss.coherence-td 0.1",
    "last_bt + coherence (mc 1)": "--loss.name last_bt --loss.coherence-mc 1",
    "seqwise_bt + coherence (mc 0.1)": "--loss.name seqwise_bt --loss.coherence-mc 0.1",
    "seqwise_bt, balanced lengths": "--loss.name seqwise_bt --balance-lengths",
}
SHOWN = {
    "accuracy_mean": "held-out accuracy",
    "accuracy_balanced": "length-balanced",
    "autrc": "AuTRC",
    "accuracy_25": "25 %",
    "accuracy_50": "50 %",
    "accuracy_100": "100 %",
    "accuracy_last": "last token",
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in CONFIGS:
        parser.add_argument(f"--{name}", help="its file of pairs")
    parser.add_argument("--seeds", default="42,43,44")
    parser.add_argument("--rows", default=",".join(ROWS).replace(", ", "; "), help="names, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("runs/channels"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/channels.json"))
    parser.add_argument("--write-docs", action="store_true")
    return parser.parse_args()


def command(data: str, file: str, row: str) -> list[str]:
    """The words behind `python train.py` of one row, without seed and folder."""
    return [CONFIGS[data], "--data.files", file, *shlex.split(ROWS[row])]


def figures(out: Path) -> dict[str, float] | None:
    """The last held-out figures of a complete run, None where there is none."""
    if not (out / "checkpoint" / "sla_jax.json").exists():
        return None
    last = [line for _, line in read_rows(out / "metrics.jsonl") if line["kind"] == "heldout"][-1]
    return {name: float(last[name]["value"]) for name in SHOWN}


def measure(data: str, file: str, row: str, seed: int, out: Path) -> dict[str, float]:
    """One run, or what it left the last time."""
    folder = out / data / f"{row.replace(' ', '-').replace(',', '')}-{seed}"
    found = figures(folder)
    if found is None:
        say(f"{data}: {row}, seed {seed}")
        words = [*command(data, file, row), "--seed", str(seed), "--out", str(folder)]
        train(parse(TrainConfig, words, prog="train.py", description=""))
        found = figures(folder)
    assert found is not None
    return found


def summary(runs: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean over seeds and its standard error."""
    values = {name: [run[name] for run in runs] for name in SHOWN}
    count = len(runs)
    errors = {
        name: float(np.std(v, ddof=1)) / math.sqrt(count) if count > 1 else math.nan for name, v in values.items()
    }
    return {name: (float(np.mean(v)), errors[name]) for name, v in values.items()}


def table(data: str, found: dict[str, list[dict[str, float]]], seeds: list[int]) -> str:
    """One data set's rows as Markdown."""
    lines = [f"### {TITLES[data]}, seeds {', '.join(map(str, seeds))}", ""]
    lines += [f"| trained with | {' | '.join(SHOWN.values())} |", "|---" * (len(SHOWN) + 1) + "|"]
    for row, runs in found.items():
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in summary(runs).values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += ["", "Each row, with `--seed` and `--out`, is:", "", "```"]
    lines += [f"python train.py {shlex.join(command(data, 'FILE', row))}" for row in found]
    return "\n".join([*lines, "```", ""])


def main() -> None:
    """Run what is missing, print the tables, write JSON and docs."""
    given = arguments()
    use_compilation_cache()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    rows = [row.replace("; ", ", ") for row in given.rows.split(",")]
    results: dict[str, Any] = {}
    for data in CONFIGS:
        file = getattr(given, data)
        if file is None:
            continue
        found = {row: [measure(data, file, row, seed, given.out) for seed in seeds] for row in rows}
        results[data] = {"seeds": seeds, "rows": found}
        text = table(data, found, seeds)
        print(text)
        if given.write_docs:
            write_page(Path("docs/results-training.md"), f"channels-{data}", text)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
